//! A turn start in a runtime that keeps its records in SQLite and commits each of them as it comes, safe against the loss
//! of power: ten commits with `synchronous=FULL`, to a write-ahead log, from one connection that stays open. There is no
//! HTTP in front of it.

use std::path::Path;

use rusqlite::Connection;

pub struct TenCommits {
    db: Connection,
    turns: i64,
}

/// Repeated to the length that a record of a thread and one of an event usually have.
const RECORD: &str = "r";
const EVENT: &str = "e";

impl TenCommits {
    /// A database with so many threads.
    pub fn open(dir: &Path, threads: i64) -> Self {
        let db = Connection::open(dir.join("sqlite.db")).expect("it opens");
        db.pragma_update(None, "journal_mode", "WAL").expect("it is taken");
        db.pragma_update(None, "synchronous", "FULL").expect("it is taken");
        let tables = "CREATE TABLE threads (id INTEGER PRIMARY KEY, record TEXT NOT NULL);
             CREATE TABLE turns (id INTEGER PRIMARY KEY, thread INTEGER NOT NULL, record TEXT NOT NULL);
             CREATE TABLE items (id INTEGER PRIMARY KEY, turn INTEGER NOT NULL, record TEXT NOT NULL);
             CREATE TABLE events (thread INTEGER NOT NULL, seq INTEGER NOT NULL, record TEXT NOT NULL,
                 PRIMARY KEY (thread, seq));
             CREATE INDEX turns_of ON turns (thread, id);";
        db.execute_batch(tables).expect("they are made");
        db.execute_batch("BEGIN").expect("it begins");
        for thread in 0..threads {
            db.execute("INSERT INTO threads VALUES (?1, ?2)", (thread, RECORD.repeat(480))).expect("room");
        }
        db.execute_batch("COMMIT").expect("it is stored");
        Self { db, turns: 0 }
    }

    /// Starts a turn on an idle thread.
    pub fn start(&mut self, thread: i64) {
        self.turns += 1;
        let turn = self.turns;
        let (record, event) = (RECORD.repeat(480), EVENT.repeat(330));
        self.commit("INSERT INTO turns VALUES (?1, ?2, ?3)", (turn, thread, &record));
        self.commit("INSERT INTO items VALUES (?1, ?2, ?3)", (turn, turn, &record));
        for seq in 1..=4 {
            self.commit("INSERT INTO events VALUES (?1, ?2, ?3)", (thread, seq, &event));
        }
        self.commit("UPDATE turns SET record = ?2 WHERE id = ?1", (turn, &record));
        self.commit("UPDATE items SET record = ?2 WHERE id = ?1", (turn, &record));
        self.commit("UPDATE threads SET record = ?2 WHERE id = ?1", (thread, &record));
        self.commit("UPDATE turns SET record = ?2 WHERE id = ?1", (turn, &record));
    }

    /// A statement by itself is a transaction.
    fn commit(&self, statement: &str, values: impl rusqlite::Params) {
        let mut statement = self.db.prepare_cached(statement).expect("it is understood");
        assert_eq!(statement.execute(values).expect("it is stored"), 1);
    }
}
