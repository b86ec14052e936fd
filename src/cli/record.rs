//! `raddle record`: what threads are told, as a file that `raddle replay` tells again.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use futures_util::StreamExt;
use raddle_actors::{
    derived,
    store::redb::{RedbConfig, RedbStore},
};
use raddle_domain::{
    command::Limits,
    id::{TenantId, ThreadId, ThreadKey},
    ports::LogStore,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Failure, Remote, plain};
use crate::{client::Pieces, config::Config, record};

/// Record what threads are told
///
/// From now on, by a running server, until Ctrl-C or --for; or what stored threads must have been told, with their names,
/// by a server or in the data directory of one that is down. Runs are not recorded.
#[derive(Debug, Args)]
pub struct Record {
    /// A stored thread, or several with --data-dir, in place of what happens from now on
    #[arg(value_name = "THREAD", conflicts_with_all = ["only", "seconds"])]
    threads: Vec<ThreadId>,
    /// Only what this thread is told
    #[arg(long = "thread", value_name = "ID")]
    only: Option<ThreadId>,
    /// Of all tenants (with the operator's key)
    #[arg(long, conflicts_with_all = ["threads", "data_dir"])]
    all_tenants: bool,
    /// For so long
    #[arg(long = "for", value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    seconds: Option<u32>,
    /// Where to; it must not be there yet. Without it, the standard output
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Read this directory, whose server is down, and ask none
    #[arg(long, value_name = "DIR", conflicts_with_all = ["only", "seconds"])]
    data_dir: Option<PathBuf>,
    /// All threads that are stored there; exits with 1 if one of them cannot be read
    #[arg(long, requires = "data_dir", conflicts_with = "threads")]
    all: bool,
    /// The configuration file of that server: its limits stand in the recording
    #[arg(long, value_name = "FILE", requires = "data_dir")]
    config: Option<PathBuf>,
    /// Whose threads they are that are read from a directory
    #[arg(long, value_name = "TENANT", requires = "data_dir")]
    tenant: Option<TenantId>,
    #[command(flatten)]
    remote: Remote,
}

/// How often it is looked whether anybody still reads: where nothing is told, no write finds out.
const LOOKS: Duration = Duration::from_secs(1);

/// Where a recording goes.
struct Out {
    to: Box<dyn Write>,
    file: Option<(PathBuf, File)>,
    /// Lines so far, the header among them.
    lines: usize,
}

impl Out {
    fn open(path: Option<&Path>) -> Result<Self, Failure> {
        let Some(path) = path else { return Ok(Self { to: Box::new(io::stdout()), file: None, lines: 0 }) };
        // For its owner alone: what people said to models stands in it.
        let file = match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
            Err(why) if why.kind() == io::ErrorKind::AlreadyExists => {
                return Err(Failure::Usage(format!("{} is there already", path.display())));
            }
            file => file.map_err(|why| Failure::Failed(format!("{}: {why}", path.display())))?,
        };
        Ok(Self { to: Box::new(BufWriter::new(file.try_clone()?)), file: Some((path.to_owned(), file)), lines: 0 })
    }

    fn write(&mut self, text: &[u8]) -> Result<(), Failure> {
        self.lines += text.iter().filter(|byte| **byte == b'\n').count();
        match self.to.write_all(text) {
            // A reader that has gone, as `head` does, ends the command.
            Err(why) if self.file.is_none() && why.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
            written => Ok(written?),
        }
    }

    /// Whether a reader has gone, as `head` does, and a line would find nobody.
    fn is_unread(&self) -> bool {
        let stdout = io::stdout();
        let mut polled = [PollFd::new(&stdout, PollFlags::empty())];
        self.file.is_none()
            && poll(&mut polled, Some(&Timespec::default())).is_ok()
            && polled[0].revents().intersects(PollFlags::ERR)
    }

    /// The number of lines behind the header.
    fn end(mut self) -> Result<usize, Failure> {
        self.to.flush()?;
        if let Some((_, file)) = &self.file {
            file.sync_all()?;
        }
        Ok(self.lines.saturating_sub(1))
    }
}

impl Drop for Out {
    fn drop(&mut self) {
        // A file of which nothing was written, for lack of room or because nobody answered, would only be in the way of
        // who tries again.
        if let Some((path, file)) = &self.file
            && file.metadata().is_ok_and(|found| found.len() == 0)
        {
            drop(fs::remove_file(path));
        }
    }
}

impl Record {
    pub async fn run(self) -> Result<(), Failure> {
        if let Some(dir) = &self.data_dir {
            if self.threads.is_empty() && !self.all {
                return Err(Failure::Usage("name threads, or say --all".to_owned()));
            }
            return self.stored(dir);
        }
        if self.tenant.is_some() {
            // What a server tells is of the key's tenant.
            return Err(Failure::Usage("--tenant goes with --data-dir".to_owned()));
        }
        let client = self.remote.client()?;
        if let [thread, more @ ..] = self.threads.as_slice() {
            if !more.is_empty() {
                return Err(Failure::Usage("a server gives one stored thread at a time".to_owned()));
            }
            let pieces = client.thread_trace(&thread.to_string()).await?;
            let mut out = Out::open(self.out.as_deref())?;
            copy(pieces, &mut out).await?;
            return out.end().map(drop);
        }
        if let (Some(thread), false) = (&self.only, self.all_tenants) {
            client.thread(&thread.to_string()).await?;
        }
        let query = [("thread", self.only.map(|id| id.to_string())), ("seconds", self.seconds.map(|n| n.to_string()))];
        let query: Vec<_> = query.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        let pieces = client.trace(self.all_tenants, &query).await?;
        let mut out = Out::open(self.out.as_deref())?;
        eprintln!("recording; Ctrl-C ends it");
        let interrupted = tokio::select! {
            copied = copy(pieces, &mut out) => copied.map(|()| false),
            interrupt = tokio::signal::ctrl_c() => Ok(interrupt.map(|()| true)?),
        };
        // What has come is whole but for its last line, which a reader leaves out.
        // Nobody may listen any more.
        drop(writeln!(io::stderr(), "recorded: lines {}", out.end()?));
        interrupted.map(drop)
    }

    /// From a directory that no server uses. Nothing in it goes on meanwhile.
    fn stored(&self, dir: &Path) -> Result<(), Failure> {
        let failed = |why: &dyn std::fmt::Display| Failure::Failed(format!("{}: {why}", dir.display()));
        let limits = self.limits()?;
        if !RedbStore::is_in(dir).map_err(|why| failed(&why))? {
            return Err(Failure::Failed(format!("{} holds no database", dir.display())));
        }
        let store = RedbStore::open(&RedbConfig::new(dir)).map_err(|why| Failure::Failed(why.to_string()))?;
        let view = store.view().map_err(|why| failed(&why))?;
        let keys = if self.all {
            derived::keys(&*view, self.tenant).map_err(|why| failed(&why))?
        } else {
            let tenant = self.tenant.unwrap_or(TenantId::DEFAULT);
            self.threads.iter().map(|thread| ThreadKey { tenant, thread: *thread }).collect()
        };
        let header = derived::header(&*view, &keys, limits);
        let header = header.map_err(|why| failed(&why))?;
        let mut out = Out::open(self.out.as_deref())?;
        out.write(format!("{header}\n").as_bytes())?;
        let mut left_out = 0;
        for key in keys {
            let derived = match derived::derived(&*view, key, &header) {
                Ok(Some(derived)) => derived,
                Ok(None) => return Err(Failure::Failed(format!("there is no thread {key}"))),
                // One thread that cannot be read is no reason to have none.
                Err(why) if self.all => {
                    eprintln!("{key} is left out: {}", plain(&why.to_string()));
                    left_out += 1;
                    continue;
                }
                Err(why) => return Err(failed(&why)),
            };
            if derived.given > 0 {
                eprintln!("{key}: what led to its first {} events is not known; they are given", derived.given);
            }
            out.write(record::text(&derived.lines).as_bytes())?;
        }
        out.end()?;
        match left_out {
            0 => Ok(()),
            // Each was named.
            _ => Err(Failure::Told),
        }
    }

    /// Under which threads were told what is stored.
    fn limits(&self) -> Result<Limits, Failure> {
        let Some(path) = &self.config else { return Ok(Limits::default()) };
        let about = |why: &dyn std::fmt::Display| Failure::Usage(format!("{}: {why}", path.display()));
        let text = fs::read_to_string(path).map_err(|why| about(&why))?;
        Ok(Config::read(Some(&text), [], []).map_err(|why| about(&why))?.limits.thread)
    }
}

async fn copy(mut pieces: Pieces, out: &mut Out) -> Result<(), Failure> {
    let mut looks = tokio::time::interval(LOOKS);
    loop {
        let piece = tokio::select! {
            piece = pieces.next() => piece,
            _ = looks.tick() => match out.is_unread() {
                true => return Ok(()),
                false => continue,
            },
        };
        let Some(piece) = piece else { return Ok(()) };
        let piece = piece?;
        // An empty line is a sign of life.
        if &*piece != b"\n" {
            out.write(&piece)?;
        }
    }
}
