//! Sinks against real files and sockets.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use raddle_domain::{
    ports::{Sink, StoredEvent},
    time::UnixMs,
};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    net::UnixListener,
};

use super::*;

/// Events with the seqs `seqs`, each an append of its own.
fn batch(seqs: impl IntoIterator<Item = u64>) -> HookBatch {
    let event = |seq: u64| HookEvent {
        position: seq + 100,
        seq,
        event: StoredEvent { name: "turn.started".into(), json: format!("{{\"seq\":{seq},\"é\":\"☃\"}}").into() },
    };
    let events = seqs.into_iter().map(event).collect();
    HookBatch { hook: "audit".into(), tenant: TenantId::DEFAULT, at: UnixMs(1_700_000_000_000), events }
}

/// The seqs of the whole lines of a file.
fn seqs(path: &Path) -> Vec<u64> {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "{text}");
    let seq = |line: &str| serde_json::from_str::<Value>(line).unwrap()["event"]["seq"].as_u64().unwrap();
    text.lines().map(seq).collect()
}

fn why(taken: Result<(), SinkError>) -> String {
    match taken {
        Err(SinkError::Unavailable { why, .. }) => why,
        other => panic!("{other:?}"),
    }
}

struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

#[test]
fn a_line_says_where_when_whose_and_what() {
    let batch = batch([7]);
    let line: Value = serde_json::from_slice(&message(&batch, &batch.events[0])).unwrap();
    let cursor = tenant_cursor(TenantId::DEFAULT, TenantCursor { position: 107, seq: 7 });
    let expected = serde_json::json!({
        "cursor": cursor, "at": "2023-11-14T22:13:20.000Z", "tenant": "default", "hook": "audit",
        "event": {"seq": 7, "é": "☃"},
    });
    assert_eq!(line, expected);
    assert!(message(&batch, &batch.events[0]).starts_with(BEGINNING.as_bytes()));
}

#[tokio::test]
async fn a_file_grows_by_lines() {
    let dir = Dir::new();
    let sink = Jsonl::new(dir.at("log"), 0, 1);
    sink.deliver(batch([1, 2])).await.unwrap();
    sink.deliver(batch([3])).await.unwrap();
    assert_eq!(seqs(&dir.at("log")), [1, 2, 3]);
    drop(sink);
    Jsonl::new(dir.at("log"), 0, 1).deliver(batch([4])).await.unwrap();
    assert_eq!(seqs(&dir.at("log")), [1, 2, 3, 4]);
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(dir.at("log")).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn a_torn_line_is_taken_out_wherever_it_was_torn() {
    let dir = Dir::new();
    let whole = lines(&batch([1, 2]));
    let last = lines(&batch([1])).len();
    let mut ends: Vec<Vec<u8>> = (0..=whole.len()).map(|end| whole[..end].to_vec()).collect();
    // Longer than what is read at once; and room that was made and never filled.
    let long = [&whole[..last], BEGINNING.as_bytes(), &vec![b'x'; 200_000][..]].concat();
    ends.push(long);
    ends.push([&whole[..last], &[0; 5000][..]].concat());
    ends.push([&whole[..last + 30], &[0; 5000][..]].concat());
    for left in ends {
        fs::write(dir.at("log"), &left).unwrap();
        let complete = left.iter().filter(|byte| **byte == b'\n').count() as u64;
        Jsonl::new(dir.at("log"), 0, 1).deliver(batch([9])).await.unwrap();
        let expected: Vec<u64> = (1..=complete).chain([9]).collect();
        assert_eq!(seqs(&dir.at("log")), expected, "{} bytes", left.len());
    }
}

#[tokio::test]
async fn half_a_line_of_somebody_else_is_not_touched() {
    let dir = Dir::new();
    for theirs in ["# notes", "{\"a\":1}\nhalf", "{\"cursor\": 1"] {
        fs::write(dir.at("log"), theirs).unwrap();
        let refused = why(Jsonl::new(dir.at("log"), 0, 1).deliver(batch([1])).await);
        assert!(refused.contains("half a line that no hook wrote"), "{refused}");
        assert_eq!(fs::read_to_string(dir.at("log")).unwrap(), theirs);
    }
}

#[tokio::test]
async fn a_file_is_rotated_before_it_grows_too_large() {
    let dir = Dir::new();
    let two = lines(&batch([1, 2])).len() as u64;
    let sink = Jsonl::new(dir.at("log"), two, 2);
    for seq in 1..=7 {
        sink.deliver(batch([seq])).await.unwrap();
    }
    assert_eq!(
        (seqs(&dir.at("log")), seqs(&dir.at("log.1")), seqs(&dir.at("log.2"))),
        (vec![7], vec![5, 6], vec![3, 4])
    );
    assert!(!dir.at("log.3").exists());
    // A batch is not split, whatever its size.
    sink.deliver(batch(10..20)).await.unwrap();
    assert_eq!(seqs(&dir.at("log")), (10..20).collect::<Vec<_>>());
    drop(sink);
    Jsonl::new(dir.at("log"), two, 2).deliver(batch([20])).await.unwrap();
    assert_eq!((seqs(&dir.at("log")), seqs(&dir.at("log.1")).len()), (vec![20], 10));
}

#[tokio::test]
async fn a_file_has_one_writer_and_survives_its_removal() {
    let dir = Dir::new();
    let (first, second) = (Jsonl::new(dir.at("log"), 0, 1), Jsonl::new(dir.at("log"), 0, 1));
    first.deliver(batch([1])).await.unwrap();
    assert!(why(second.deliver(batch([2])).await).contains("in use by another process"));
    fs::rename(dir.at("log"), dir.at("moved")).unwrap();
    first.deliver(batch([3])).await.unwrap();
    assert_eq!((seqs(&dir.at("moved")), seqs(&dir.at("log"))), (vec![1], vec![3]));
    assert!(
        why(Jsonl::new(dir.at("no/dir"), 0, 1).deliver(batch([1])).await).starts_with("the file cannot be written")
    );
}

#[tokio::test]
async fn batches_that_are_written_at_once_do_not_mix() {
    let dir = Dir::new();
    let sink = Arc::new(Jsonl::new(dir.at("log"), 0, 1));
    let many = (0..20u64).map(|n| sink.deliver(batch(n * 50..(n + 1) * 50)));
    for taken in futures_util::future::join_all(many.map(tokio::spawn)).await {
        taken.unwrap().unwrap();
    }
    let written = seqs(&dir.at("log"));
    assert_eq!(written.len(), 1000);
    for chunk in written.chunks(50) {
        assert!(chunk.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{chunk:?}");
    }
}

#[tokio::test]
async fn a_socket_is_read_to_its_end_before_its_lines_count() {
    let dir = Dir::new();
    let sink = Unix::new(dir.at("sock"));
    assert!(why(sink.deliver(batch([1])).await).starts_with("nobody listens on the socket"));
    let listener = UnixListener::bind(dir.at("sock")).unwrap();

    let reader = tokio::spawn(async move {
        // Dies without having read, and in the middle of it.
        drop(listener.accept().await.unwrap());
        let (stream, _) = listener.accept().await.unwrap();
        let mut lines = BufReader::with_capacity(16, stream).lines();
        lines.next_line().await.unwrap();
        drop(lines);
        let mut all = String::new();
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.read_to_string(&mut all).await.unwrap();
        all
    });
    assert!(why(sink.deliver(batch(1..40)).await).starts_with("the reader of the socket went away"));
    assert!(why(sink.deliver(batch(1..40)).await).starts_with("the reader of the socket went away"));
    sink.deliver(batch(1..40)).await.unwrap();
    assert_eq!(reader.await.unwrap().as_bytes(), lines(&batch(1..40)));
}
