//! Recordings of what threads are told, as files: one header, then lines as they come.

use std::{io, path::Path};

use raddle_actors::{RecordError, Recording};
use raddle_domain::trace::{Header, Line};
use tokio::{
    fs::{File, OpenOptions},
    io::AsyncWriteExt,
};

/// What was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Written {
    pub lines: u64,
    /// Threads of which something was missed; their lines end there.
    pub left_out: u64,
}

/// Why a recording ended before anybody ended it.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A file that is made for its owner alone: what people said to models stands in it. One that is there already stays.
pub async fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).await
}

/// Writes a recording to its end, with the shutdown of its runtime.
pub async fn write(header: &Header, mut recording: Recording, to: &mut File) -> Result<Written, WriteError> {
    to.write_all(format!("{header}\n").as_bytes()).await?;
    let mut written = Written::default();
    while let Some(lines) = recording.next().await? {
        written.lines += lines.len() as u64;
        to.write_all(text(&lines).as_bytes()).await?;
    }
    to.sync_all().await?;
    Ok(Written { left_out: recording.left_out(), ..written })
}

/// Lines as they stand in a file.
pub fn text(lines: &[Line]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}
