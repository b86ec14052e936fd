//! Lines to a file, which are on the disk before they count as taken.
//!
//! A batch is one write and one sync. The file is locked, so that two servers do not write into one; when it would
//! grow beyond its size it becomes `NAME.1`, and that `NAME.2`, and so on. Of a batch that a crash cut short the last
//! line may be torn: it is taken out when the file is opened again, and comes again with the rest of its batch. A file
//! that ends with half a line of somebody else's is not touched.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use raddle_domain::ports::{HookBatch, Sink, SinkWork};
use tokio::sync::Mutex;

use super::{BEGINNING, blocking, lines, unavailable};

/// What is read at a time to find the last line's beginning.
const BLOCK: u64 = 64 * 1024;

/// The sink.
#[derive(Debug)]
pub struct Jsonl(Arc<Mutex<Log>>);

impl Jsonl {
    /// A file that is rotated before it grows beyond `max_bytes` (0: never), `keep` earlier ones being kept.
    pub fn new(path: impl Into<PathBuf>, max_bytes: u64, keep: u32) -> Self {
        Self(Arc::new(Mutex::new(Log { path: path.into(), max_bytes, keep, open: None })))
    }
}

impl Sink for Jsonl {
    fn deliver(&self, batch: HookBatch) -> SinkWork {
        let log = self.0.clone();
        Box::pin(async move {
            let lines = lines(&batch);
            blocking(log.lock_owned().await, move |log| {
                log.append(&lines).map_err(|why| unavailable(format!("the file cannot be written: {why}")))
            })
            .await
        })
    }
}

#[derive(Debug)]
struct Log {
    path: PathBuf,
    max_bytes: u64,
    keep: u32,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    file: File,
    length: u64,
}

impl Log {
    fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        // After a failure nobody knows where the file ends: it is opened, and looked at, anew.
        let mut open = match self.open.take() {
            Some(open) if is_at(&open.file, &self.path)? => open,
            _ => open(&self.path)?,
        };
        if self.max_bytes > 0 && open.length > 0 && open.length + lines.len() as u64 > self.max_bytes {
            open = self.rotate(open)?;
        }
        open.file.write_all(lines)?;
        open.file.sync_data()?;
        open.length += lines.len() as u64;
        self.open = Some(open);
        Ok(())
    }

    /// Makes room for a new file. The old one stays locked until it has its new name.
    fn rotate(&self, old: Open) -> io::Result<Open> {
        let name = |n: u32| match n {
            0 => self.path.clone(),
            n => {
                let mut name = self.path.clone().into_os_string();
                name.push(format!(".{n}"));
                name.into()
            }
        };
        for n in (0..self.keep).rev() {
            match fs::rename(name(n), name(n + 1)) {
                Err(why) if why.kind() != io::ErrorKind::NotFound => return Err(why),
                _ => {}
            }
        }
        drop(old);
        open(&self.path)
    }
}

/// Whether the file is still the one under this name: somebody else may have rotated, or removed, it.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let (ours, there) = (file.metadata()?, fs::metadata(path));
    Ok(there.is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino())))
}

/// Opens the file, takes it for this process, and takes out a line that was torn.
fn open(path: &Path) -> io::Result<Open> {
    let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
    file.try_lock().map_err(|_| io::Error::new(io::ErrorKind::ResourceBusy, "it is in use by another process"))?;
    let length = whole(&mut file)?;
    if length < file.metadata()?.len() {
        tracing::warn!(length, "the last line of a hook's file was torn, and is taken out: its event comes again");
        file.set_len(length)?;
    }
    // The name of a new file has to be on the disk too.
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir)?.sync_all()?;
    Ok(Open { file, length })
}

/// Where the last whole line ends.
fn whole(file: &mut File) -> io::Result<u64> {
    let length = file.metadata()?.len();
    let (mut end, mut torn) = (length, Vec::new());
    while end > 0 {
        let begin = end.saturating_sub(BLOCK);
        let mut block = vec![0; usize::try_from(end - begin).unwrap_or_default()];
        file.seek(SeekFrom::Start(begin))?;
        file.read_exact(&mut block)?;
        if let Some(at) = block.iter().rposition(|byte| *byte == b'\n') {
            torn.splice(0..0, block[at + 1..].iter().copied());
            return if is_ours(&torn) { Ok(begin + at as u64 + 1) } else { Err(foreign()) };
        }
        torn.splice(0..0, block);
        end = begin;
    }
    if is_ours(&torn) { Ok(0) } else { Err(foreign()) }
}

/// Whether what stands behind the last line end may be taken out: the beginning of a line of ours, or room that a
/// power cut left without content.
fn is_ours(torn: &[u8]) -> bool {
    let written = torn.iter().rposition(|byte| *byte != 0).map_or(&[][..], |last| &torn[..=last]);
    written.starts_with(BEGINNING.as_bytes()) || BEGINNING.as_bytes().starts_with(written)
}

fn foreign() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "it ends with half a line that no hook wrote")
}
