//! A log in a file, as a runtime keeps it that knows no more of a thread than the file: whoever adds an event reads all
//! of it first, to find what the next one is. Nothing is ever synced.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

pub struct JsonLines {
    path: PathBuf,
}

impl JsonLines {
    /// A log that has so many events.
    pub fn with_past(dir: &Path, name: usize, events: u64) -> Self {
        let path = dir.join(format!("{name}.jsonl"));
        let lines: String = (1..=events).map(line).collect();
        fs::write(&path, lines).expect("room");
        Self { path }
    }

    /// Adds an event; returns its place.
    pub fn add(&self) -> u64 {
        let text = fs::read_to_string(&self.path).expect("it is there");
        let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        let seq = events.last().and_then(|last| last["seq"].as_u64()).unwrap_or(0) + 1;
        let file = OpenOptions::new().append(true).open(&self.path);
        file.and_then(|mut file| file.write_all(line(seq).as_bytes())).expect("room");
        seq
    }
}

/// As long as a delta's record usually is.
fn line(seq: u64) -> String {
    let event = json!({
        "seq": seq,
        "prev": seq - 1,
        "ts": 1_795_000_000_000_u64 + seq,
        "thread_id": "thr_01a1fefc-697c-76f9-ab74-5287d7a8b757",
        "turn_id": "turn_01a1fefc-697c-76f9-ab74-5287d7a8b758",
        "item_id": "item_01a1fefc-697c-76f9-ab74-5287d7a8b759",
        "event": "item.delta",
        "payload": { "delta": "some ten tokens of an answer that goes on and on " },
    });
    format!("{event}\n")
}
