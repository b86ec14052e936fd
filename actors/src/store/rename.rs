//! A log that a fork shares names the thread that wrote it. Read under the fork's name it names the fork.

use raddle_domain::id::{RunId, TenantId, ThreadId};

/// What a thread's name looks like in JSON: its prefix and a UUID.
const LENGTH: usize = ThreadId::PREFIX.len() + 36;

/// Makes `thread` the thread that a stored event, or turn, is of: overwrites the id behind every `"thread_id":` and
/// `"thread":{"id":`. An id is as long as any other, so nothing moves. Texts are passed over, and so is what names
/// threads without being of one: the caller's metadata, a tool's arguments, and where a fork came from.
pub(crate) fn rename(json: &mut [u8], thread: ThreadId) {
    let name = thread.to_string();
    let mut at = 0;
    while let Some(begin) = find(json, at, b'"') {
        let end = text_end(json, begin);
        let behind = &json[end..];
        at = match &json[begin..end] {
            b"\"metadata\"" | b"\"arguments\"" | b"\"forked_from\"" if behind.starts_with(b":{") => {
                object_end(json, end + 1)
            }
            b"\"thread_id\"" if behind.starts_with(b":\"") => name_at(json, end + 2, &name),
            b"\"thread\"" if behind.starts_with(b":{\"id\":\"") => name_at(json, end + 8, &name),
            _ => end,
        };
    }
}

/// The same text with `now` as the tenant of every run that it is of. A run says its tenant behind its id and its type;
/// what else is called so is somebody's own.
pub(crate) fn rename_tenant(json: &[u8], was: TenantId, now: TenantId) -> Vec<u8> {
    let begin = format!("{{\"run_id\":\"{}", RunId::PREFIX);
    let (kind, tenant) = (b",\"run_type\":\"", format!(",\"tenant\":\"{was}\""));
    let mut renamed = Vec::with_capacity(json.len() + 32);
    let mut rest = json;
    while let Some(at) = rest.windows(begin.len()).position(|window| window == begin.as_bytes()) {
        // Behind the quote that the id begins with.
        let end = text_end(rest, at + 10);
        let behind = &rest[end..];
        let kind_end = if behind.starts_with(kind) { end + text_end(behind, kind.len() - 1) } else { end };
        renamed.extend_from_slice(&rest[..kind_end]);
        rest = &rest[kind_end..];
        if kind_end > end && rest.starts_with(tenant.as_bytes()) {
            renamed.extend_from_slice(format!(",\"tenant\":\"{now}\"").as_bytes());
            rest = &rest[tenant.len()..];
        }
    }
    renamed.extend_from_slice(rest);
    renamed
}

fn find(json: &[u8], from: usize, byte: u8) -> Option<usize> {
    json[from..].iter().position(|found| *found == byte).map(|at| from + at)
}

/// Writes `name` over the name that begins at `at`. Returns where its text ends.
fn name_at(json: &mut [u8], at: usize, name: &str) -> usize {
    let end = text_end(json, at - 1);
    if end == at + LENGTH + 1 && json[at..].starts_with(ThreadId::PREFIX.as_bytes()) {
        json[at..at + LENGTH].copy_from_slice(name.as_bytes());
    }
    end
}

/// Where the text that begins at the quote `at` ends, behind its other quote.
fn text_end(json: &[u8], at: usize) -> usize {
    let mut at = at + 1;
    while let Some(byte) = json.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    json.len()
}

/// Where the object that begins at the brace `at` ends, behind its other brace.
fn object_end(json: &[u8], at: usize) -> usize {
    let (mut at, mut depth) = (at, 0);
    while let Some(byte) = json.get(at) {
        match byte {
            b'"' => {
                at = text_end(json, at);
                continue;
            }
            b'{' => depth += 1,
            b'}' if depth == 1 => return at + 1,
            b'}' => depth -= 1,
            _ => {}
        }
        at += 1;
    }
    json.len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn id(n: u8) -> ThreadId {
        ThreadId::from_bytes([n; 16])
    }

    fn renamed(value: &Value) -> Value {
        let mut json = serde_json::to_vec(value).unwrap();
        rename(&mut json, id(2));
        serde_json::from_slice(&json).unwrap()
    }

    #[test]
    fn every_place_that_names_the_own_thread_names_the_other() {
        let event = |thread: ThreadId| {
            json!({
                "seq": 7, "prev": 6, "thread_id": thread, "turn_id": "turn_x", "event": "thread.updated",
                "payload": {"thread": {"id": thread, "title": "t"}, "turn": {"id": "turn_x", "thread_id": thread}},
            })
        };
        // serde_json sorts the keys of a `Value`; `id` stays the first of its object.
        assert_eq!(renamed(&event(id(1))), event(id(2)));
        assert_eq!(renamed(&event(id(9))), event(id(2)));
    }

    #[test]
    fn what_only_looks_like_the_threads_name_stays() {
        let said = format!(r#"say "thread_id":"{}" and "thread":{{"id":"{}""#, id(1), id(1));
        for value in [
            json!({"payload": {"delta": said}}),
            json!({"payload": {"delta": format!("\\\"thread_id\":\"{}\"\\", id(1))}}),
            json!({"metadata": {"thread_id": id(1), "deep": {"thread": {"id": id(1)}}, "}": "}"}}),
            json!({"thread_id": "thr_short"}),
            json!({"thread_id": format!("{}0", id(1))}),
            json!({"thread_id": format!("turn{}", &id(1).to_string()[3..])}),
            json!({"thread_id": null, "thread": {"name": id(1)}, "parent_id": id(1)}),
            json!({"forked_from": {"thread_id": id(1), "seq": 7}}),
            json!({"approval": {"arguments": {"thread_id": id(1)}}}),
        ] {
            assert_eq!(renamed(&value), value);
        }
        // What is behind the metadata is ours again.
        let text = format!(r#"{{"metadata":{{"a":{{}}}},"thread_id":"{}"}}"#, id(1));
        let mut bytes = text.clone().into_bytes();
        rename(&mut bytes, id(2));
        assert_eq!(bytes, text.replace(&id(1).to_string(), &id(2).to_string()).into_bytes());
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange_and_none_are_added(mut bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let length = bytes.len();
            rename(&mut bytes, id(2));
            prop_assert_eq!(bytes.len(), length);
        }

        #[test]
        fn what_is_cut_off_anywhere_is_renamed_without_harm(cut in 0usize..200) {
            let text = format!(
                r#"{{"thread_id":"{}","payload":{{"metadata":{{"a":"\""}},"thread":{{"id":"{}"}}}}}}"#, id(1), id(1),
            );
            let mut bytes = text.into_bytes();
            bytes.truncate(cut);
            rename(&mut bytes, id(2));
        }
    }
}
