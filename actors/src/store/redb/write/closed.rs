//! Closing a tenant, emptying or filling it while it is closed, and opening it again.
//!
//! Each of these is one step in one transaction, and the note about the tenant is changed with it: after a crash
//! between any two of them the note says what is left to do.

use ::redb::ReadableTable;
use raddle_domain::{
    closed::{Closed, State},
    id::TenantId,
    ports::{Closing, Corrupt, Document, DocumentKind, Raw, WriteRefused},
    time::UnixMs,
};

use super::{
    super::super::{
        codec::tenant as codec,
        keys::{
            StoreKey,
            tenant::{DOCUMENTS, DocumentKey},
        },
        tables::{self, AnyTable, Budget, TABLES},
    },
    Checked, Fault, Tables,
};

/// About the most that one step removes.
const BYTES: usize = 1 << 20;
const RECORDS: usize = 4_096;
/// The most records that it looks at, where a tenant's are not side by side.
const LOOKS: usize = 65_536;

impl Tables<'_> {
    fn note(&mut self, tenant: TenantId) -> Result<Option<Closed>, Fault> {
        let key = DocumentKey::new(TenantId::SYSTEM, DocumentKind::Closed, tenant.as_bytes());
        let tables = &mut self.tenant;
        let Some(bytes) = open!(tables.documents, DOCUMENTS).get(key)? else { return Ok(None) };
        let json = codec::read_document(&key, bytes.value()).map_err(Fault::Corrupt)?;
        let note = serde_json::from_slice(&json).map_err(|why| Fault::Corrupt(key.corrupt(why.to_string())))?;
        Ok(Some(note))
    }

    fn keep_note(&mut self, note: &Closed) -> Result<(), Fault> {
        // Names and numbers: nothing that JSON cannot say.
        let json = serde_json::to_vec(note).expect("a note is JSON");
        let document = Document { kind: DocumentKind::Closed, id: *note.tenant.as_bytes(), json };
        self.tenant.put_documents(TenantId::SYSTEM, &[document])?;
        if note.state.is_closed() {
            self.closed.insert(note.tenant, note.state);
        } else {
            self.closed.remove(&note.tenant);
        }
        Ok(())
    }

    /// Opens a tenant of which nothing has to be remembered but that it was erased once.
    fn drop_note(&mut self, note: Closed) -> Result<(), Fault> {
        if note.ended.is_some() {
            return self.keep_note(&Closed { state: State::Reopened, ..note });
        }
        let tenant = note.tenant;
        self.tenant.forget_document(TenantId::SYSTEM, DocumentKind::Closed, tenant.as_bytes())?;
        self.closed.remove(&tenant);
        Ok(())
    }

    /// The tables that this transaction has open are closed: they are opened by others next.
    fn let_go(&mut self) {
        let (changes, closed) = (std::mem::take(&mut self.changes), std::mem::take(&mut self.closed));
        *self = Self { changes, ..Self::new(self.txn, closed) };
    }

    /// Whether there is no record of the tenant but those that it may have before it has anything. One in the order of
    /// times alone is not looked for: it leads nowhere.
    fn is_empty(&mut self, tenant: TenantId) -> Result<bool, Fault> {
        self.let_go();
        for table in TABLES {
            if table.has_of(self.txn, tenant, &|key| precedes(*table, key))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    pub(super) fn close(&mut self, tenant: TenantId, to: Closing, at: UnixMs) -> Result<Checked<u64>, Fault> {
        if tenant == TenantId::SYSTEM {
            return Ok(Err(WriteRefused::Closed("it is the installation itself")));
        }
        let note = self.note(tenant)?;
        let state = note.as_ref().map(|note| note.state);
        let next = match (to, state) {
            (Closing::Import, None | Some(State::Reopened)) => {
                if !self.is_empty(tenant)? {
                    return Ok(Err(WriteRefused::NotEmpty));
                }
                State::Importing
            }
            (Closing::Import, Some(state)) => return Ok(Err(WriteRefused::Closed(state.why()))),
            (Closing::Undo, Some(State::Importing)) => State::Undoing,
            (Closing::Undo, _) => return Ok(Ok(0)),
            (Closing::Erase, None) => State::Erasing,
            (Closing::Erase, Some(State::Reopened)) => {
                if self.is_empty(tenant)? {
                    // The receipt that there is still says it all.
                    let note = note.map(|note| Closed { state: State::Erased, ..note });
                    note.map_or(Ok(()), |note| self.keep_note(&note))?;
                    return Ok(Ok(0));
                }
                State::Erasing
            }
            (Closing::Erase, Some(State::Erasing | State::Erased)) => return Ok(Ok(0)),
            (Closing::Erase, Some(state @ (State::Importing | State::Undoing))) => {
                return Ok(Err(WriteRefused::Closed(state.why())));
            }
        };
        self.keep_note(&match note {
            // That it was erased once stays true while it is imported.
            Some(note) if next != State::Erasing => Closed { state: next, ..note },
            _ => Closed::new(tenant, next, at),
        })?;
        Ok(Ok(0))
    }

    pub(super) fn sweep(&mut self, tenant: TenantId, at: UnixMs) -> Result<Checked<u64>, Fault> {
        let Some(mut note) = self.note(tenant)?.filter(|note| matches!(note.state, State::Undoing | State::Erasing))
        else {
            return Ok(Ok(0));
        };
        self.let_go();
        self.change(tenant).unknown = true;
        let mut budget = Budget { records: RECORDS, bytes: BYTES, looks: LOOKS };
        let (mut from, mut after) = match note.next.take() {
            Some((table, after)) => {
                (TABLES.iter().position(|known| known.name() == table).unwrap_or(0), tables::unhex(&after))
            }
            None => (0, None),
        };
        while let Some(table) = TABLES.get(from) {
            // Nothing of the kind is imported: what there is was there before.
            let stays = |key: &[u8]| note.state == State::Undoing && precedes(*table, key);
            let swept = table.sweep(self.txn, tenant, after.take().as_deref(), &stays, &mut budget)?;
            if swept.records > 0 && note.state == State::Erasing {
                *note.records.entry(table.name().to_owned()).or_default() += swept.records;
                note.bytes += swept.bytes;
            }
            if let Some(next) = swept.next {
                note.next = Some((table.name().to_owned(), tables::hex(&next)));
                break;
            }
            from += 1;
        }
        if note.next.is_some() {
            self.keep_note(&note)?;
            return Ok(Ok(1));
        }
        if note.state == State::Undoing {
            self.drop_note(note)?;
        } else {
            self.keep_note(&Closed { state: State::Erased, ended: Some(at), ..note })?;
        }
        Ok(Ok(0))
    }

    pub(super) fn import(&mut self, tenant: TenantId, records: &[Raw]) -> Result<Checked<u64>, Fault> {
        if self.closed.get(&tenant) != Some(&State::Importing) {
            return Ok(Err(WriteRefused::Closed("it is not closed for an import")));
        }
        for Raw { table, key, value } in records {
            let of = |table: &&dyn AnyTable| {
                table.tenant_at().and_then(|at| key.get(at..at + 32)) == Some(tenant.as_bytes().as_slice())
            };
            let checked = match tables::named(table).filter(of) {
                Some(table) => table.check(key, value),
                None => {
                    let record = format!("{table} {}", tables::hex(key));
                    Err(Corrupt { record, why: "it is no record of the tenant".to_owned() })
                }
            };
            if let Err(corrupt) = checked {
                return Ok(Err(corrupt.into()));
            }
        }
        self.let_go();
        self.change(tenant).unknown = true;
        for same in records.chunk_by(|one, other| one.table == other.table) {
            let Some(table) = same.first().and_then(|first| tables::named(first.table)) else { continue };
            let pairs: Vec<_> = same.iter().map(|raw| (raw.key.as_slice(), raw.value.as_slice())).collect();
            table.put(self.txn, &pairs)?;
        }
        Ok(Ok(0))
    }

    pub(super) fn open(&mut self, tenant: TenantId, documents: &[Document]) -> Result<Checked<u64>, Fault> {
        let Some(note) = self.note(tenant)? else { return Ok(Ok(0)) };
        match note.state {
            State::Importing => self.drop_note(note)?,
            State::Erased => self.keep_note(&Closed { state: State::Reopened, ..note })?,
            State::Reopened => {}
            state @ (State::Undoing | State::Erasing) => return Ok(Err(WriteRefused::Closed(state.why()))),
        }
        self.tenant.put_documents(tenant, documents)?;
        self.change(tenant).unknown = true;
        Ok(Ok(0))
    }
}

/// See [`DocumentKind::precedes`].
fn precedes(table: &dyn AnyTable, key: &[u8]) -> bool {
    let kind = key.get(32).and_then(|kind| DocumentKind::of(*kind));
    table.name() == DocumentKey::TABLE && kind.is_some_and(DocumentKind::precedes)
}
