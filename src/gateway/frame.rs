//! Stored events as the bytes of a response: SSE frames and JSON pages. Pure, and without parsing: what the
//! store holds is what the client reads.

use std::{fmt::Display, io::Write as _};

use axum::body::Bytes;
use raddle_domain::{
    id::{Seq, ThreadId},
    ports::{Chunk, StoredEvent},
};
use serde::Serialize;

/// How a stream begins: how long a client waits before it connects again.
pub const PREAMBLE: Bytes = Bytes::from_static(b"retry: 1000\n\n");

/// What a silent stream says now and then, so that neither side takes the other for dead.
pub const KEEP_ALIVE: Bytes = Bytes::from_static(b": keep-alive\n\n");

/// Room for `id: `, `event: `, `data: `, a seq, four line ends.
const OVERHEAD: usize = 40;

/// The frames of `chunk`, without its first `skip` events.
pub fn frames(chunk: &Chunk, skip: usize) -> Bytes {
    let mut out = Vec::with_capacity(room(chunk));
    write(&mut out, chunk, skip);
    out.into()
}

/// The frames of chunks that follow each other, as one piece.
pub fn replay(chunks: &[Chunk]) -> Bytes {
    let mut out = Vec::with_capacity(chunks.iter().map(room).sum());
    chunks.iter().for_each(|chunk| write(&mut out, chunk, 0));
    out.into()
}

/// The frames of events with a cursor each. One without moves no cursor, and its frame has no `id:`.
pub fn frames_by_cursor<'a>(events: impl Iterator<Item = (Option<String>, &'a StoredEvent)>) -> Bytes {
    let mut out = Vec::new();
    for (cursor, event) in events {
        write_event(&mut out, cursor, event);
    }
    out.into()
}

/// The client's cursor, without an event: whoever comes back from here has missed nothing.
pub fn cursor(cursor: &str) -> Bytes {
    format!("id: {cursor}\n\n").into()
}

/// A thread, or a run, whose events cannot be read; the others go on.
pub fn unavailable(log: ThreadId, detail: &str) -> Bytes {
    let data = match log.of_run() {
        Some(run) => serde_json::json!({ "run_id": run, "detail": detail }),
        None => serde_json::json!({ "thread_id": log, "detail": detail }),
    };
    format!("event: stream.unavailable\ndata: {data}\n\n").into()
}

/// An event that is stored nowhere, and moves no cursor.
pub fn named(event: &str, data: &impl Serialize) -> Bytes {
    let data = serde_json::json!(data);
    format!("event: {event}\ndata: {data}\n\n").into()
}

/// Bytes that the frames of `chunk` take, about.
fn room(chunk: &Chunk) -> usize {
    chunk.events.iter().map(|event| event.name.len() + event.json.len() + OVERHEAD).sum()
}

fn write(out: &mut Vec<u8>, chunk: &Chunk, skip: usize) {
    let events = chunk.events.get(skip..).unwrap_or_default();
    for (seq, event) in (chunk.first + skip as Seq..).zip(events) {
        write_event(out, Some(seq), event);
    }
}

fn write_event(out: &mut Vec<u8>, id: Option<impl Display>, event: &StoredEvent) {
    if let Some(id) = id {
        // Writing to a Vec cannot fail.
        let _ = writeln!(out, "id: {id}");
    }
    out.extend_from_slice(b"event: ");
    out.extend_from_slice(event.name.as_bytes());
    out.extend_from_slice(b"\ndata: ");
    // Records are stored as one line each; were one not, every line of it would be a data line.
    if event.json.contains(&b'\n') {
        out.extend_from_slice(&event.json.split(|byte| *byte == b'\n').collect::<Vec<_>>().join(&b"\ndata: "[..]));
    } else {
        out.extend_from_slice(&event.json);
    }
    out.extend_from_slice(b"\n\n");
}

/// The watcher was too slow: it has seen everything up to `after`, and goes on from there by connecting again.
/// Without an `id:`, so that the client's own cursor stays where it is.
pub fn gap(after: impl Serialize) -> Bytes {
    format!("event: stream.gap\ndata: {{\"after\":{}}}\n\n", serde_json::json!(after)).into()
}

/// The server goes down.
pub fn shutdown(after: impl Serialize) -> Bytes {
    let after = serde_json::json!(after);
    format!("event: stream.end\ndata: {{\"reason\":\"shutdown\",\"after\":{after}}}\n\n").into()
}

/// A page of events as JSON.
pub fn page(chunks: &[Chunk], head: Seq) -> Bytes {
    list(chunks.iter().flat_map(|chunk| &chunk.events), &format!("\"head\":{head}"))
}

/// Events as `data`, and the fields `more` behind it.
pub fn list<'a>(events: impl Iterator<Item = &'a StoredEvent> + Clone, more: &str) -> Bytes {
    let room = events.clone().map(|event| event.json.len() + 1).sum::<usize>();
    let mut out = Vec::with_capacity(room + more.len() + OVERHEAD);
    out.extend_from_slice(b"{\"data\":[");
    for (at, event) in events.enumerate() {
        if at > 0 {
            out.push(b',');
        }
        out.extend_from_slice(&event.json);
    }
    out.extend_from_slice(b"],");
    out.extend_from_slice(more.as_bytes());
    out.push(b'}');
    out.into()
}

#[cfg(test)]
mod tests {
    use raddle_domain::ports::StoredEvent;

    use super::*;

    fn chunk(first: Seq, events: &[(&str, &str)]) -> Chunk {
        let events = events
            .iter()
            .map(|(name, json)| StoredEvent { name: (*name).to_owned().into(), json: (*json).to_owned().into() });
        Chunk { first, events: events.collect() }
    }

    #[test]
    fn a_frame_carries_seq_name_and_the_stored_bytes() {
        let chunk = chunk(7, &[("turn.started", r#"{"seq":7}"#), ("item.started", r#"{"seq":8}"#)]);
        assert_eq!(
            frames(&chunk, 0),
            "id: 7\nevent: turn.started\ndata: {\"seq\":7}\n\nid: 8\nevent: item.started\ndata: {\"seq\":8}\n\n"
        );
    }

    #[test]
    fn skipped_events_leave_the_seqs_of_the_others_alone() {
        let chunk = chunk(7, &[("a", "{}"), ("b", "{}"), ("c", "{}")]);
        assert_eq!(frames(&chunk, 2), "id: 9\nevent: c\ndata: {}\n\n");
        assert_eq!(frames(&chunk, 3), "");
        assert_eq!(frames(&chunk, 4), "");
    }

    #[test]
    fn a_line_end_in_a_record_does_not_end_its_frame() {
        assert_eq!(frames(&chunk(1, &[("a", "{\n}")]), 0), "id: 1\nevent: a\ndata: {\ndata: }\n\n");
    }

    #[test]
    fn the_last_words_of_a_stream_move_no_cursor() {
        assert_eq!(gap(12), "event: stream.gap\ndata: {\"after\":12}\n\n");
        assert_eq!(gap("a0"), "event: stream.gap\ndata: {\"after\":\"a0\"}\n\n");
        assert_eq!(shutdown(12), "event: stream.end\ndata: {\"reason\":\"shutdown\",\"after\":12}\n\n");
    }

    #[test]
    fn an_event_without_a_cursor_has_no_id() {
        let events = chunk(1, &[("a", "{}"), ("b", "{}")]).events;
        let cursors = [Some("x1".to_owned()), None];
        let frames = frames_by_cursor(cursors.into_iter().zip(&events));
        assert_eq!(frames, "id: x1\nevent: a\ndata: {}\n\nevent: b\ndata: {}\n\n");
        assert_eq!(cursor("x1"), "id: x1\n\n");
    }

    #[test]
    fn a_thread_that_is_unavailable_is_named_in_one_line() {
        let thread = ThreadId::from_bytes([0; 16]);
        let frame = String::from_utf8(unavailable(thread, "a\nb").to_vec()).unwrap();
        assert!(frame.starts_with("event: stream.unavailable\ndata: {") && frame.lines().count() == 3, "{frame}");
        assert!(frame.contains(r#""detail":"a\nb""#) && frame.contains(&thread.to_string()), "{frame}");
    }

    #[test]
    fn a_page_is_the_stored_bytes_in_a_list() {
        let chunks = [chunk(1, &[("a", "{\"seq\":1}")]), chunk(2, &[("b", "{\"seq\":2}"), ("c", "{\"seq\":3}")])];
        assert_eq!(page(&chunks, 9), r#"{"data":[{"seq":1},{"seq":2},{"seq":3}],"head":9}"#);
        assert_eq!(page(&[], 0), r#"{"data":[],"head":0}"#);
    }
}
