//! Kills the server, at instants that the seed chooses, and starts another on the same data.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    StressError,
    dice::Dice,
    server::Child,
    world::{Who, World},
};
use crate::client::{Client, NewThread, PatchThread};

/// How long a server lives at least: one that is dead before it has done anything shows nothing.
const LIFE: Duration = Duration::from_millis(150);
/// How long the first command after a start is waited for.
const RECOVERY: Duration = Duration::from_secs(60);

/// Kills it as often as it is planned, spread over the time until `until`, and longer where that is too short. What a
/// recovery lasts is from the signal to the first command that is acknowledged.
pub async fn kills(
    world: &World,
    child: &mut Child,
    who: &Who,
    mut dice: Dice,
    until: Instant,
) -> Result<(), StressError> {
    let kills = world.plan.kills;
    if kills == 0 {
        return Ok(());
    }
    let new = &NewThread::default();
    let made = world.read(who, |client| async move { client.create_thread(new).await });
    let probe = tokio::select! {
        made = made => made?.id.to_string(),
        gone = child.gone() => return Err(gone),
    };
    let began = Instant::now();
    let span = until.saturating_duration_since(began);
    // No two in the same stretch of time, and none so late that nothing would follow.
    let instant = |kill: u32, dice: &mut Dice| {
        let part = (f64::from(kill) + 0.1 + dice.below(700) as f64 / 1000.0) / f64::from(kills);
        began + span.mul_f64(part)
    };
    for kill in 0..kills {
        let at = instant(kill, &mut dice).max(Instant::now() + LIFE);
        tokio::select! {
            () = tokio::time::sleep_until(at) => {}
            () = world.stop.cancelled() => break,
            gone = child.gone() => return Err(gone),
        }
        let struck = Instant::now();
        child.kill().await;
        let url = child.start().await.map_err(|err| StressError::Gone(format!("after kill {kill}: {err}")))?;
        let client = Client::new(&url, world.plan.scenario.operator())?;
        let title = format!("after kill {kill}");
        let patch = PatchThread { title: Some(&title), ..PatchThread::default() };
        let asks = client.keyed(who.key.clone());
        let first = async {
            while asks.patch_thread(&probe, &patch).await.is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            () = first => {}
            () = tokio::time::sleep(RECOVERY) => {
                return Err(StressError::Gone(format!("after kill {kill} the server takes no command")));
            }
            gone = child.gone() => return Err(gone),
        }
        world.tally.killed(struck, struck.elapsed());
        world.moves(client);
    }
    Ok(())
}
