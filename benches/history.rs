//! What a past costs: to fork it, to keep it, to pack it.

mod support;

use std::time::Instant;

use raddle_actors::{UuidIds, store::redb::RedbStore};
use raddle_domain::{
    id::{Seq, ThreadId, ThreadKey},
    ports::{Append, Chunk, Fork, Ids, LogStore, RowHead, StoredEvent, ThreadRow, Write},
    time::UnixMs,
};
use support::{
    log::{Author, fill},
    *,
};

const LONG: Seq = 100_000;

fn store(dir: &std::path::Path) -> RedbStore {
    RedbStore::open(&GROUPED.config(dir).store).expect("it opens")
}

// ---- forks -----------------------------------------------------------------------------------------

/// Seconds until a fork is durable, and then until what its model would be told first is read.
fn fork(store: &RedbStore, parent: ThreadKey) -> (f64, f64) {
    let head = store.view().and_then(|view| view.row(parent)).expect("it can be read").expect("it is there").head;
    // In the middle of the past, behind the end of a turn.
    let at = store.view().and_then(|view| view.turn_before(parent, head.last_seq)).expect("it can be read");
    let at = at.map_or(head.last_seq, |turn| turn.started_seq - 1);
    let key = ThreadKey { thread: ThreadId::new(UuidIds.mint()), ..parent };
    let event = StoredEvent { name: "thread.created".into(), json: vec![b'e'; 500].into() };
    let head = RowHead { last_seq: at + 1, fence: store.epoch(), ..RowHead::default() };
    let row = ThreadRow { head, view: vec![b'r'; 480].into(), snapshot: vec![b'r'; 480].into() };
    let append = Append::new(key, at, UnixMs(1), Chunk { first: at + 1, events: vec![event] }, row);
    let append = Append { fork: Some(Fork { parent: parent.thread, at }), ..append };
    let begun = Instant::now();
    let results = store.commit(&[Write::Append(append)]).expect("it is stored");
    let forked = begun.elapsed().as_secs_f64();
    assert!(results[0].is_ok());
    let begun = Instant::now();
    let view = store.view().expect("a view");
    let last = view.turn_before(key, Seq::MAX).expect("it can be read").expect("it shares a turn");
    for seq in &last.items {
        assert!(view.event(key, *seq).expect("it can be read").is_some());
    }
    (forked, begun.elapsed().as_secs_f64())
}

fn forks() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = store(dir.path());
    let (long, short) = (fill(&store, 1, LONG)[0], fill(&store, 1, 100)[0]);
    let (mut longs, mut shorts) = ((Vec::new(), Vec::new()), (Vec::new(), Vec::new()));
    for round in 0..sized(300, 100) {
        let mut sides = [(long, &mut longs), (short, &mut shorts)];
        sides.rotate_left(round % 2);
        for (parent, taken) in sides {
            let (forked, read) = fork(&store, parent);
            taken.0.push(forked);
            taken.1.push(read);
        }
    }
    let (forked, read) = ((median(longs.0), median(shorts.0)), (median(longs.1), median(shorts.1)));
    figure("fork, 100 events of history", forked.1 * 1e6, " µs");
    figure("fork, 100,000 events of history", forked.0 * 1e6, " µs");
    bar("fork, 100,000 vs 100", forked.0 / forked.1, "×", 1.3, false);
    bar("its last turn read through it, 100,000 vs 100", read.0 / read.1, "×", 1.5, false);
    let expected = store.view().and_then(|view| view.row(long)).expect("it can be read").expect("it is there");
    let erase = Write::Erase { key: long, fence: store.epoch(), expected: expected.head.last_seq };
    let begun = Instant::now();
    assert!(store.commit(&[erase]).expect("it is stored")[0].is_ok());
    figure("deletion of 100,000 events that hundreds of forks share", begun.elapsed().as_secs_f64() * 1000.0, " ms");
}

// ---- bytes on disk ---------------------------------------------------------------------------------

/// Words as frequent as a language's: the n-th of them comes with a probability like 1/n. Sentences repeat nothing
/// but words, so what is compressed here is, if anything, harder than real text.
struct Prose {
    words: Vec<String>,
    dice: u64,
}

impl Prose {
    fn new() -> Self {
        let mut prose = Self { words: Vec::new(), dice: 0x5eed_0003 };
        const LETTERS: &[u8] =
            b"eeeeeeeeeeeetttttttttaaaaaaaaooooooooiiiiiiinnnnnnnssssssrrrrrrhhhhhhddddlllluuucccmmmffyywwggppbbvkxqjz";
        for n in 0..5_000 {
            let length = 2 + prose.roll(2 + n.min(600) / 75);
            let word = (0..length).map(|_| char::from(LETTERS[prose.roll(LETTERS.len())]));
            let word = word.collect();
            prose.words.push(word);
        }
        prose
    }

    fn roll(&mut self, below: usize) -> usize {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        ((self.dice >> 11) % below as u64) as usize
    }

    fn text(&mut self, bytes: usize) -> String {
        let mut text = String::new();
        while text.len() < bytes {
            // Evenly over the logarithm of the rank.
            let share = self.roll(1 << 20) as f64 / f64::from(1 << 20);
            let rank = (self.words.len() as f64).powf(share) as usize - 1;
            text += &self.words[rank];
            text += [" ", " ", " ", " ", " ", " ", " ", ", ", ". ", "\n"][self.roll(10)];
        }
        text.truncate(bytes);
        text
    }
}

const THREADS: usize = 60;
const TURNS: usize = 40;

/// Threads of prompts of about 300 bytes and answers of about 2 KB, which come in pieces of 20 bytes, 50 in a second,
/// and are saved every 30 ms. Returns the bytes of prompts and answers.
fn transcripts(store: &RedbStore) -> usize {
    let mut prose = Prose::new();
    let mut authors: Vec<_> = (0..THREADS).map(|_| Author::new(store.epoch())).collect();
    let mut said = 0;
    // The threads talk at the same time, as those of a server do.
    for _ in 0..sized(TURNS, TURNS / 4) {
        let mut writes = Vec::new();
        for author in &mut authors {
            let (prompt, answer) = (200 + prose.roll(200), 1_000 + prose.roll(2_000));
            let (prompt, answer) = (prose.text(prompt), prose.text(answer));
            said += prompt.len() + answer.len();
            let (mut pieces, mut rest) = (Vec::new(), &answer[..]);
            while !rest.is_empty() {
                let (piece, more) = rest.split_at(rest.len().min(20 + 20 * (pieces.len() % 2)));
                pieces.push(piece);
                rest = more;
            }
            author.talk(&prompt, &pieces);
            writes.extend(author.written());
        }
        for batch in writes.chunks(1000) {
            assert!(store.commit(batch).expect("it is stored").iter().all(Result::is_ok));
        }
    }
    said
}

fn disk() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = store(dir.path());
    let said = transcripts(&store) as f64;
    figure("transcript", said / 1e6, " MB");
    let (bytes, pages) = store.occupied().expect("it can be read");
    figure("bytes stored per byte of transcript, as it is written", bytes as f64 / said, "×");
    figure("bytes of pages per byte of transcript, as it is written", pages as f64 / said, "×");
    let (mut portions, begun) = (Vec::new(), Instant::now());
    loop {
        let portion = Instant::now();
        if store.pack(UnixMs(u64::MAX), 16).expect("it is packed") == 0 {
            break;
        }
        portions.push(portion.elapsed().as_secs_f64() * 1000.0);
    }
    let seconds = begun.elapsed().as_secs_f64();
    figure("turns packed", (THREADS * sized(TURNS, TURNS / 4)) as f64 / seconds, "/s");
    figure("log packed", bytes as f64 / 1e6 / seconds, " MB/s");
    figure("longest portion, for which a commit waits", portions.iter().copied().fold(0.0, f64::max), " ms");
    figure("median portion", median(portions), " ms");
    let (bytes, pages) = store.occupied().expect("it can be read");
    figure("bytes stored per byte of transcript, packed", bytes as f64 / said, "×");
    bar("bytes of pages per byte of transcript, packed", pages as f64 / said, "×", 3.0, false);
}

fn main() {
    let begun = Instant::now();
    head("history: what a past costs");
    forks();
    disk();
    eprintln!("{:.0?}", begun.elapsed());
}
