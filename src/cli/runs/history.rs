//! A run as its log makes it: replayed by the server or here, and its log as lines, down and up.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Write},
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use bytes::BytesMut;
use clap::Args;
use futures_util::TryStreamExt;
use raddle_domain::{
    id::Seq,
    run::{
        RunState,
        drift::{Difference, Drift},
        lines::Reader,
    },
};
use serde_json::Value;
use tokio_util::codec::{BytesCodec, FramedRead};

use super::{board, brief, made};
use crate::{
    cli::{Failure, Remote, plain, say, say_json, write},
    client::RunReplay,
};

/// Make a run of its log alone; on the server, which compares it with what is kept, or here, of the lines of an export.
#[derive(Debug, Args)]
pub struct Replay {
    #[arg(required_unless_present = "file")]
    run: Option<String>,
    /// The last event that counts
    #[arg(long, value_name = "SEQ", conflicts_with = "file")]
    upto: Option<Seq>,
    /// Begin with the copy of this checkpoint
    #[arg(long, value_name = "CHECKPOINT", conflicts_with = "file")]
    from: Option<String>,
    /// These lines, without a server; `-` is stdin
    #[arg(long, value_name = "LINES", conflicts_with = "run")]
    file: Option<String>,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Args)]
pub struct Export {
    run: String,
    /// Where the lines go; stdout unless given
    file: Option<PathBuf>,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Args)]
pub struct Import {
    /// Where the lines are; `-` is stdin
    file: String,
    #[command(flatten)]
    remote: Remote,
}

impl Replay {
    pub async fn run(self) -> Result<(), Failure> {
        if let Some(name) = &self.file {
            let state = replayed(open(name)?).map_err(|why| Failure::Failed(format!("{name}: {why}")))?;
            let image = state.image();
            return if self.remote.json { say_json(&image) } else { board::print(&board::Board::of(image)) };
        }
        let mut query = Vec::new();
        query.extend(self.upto.map(|seq| ("upto_seq", seq.to_string())));
        query.extend(self.from.map(|checkpoint| ("from_checkpoint", checkpoint)));
        let replay = self.remote.client()?.replay_run(&self.run.unwrap_or_default(), &query).await?;
        if self.remote.json {
            say_json(&replay)?;
        } else {
            report(&replay).iter().try_for_each(|line| say(line))?;
        }
        let drifts = replay.drift.is_some_and(|drift| drift.mismatch);
        if drifts { Err(Failure::Told) } else { Ok(()) }
    }
}

/// What a replay came to, and what differs.
fn report(replay: &RunReplay) -> Vec<String> {
    let run = &replay.replay["run"];
    let from = match (&replay.from_checkpoint, replay.checkpoint_seq) {
        (Some(checkpoint), Some(seq)) => format!(" after {} at event {seq}", brief(checkpoint)),
        _ => String::new(),
    };
    let status = run["status"].as_str().map(brief).unwrap_or_default();
    let mut lines = vec![
        format!("{}  {} events applied{from}, up to event {}", replay.run_id, replay.events_applied, replay.upto_seq),
        format!("{status}, revision {}", run["revision"]),
    ];
    match &replay.drift {
        None => lines.push("not compared: what is kept is of a later moment".to_owned()),
        Some(drift) if !drift.mismatch => lines.push("no drift".to_owned()),
        Some(drift) => lines.extend(differences(drift)),
    }
    lines
}

fn differences(drift: &Drift) -> Vec<String> {
    let json = |value: &Value| brief(&value.to_string());
    let difference = |Difference { at, kept, replayed }: &Difference| {
        format!("  {}: kept {}, replayed {}", brief(at), json(kept), json(replayed))
    };
    // Uncounted: the server tells the first of them.
    let mut lines = vec!["drift:".to_owned()];
    lines.extend(drift.differences.iter().map(difference));
    lines
}

/// The run that lines tell of.
fn replayed(mut lines: impl BufRead) -> Result<RunState, String> {
    let mut reader = Reader::default();
    let mut line = Vec::new();
    loop {
        line.clear();
        if lines.read_until(b'\n', &mut line).map_err(|why| why.to_string())? == 0 {
            return reader.finish().map_err(|why| why.to_string());
        }
        reader.take(line.strip_suffix(b"\n").unwrap_or(&line)).map_err(|why| plain(&why.to_string()))?;
    }
}

/// A file, or stdin where its name is `-`.
fn open(name: &str) -> Result<BufReader<File>, Failure> {
    let opened = match name {
        "-" => io::stdin().as_fd().try_clone_to_owned().map(File::from),
        name => File::open(name),
    };
    opened.map(BufReader::new).map_err(|why| Failure::Failed(format!("{name}: {why}")))
}

/// Looks for the line that ends an export, as its pieces go by.
#[derive(Default)]
struct End {
    /// The last whole line, and what there is of the next.
    last: Vec<u8>,
    open: Vec<u8>,
}

impl End {
    fn see(&mut self, mut piece: &[u8]) {
        while let Some(at) = piece.iter().position(|byte| *byte == b'\n') {
            self.open.extend_from_slice(&piece[..at]);
            self.last = std::mem::take(&mut self.open);
            piece = &piece[at + 1..];
        }
        self.open.extend_from_slice(piece);
    }

    fn is_there(&self) -> bool {
        let last: Value = serde_json::from_slice(&self.last).unwrap_or_default();
        self.open.is_empty() && last["end"] == true
    }
}

impl Export {
    pub async fn run(self) -> Result<(), Failure> {
        let Some(file) = &self.file else { return self.stream(write).await };
        // Under its own name it is whole.
        let part = PathBuf::from(format!("{}.part", file.display()));
        let failed = |path: &Path, why: io::Error| Failure::Failed(format!("{}: {why}", path.display()));
        let mut out = File::create(&part).map_err(|why| failed(&part, why))?;
        let written = self.stream(|piece| out.write_all(piece).map_err(|why| failed(&part, why))).await;
        let kept = match written {
            Ok(()) => std::fs::rename(&part, file).map_err(|why| failed(file, why)),
            Err(why) => Err(why),
        };
        if kept.is_err() {
            let _ = std::fs::remove_file(&part);
        }
        kept
    }

    async fn stream(&self, mut to: impl FnMut(&[u8]) -> Result<(), Failure>) -> Result<(), Failure> {
        let mut lines = self.remote.client()?.export_run(&self.run).await?;
        let mut end = End::default();
        while let Some(piece) = lines.next().await? {
            end.see(&piece);
            to(&piece)?;
        }
        match end.is_there() {
            true => Ok(()),
            false => Err(Failure::Failed("the lines end before the run does".to_owned())),
        }
    }
}

impl Import {
    pub async fn run(self) -> Result<(), Failure> {
        let client = self.remote.client()?;
        let file = open(&self.file)?.into_inner();
        // Of a pipe nothing is known beforehand.
        let bytes = file.metadata().ok().filter(std::fs::Metadata::is_file).map(|meta| meta.len());
        let bytes = bytes.filter(|_| self.file != "-");
        let lines = FramedRead::new(tokio::fs::File::from_std(file), BytesCodec::new()).map_ok(BytesMut::freeze);
        made(&self.remote, &client.import_run(lines, bytes).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_export_that_was_cut_is_noticed_wherever_it_was_cut() {
        let whole = "{\"format\":\"raddle.run\"}\n{\"seq\":1}\n{\"end\":true,\"sha256\":\"x\"}\n";
        for cut in 0..whole.len() {
            let mut end = End::default();
            end.see(&whole.as_bytes()[..cut]);
            assert!(!end.is_there(), "{cut}");
            end.see(&whole.as_bytes()[cut..]);
            assert!(end.is_there(), "{cut}");
        }
    }

    #[test]
    fn lines_that_do_not_fit_are_named() {
        assert_eq!(replayed(&b""[..]).unwrap_err(), "line 1: the lines end before the run does");
        assert!(replayed(&b"nonsense\n"[..]).unwrap_err().starts_with("line 1: not a header"));
    }
}
