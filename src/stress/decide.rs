//! Those who decide about calls of tools, several about each: the first word wins.

use std::{sync::Arc, time::Duration};

use raddle_domain::{
    id::ThreadId,
    record::{Decision, Resolution},
};

use super::{
    dice::Dice,
    world::{Answer, Who, World},
};
use crate::client::Page;

/// How long somebody rests who finds nothing to decide.
const REST: Duration = Duration::from_millis(30);

/// Decides, until it is told to go. A tenant may have calls that wait for somebody else: of what is found only that
/// counts which belongs to a thread of the journal.
pub async fn decider(world: Arc<World>, who: Arc<Who>, mut dice: Dice) {
    let (mut pending, mut uncertain) = (Place::new("pending"), Place::new("uncertain"));
    loop {
        let query = &pending.query()[..];
        let found = world.ask(&who, "approvals", true, |client| async move { client.approvals(query).await }).await;
        let waiting = ours(&world, pending.turn(found), |approval| &approval.thread_id);
        match dice.pick(&waiting) {
            Some(approval) => decide(&world, &who, &mut dice, &approval.id.to_string()).await,
            None => tokio::time::sleep(REST).await,
        }
        let query = &uncertain.query()[..];
        let found = world.ask(&who, "effects", true, |client| async move { client.effects(query).await }).await;
        let lost = ours(&world, uncertain.turn(found), |effect| &effect.thread_id);
        if let Some(effect) = dice.pick(&lost) {
            resolve(&world, &who, &effect.operation_id.to_string()).await;
        }
    }
}

/// What of it belongs to threads that this run made.
fn ours<T>(world: &World, all: Vec<T>, thread: impl Fn(&T) -> &ThreadId) -> Vec<T> {
    all.into_iter().filter(|one| world.journal.knows(&thread(one).to_string())).collect()
}

/// A place in a list that is gone through page by page, again and again: ours may stand behind many others.
struct Place {
    status: &'static str,
    cursor: Option<String>,
}

impl Place {
    const fn new(status: &'static str) -> Self {
        Self { status, cursor: None }
    }

    fn query(&self) -> Vec<(&'static str, String)> {
        let cursor = self.cursor.iter().map(|cursor| ("cursor", cursor.clone()));
        [("status", self.status.to_owned()), ("limit", "50".to_owned())].into_iter().chain(cursor).collect()
    }

    /// Goes on to the next page. What is on this one.
    fn turn<T>(&mut self, found: Answer<Page<T>>) -> Vec<T> {
        let (data, cursor) = match found {
            Answer::Done(page) => (page.data, page.next_cursor),
            Answer::Refused(_) | Answer::Unknown => (Vec::new(), None),
        };
        self.cursor = cursor;
        data
    }
}

async fn decide(world: &World, who: &Who, dice: &mut Dice, approval: &str) {
    let decision = if dice.below(4) == 0 { Decision::Denied } else { Decision::Approved };
    let answer =
        world.ask(who, "decide", false, |client| async move { client.decide(approval, decision, None).await }).await;
    if let Answer::Done(approval) = answer {
        world.journal.decided(&approval.id.to_string(), format!("{decision:?}").to_lowercase());
    }
}

/// Of an effect that nobody knows of whether it happened: that it did. Doing it again would be a person's word, and is
/// never given here, so that one which happened twice is a fault.
async fn resolve(world: &World, who: &Who, operation: &str) {
    drop(
        world
            .ask(who, "resolve", false, |client| async move {
                client.resolve(operation, Resolution::Settle, Some("it happened, for all we know")).await
            })
            .await,
    );
}
