//! How far a long command is, on the standard error: a bar where that is a terminal, and a line now and then elsewhere, as
//! in the log of a job.

use std::{
    io::{self, IsTerminal, Write},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};

/// How often there is a line.
pub const NEWS: Duration = Duration::from_secs(10);
/// How often the bar is drawn.
const DRAWN: Duration = Duration::from_millis(200);

/// How far it is.
pub struct Step {
    pub at: u64,
    pub of: u64,
    pub says: String,
}

struct Bar(ProgressBar);

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Says it until it is dropped, which takes the bar away.
pub async fn show(step: impl Fn() -> Step) {
    if !io::stderr().is_terminal() {
        loop {
            tokio::time::sleep(NEWS).await;
            // Nobody may listen any more.
            drop(writeln!(io::stderr(), "{}", step().says));
        }
    }
    let bar = Bar(ProgressBar::new(0));
    if let Ok(style) = ProgressStyle::with_template("{bar:30.cyan/blue} {msg}") {
        bar.0.set_style(style.progress_chars("━╸─"));
    }
    loop {
        let Step { at, of, says } = step();
        bar.0.set_length(of);
        bar.0.set_position(at);
        bar.0.set_message(says);
        tokio::time::sleep(DRAWN).await;
    }
}
