//! A run as lines, on its way out and back in.
//!
//! What comes in is a new run with the plan, the tasks and the blackboard of the other. The ledger does not travel: what
//! a file claims that tools did is nothing that this server has seen, and a rollback would act on it.

use raddle_domain::{
    id::{RunId, Seq, TenantId, ThreadKey},
    run::{
        Run, RunState,
        lines::{BadLine, Reader, Writer},
    },
};

use crate::handle::{Call, Done, Error, Runtime};

/// Bytes of lines that are made at a time.
const PIECE: usize = 256 * 1024;
const EVENTS: usize = 1_000;

/// A run on its way out.
pub struct Exported {
    runtime: Runtime,
    key: ThreadKey,
    /// Nothing once the last line was given.
    writer: Option<Writer>,
    first: Option<Vec<u8>>,
    at: Seq,
    head: Seq,
}

impl Exported {
    /// The next lines; `None` behind the last. An error is the end: what was given then has none, which a reader sees.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, Error> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        let Some(mut writer) = self.writer.take() else { return Ok(None) };
        if self.at == self.head {
            return Ok(Some(writer.end()));
        }
        let mut lines = Vec::new();
        for chunk in self.runtime.log_page(self.key, self.at, EVENTS, PIECE).await? {
            for (seq, stored) in (chunk.first..=self.head).zip(&chunk.events) {
                writer.event(&stored.json, &mut lines);
                self.at = seq;
            }
        }
        if lines.is_empty() {
            return Err(Error::NotFound("run"));
        }
        self.writer = Some(writer);
        Ok(Some(lines))
    }
}

impl Runtime {
    /// The log of a run as lines, up to its newest event.
    pub async fn export_run(&self, tenant: TenantId, run: RunId) -> Result<Exported, Error> {
        let head = self.run(tenant, run).await?.last_event_seq;
        let (writer, first) = Writer::begin(run, head);
        let key = run.log(tenant);
        Ok(Exported { runtime: self.clone(), key, writer: Some(writer), first: Some(first), at: 0, head })
    }

    /// Makes a run of the lines of another.
    pub async fn import_run(&self, tenant: TenantId, lines: bytes::Bytes, call: Call) -> Result<Done<Run>, Error> {
        let shared = self.shared().clone();
        let id = RunId::new(shared.ids.mint());
        let begin = async {
            let read = shared.tasks.blocking(move || read(&lines)).await;
            let state = read.map_err(|why| Error::Internal(why.to_string()))?;
            let state = state.map_err(|bad| raddle_domain::run::Refused::Invalid {
                field: "body".to_owned(),
                why: format!("is no run: {bad}"),
            })?;
            let (seq, image) = (state.seq(), state.image());
            let cx = raddle_domain::run::Cx { now: shared.clock.now(), ids: &*shared.ids };
            Ok(raddle_domain::run::restored(id, tenant, (None, seq), image, cx)?)
        };
        self.make_run(tenant, id, call, begin).await
    }
}

fn read(lines: &[u8]) -> Result<RunState, BadLine> {
    let mut reader = Reader::default();
    // The last line end is the end of the last line; any other empty line is one too many.
    let lines = lines.strip_suffix(b"\n").unwrap_or(lines);
    lines.split(|byte| *byte == b'\n').try_for_each(|line| reader.take(line))?;
    reader.finish()
}
