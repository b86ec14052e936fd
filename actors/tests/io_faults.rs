//! A disk of which any one operation fails, under a whole server: nothing acknowledged is lost, nobody panics, whoever
//! asks meanwhile is told to come back, and once the disk works again so does everything, without a restart.
//!
//! Every operation of a short life is made to fail; with `RADDLE_IO_FAULTS=all`, every one of a long life.

mod support;
mod testbed;

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use futures_util::{StreamExt as _, stream};
use raddle_actors::store::backend::{Fault, MemoryMedium};
use support::{EIO, ENOSPC};
use testbed::*;

/// Commands with threads, tools, a run and a tenant: all kinds of commits, but for those of a day.
const SHORT: [usize; 11] = [0, 1, 2, 4, 5, 6, 7, 8, 17, 18, 19];

/// How many lives go on at once: most of the time they wait for a store to be opened again.
const AT_ONCE: usize = 4;

static PANICS: AtomicUsize = AtomicUsize::new(0);

/// Lives with one fault. How often somebody was told to come back; nothing where the fault was not met.
async fn live_with(commands: &[usize], fault: Fault, short: bool) -> Option<usize> {
    let medium = MemoryMedium::default();
    medium.set_short(short);
    let bed = Bed { medium: Some(medium.clone()), ..Bed::new() };
    let runtime = bed.start().await;
    medium.set_fault(Some(fault));
    let met = || medium.operations() > fault.at;
    // One that lasts is over once the store was tried again in vain.
    let healed = AtomicUsize::new(0);
    let heals = async {
        while fault.lasting && medium.operations() <= fault.at + 2 {
            tokio::task::yield_now().await;
        }
        healed.store(usize::from(met()), SeqCst);
        medium.set_fault(None);
        std::future::pending::<()>().await;
    };
    let (mut life, mut refused, mut answers) = (Life::new(&bed), 0, Vec::new());
    let lives = async {
        for n in commands {
            answers.push(life.live(&runtime, *n, |_| refused += 1).await.0);
        }
    };
    let lives = tokio::time::timeout(10 * LONG, lives);
    if fault.lasting {
        tokio::select! {
            () = heals => {}
            lived = lives => lived.unwrap_or_else(|_| panic!("{fault:?}: it is not over")),
        }
    } else {
        lives.await.unwrap_or_else(|_| panic!("{fault:?}: it is not over"));
    }
    let met = met() || healed.load(SeqCst) > 0;
    runtime.shutdown(LONG).await;
    drop(runtime);
    medium.set_fault(None);
    // Whoever starts on what is left knows all of it.
    let runtime = bed.start().await;
    let mut again = Life::again(&bed);
    for (n, first) in commands.iter().zip(answers) {
        let (answer, replayed) = again.live(&runtime, *n, |error| panic!("{fault:?}, {n}: {error}")).await;
        assert!(replayed, "{fault:?}: command {n} was acknowledged, and is lost");
        assert_eq!(answer, first, "{fault:?}: command {n}");
    }
    for key in again.threads() {
        // A day passes in a long life, and with it logs are packed.
        assert_sound_packed(&log(&runtime, key).await, true);
    }
    runtime.shutdown(LONG).await;
    met.then_some(refused)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whichever_operation_of_the_disk_fails_nothing_is_lost_and_the_server_comes_back_by_itself() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        PANICS.fetch_add(1, SeqCst);
        hook(panic);
    }));
    let all: Vec<usize> = (0..COMMANDS).collect();
    let commands = if std::env::var_os("RADDLE_IO_FAULTS").is_some_and(|how| how == "all") { &all } else { &SHORT[..] };
    for lasting in [false, true] {
        let kinds = [(EIO, false), (ENOSPC, false), (EIO, true)];
        let lives = stream::iter(0u64..).map(|at| {
            let (errno, short) = kinds[(at % 3) as usize];
            live_with(commands, Fault { at, errno, lasting }, short)
        });
        // The timers of a store may rest once more in one life than in another.
        let ends = stream::iter(0..).zip(lives.buffered(AT_ONCE)).scan(0, |unmet, (at, refused)| {
            *unmet = if refused.is_none() { *unmet + 1 } else { 0 };
            std::future::ready((*unmet < 3).then_some((at, refused)))
        });
        let lives: Vec<(u64, Option<usize>)> = ends.collect().await;
        let met = lives.iter().filter(|(_, refused)| refused.is_some()).count();
        let told = lives.iter().filter(|(_, refused)| refused.is_some_and(|times| times > 0)).count();
        println!("lasting {lasting}: {met} operations were made to fail, {told} times somebody was told so");
        assert!(met > 50 && told > 0, "only {met} operations were made to fail, {told} times somebody was told so");
    }
    assert_eq!(PANICS.load(SeqCst), 0, "nobody panics");
}
