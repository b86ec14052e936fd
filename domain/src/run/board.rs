//! The blackboard: facts, decisions, open questions, artifacts, and two summaries. A line is checked before it is saved,
//! added once, and changed under its own name.

use super::{
    Entry, EntryKind,
    apply::weight_of_line,
    command::{NewEntry, Patch, Refused, Reply},
    event::{EntryEvent, Event},
    limits,
    step::Stepper,
    task::{check_id, check_name, check_text},
};

impl Stepper<'_> {
    pub(super) fn patch(&mut self, patch: Patch) -> Result<Reply, Refused> {
        match patch {
            Patch::Add(new) => self.add_entry(new),
            Patch::Edit { kind: EntryKind::Artifact, .. } | Patch::Resolve { kind: EntryKind::Artifact, .. } => {
                Err(Refused::invalid("op", "is not of artifacts: they are added, and stay as they are"))
            }
            Patch::Edit { kind, id, text } => {
                let entry = self.entry(kind, &id)?;
                let text = filled("payload.text", text)?;
                self.change_entry(EntryEvent::Edited, Entry { text, ..entry })
            }
            Patch::Resolve { kind, id, resolution } => {
                let entry = self.entry(kind, &id)?;
                let resolution = resolution.map(|text| check_text("payload.resolution", text)).transpose()?;
                let resolved = Entry { resolved: true, resolution, ..entry.clone() };
                if resolved == entry {
                    return Ok(Reply::Entry(Box::new(entry)));
                }
                self.change_entry(EntryEvent::Resolved, resolved)
            }
            Patch::Summarise { pack, text } => {
                if text.len() > limits::SUMMARY_BYTES {
                    let (field, size) = ("payload.text".to_owned(), text.len());
                    return Err(Refused::TooLarge { field, size, limit: limits::SUMMARY_BYTES });
                }
                self.emit(Event::Summary { pack, text });
                Ok(Reply::Summary)
            }
        }
    }

    fn add_entry(&mut self, new: NewEntry) -> Result<Reply, Refused> {
        if self.state.entries.len() >= limits::ENTRIES {
            return Err(Refused::Full { what: "lines on its blackboard", limit: limits::ENTRIES });
        }
        let id = match new.id {
            Some(id) => check_id("payload.id", id)?,
            None => format!("{}-{}", new.kind.as_str(), self.cx.ids.mint().as_hyphenated()),
        };
        if self.state.entry_names.contains_key(&id) {
            return Err(Refused::EntryExists { id });
        }
        let text = match new.kind {
            EntryKind::Artifact => check_text("payload.text", new.text)?,
            _ => filled("payload.text", new.text)?,
        };
        let (path, artifact_type) = match new.kind {
            EntryKind::Artifact => (
                Some(filled("payload.path", new.path.unwrap_or_default())?),
                Some(filled("payload.artifact_type", new.artifact_type.unwrap_or_default())?),
            ),
            _ if new.path.is_some() => return Err(Refused::invalid("payload.path", "is of artifacts only")),
            _ if new.artifact_type.is_some() => {
                return Err(Refused::invalid("payload.artifact_type", "is of artifacts only"));
            }
            _ => (None, None),
        };
        for (field, name) in [("payload.step_id", &new.step_id), ("payload.source_event_id", &new.source_event_id)] {
            name.as_deref().map_or(Ok(()), |name| check_name(field, name))?;
        }
        let entry = Entry {
            id,
            kind: new.kind,
            text,
            path,
            artifact_type,
            step_id: new.step_id,
            source_event_id: new.source_event_id,
            ts_ms: new.ts_ms,
            resolved: false,
            resolution: None,
            seq: self.state.seq() + 1,
            created_at: self.cx.now,
            updated_at: self.cx.now,
        };
        self.check_room(weight_of_line(&entry))?;
        self.emit(Event::Entry(EntryEvent::Added, Box::new(entry.clone())));
        Ok(Reply::Entry(Box::new(entry)))
    }

    fn change_entry(&mut self, event: EntryEvent, entry: Entry) -> Result<Reply, Refused> {
        let entry = Entry { updated_at: self.cx.now, ..entry };
        self.check_room(entry.text.len() + entry.resolution.as_ref().map_or(0, String::len))?;
        self.emit(Event::Entry(event, Box::new(entry.clone())));
        Ok(Reply::Entry(Box::new(entry)))
    }

    fn entry(&self, kind: EntryKind, id: &str) -> Result<Entry, Refused> {
        let found = self.state.entry_names.get(id).and_then(|seq| self.state.entries.get(seq));
        found.filter(|entry| entry.kind == kind).cloned().ok_or(Refused::NoEntry)
    }
}

fn filled(field: &str, text: String) -> Result<String, Refused> {
    if text.trim().is_empty() {
        return Err(Refused::invalid(field, "is blank"));
    }
    check_text(field, text)
}
