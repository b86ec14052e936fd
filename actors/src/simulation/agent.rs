//! An agent that works on a task of a run, as somebody far away does: who says where he works, takes a task, says now and
//! then that he is still there, and parts from it – or does not come back in time.

use std::{rc::Rc, time::Duration};

use raddle_domain::run::{
    Run,
    command::{Action, Claim, Transition, ValidateLease},
};
use tokio::time::sleep;

use super::{
    client::{Outside, Request, answered},
    plan::{Move, Parting, Verb},
    witness::Told,
};
use crate::Runtime;

/// The words of one agent have numbers of their own, so that each has its key.
const WORDS: u32 = 10_000;

/// Works, once.
pub(crate) async fn work(outside: Rc<Outside>, step: Move) {
    let Verb::Work { run, path, rebinds, lease_ms, beats, pause_ms, parting } = step.verb else { return };
    let (number, agent) = (step.number, format!("agent-{}", step.number));
    let Some(key) = outside.run(run) else {
        return outside.world.note(format_args!("move {number:<4} has no run to work on"));
    };
    let mut words = (1..).map(|nth| Move { number: number + nth * WORDS, ..step.clone() });
    let mut next = || words.next().expect("there is always another number");
    let Some(id) = key.thread.of_run() else { return };
    let seen = outside.call(async move |runtime: Runtime| runtime.run(key.tenant, id).await).await;
    let Some(Ok(Run { workspace, .. })) = seen else { return };
    // Most go where the others are.
    let goes = rebinds || workspace.canonical_path.is_empty();
    let lease = ValidateLease {
        current_path: if goes { format!("/project/{path}") } else { workspace.canonical_path },
        rebind: rebinds,
        lease_epoch: Some(workspace.lease_epoch),
        ..ValidateLease::default()
    };
    let Some(bound) = answered(&outside, &next(), &Request::Bind(key, lease)).await else { return };
    let Told::Epoch(epoch) = bound.told else { return };
    let claim = Claim { agent_id: agent, lease_ms: Some(lease_ms), lease_epoch: Some(epoch), ..Claim::default() };
    let Some(claimed) = answered(&outside, &next(), &Request::Claim(key, claim)).await else { return };
    let Told::Lease { task, token, fence } = claimed.told else { return };
    let word = |action| Transition {
        lease_token: Some(token.clone()),
        lease_ms: Some(lease_ms),
        ..Transition::new(task.clone(), action)
    };
    for _ in 0..beats {
        sleep(Duration::from_millis(pause_ms)).await;
        // One that is not heard goes on all the same, and may be late with its last word.
        answered(&outside, &next(), &Request::Say(key, word(Action::Heartbeat), fence)).await;
    }
    sleep(Duration::from_millis(pause_ms)).await;
    let action = match parting {
        Parting::Completes => Action::Complete,
        Parting::Fails => Action::Fail,
        Parting::Releases => Action::Release,
        Parting::Vanishes => return,
    };
    answered(&outside, &next(), &Request::Say(key, word(action), fence)).await;
}
