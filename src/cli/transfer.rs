//! `raddle export` and `raddle import`: all of one tenant as lines of JSON.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use clap::Args;
use futures_util::StreamExt;

use super::{Failure, Remote, backup::Aside, say, say_json, write};

/// Write everything of a tenant as lines of JSON
///
/// Keys and receipts of requests are left out.
#[derive(Debug, Args)]
pub struct Export {
    tenant: String,
    /// Where to; it must not be there yet. `-` is the standard output
    file: PathBuf,
    #[command(flatten)]
    remote: Remote,
}

/// Bring an export in, for a tenant that has nothing yet
///
/// The tenant may have another name than the one that was exported. All of it is there at once, or nothing.
#[derive(Debug, Args)]
pub struct Import {
    /// What was exported; `-` is the standard input
    file: PathBuf,
    /// For whom
    #[arg(long, value_name = "TENANT")]
    tenant: String,
    #[command(flatten)]
    remote: Remote,
}

impl Export {
    pub async fn run(self) -> Result<(), Failure> {
        let mut pieces = self.remote.client()?.export(&self.tenant).await?;
        if self.file == Path::new("-") {
            while let Some(piece) = pieces.next().await {
                write(&piece?)?;
            }
            return Ok(());
        }
        let (aside, file) = Aside::of(&self.file)?;
        let mut out = BufWriter::new(file);
        let failed = |why: io::Error| Failure::Failed(format!("{}: {why}", self.file.display()));
        let mut end = Vec::new();
        while let Some(piece) = pieces.next().await {
            let piece = piece?;
            out.write_all(&piece).map_err(failed)?;
            end = piece[piece.len().saturating_sub(1)..].to_vec();
        }
        if end != b"\n" {
            return Err(Failure::Failed("the export is cut off".to_owned()));
        }
        let file = out.into_inner().map_err(|why| failed(why.into_error()))?;
        aside.done(&file)
    }
}

impl Import {
    pub async fn run(self) -> Result<(), Failure> {
        let client = self.remote.client()?;
        let brought = if self.file == Path::new("-") {
            client.import(&self.tenant, tokio::io::stdin()).await?
        } else {
            let file = File::open(&self.file);
            let file = file.map_err(|why| Failure::Failed(format!("{}: {why}", self.file.display())))?;
            client.import(&self.tenant, tokio::fs::File::from_std(file)).await?
        };
        if self.remote.json {
            return say_json(&brought);
        }
        let count = |table: &str| brought.records.get(table).copied().unwrap_or_default();
        let all = brought.records.values().sum::<u64>();
        say(&format!("{}: {} logs in {all} records", brought.tenant, count("threads")))
    }
}
