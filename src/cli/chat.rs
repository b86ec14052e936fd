//! `raddle chat`: a conversation in the terminal.
//!
//! Everything that is shown comes from the thread's events, so a cut connection costs nothing: the stream goes on
//! at its cursor. Answers go to stdout; the thread's id, prompts and remarks go to stderr.

use std::io::{IsTerminal, Write};

use clap::Args;
use raddle_domain::id::Seq;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};

use super::{Failure, Remote, plain, say, write};
use crate::client::{Client, ClientError, EventView, NewThread, StartTurn};

/// Talk; an empty line is skipped, Ctrl-C interrupts an answer, Ctrl-D leaves.
#[derive(Debug, Args)]
pub struct Chat {
    /// Go on with this thread instead of a new one
    #[arg(long, value_name = "ID")]
    thread: Option<String>,
    /// Which model answers
    #[arg(long, value_name = "M")]
    model: Option<String>,
    #[command(flatten)]
    remote: Remote,
}

impl Chat {
    pub async fn run(self) -> Result<(), Failure> {
        let client = self.remote.client()?;
        let model = self.model.as_deref();
        let thread = match &self.thread {
            Some(thread) => client.thread(thread).await?,
            None => client.create_thread(&NewThread { model }).await?,
        };
        let (id, mut after) = (thread.id.to_string(), thread.seq);
        eprintln!("thread {id}");
        // A thread that is busy: its turn is shown first.
        let mut open = thread.active_turn.map(|turn| turn.to_string());
        let mut lines = lines();
        let mut interrupts = signal(SignalKind::interrupt())?;
        loop {
            let turn = match open.take() {
                Some(turn) => turn,
                None => {
                    let Some(prompt) = ask(&mut lines, &mut interrupts).await? else { return Ok(()) };
                    match client.start_turn(&id, &StartTurn { prompt: &prompt, model }).await {
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
            let mut show = Show::new(&turn, self.remote.json);
            match answer(&client, &id, &mut after, &mut show, &mut interrupts).await? {
                Ended::Turn => {}
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
    let turn = client.start_turn(&id, &StartTurn { prompt, model: None }).await?.id.to_string();
    let mut show = Show::new(&turn, false);
    let mut events = client.follow(&id, thread.seq);
    while let Some((_, json)) = events.next().await? {
        if show.event(&read(&json)?, &json)? {
            break;
        }
    }
    Ok(())
}

fn read(json: &str) -> Result<EventView, Failure> {
    serde_json::from_str(json).map_err(|err| Failure::Failed(format!("an event is not as expected: {err}")))
}

/// Why an answer is not followed any further.
enum Ended {
    Turn,
    Thread,
    Person,
}

/// Shows a turn until it ends.
async fn answer(
    client: &Client,
    thread: &str,
    after: &mut Seq,
    show: &mut Show<'_>,
    interrupts: &mut Signal,
) -> Result<Ended, Failure> {
    let mut events = client.follow(thread, *after);
    let mut interrupted = false;
    loop {
        let next = tokio::select! {
            next = events.next() => next?,
            _ = interrupts.recv() => {
                if std::mem::replace(&mut interrupted, true) {
                    show.end()?;
                    return Ok(Ended::Person);
                }
                match client.interrupt(thread, show.turn).await {
                    Ok(_) => {}
                    // It has just ended by itself; the stream will say so.
                    Err(ClientError::Refused(refusal)) if refusal.code == "turn-not-active" => {}
                    Err(err) => return Err(err.into()),
                }
                continue;
            }
        };
        let Some((name, json)) = next else { return Ok(Ended::Thread) };
        if name == "thread.deleted" {
            continue;
        }
        let event = read(&json)?;
        *after = event.seq;
        if show.event(&event, &json)? {
            return Ok(Ended::Turn);
        }
    }
}

/// One turn on its way to the terminal.
struct Show<'a> {
    turn: &'a str,
    json: bool,
    /// Reasoning can be told from the answer only where it can be dimmed.
    dims: bool,
    /// The item whose text stands on the current line.
    item: Option<String>,
    /// How often the turn was continued after the process that ran it was gone.
    resumes: u64,
}

impl<'a> Show<'a> {
    fn new(turn: &'a str, json: bool) -> Self {
        Self { turn, json, dims: std::io::stdout().is_terminal(), item: None, resumes: 0 }
    }

    /// Shows an event; `true` when the turn has ended with it.
    fn event(&mut self, event: &EventView, json: &str) -> Result<bool, Failure> {
        if event.turn_id.as_deref() != Some(self.turn) {
            return Ok(false);
        }
        let over = event.event == "turn.completed";
        if self.json {
            say(json)?;
            return Ok(over);
        }
        match event.event.as_str() {
            "item.delta" => self.delta(event)?,
            "turn.retrying" => {
                self.end()?;
                let why = event.payload["error"]["message"].as_str().unwrap_or_default();
                eprintln!("[the answer starts again: {}]", plain(why));
            }
            // It follows a pause between two tries too; that was told already.
            "turn.resumed" if event.payload["turn"]["resume_count"].as_u64() > Some(self.resumes) => {
                self.resumes = event.payload["turn"]["resume_count"].as_u64().unwrap_or_default();
                self.end()?;
                eprintln!("[the answer starts again: the server was restarted]");
            }
            "turn.completed" => {
                self.end()?;
                let status = event.payload["status"].as_str().unwrap_or_default();
                if status != "completed" {
                    let why = event.payload["turn"]["error"]["message"].as_str();
                    eprintln!("[{}{}]", plain(status), why.map(|why| format!(": {}", plain(why))).unwrap_or_default());
                }
            }
            _ => {}
        }
        Ok(over)
    }

    fn delta(&mut self, event: &EventView) -> Result<(), Failure> {
        let reasoning = event.payload["kind"] == "reasoning";
        let text = plain(event.payload["delta"].as_str().unwrap_or_default());
        if reasoning && !self.dims {
            return Ok(());
        }
        if self.item != event.item_id {
            self.end()?;
            self.item.clone_from(&event.item_id);
        }
        if reasoning { write(format!("\u{1b}[2m{text}\u{1b}[0m").as_bytes()) } else { write(text.as_bytes()) }
    }

    /// Ends the line that is being written, if there is one.
    fn end(&mut self) -> Result<(), Failure> {
        if self.item.take().is_some() { write(b"\n") } else { Ok(()) }
    }
}

/// The next prompt; `None` when the person leaves.
async fn ask(
    lines: &mut mpsc::Receiver<std::io::Result<String>>,
    interrupts: &mut Signal,
) -> Result<Option<String>, Failure> {
    loop {
        if std::io::stdin().is_terminal() {
            eprint!("> ");
            std::io::stderr().flush()?;
        }
        let line = tokio::select! {
            line = lines.recv() => line,
            _ = interrupts.recv() => None,
        };
        match line {
            None => return Ok(None),
            Some(Err(err)) => return Err(Failure::Failed(format!("cannot read: {err}"))),
            Some(Ok(line)) if line.trim().is_empty() => {}
            Some(Ok(line)) => return Ok(Some(line)),
        }
    }
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
