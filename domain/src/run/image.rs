//! All that is true of a run at one moment, and how it is kept: a record and a rest in the run's row, the others as
//! parts.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

use super::{
    Checkpoint, Entry, LedgerSummary, Mutation, Rollback, Run, RunState, Slot, Summaries, Task, TaskCounts,
    apply::Touched, queue::Queue,
};
use crate::{
    id::{Seq, ThreadId},
    ports::{Part, PartKind, PartName},
};

/// A run, whole. Two runs with equal images are in the same state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Image {
    pub run: Run,
    /// With the events that made them.
    pub tasks: Vec<(Slot, Task)>,
    pub entries: Vec<Entry>,
    pub summaries: Summaries,
    /// With the events that saved them.
    pub checkpoints: Vec<(Seq, Checkpoint)>,
    pub mutations: Vec<Mutation>,
    pub sources: BTreeMap<ThreadId, Seq>,
    pub rest: Rest,
}

/// What of a run is small and in no part: it stands in the row, beside the record.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Rest {
    pub ledger: LedgerSummary,
    pub rollback: Option<Rollback>,
    /// How many parts there are, beside tasks, which the record counts: one that is lost is noticed.
    pub parts: PartCounts,
}

/// How many parts of which kind there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PartCounts {
    pub entries: usize,
    pub checkpoints: usize,
    pub mutations: usize,
    pub sources: usize,
}

/// Bytes that are no part of a run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {why}")]
pub struct BadPart {
    pub what: &'static str,
    pub why: String,
}

impl Image {
    /// A run with its record and nothing else.
    pub fn new(run: Run) -> Self {
        Self {
            run,
            tasks: Vec::new(),
            entries: Vec::new(),
            summaries: Summaries::default(),
            checkpoints: Vec::new(),
            mutations: Vec::new(),
            sources: BTreeMap::new(),
            rest: Rest::default(),
        }
    }

    /// Reads what is stored: the row's record and rest, and its parts, of which `parts` has all of a kind in their order.
    pub fn read<E: From<BadPart>>(
        record: &[u8],
        rest: &[u8],
        mut parts: impl FnMut(PartKind) -> Result<Vec<(PartName, Vec<u8>)>, E>,
    ) -> Result<Self, E> {
        let mut image = Self::new(json("the record", record)?);
        image.rest = json("the rest", rest)?;
        for (name, bytes) in parts(PartKind::Task)? {
            image.tasks.push((name.as_number(), json("a task", &bytes)?));
        }
        for (_, bytes) in parts(PartKind::Entry)? {
            image.entries.push(json("an entry", &bytes)?);
        }
        for (name, bytes) in parts(PartKind::Summary)? {
            let text = json("a summary", &bytes)?;
            let summaries = &mut image.summaries;
            *(if name.as_number() == 0 { &mut summaries.rolling } else { &mut summaries.latest_context_pack }) = text;
        }
        for (name, bytes) in parts(PartKind::Checkpoint)? {
            image.checkpoints.push((name.as_number(), json("a checkpoint", &bytes)?));
        }
        for (_, bytes) in parts(PartKind::Mutation)? {
            image.mutations.push(json("a mutation", &bytes)?);
        }
        for (_, bytes) in parts(PartKind::Source)? {
            let (thread, seq) = json("a source", &bytes)?;
            image.sources.insert(thread, seq);
        }
        Ok(image)
    }
}

fn json<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, BadPart> {
    serde_json::from_slice(bytes).map_err(|why| BadPart { what, why: why.to_string() })
}

/// The JSON of a record of ours.
pub(super) fn bytes(value: &impl Serialize) -> Vec<u8> {
    // Records hold strings, numbers and string-keyed maps: nothing that JSON cannot say.
    serde_json::to_vec(value).expect("records are JSON")
}

impl PartName {
    /// Named by the digest of a text that may be longer.
    pub fn digest(text: &str) -> Self {
        Self(Sha256::digest(text).into())
    }

    fn of_thread(thread: ThreadId) -> Self {
        let mut name = [0; 32];
        name[..16].copy_from_slice(thread.as_bytes());
        Self(name)
    }
}

impl RunState {
    /// The state that an image is of.
    pub fn of(image: Image) -> Result<Self, BadPart> {
        let Image { run, tasks, entries, summaries, checkpoints, mutations, sources, rest } = image;
        let counted = run.task_counts;
        let parts = PartCounts {
            entries: entries.len(),
            checkpoints: checkpoints.len(),
            mutations: mutations.len(),
            sources: sources.len(),
        };
        if parts != rest.parts {
            let why = format!("there are {parts:?}, and there should be {:?}", rest.parts);
            return Err(BadPart { what: "the parts", why });
        }
        let mut state = Self {
            run: Run { task_counts: TaskCounts::default(), ..run },
            tasks: BTreeMap::new(),
            names: BTreeMap::new(),
            queue: Queue::default(),
            entries: BTreeMap::new(),
            entry_names: BTreeMap::new(),
            summaries,
            checkpoints: checkpoints.into_iter().collect(),
            mutations: BTreeMap::new(),
            sources,
            ledger: rest.ledger,
            rollback: rest.rollback,
            bytes: 0,
        };
        for (slot, task) in tasks {
            if state.names.contains_key(&task.id) || state.tasks.contains_key(&slot) {
                return Err(BadPart { what: "a task", why: format!("there are two of `{}`", task.id) });
            }
            state.put_task(slot, task);
        }
        if state.run.task_counts != counted {
            return Err(BadPart { what: "the tasks", why: "are not those that the record counts".to_owned() });
        }
        entries.into_iter().for_each(|entry| state.put_entry(entry));
        mutations.into_iter().for_each(|mutation| state.put_mutation(mutation));
        Ok(state)
    }

    /// All that is true of it.
    pub fn image(&self) -> Image {
        Image {
            run: self.run.clone(),
            tasks: self.tasks.iter().map(|(slot, task)| (*slot, task.clone())).collect(),
            entries: self.entries.values().cloned().collect(),
            summaries: self.summaries.clone(),
            checkpoints: self.checkpoints.iter().map(|(seq, saved)| (*seq, saved.clone())).collect(),
            mutations: self.mutations.values().cloned().collect(),
            sources: self.sources.clone(),
            rest: self.rest(),
        }
    }

    /// What stands in the row beside the record.
    pub fn rest(&self) -> Rest {
        let parts = PartCounts {
            entries: self.entries.len(),
            checkpoints: self.checkpoints.len(),
            mutations: self.mutations.len(),
            sources: self.sources.len(),
        };
        Rest { ledger: self.ledger.clone(), rollback: self.rollback.clone(), parts }
    }

    /// What is to be written of the parts that were touched.
    pub(super) fn parts(&self, touched: Touched) -> Vec<Part> {
        let Touched { tasks, names, entries, summaries, checkpoints, image, mutations, sources } = touched;
        let numbered = |kind, number, json| Part { kind, name: PartName::number(number), json };
        let mut parts = Vec::new();
        for slot in tasks {
            parts.push(numbered(PartKind::Task, slot, self.tasks.get(&slot).map(bytes)));
        }
        for slot in names {
            let Some(task) = self.tasks.get(&slot) else { continue };
            parts.push(Part { kind: PartKind::TaskName, name: PartName::digest(&task.id), json: Some(bytes(&slot)) });
        }
        for seq in entries {
            parts.push(numbered(PartKind::Entry, seq, self.entries.get(&seq).map(bytes)));
        }
        for pack in summaries {
            let text = if pack { &self.summaries.latest_context_pack } else { &self.summaries.rolling };
            parts.push(numbered(PartKind::Summary, u64::from(pack), Some(bytes(text))));
        }
        for seq in checkpoints {
            let saved = self.checkpoints.get(&seq);
            if saved.is_none() {
                parts.push(numbered(PartKind::Image, seq, None));
            }
            parts.push(numbered(PartKind::Checkpoint, seq, saved.map(bytes)));
        }
        parts.extend(image.map(|(seq, copy)| numbered(PartKind::Image, seq, Some(copy))));
        for seq in mutations {
            parts.push(numbered(PartKind::Mutation, seq, self.mutations.get(&seq).map(bytes)));
        }
        for thread in sources {
            let json = self.sources.get(&thread).map(|seq| bytes(&(thread, seq)));
            parts.push(Part { kind: PartKind::Source, name: PartName::of_thread(thread), json });
        }
        parts
    }
}
