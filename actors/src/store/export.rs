//! A tenant's records as lines of JSON that people can read, and the other way round.
//!
//! ```text
//! {"raddle":"export","version":1,"tenant":"acme",…}                          what it is
//! {"table":"log","record":"thr_…/12","key":"…","schema":1,"events":[…]}      a record
//! {"end":true,"records":{"log":1,…},"sha256":"…"}                            over the lines before it
//! ```
//! A key is that of the store in hexadecimal digits, without its tenant: so a record can be brought in under any
//! tenant, and under none that it names itself. Texts are JSON as they are kept, and what stands beside them in a
//! record are digits; `record` is for people, and read by nobody. Indexes are records like all others.
//!
//! Left out: receipts of requests, and documents that are secret or of the installation alone.

use std::{borrow::Cow, collections::BTreeMap};

use raddle_domain::{
    event,
    id::{Seq, TenantId, ThreadId, ThreadKey},
    pack::{Packed, Run},
    ports::{Corrupt, Document, DocumentKind, Raw, StoreError, StoredEvent, View},
    time::UnixMs,
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::{
    codec::{self, BodyPart},
    keys::{
        ExpiryKey, LogKey, PartKey, ReceiptKey, RowKey, StoreKey, TurnKey,
        tenant::{DocumentKey, FeedKey, SpentKey},
    },
    rename::rename_tenant,
    tables::{self, AnyTable, LAYOUT, TABLES, hex, unhex},
};

/// The version of the lines.
const VERSION: u32 = 1;
/// Bytes of records that are read at a time.
const PAGE: usize = 256 * 1024;
/// Tables that stay behind.
const LEFT_OUT: [&str; 2] = [ReceiptKey::TABLE, ExpiryKey::TABLE];

/// The first line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct First {
    pub raddle: String,
    pub version: u32,
    pub tenant: TenantId,
    pub exported_at: UnixMs,
    pub layout: u64,
    pub build: String,
    /// What is not in it.
    pub left_out: Vec<String>,
}

/// The last line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Last {
    pub end: bool,
    pub records: BTreeMap<String, u64>,
    pub sha256: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    #[serde(borrow)]
    table: Cow<'a, str>,
    record: String,
    key: String,
    schema: u8,
    #[serde(default, skip_serializing_if = "is_zero")]
    flags: u8,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    head: Option<String>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    view: Option<&'a RawValue>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    snapshot: Option<&'a RawValue>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    turn: Option<&'a RawValue>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    json: Option<&'a RawValue>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tail: Option<String>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    events: Option<Vec<Event<'a>>>,
    /// Of a record without a text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    body: Option<String>,
}

/// An event of a log.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Event<'a> {
    name: Cow<'a, str>,
    #[serde(borrow)]
    event: &'a RawValue,
    /// Of deltas that were joined in it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    joined: Vec<u32>,
}

fn is_zero(flags: &u8) -> bool {
    *flags == 0
}

/// Every store counts its writers for itself: whoever comes first after an import is younger than nobody.
fn unfence(head: &mut [u8]) {
    if let Some(fence) = head.get_mut(codec::FENCE_AT) {
        fence.fill(0);
    }
}

/// A text as it stands in a line, if it can stand there.
fn text(json: &[u8]) -> Option<&RawValue> {
    let one_line = !json.iter().any(|byte| matches!(byte, b'\n' | b'\r'));
    let value: Option<&RawValue> = serde_json::from_slice(json).ok();
    value.filter(|value| one_line && value.get().len() == json.len())
}

// ---- out --------------------------------------------------------------------------------------------

/// Lines and what is known of all of them.
#[derive(Default)]
pub struct Tally {
    records: BTreeMap<String, u64>,
    sum: Sha256,
}

impl Tally {
    fn line(&mut self, line: &str) {
        self.sum.update(line.as_bytes());
        self.sum.update(b"\n");
    }

    fn count(&mut self, table: &str) {
        match self.records.get_mut(table) {
            Some(count) => *count += 1,
            None => drop(self.records.insert(table.to_owned(), 1)),
        }
    }

    fn sha256(&self) -> String {
        hex(&self.sum.clone().finalize())
    }
}

/// Writes a tenant's records, in pieces of a bounded size that end where a line does.
pub fn write<E: From<StoreError>>(
    view: &dyn View,
    tenant: TenantId,
    at: UnixMs,
    build: &str,
    mut to: impl FnMut(String) -> Result<(), E>,
) -> Result<Last, E> {
    let mut tally = Tally::default();
    let left_out = LEFT_OUT.iter().map(|table| (*table).to_owned());
    let first = First {
        raddle: "export".to_owned(),
        version: VERSION,
        tenant,
        exported_at: at,
        layout: LAYOUT,
        build: build.to_owned(),
        left_out: left_out.chain(["documents: keys, and what is the installation's".to_owned()]).collect(),
    };
    let mut piece = json(&first);
    tally.line(&piece);
    piece.push('\n');
    for table in TABLES.iter().filter(|table| table.tenant_at().is_some() && !LEFT_OUT.contains(&table.name())) {
        let mut after = None;
        loop {
            let stretch = view.stretch(table.name(), Some(tenant), after.as_deref(), PAGE)?;
            for (key, value) in &stretch.records {
                if !travels(*table, key) {
                    continue;
                }
                let line = line(*table, key, value).map_err(StoreError::Corrupt)?;
                tally.line(&line);
                tally.count(table.name());
                piece.push_str(&line);
                piece.push('\n');
            }
            if piece.len() >= PAGE {
                to(std::mem::take(&mut piece))?;
            }
            after = stretch.next;
            if after.is_none() {
                break;
            }
        }
    }
    let last = Last { end: true, records: tally.records.clone(), sha256: tally.sha256() };
    piece.push_str(&json(&last));
    piece.push('\n');
    to(piece)?;
    Ok(last)
}

fn json(value: &impl Serialize) -> String {
    // Names, numbers, digits and texts that are JSON already.
    serde_json::to_string(value).expect("it is JSON")
}

/// Whether the record goes along.
fn travels(table: &dyn AnyTable, key: &[u8]) -> bool {
    table.name() != DocumentKey::TABLE
        || key.get(32).and_then(|kind| DocumentKind::of(*kind)).is_some_and(DocumentKind::travels)
}

fn line(table: &dyn AnyTable, key: &[u8], value: &[u8]) -> Result<String, Corrupt> {
    let (schema, flags, body) = table.parts(key, value)?;
    let at = table.tenant_at().unwrap_or_default();
    let raw;
    let mut line = Line {
        table: table.name().into(),
        record: table.place(key),
        key: hex(&[&key[..at], &key[at + 32..]].concat()),
        schema,
        flags,
        head: None,
        view: None,
        snapshot: None,
        turn: None,
        json: None,
        tail: None,
        events: None,
        body: None,
    };
    let bad = || Corrupt { record: table.name().to_owned(), why: "its key is too short".to_owned() };
    match table.name() {
        RowKey::TABLE => {
            let [head, view, snapshot] = codec::row_parts(&RowKey::from_slice(key).ok_or_else(bad)?, value)?;
            if let (Some(view), Some(snapshot)) = (text(view), text(snapshot)) {
                let mut head = head.to_vec();
                unfence(&mut head);
                (line.head, line.view, line.snapshot) = (Some(hex(&head)), Some(view), Some(snapshot));
                return Ok(json(&line));
            }
        }
        TurnKey::TABLE => {
            let [head, turn, tail] = codec::turn_parts(&TurnKey::from_slice(key).ok_or_else(bad)?, value)?;
            if let Some(turn) = text(turn) {
                (line.head, line.turn, line.tail) = (Some(hex(head)), Some(turn), Some(hex(tail)));
                return Ok(json(&line));
            }
        }
        PartKey::TABLE | DocumentKey::TABLE | SpentKey::TABLE => {
            let whole = match table.name() {
                PartKey::TABLE => codec::json_of(&PartKey::from_slice(key).ok_or_else(bad)?, value)?,
                DocumentKey::TABLE => codec::json_of(&DocumentKey::from_slice(key).ok_or_else(bad)?, value)?,
                _ => codec::json_of(&SpentKey::from_slice(key).ok_or_else(bad)?, value)?,
            };
            if let Some(whole) = text(whole) {
                line.json = Some(whole);
                return Ok(json(&line));
            }
        }
        LogKey::TABLE => {
            let sealed = codec::open_chunk(&LogKey::from_slice(key).ok_or_else(bad)?, value)?;
            raw = sealed.raw()?;
            let places = sealed.places(&raw).collect::<Result<Vec<_>, _>>()?;
            let event = |place: &codec::Place<'_>| {
                let joined = match place.packed() {
                    Packed::Event(_) => Vec::new(),
                    Packed::Run(run) => run.lengths,
                };
                Some((place.name.to_owned(), joined))
            };
            let named: Vec<_> = places.iter().filter_map(event).collect();
            let texts: Option<Vec<_>> = places.iter().map(|place| text(place.json)).collect();
            if let Some(texts) = texts {
                let events = named.into_iter().zip(texts);
                line.events =
                    Some(events.map(|((name, joined), event)| Event { name: name.into(), event, joined }).collect());
                return Ok(json(&line));
            }
        }
        _ => {}
    }
    line.body = Some(hex(body));
    Ok(json(&line))
}

// ---- in ---------------------------------------------------------------------------------------------

/// Reads lines, one after the other, for a tenant that may have another name by now.
pub struct Intake {
    tenant: TenantId,
    first: Option<First>,
    tally: Tally,
    ended: Option<Last>,
    /// Lines that were read.
    pub lines: u64,
    /// The newest place of the feed: its position, and the last seq there.
    pub feed: (u64, Seq),
}

impl Intake {
    pub fn new(tenant: TenantId) -> Self {
        Self { tenant, first: None, tally: Tally::default(), ended: None, lines: 0, feed: (0, 0) }
    }

    /// What the next line brings. The sentence says what is wrong with it.
    pub fn line(&mut self, line: &[u8]) -> Result<Option<Raw>, String> {
        self.lines += 1;
        let line = std::str::from_utf8(line).map_err(|_| "it is not UTF-8".to_owned())?;
        if self.ended.is_some() {
            return Err("it follows the last line".to_owned());
        }
        let Some(first) = &self.first else {
            let first: First =
                serde_json::from_str(line).map_err(|_| "it does not begin an export of raddle's".to_owned())?;
            if first.raddle != "export" || first.version != VERSION {
                return Err(format!("it is of version {}, this build reads {VERSION}", first.version));
            }
            if first.layout > LAYOUT {
                return Err(format!("it is of layout {}, this build knows up to {LAYOUT}", first.layout));
            }
            self.first = Some(first);
            self.tally.line(line);
            return Ok(None);
        };
        if line.starts_with("{\"end\":") {
            let last: Last = serde_json::from_str(line).map_err(|why| why.to_string())?;
            if last.records != self.tally.records {
                return Err("the records before it are not as many as it says".to_owned());
            }
            if last.sha256 != self.tally.sha256() {
                return Err("its digest is not that of the lines before it: they were changed".to_owned());
            }
            self.ended = Some(last);
            return Ok(None);
        }
        let was = first.tenant;
        self.tally.line(line);
        let line: Line<'_> = serde_json::from_str(line).map_err(|why| why.to_string())?;
        let raw = self.record(line, was)?;
        self.tally.count(raw.table);
        if raw.table == FeedKey::TABLE
            && let Some(key) = FeedKey::from_slice(&raw.key)
            && let Some(fed) = codec::tenant::read_feed_run(&key, &raw.value).map_err(|why| why.to_string())?.last()
        {
            self.feed = self.feed.max((fed.position, fed.last));
        }
        Ok(Some(raw))
    }

    /// How many records there were of each table, if all were read.
    pub fn end(self) -> Result<BTreeMap<String, u64>, String> {
        match self.ended {
            Some(last) => Ok(last.records),
            None => Err("the last line is missing: the export is cut off".to_owned()),
        }
    }

    fn record(&self, line: Line<'_>, was: TenantId) -> Result<Raw, String> {
        let known = tables::named(&line.table).filter(|table| !LEFT_OUT.contains(&table.name()));
        let table = known.ok_or_else(|| format!("there is no table `{}` to bring in", line.table))?;
        let at = table.tenant_at().ok_or_else(|| format!("records of `{}` are no tenant's", line.table))?;
        let key = unhex(&line.key).filter(|key| key.len() + 32 == table.width());
        let key = key.ok_or_else(|| format!("`key` is none of `{}`", line.table))?;
        let key = [&key[..at], &self.tenant.as_bytes()[..], &key[at..]].concat();
        if !travels(table, &key) {
            return Err("documents of this kind are not brought in".to_owned());
        }
        let (flags, body) = self.body(table, &key, &line, was)?;
        let value = table.seal(&key, (line.schema, flags), &body).map_err(|why| why.to_string())?;
        // Whether this build can read it, too.
        table.check(&key, &value).map_err(|why| why.to_string())?;
        Ok(Raw { table: table.name(), key, value })
    }

    fn body(&self, table: &dyn AnyTable, key: &[u8], line: &Line<'_>, was: TenantId) -> Result<(u8, Vec<u8>), String> {
        let digits =
            |text: &Option<String>| text.as_deref().map(|text| unhex(text).ok_or("it has digits that are none"));
        let missing = "it lacks what a record of its table has";
        if let Some(body) = digits(&line.body) {
            return Ok((line.flags, body?));
        }
        // A run says whose it is.
        let thread = key.get(32..48).and_then(|id| id.try_into().ok()).map(ThreadId::from_bytes);
        let renames = was != self.tenant
            && [RowKey::TABLE, LogKey::TABLE, PartKey::TABLE].contains(&table.name())
            && thread.is_some_and(|thread| ThreadKey { tenant: self.tenant, thread }.is_run());
        let said = |text: &RawValue| -> Cow<'_, [u8]> {
            let text = text.get().as_bytes();
            if renames { rename_tenant(text, was, self.tenant).into() } else { text.to_vec().into() }
        };
        let body = match table.name() {
            RowKey::TABLE => {
                let (Some(head), Some(view), Some(snapshot)) = (digits(&line.head), line.view, line.snapshot) else {
                    return Err(missing.to_owned());
                };
                let mut head = head?;
                unfence(&mut head);
                let (view, snapshot) = (said(view), said(snapshot));
                codec::body_of(&[BodyPart::Bytes(&head), BodyPart::Text(&view), BodyPart::Text(&snapshot)])
            }
            TurnKey::TABLE => {
                let (Some(head), Some(turn), Some(tail)) = (digits(&line.head), line.turn, digits(&line.tail)) else {
                    return Err(missing.to_owned());
                };
                let (head, tail) = (head?, tail?);
                let turn = BodyPart::Text(turn.get().as_bytes());
                codec::body_of(&[BodyPart::Bytes(&head), turn, BodyPart::Bytes(&tail)])
            }
            LogKey::TABLE => {
                let key = LogKey::from_slice(key).ok_or(missing)?;
                let mut seq = key.seq();
                let mut places = Vec::new();
                for Event { name, event, joined } in line.events.as_ref().ok_or(missing)? {
                    let event = StoredEvent { name: event::name(name), json: said(event).into_owned().into() };
                    let first = seq;
                    seq = seq.checked_add(joined.len().max(1) as u64).ok_or("it is no place in a log")?;
                    places.push(match joined.is_empty() {
                        true => Packed::Event(event),
                        false => Packed::Run(Run { first, lengths: joined.clone(), event }),
                    });
                }
                let packed = line.flags != 0;
                if !packed && places.iter().any(|place| matches!(place, Packed::Run(_))) {
                    return Err("deltas are joined in what is not packed".to_owned());
                }
                return Ok(codec::chunk_parts(&key, &places, packed));
            }
            PartKey::TABLE | DocumentKey::TABLE | SpentKey::TABLE => {
                codec::body_of(&[BodyPart::Text(&said(line.json.ok_or(missing)?))])
            }
            _ => return Err(missing.to_owned()),
        };
        Ok((line.flags, body))
    }
}

/// The document that a record is.
pub(crate) fn document(raw: &Raw) -> Option<Document> {
    let key = DocumentKey::from_slice(&raw.key).filter(|_| raw.table == DocumentKey::TABLE)?;
    let kind = DocumentKind::of(*raw.key.get(32)?)?;
    Some(Document { kind, id: key.id(), json: codec::json_of(&key, &raw.value).ok()?.to_vec() })
}
