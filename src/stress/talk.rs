//! Clients that talk: they start, queue, steer, interrupt, take back, look and wait.

use std::sync::{
    Arc, RwLock,
    atomic::{AtomicU32, Ordering},
};

use raddle_domain::{
    linear::Prompt,
    record::{Delivery, Undelivered},
};
use serde_json::Value;
use tokio::time::Duration;

use super::{
    StressError,
    dice::Dice,
    facts::{mark, number_of},
    journal::{Asks, Noted, Told},
    scenario::{Script, Style},
    watch,
    world::{Answer, Who, World},
};
use crate::{
    client::{NewThread, Refusal, StartTurn, Started},
    models::SCRIPTED,
};

/// After so many calls a thread is left alone and another takes its place: histories stay short.
const CALLS_PER_THREAD: u32 = 60;
/// How long somebody waits for the end of a turn before doing something else.
const AWAITS: Duration = Duration::from_secs(2);

/// What a thread is made with: it is a script that answers, whatever else a server has. Others want to be paid.
const fn new_thread() -> NewThread<'static> {
    NewThread { model: Some(SCRIPTED), workspace: None, allow_shell: false, run_id: None }
}

/// The threads that are talked to at a time.
pub struct Slots {
    pub who: Arc<Who>,
    slots: Vec<RwLock<Arc<Slot>>>,
}

struct Slot {
    thread: String,
    calls: AtomicU32,
}

impl Slots {
    /// Makes so many threads.
    pub async fn make(world: &Arc<World>, who: &Arc<Who>, count: usize) -> Result<Self, StressError> {
        let mut slots = Vec::new();
        for _ in 0..count {
            let new = new_thread();
            let thread = world.read(who, |client| {
                let new = &new;
                async move { client.create_thread(new).await }
            });
            slots.push(RwLock::new(Arc::new(Slot::new(world, who, thread.await?.id.to_string()))));
        }
        Ok(Self { who: who.clone(), slots })
    }

    /// A thread, by its place.
    fn at(&self, place: usize) -> Arc<Slot> {
        self.slots[place].read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    fn any(&self, dice: &mut Dice) -> (usize, Arc<Slot>) {
        let place = dice.below(self.slots.len());
        (place, self.at(place))
    }
}

impl Slot {
    fn new(world: &Arc<World>, who: &Arc<Who>, thread: String) -> Self {
        world.journal.thread(&thread, who);
        watch::begin(world, who, &thread);
        Self { thread, calls: AtomicU32::new(0) }
    }
}

/// What somebody does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deed {
    Start,
    Queue,
    Steer,
    Interrupt,
    Withdraw,
    Look,
    Peek,
}

impl Style {
    fn deed(&self, dice: &mut Dice) -> Deed {
        let weights = [
            (self.start, Deed::Start),
            (self.queue, Deed::Queue),
            (self.steer, Deed::Steer),
            (self.interrupt, Deed::Interrupt),
            (self.withdraw, Deed::Withdraw),
            (self.peek, Deed::Peek),
            (self.look, Deed::Look),
        ];
        let mut drawn = dice.below(weights.iter().map(|(weight, _)| weight).sum());
        for (weight, deed) in weights {
            if drawn < weight {
                return deed;
            }
            drawn -= weight;
        }
        Deed::Look
    }

    /// What a turn is to do, for a prompt with this number.
    fn prompt(&self, dice: &mut Dice, prompt: Prompt) -> (String, bool) {
        let mark = mark(prompt);
        if self.held > 0 && dice.one_in(self.held) {
            // Nobody answers it: the turn waits until it is interrupted.
            return (format!("@ask Shall I go on?\n{mark}"), true);
        }
        let words = 5 + dice.below(40);
        let script = match (self.script, dice.below(6)) {
            (Script::Words, 0) => format!("@think about it\n@tokens {words} 400"),
            (Script::Words, 1) => format!("@tokens {words} 200"),
            (Script::Words, _) => format!("@tokens {words}"),
            (Script::Brief, 0) => format!("@tokens {words}"),
            (Script::Brief, _) => "@say yes".to_owned(),
            (Script::Steps, _) => {
                let step = format!("@tokens {words} 300\n@tool demo_read {{\"name\": \"nothing\"}}\n");
                step.repeat(1 + dice.below(3))
            }
            (Script::Calls, 0) => format!("@tool demo_put {{\"name\": \"put-{prompt}\", \"text\": \"{mark}\"}}"),
            (Script::Calls, 1) => format!("@tool demo_send {{\"to\": \"somebody\", \"text\": \"{mark}\"}}"),
            (Script::Calls, _) => format!(
                "@tokens 5\n@tool demo_append {{\"name\": \"appended\", \"line\": \"{mark}\", \"then_wait_ms\": {}}}",
                dice.below(20)
            ),
        };
        (format!("{}\n{mark}", script.trim_end()), false)
    }
}

/// A client, as long as the load lasts.
pub async fn client(
    world: Arc<World>,
    number: u32,
    slots: Arc<Slots>,
    others: Option<Arc<Slots>>,
    style: Style,
    mut dice: Dice,
) {
    while !world.stop.is_cancelled() {
        let (place, slot) = slots.any(&mut dice);
        let talk = Talk { world: &world, who: &slots.who, client: number, thread: &slot.thread };
        match style.deed(&mut dice) {
            Deed::Start => talk.start(&mut dice, &style, Delivery::Reject).await,
            Deed::Queue => talk.start(&mut dice, &style, Delivery::Queue).await,
            Deed::Steer => talk.steer(&mut dice).await,
            Deed::Interrupt => talk.interrupt_open(&mut dice).await,
            Deed::Withdraw => talk.withdraw(&mut dice).await,
            Deed::Look => drop(talk.look().await),
            Deed::Peek => {
                if let Some(others) = &others {
                    talk.peek(&others.any(&mut dice).1.thread).await;
                }
            }
        }
        // Now and then somebody tries, until one has succeeded.
        let calls = slot.calls.fetch_add(1, Ordering::Relaxed) + 1;
        if calls >= CALLS_PER_THREAD && calls.is_multiple_of(10) {
            replace(&world, &slots, place, &slot.thread).await;
        }
    }
}

/// Puts another thread in a place.
async fn replace(world: &Arc<World>, slots: &Slots, place: usize, tired: &str) {
    let new = new_thread();
    let made = world.ask(&slots.who, "create", false, |client| {
        let new = &new;
        async move { client.create_thread(new).await }
    });
    if let Answer::Done(thread) = made.await
        && slots.at(place).thread == tired
    {
        let slot = Arc::new(Slot::new(world, &slots.who, thread.id.to_string()));
        *slots.slots[place].write().unwrap_or_else(std::sync::PoisonError::into_inner) = slot;
    }
}

/// Somebody who talks to a thread.
pub struct Talk<'t> {
    pub world: &'t World,
    pub who: &'t Who,
    pub client: u32,
    pub thread: &'t str,
}

/// What a snapshot shows.
pub struct Seen {
    pub open: Option<String>,
    /// Prompts that wait, with the ids under which they do.
    waiting: Vec<(Prompt, String)>,
}

/// What a refusal says of the thread: that it stood in the way, or nothing.
fn stood_in_the_way(refusal: &Refusal) -> Told {
    match refusal.code.as_str() {
        "turn-open" | "turn-not-active" | "already-promoted" => Told::Refused,
        _ => Told::Nothing,
    }
}

impl Talk<'_> {
    fn note(&self, asked: u64, asks: Asks, told: Told) {
        let answered = self.world.moment();
        self.world.journal.note(self.thread, Noted { client: self.client, asked, answered, asks, told });
    }

    async fn start(&self, dice: &mut Dice, style: &Style, delivery: Delivery) {
        let number = self.world.number();
        let (prompt, held) = style.prompt(dice, number);
        if held {
            self.world.journal.holds(self.thread, number);
        }
        let start = StartTurn { prompt: &prompt, delivery: Some(delivery), ..StartTurn::default() };
        let (operation, asks) = match delivery {
            Delivery::Queue => ("queue", Asks::Queue(number)),
            _ => ("start", Asks::Start(number)),
        };
        let (start, thread) = (&start, self.thread);
        let gives_up = dice.one_in(8);
        let asked = self.world.moment();
        let answer = self
            .world
            .ask(self.who, operation, gives_up, |client| async move { client.deliver(thread, start).await })
            .await;
        let mut begun = None;
        let told = match answer {
            Answer::Done(Started::Turn { turn }) => {
                begun = Some(turn.id.to_string());
                Told::Turn(turn.id.to_string())
            }
            Answer::Done(Started::Queued { admission, .. }) => Told::Admitted(admission.id.to_string()),
            Answer::Refused(refusal) => stood_in_the_way(&refusal),
            Answer::Unknown => Told::Unknown,
        };
        self.note(asked, asks, told);
        if let Some(turn) = begun.filter(|_| style.awaits && !held) {
            self.wait(&turn, AWAITS).await;
        }
    }

    /// Waits for the end of a turn; whether it came.
    pub async fn wait(&self, turn: &str, patience: Duration) -> bool {
        let thread = self.thread;
        let asked = self.world.moment();
        let answer = self
            .world
            .ask(self.who, "await", true, |client| async move { client.wait_turn(thread, turn, patience).await });
        let ended = matches!(answer.await, Answer::Done(turn) if turn.status.is_terminal());
        if ended {
            self.note(asked, Asks::Await { turn: turn.to_owned() }, Told::Done);
        }
        ended
    }

    /// Looks at everything at one moment.
    pub async fn look(&self) -> Option<Seen> {
        let thread = self.thread;
        let asked = self.world.moment();
        let answer =
            self.world.ask(self.who, "look", true, |client| async move { client.snapshot(thread).await }).await;
        let Answer::Done(snapshot) = answer else { return None };
        let open = snapshot["thread"]["active_turn"].as_str().map(str::to_owned);
        let waiting: Vec<_> = snapshot["inbox"].as_array().into_iter().flatten().filter_map(waits).collect();
        let saw = Told::Saw { open: open.clone(), waiting: waiting.iter().map(|(prompt, _)| *prompt).collect() };
        self.note(asked, Asks::Look, saw);
        Some(Seen { open, waiting })
    }

    async fn steer(&self, dice: &mut Dice) {
        let Some(turn) = self.look().await.and_then(|seen| seen.open) else { return };
        let (number, thread) = (self.world.number(), self.thread);
        let (prompt, turn_id) = (mark(number), &*turn);
        let text = &*prompt;
        let asked = self.world.moment();
        let answer = self
            .world
            .ask(self.who, "steer", dice.one_in(8), |client| async move {
                client.steer(thread, turn_id, text, Undelivered::Report).await
            })
            .await;
        let told = match answer {
            Answer::Done(admission) => Told::Admitted(admission.id.to_string()),
            Answer::Refused(refusal) => stood_in_the_way(&refusal),
            Answer::Unknown => Told::Unknown,
        };
        self.note(asked, Asks::Steer { turn, prompt: number }, told);
    }

    async fn interrupt_open(&self, dice: &mut Dice) {
        let Some(turn) = self.look().await.and_then(|seen| seen.open) else { return };
        self.interrupt(&turn, dice.one_in(8)).await;
    }

    pub async fn interrupt(&self, turn: &str, gives_up: bool) {
        let thread = self.thread;
        let asked = self.world.moment();
        let answer = self
            .world
            .ask(self.who, "interrupt", gives_up, |client| async move { client.interrupt(thread, turn, false).await })
            .await;
        let told = match answer {
            Answer::Done(_) => Told::Done,
            Answer::Refused(refusal) => stood_in_the_way(&refusal),
            Answer::Unknown => Told::Unknown,
        };
        self.note(asked, Asks::Interrupt { turn: turn.to_owned() }, told);
    }

    async fn withdraw(&self, dice: &mut Dice) {
        let Some(seen) = self.look().await else { return };
        let Some((prompt, input)) = dice.pick(&seen.waiting).cloned() else { return };
        let (thread, id) = (self.thread, &*input);
        let asked = self.world.moment();
        // It has no key, so that it cannot be asked again what became of it.
        let answer = self
            .world
            .ask(self.who, "withdraw", true, |client| async move { client.withdraw_prompt(thread, id).await })
            .await;
        let told = match answer {
            Answer::Done(()) => Told::Done,
            Answer::Refused(refusal) => stood_in_the_way(&refusal),
            Answer::Unknown => Told::Unknown,
        };
        self.note(asked, Asks::Withdraw { input, prompt }, told);
    }

    /// Tries to read what is somebody else's.
    async fn peek(&self, other: &str) {
        let answer = self.world.ask(self.who, "peek", true, |client| async move { client.thread(other).await }).await;
        let why = match answer {
            Answer::Done(_) => "was shown to",
            Answer::Refused(refusal) if refusal.code != "not-found" && refusal.status < 429 => "is known to",
            _ => return,
        };
        self.world
            .journal
            .fault("isolation", format!("thread {other} {why} tenant {}, whose it is not", self.who.name));
    }
}

/// A prompt that waits, and its id.
fn waits(entry: &Value) -> Option<(Prompt, String)> {
    Some((number_of(entry["prompt"].as_str()?)?, entry["id"].as_str()?.to_owned()))
}
