//! `raddle runs board`: a run in the terminal as it changes.
//!
//! `model` is what is known of the run, `draw` how that looks; here is where it comes from and where it goes. Without a
//! terminal it is drawn once.

mod draw;
mod model;

use std::{
    io::{self, IsTerminal, Write},
    sync::atomic::Ordering,
    time::Duration,
};

use clap::Args;
use raddle_actors::SystemClock;
use raddle_domain::ports::Clock;
use serde_json::json;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::{Instant, sleep_until},
};

pub use self::model::Board;
use self::{
    draw::{Ink, Line},
    model::NEWS,
};
use super::watch;
use crate::{
    cli::{Failure, Remote, say_json, write},
    client::{Blackboard, Client, RunAndTasks},
};

/// What is drawn where there is no terminal.
const PAGE: (usize, usize) = (120, 400);
/// The least between two drawings, however much happens.
const FRAME: Duration = Duration::from_millis(50);
/// And the most, for time goes by.
const TICK: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub struct Live {
    run: String,
    /// Draw it once, in a terminal too
    #[arg(long)]
    once: bool,
    /// Without a terminal: print what happens from now on, a line for each event
    #[arg(long, conflicts_with = "once")]
    follow: bool,
    #[command(flatten)]
    remote: Remote,
}

/// What a board begins with.
struct Read {
    whole: RunAndTasks,
    noted: Blackboard,
}

impl Read {
    async fn of(client: &Client, run: &str) -> Result<Self, Failure> {
        // In this order: whatever the blackboard has of a later moment, the events after the run's own tell again.
        let whole = client.run(run).await?;
        Ok(Self { noted: client.blackboard(run).await?, whole })
    }

    async fn board(self, client: &Client, run: &str) -> Result<Board, Failure> {
        let before = self.whole.run.last_event_seq.saturating_sub(NEWS as u64);
        let page = client.run_event_page(run, before, NEWS as u64).await?;
        let news = page.data.iter().map(|json| watch::read(json.get())).collect::<Result<_, _>>()?;
        Ok(Board::new(self.whole, self.noted, news))
    }
}

impl Live {
    pub async fn run(self) -> Result<(), Failure> {
        let client = self.remote.client()?;
        let read = Read::of(&client, &self.run).await?;
        let head = read.whole.run.last_event_seq;
        let lives = self.follow || (!self.once && !self.remote.json && in_place());
        match lives {
            true if self.remote.json || !in_place() => watch::follow(&self.remote, &client, &self.run, head).await,
            true => live(&client, &self.run, read.board(&client, &self.run).await?).await,
            false if self.remote.json => say_json(&json!({ "run": read.whole.run, "blackboard": read.noted })),
            false => print(&read.board(&client, &self.run).await?),
        }
    }
}

/// Draws a board once.
pub fn print(board: &Board) -> Result<(), Failure> {
    let width = if io::stdout().is_terminal() { size().0 } else { PAGE.0 };
    let paints = colours();
    let lines = draw::draw(board, width, PAGE.1, SystemClock.now());
    let lines = lines.iter().map(|line| if paints { line.painted() } else { line.text() } + "\n");
    write(lines.collect::<String>().as_bytes())
}

/// Draws a board again and again, until somebody leaves or the run is gone.
async fn live(client: &Client, run: &str, mut board: Board) -> Result<(), Failure> {
    let mut events = client.follow_run(run, board.run().last_event_seq);
    let lost = events.lost();
    let (send, mut happened) = mpsc::channel(64);
    // In a task of its own: a connection that is being made must not be given up for a drawing.
    tokio::spawn(async move {
        loop {
            let next = events.next().await;
            let over = !matches!(next, Ok(Some(_)));
            if send.send(next).await.is_err() || over {
                break;
            }
        }
    });
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut terminated = signal(SignalKind::terminate())?;
    let mut hung_up = signal(SignalKind::hangup())?;
    let mut resized = signal(SignalKind::window_change())?;
    let screen = Screen::open()?;
    loop {
        screen.show(&board, lost.load(Ordering::Relaxed))?;
        let drawn = Instant::now();
        let mut next = drawn + TICK;
        loop {
            tokio::select! {
                event = happened.recv() => match event {
                    Some(Ok(Some(told))) => {
                        board.apply(told.read()?);
                        next = drawn + FRAME;
                    }
                    Some(Ok(None)) => {
                        drop(screen);
                        eprintln!("the run was deleted");
                        return Ok(());
                    }
                    Some(Err(err)) => return Err(err.into()),
                    None => return Ok(()),
                },
                () = sleep_until(next) => break,
                _ = resized.recv() => break,
                _ = interrupted.recv() => return Ok(()),
                _ = terminated.recv() => return Ok(()),
                _ = hung_up.recv() => return Ok(()),
            }
        }
    }
}

/// Whether stdout is a terminal on which something can be drawn anew.
fn in_place() -> bool {
    io::stdout().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Whether colours are wanted: <https://no-color.org>.
fn colours() -> bool {
    in_place() && std::env::var_os("NO_COLOR").is_none_or(|no| no.is_empty())
}

/// Columns and lines of the terminal.
fn size() -> (usize, usize) {
    let size = rustix::termios::tcgetwinsize(rustix::stdio::stdout());
    // A terminal that does not know its size says that it has none.
    let known = size.ok().filter(|size| size.ws_col > 0 && size.ws_row > 0);
    known.map_or((80, 24), |size| (size.ws_col.into(), size.ws_row.into()))
}

/// A terminal with a board on it. Dropping it gives the terminal back as it was.
struct Screen {
    paints: bool,
}

/// To the other screen, without cursor, and lines that are too long end at the border.
const OPEN: &str = "\u{1b}[?1049h\u{1b}[?25l\u{1b}[?7l";
const CLOSE: &str = "\u{1b}[?7h\u{1b}[?25h\u{1b}[?1049l";

impl Screen {
    fn open() -> Result<Self, Failure> {
        let screen = Self { paints: colours() };
        write(OPEN.as_bytes())?;
        Ok(screen)
    }

    fn show(&self, board: &Board, lost: bool) -> Result<(), Failure> {
        let (width, height) = size();
        let mut lines = draw::draw(board, width, height.saturating_sub(1), SystemClock.now());
        lines.resize(height.saturating_sub(1), Line::default());
        let foot = match lost {
            false => Line::new(Ink::Dim, "Ctrl-C leaves"),
            true => Line::new(Ink::Red, "no connection").and(Ink::Dim, ", trying again; Ctrl-C leaves"),
        };
        lines.push(foot.cut(width));
        write(frame(&lines, self.paints).as_bytes())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // Nobody is left to be told.
        let mut out = io::stdout().lock();
        let _ = out.write_all(CLOSE.as_bytes()).and_then(|()| out.flush());
    }
}

/// Lines over those that are there, of which as many are there. A line is cleared before it is written: behind a full one
/// the cursor stands on its last character.
fn frame(lines: &[Line], paints: bool) -> String {
    let lines = lines.iter().map(|line| if paints { line.painted() } else { line.text() });
    let lines: Vec<_> = lines.map(|line| format!("\u{1b}[K{line}")).collect();
    format!("\u{1b}[H{}", lines.join("\r\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_begins_at_the_top_and_leaves_nothing_of_the_one_before() {
        let lines = [Line::new(Ink::Red, "a"), Line::default()];
        assert_eq!(frame(&lines, true), "\u{1b}[H\u{1b}[K\u{1b}[31ma\u{1b}[0m\r\n\u{1b}[K");
        assert_eq!(frame(&lines, false), "\u{1b}[H\u{1b}[Ka\r\n\u{1b}[K");
    }
}
