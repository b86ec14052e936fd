//! `raddle chat`: a conversation in the terminal.
//!
//! Everything that is shown comes from the thread's events, so a cut connection costs nothing: the stream goes on
//! at its cursor. Answers go to stdout; the thread's id, prompts, what tools do and remarks go to stderr.

mod show;
mod wait;

use std::{
    collections::VecDeque,
    io::{IsTerminal, Write},
};

use clap::Args;
use raddle_domain::{
    id::{InputId, RunId, Seq},
    record::{Approval, Effect, Question, Undelivered},
};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};

use self::{show::Show, wait::Wait};
use super::{Failure, Remote, plain, word};
use crate::client::{Client, ClientError, EventView, NewThread, Refusal, StartTurn};

/// Talk; an empty line is skipped, Ctrl-C interrupts an answer, Ctrl-D leaves.
///
/// In a terminal a line that is typed while an answer streams is shown to the model at its next step. When the
/// agent asks for something, the next line is the answer.
#[derive(Debug, Args)]
pub struct Chat {
    /// Go on with this thread instead of a new one
    #[arg(long, value_name = "ID")]
    thread: Option<String>,
    /// Which model answers
    #[arg(long, value_name = "M")]
    model: Option<String>,
    /// Where the tools of a new thread work: a directory below the tenant's
    #[arg(long, value_name = "DIR", conflicts_with = "thread")]
    workspace: Option<String>,
    /// Let the model of a new thread ask for commands to be run
    #[arg(long, conflicts_with = "thread")]
    shell: bool,
    /// The run that a new thread works for
    #[arg(long, value_name = "ID", conflicts_with = "thread")]
    run: Option<RunId>,
    #[command(flatten)]
    remote: Remote,
}

impl Chat {
    pub async fn run(self) -> Result<(), Failure> {
        let client = self.remote.client()?;
        let model = self.model.as_deref();
        let thread = match &self.thread {
            Some(thread) => client.thread(thread).await?,
            None => {
                let workspace = self.workspace.as_deref();
                let new = NewThread { model, workspace, allow_shell: self.shell, run_id: self.run };
                client.create_thread(&new).await?
            }
        };
        let (id, mut after) = (thread.id.to_string(), thread.seq);
        eprintln!("thread {id}");
        let mut person = Person::new()?;
        let mut waits = VecDeque::new();
        // A thread that is busy: its turn is shown first, and what it waits for.
        let mut open = thread.active_turn.map(|turn| turn.to_string());
        if let Some(turn) = &open {
            waits = wait::open(&client, &id, turn).await?;
        }
        // What was meant for a turn that ended first.
        let mut late = VecDeque::new();
        loop {
            let turn = match open.take() {
                Some(turn) => turn,
                None => {
                    let prompt = match late.pop_front() {
                        Some(prompt) => prompt,
                        None => match person.prompt().await? {
                            Some(prompt) => prompt,
                            None => return Ok(()),
                        },
                    };
                    match client.start_turn(&id, &StartTurn { prompt: &prompt, model, ..StartTurn::default() }).await {
                        Ok(turn) => turn.id.to_string(),
                        // Somebody else is talking in this thread: say so, and let the person decide.
                        Err(ClientError::Refused(refusal)) if refusal.code == "turn-open" => {
                            eprintln!("{refusal}");
                            continue;
                        }
                        Err(err) => return Err(err.into()),
                    }
                }
            };
            let mut talk = Talk::new(&client, &id, Show::new(&turn, self.remote.json), std::mem::take(&mut waits));
            match talk.follow(&mut after, &mut person).await? {
                Ended::Turn => late.append(&mut talk.late),
                Ended::Thread => return Err(Failure::Failed("the thread was deleted".into())),
                Ended::Person => return Ok(()),
            }
        }
    }
}

/// Starts a thread with one prompt and shows the answer as it streams.
pub(super) async fn first_turn(client: &Client, prompt: &str) -> Result<(), Failure> {
    let thread = client.create_thread(&NewThread::default()).await?;
    let id = thread.id.to_string();
    eprintln!("\nthread {id}\n> {}", plain(prompt));
    let turn = client.start_turn(&id, &StartTurn { prompt, ..StartTurn::default() }).await?.id.to_string();
    let mut show = Show::new(&turn, false);
    let mut events = client.follow(&id, thread.seq);
    while let Some(told) = events.next().await? {
        if show.event(&told.read()?, &told.json)? {
            break;
        }
    }
    Ok(())
}

/// Why an answer is not followed any further.
enum Ended {
    Turn,
    Thread,
    Person,
}

/// One turn, between its events and a person.
struct Talk<'a> {
    client: &'a Client,
    thread: &'a str,
    show: Show<'a>,
    /// The first is the one that the person was asked.
    waits: VecDeque<Wait>,
    /// Lines that were said into the turn.
    steers: Vec<InputId>,
    /// Those of them that came too late.
    late: VecDeque<String>,
}

impl<'a> Talk<'a> {
    fn new(client: &'a Client, thread: &'a str, show: Show<'a>, waits: VecDeque<Wait>) -> Self {
        Self { client, thread, show, waits, steers: Vec::new(), late: VecDeque::new() }
    }

    /// Shows the turn until it ends, and passes on what the person says meanwhile.
    async fn follow(&mut self, after: &mut Seq, person: &mut Person) -> Result<Ended, Failure> {
        let mut events = self.client.follow(self.thread, *after);
        let mut interrupted = false;
        self.waits.front().inspect(|wait| wait.show());
        loop {
            // From a pipe only what was asked for is taken early: the rest are prompts, each for its own turn.
            let listens = !person.silent && (person.types || !self.waits.is_empty());
            let next = tokio::select! {
                next = events.next() => next?,
                _ = person.interrupts.recv() => {
                    if std::mem::replace(&mut interrupted, true) {
                        self.show.end()?;
                        return Ok(Ended::Person);
                    }
                    match self.client.interrupt(self.thread, self.show.turn, false).await {
                        Ok(_) => {}
                        // It has just ended by itself; the stream will say so.
                        Err(ClientError::Refused(refusal)) if refusal.code == "turn-not-active" => {}
                        Err(err) => return Err(err.into()),
                    }
                    continue;
                }
                line = person.lines.recv(), if listens => {
                    match line {
                        Some(line) => self.line(&line.map_err(unreadable)?).await?,
                        None => person.silent = true,
                    }
                    if let (true, Some(wait)) = (person.silent, self.waits.front()) {
                        return nobody(person.types, wait);
                    }
                    continue;
                }
            };
            let Some(told) = next else { return Ok(Ended::Thread) };
            if told.name == "thread.deleted" {
                continue;
            }
            let event: EventView = told.read()?;
            *after = event.seq;
            let over = self.show.event(&event, &told.json)?;
            self.event(event)?;
            if over {
                return Ok(Ended::Turn);
            }
            if let (true, Some(wait)) = (person.silent, self.waits.front()) {
                return nobody(person.types, wait);
            }
        }
    }

    /// Notes what the turn waits for, and what it waits for no more.
    fn event(&mut self, event: EventView) -> Result<(), Failure> {
        if event.turn_id.as_deref() != Some(self.show.turn) {
            return Ok(());
        }
        match event.event.as_str() {
            "approval.required" => self.asks(Wait::Approval(record(event, "approval")?)),
            "question.asked" => self.asks(Wait::Question(record(event, "question")?)),
            "approval.decided" | "approval.expired" | "approval.cancelled" => {
                let approval: Box<Approval> = record(event, "approval")?;
                self.settled(&approval.id.to_string(), &word(&approval.status))
            }
            "question.answered" | "question.expired" | "question.cancelled" => {
                let question: Box<Question> = record(event, "question")?;
                self.settled(&question.id.to_string(), &word(&question.status))
            }
            "effect.uncertain" => {
                let effect: Box<Effect> = record(event, "effect")?;
                let id = effect.operation_id.to_string();
                // Nothing can be done any more about one whose turn has ended.
                if effect.closed { self.settled(&id, "uncertain") } else { self.asks(Wait::Effect(effect)) }
            }
            "effect.reconciled" => {
                let effect: Box<Effect> = record(event, "effect")?;
                let how = effect.resolution.as_ref().map_or_else(String::new, word);
                self.settled(&effect.operation_id.to_string(), &how)
            }
            "prompt.not_delivered" => {
                let admission: Box<raddle_domain::record::Admission> = record(event, "admission")?;
                if self.steers.contains(&admission.id) {
                    self.late.push_back(admission.prompt);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn asks(&mut self, wait: Wait) -> Result<(), Failure> {
        // It may be known from before the stream began.
        if self.waits.iter().any(|known| known.id() == wait.id()) {
            return Ok(());
        }
        self.waits.push_back(wait);
        if let [first] = self.waits.make_contiguous() {
            self.show.end()?;
            first.show();
        }
        Ok(())
    }

    /// Somebody else decided, or nobody may any more.
    fn settled(&mut self, id: &str, how: &str) -> Result<(), Failure> {
        let Some(at) = self.waits.iter().position(|wait| wait.id() == id) else { return Ok(()) };
        self.waits.remove(at);
        if at == 0 {
            self.show.end()?;
            eprintln!("\n[{how}]");
            self.waits.front().inspect(|wait| wait.show());
        }
        Ok(())
    }

    /// Does what a line says: it decides, answers, or steers.
    async fn line(&mut self, line: &str) -> Result<(), Failure> {
        let Some(wait) = self.waits.front() else {
            return if line.trim().is_empty() { Ok(()) } else { self.steer(line).await };
        };
        let Some(said) = wait.says(self.client, line).await else {
            wait.prompt();
            return Ok(());
        };
        match said {
            Ok(()) => {}
            Err(ClientError::Refused(refusal)) if over(&refusal) => eprintln!("{refusal}"),
            Err(ClientError::Refused(refusal)) => {
                eprintln!("{refusal}");
                self.waits.front().inspect(|wait| wait.show());
                return Ok(());
            }
            Err(err) => return Err(err.into()),
        }
        self.waits.pop_front();
        self.waits.front().inspect(|wait| wait.show());
        Ok(())
    }

    async fn steer(&mut self, line: &str) -> Result<(), Failure> {
        match self.client.steer(self.thread, self.show.turn, line, Undelivered::Report).await {
            Ok(admission) => {
                self.steers.push(admission.id);
                Ok(())
            }
            // The turn has just ended: what was meant for it is the next prompt.
            Err(ClientError::Refused(refusal)) if refusal.code == "turn-not-active" => {
                self.late.push_back(line.to_owned());
                Ok(())
            }
            Err(ClientError::Refused(refusal)) => {
                eprintln!("{refusal}");
                Ok(())
            }
            Err(err) => Err(err.into()),
        }
    }
}

/// Whether what was to be decided is decided, or gone.
fn over(refusal: &Refusal) -> bool {
    matches!(refusal.code.as_str(), "already-decided" | "already-resolved" | "not-found" | "thread-deleted")
}

/// The turn waits, and nobody is left to decide here. It goes on waiting without us.
fn nobody(types: bool, wait: &Wait) -> Result<Ended, Failure> {
    eprintln!();
    if types {
        return Ok(Ended::Person);
    }
    let (id, listed) = (wait.id(), wait.listed());
    Err(Failure::Failed(format!("the turn waits for {id}, and the input has ended; see `raddle {listed} ls`")))
}

/// The record that an event holds.
fn record<T: DeserializeOwned>(mut event: EventView, name: &str) -> Result<Box<T>, Failure> {
    serde_json::from_value(event.payload.get_mut(name).map_or(Value::Null, Value::take))
        .map_err(|err| Failure::Failed(format!("an event is not as expected: {err}")))
}

/// Who talks.
struct Person {
    lines: mpsc::Receiver<std::io::Result<String>>,
    interrupts: Signal,
    /// At a terminal, where a line is meant for the moment in which it is typed.
    types: bool,
    /// There are no more lines.
    silent: bool,
}

impl Person {
    fn new() -> Result<Self, Failure> {
        let interrupts = signal(SignalKind::interrupt())?;
        Ok(Self { lines: lines(), interrupts, types: std::io::stdin().is_terminal(), silent: false })
    }

    /// The next prompt; `None` when the person leaves.
    async fn prompt(&mut self) -> Result<Option<String>, Failure> {
        loop {
            if self.types {
                eprint!("> ");
                std::io::stderr().flush()?;
            }
            let line = tokio::select! {
                line = self.lines.recv() => line,
                _ = self.interrupts.recv() => None,
            };
            match line {
                None => return Ok(None),
                Some(line) => match line.map_err(unreadable)? {
                    line if line.trim().is_empty() => {}
                    line => return Ok(Some(line)),
                },
            }
        }
    }
}

fn unreadable(err: std::io::Error) -> Failure {
    Failure::Failed(format!("cannot read: {err}"))
}

/// Lines of stdin. A thread of its own: a read from a terminal cannot be called off, and must not hold up the exit.
fn lines() -> mpsc::Receiver<std::io::Result<String>> {
    let (send, receive) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines() {
            let failed = line.is_err();
            if send.blocking_send(line).is_err() || failed {
                break;
            }
        }
    });
    receive
}
