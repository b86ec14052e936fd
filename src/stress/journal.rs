//! What clients were told of each thread, in their words: ids as they came, moments of question and answer.
//!
//! [`Noted`] becomes a [`linear::Call`] once the log says which turn is whose prompt.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use raddle_domain::linear::{self, Call, History, Log, NEVER, Prompt, Verb, View};

use super::{facts::Facts, world::Who};

/// A call, as its client knows it.
#[derive(Debug, Clone)]
pub struct Noted {
    pub client: u32,
    pub asked: u64,
    pub answered: u64,
    pub asks: Asks,
    pub told: Told,
}

/// What was asked. Turns and admissions are named as the server names them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asks {
    Start(Prompt),
    Queue(Prompt),
    Steer { turn: String, prompt: Prompt },
    Interrupt { turn: String },
    Withdraw { input: String, prompt: Prompt },
    Look,
    Await { turn: String },
}

/// What was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// A turn began.
    Turn(String),
    /// It waits as this.
    Admitted(String),
    Done,
    Refused,
    Nothing,
    Unknown,
    /// The open turn, and the prompts that wait.
    Saw {
        open: Option<String>,
        waiting: Vec<Prompt>,
    },
}

/// Everything that is known of one thread.
#[derive(Debug, Clone, Default)]
pub struct OfThread {
    pub who: Arc<Who>,
    pub calls: Vec<Noted>,
    /// Prompts whose turns wait until they are interrupted.
    pub held: BTreeSet<Prompt>,
}

/// Everything that is known.
#[derive(Debug, Default)]
pub struct Journal {
    threads: Mutex<BTreeMap<String, OfThread>>,
    /// What was seen to be wrong at once: the name of the check, and a sentence.
    faults: Mutex<Vec<(&'static str, String)>>,
    /// Decisions as they were acknowledged: of an approval, in which words.
    decided: Mutex<BTreeMap<String, BTreeSet<String>>>,
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Journal {
    /// There is a thread.
    pub fn thread(&self, thread: &str, who: &Arc<Who>) {
        held(&self.threads).insert(thread.to_owned(), OfThread { who: who.clone(), ..OfThread::default() });
    }

    /// Whether this run made it.
    pub fn knows(&self, thread: &str) -> bool {
        held(&self.threads).contains_key(thread)
    }

    pub fn note(&self, thread: &str, noted: Noted) {
        if let Some(of) = held(&self.threads).get_mut(thread) {
            of.calls.push(noted);
        }
    }

    /// The turn of a prompt is going to wait.
    pub fn holds(&self, thread: &str, prompt: Prompt) {
        if let Some(of) = held(&self.threads).get_mut(thread) {
            of.held.insert(prompt);
        }
    }

    pub fn fault(&self, check: &'static str, sentence: String) {
        held(&self.faults).push((check, sentence));
    }

    pub fn faults(&self, check: &str) -> Vec<String> {
        held(&self.faults).iter().filter(|(of, _)| *of == check).map(|(_, sentence)| sentence.clone()).collect()
    }

    pub fn decided(&self, approval: &str, word: String) {
        held(&self.decided).entry(approval.to_owned()).or_default().insert(word);
    }

    pub fn decisions(&self) -> BTreeMap<String, BTreeSet<String>> {
        held(&self.decided).clone()
    }

    pub fn threads(&self) -> Vec<(String, Arc<Who>)> {
        held(&self.threads).iter().map(|(thread, of)| (thread.clone(), of.who.clone())).collect()
    }

    /// Everything of a thread, for whoever checks it; it is forgotten here.
    pub fn take(&self, thread: &str) -> OfThread {
        held(&self.threads).remove(thread).unwrap_or_default()
    }
}

impl OfThread {
    /// The history as the checker reads it, with what the log says.
    pub fn history(&self, facts: &Facts) -> History {
        // A turn that the log does not know is that of a prompt which nobody sent: no order of the calls has it.
        let unknown = self.calls.len() as Prompt;
        let prompt_of = |turn: &str| facts.prompts.get(turn).copied().unwrap_or(Prompt::MAX - unknown);
        let calls = self.calls.iter().map(|noted| {
            let verb = match &noted.asks {
                Asks::Start(prompt) => Verb::Start(*prompt),
                Asks::Queue(prompt) => Verb::Queue(*prompt),
                Asks::Steer { turn, prompt } => Verb::Steer { turn: prompt_of(turn), prompt: *prompt },
                Asks::Interrupt { turn } => Verb::Interrupt(prompt_of(turn)),
                Asks::Withdraw { prompt, .. } => Verb::Withdraw(*prompt),
                Asks::Look => Verb::Look,
                Asks::Await { turn } => Verb::Await(prompt_of(turn)),
            };
            let end = match &noted.told {
                Told::Turn(_) | Told::Done => linear::End::Done,
                // Of a steer that it was admitted is all there is.
                Told::Admitted(_) if matches!(noted.asks, Asks::Steer { .. }) => linear::End::Done,
                Told::Admitted(_) => linear::End::Waits,
                Told::Refused => linear::End::Refused,
                Told::Nothing => linear::End::Nothing,
                Told::Unknown => linear::End::Unknown,
                Told::Saw { open, waiting } => {
                    linear::End::Saw(View { open: open.as_deref().map(prompt_of), waiting: waiting.clone() })
                }
            };
            let answered = if noted.told == Told::Unknown { NEVER } else { noted.answered };
            Call { client: noted.client, asked: noted.asked, answered, verb, end }
        });
        let ran = facts.ran.iter().map(|(prompt, _)| *prompt).collect();
        let log = Log { ran, steered: facts.steered.iter().map(|(prompt, _)| *prompt).collect() };
        History { calls: calls.collect(), held: self.held.clone(), log: Some(log) }
    }
}
