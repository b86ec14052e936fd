//! Those who decide about calls of tools, several about each: the first word wins.

use std::{sync::Arc, time::Duration};

use raddle_domain::record::{Decision, Resolution};

use super::{
    dice::Dice,
    world::{Answer, Who, World},
};

/// How long somebody rests who finds nothing to decide.
const REST: Duration = Duration::from_millis(30);

/// Decides, until it is told to go.
pub async fn decider(world: Arc<World>, who: Arc<Who>, mut dice: Dice) {
    let pending = [("status", "pending".to_owned()), ("limit", "50".to_owned())];
    let uncertain = [("status", "uncertain".to_owned()), ("limit", "50".to_owned())];
    loop {
        let query = &pending[..];
        let found = world.ask(&who, "approvals", true, |client| async move { client.approvals(query).await }).await;
        let waiting = match found {
            Answer::Done(page) => page.data,
            Answer::Refused(_) | Answer::Unknown => Vec::new(),
        };
        let chosen = dice.pick(&waiting).map(|approval| approval.id.to_string());
        match &chosen {
            Some(approval) => decide(&world, &who, &mut dice, approval).await,
            None => tokio::time::sleep(REST).await,
        }
        let query = &uncertain[..];
        let found = world.ask(&who, "effects", true, |client| async move { client.effects(query).await }).await;
        if let Answer::Done(page) = found
            && let Some(effect) = dice.pick(&page.data)
        {
            resolve(&world, &who, &effect.operation_id.to_string()).await;
        }
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
