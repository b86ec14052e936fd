//! One process after the other, on the same disk.

use std::{rc::Rc, sync::Arc, time::Duration};

use raddle_domain::{command::Limits, price::Prices};
use tokio::{task::LocalSet, time::sleep};

use super::{
    chores::ScriptedRunner,
    client::{Door, Outside},
    disk::Disk,
    hooks,
    model::{Scripted, ScriptedTools},
    numbers::Numbers,
    plan::{Fault, Plan},
    scheduler::Scheduler,
    witness::{DEFECT, Violation},
    world::{Fate, World},
};
use crate::{Config, Ports, Runtime};

/// How long a person may take in a simulation, and how long a turn may be at work.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);
const TURN: Duration = Duration::from_secs(600);

fn config(plan: &Plan) -> Config {
    let ms = |time: Duration| time.as_millis() as u64;
    let limits = Limits {
        approval_ms: ms(PATIENCE),
        question_ms: ms(PATIENCE),
        turn_ms: ms(TURN),
        inbox_per_thread: 8,
        model_calls_per_turn: 8,
        reserve_output_tokens: 32,
        ..Limits::default()
    };
    Config {
        limits,
        loaded_threads: plan.loaded,
        arbiters: 2,
        // Few, so that some wait.
        model_calls: 4,
        tool_runs: 3,
        subscriber_bytes: 8 * 1024,
        quotas: plan.quotas,
        pack_after: Duration::from_millis(plan.pack_ms),
        ..Config::new("/nowhere")
    }
}

/// Lives, dies and lives again, until nobody lets it.
pub(crate) async fn live(outside: Rc<Outside>, plan: Plan) {
    let mut disk = Disk::new(plan.kept);
    for number in 1u32.. {
        let scheduler = Scheduler::new(plan.manner, Numbers::new(plan.seed, 16 + u64::from(number)));
        let local = Rc::new(LocalSet::new());
        let world = &outside.world;
        world.note(format_args!("process   {number} starts"));
        let life = life(&outside, &plan, number, &mut disk, &scheduler, &local);
        let fate = local.run_until(life).await;
        *outside.door.borrow_mut() = None;
        let down = match fate {
            Fate::Dies { down_ms } | Fate::Stops { down_ms, .. } => Duration::from_millis(down_ms),
        };
        // Whatever is dropped now may not act any more.
        scheduler.die();
        drop(local);
        world.note(format_args!("process   {number} is gone, after {} steps", scheduler.steps()));
        sleep(down).await;
    }
}

/// One life: to its end, and with what comes before the end if it is told of it.
async fn life(
    outside: &Rc<Outside>,
    plan: &Plan,
    number: u32,
    disk: &mut Disk,
    scheduler: &Arc<Scheduler>,
    local: &Rc<LocalSet>,
) -> Fate {
    let world = &outside.world;
    let again = Fate::Dies { down_ms: 100 };
    let store = match disk.open(world, scheduler) {
        Ok(store) => store,
        Err(error) => {
            world.violated(Violation { invariant: DEFECT, what: format!("the store cannot be opened: {error}") });
            return again;
        }
    };
    world.starts(number);
    let ports = Ports {
        hooks: hooks::configured(world, &plan.listeners, number),
        tools: Arc::new(ScriptedTools(world.clone())),
        jobs: Arc::new(ScriptedRunner(world.clone())),
        prices: Arc::new(Prices::default()),
        clock: world.clone(),
        ids: world.clone(),
        store: Some(Arc::new(store)),
        ..Ports::with_models(Arc::new(Scripted(world.clone())))
    };
    let runtime = match Runtime::start_here(config(plan), ports, scheduler.clone()) {
        Ok(runtime) => runtime,
        Err(error) => {
            world.note(format_args!("process   does not start: {error}"));
            return world.take_fate().unwrap_or(again);
        }
    };
    let door = Door { runtime: runtime.clone(), local: Rc::downgrade(local), scheduler: scheduler.clone() };
    *outside.door.borrow_mut() = Some(door);
    outside.lives.set(outside.lives.get() + 1);
    let fate = fate(world, scheduler).await;
    if let Fate::Stops { deadline_ms, .. } = fate {
        // Somebody may still kill it.
        tokio::select! {
            biased;
            sooner = self::fate(world, scheduler) => return sooner,
            () = scheduler.deferred(async { runtime.shutdown(Duration::from_millis(deadline_ms)).await }) => {}
        }
    }
    fate
}

/// What becomes of the process, once that is decided.
async fn fate(world: &World, scheduler: &Scheduler) -> Fate {
    loop {
        tokio::select! {
            biased;
            () = world.fate.notified() => {
                if let Some(fate) = world.take_fate() {
                    return fate;
                }
            }
            () = scheduler.failed() => {
                let why = scheduler.panicked().unwrap_or_default();
                world.violated(Violation { invariant: DEFECT, what: format!("something panicked: {why}") });
            }
        }
    }
}

/// What goes wrong at a time of its own.
pub(crate) async fn strike(outside: Rc<Outside>, fault: Fault) {
    let world = &outside.world;
    let (Fault::Reads { at_ms, .. }
    | Fault::Killed { at_ms, .. }
    | Fault::Stops { at_ms, .. }
    | Fault::Clock { at_ms, .. }) = &fault
    else {
        return;
    };
    sleep(Duration::from_millis(*at_ms)).await;
    if outside.over.get() {
        return;
    }
    let is_there = outside.door.borrow().is_some();
    match fault {
        Fault::Reads { count, .. } => world.fail_reads(count),
        Fault::Clock { by_ms, .. } => {
            world.note(format_args!("clock     is set by {by_ms} ms"));
            world.set_clock(by_ms);
        }
        Fault::Killed { down_ms, .. } if is_there => {
            if let Some(door) = &*outside.door.borrow() {
                door.scheduler.die();
            }
            world.decide(Fate::Dies { down_ms });
        }
        Fault::Stops { deadline_ms, down_ms, .. } if is_there => world.decide(Fate::Stops { deadline_ms, down_ms }),
        _ => {}
    }
}
