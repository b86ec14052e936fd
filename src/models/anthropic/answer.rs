//! What is received: the events of a message as fragments. Pure; no network is needed to test it.
//!
//! Every field is optional, unknown ones and unknown events are ignored; a field of another type than expected counts
//! as absent. An answer's end is one [`Fragment::Usage`], if usage was reported, and then one [`Fragment::Finish`]:
//! the stop reason comes with the last counts, and both are held until the message's end.

use raddle_domain::{
    ports::{FinishReason, Fragment, ModelError, ModelErrorKind},
    record::Usage,
};
use serde_json::Value;

use crate::{
    models::provider::{
        Read, Reader,
        problem::{self, Secrets},
    },
    sse,
};

/// One answer, as far as it came.
#[derive(Debug, Default)]
pub struct Answer {
    finish: Option<FinishReason>,
    counted: Counted,
    /// The tool calls that have begun; a fragment's index is a place in here.
    calls: Vec<Begun>,
}

#[derive(Debug)]
struct Begun {
    /// The index of its block.
    block: u64,
    /// Arguments that came with the beginning, which some do. What comes in parts takes their place.
    whole: Option<String>,
}

/// Tokens as they are reported: in parts, each a running total.
#[derive(Debug, Default)]
struct Counted {
    fresh: Option<u64>,
    cache_written: Option<u64>,
    cache_read: Option<u64>,
    output: Option<u64>,
}

impl Counted {
    fn take(&mut self, reported: &Value) {
        let most = |known: &mut Option<u64>, name: &str| *known = reported[name].as_u64().max(*known);
        most(&mut self.fresh, "input_tokens");
        most(&mut self.cache_written, "cache_creation_input_tokens");
        most(&mut self.cache_read, "cache_read_input_tokens");
        most(&mut self.output, "output_tokens");
    }

    fn usage(&self) -> Option<Usage> {
        if self.fresh.is_none() && self.output.is_none() {
            return None;
        }
        // The API counts what it cached beside the rest of the input; we count it as a part.
        let input = [self.fresh, self.cache_written, self.cache_read].into_iter().flatten();
        Some(Usage {
            input_tokens: input.fold(0, u64::saturating_add),
            output_tokens: self.output.unwrap_or(0),
            cached_tokens: self.cache_read,
            // Thinking is a part of the output that is not told apart.
            reasoning_tokens: None,
            // Counted by whoever makes the calls.
            model_calls: 0,
            unreported_calls: 0,
            estimated_calls: 0,
        })
    }
}

impl Answer {
    fn begin(&mut self, index: u64, block: &Value) -> Option<Fragment> {
        match block["type"].as_str()? {
            "tool_use" => {
                let whole = match &block["input"] {
                    Value::Object(input) if input.is_empty() => None,
                    Value::Null => None,
                    Value::String(text) => Some(text.clone()),
                    input => Some(input.to_string()),
                };
                let place = self.calls.len() as u32;
                self.calls.push(Begun { block: index, whole });
                let text = |name: &str| block[name].as_str().map(str::to_owned);
                Some(Fragment::ToolCall {
                    index: place,
                    call_id: text("id"),
                    name: text("name"),
                    arguments: String::new(),
                })
            }
            _ => said(block),
        }
    }

    fn go_on(&mut self, index: u64, delta: &Value) -> Option<Fragment> {
        if delta["type"] != "input_json_delta" {
            return said(delta);
        }
        let part = delta["partial_json"].as_str().filter(|part| !part.is_empty())?;
        let place = self.calls.iter().rposition(|call| call.block == index)?;
        self.calls[place].whole = None;
        Some(Fragment::ToolCall { index: place as u32, call_id: None, name: None, arguments: part.to_owned() })
    }

    /// The arguments that came with the beginning of calls, where nothing took their place.
    fn close(&mut self) -> Vec<Fragment> {
        let whole = |(index, call): (u32, &mut Begun)| {
            let arguments = call.whole.take()?;
            Some(Fragment::ToolCall { index, call_id: None, name: None, arguments })
        };
        (0..).zip(&mut self.calls).filter_map(whole).collect()
    }

    fn stop(&mut self, message: &Value) {
        if let Some(word) = message["stop_reason"].as_str().filter(|word| !word.is_empty()) {
            self.finish = Some(finish_reason(word));
        }
    }
}

impl Reader for Answer {
    fn event(&mut self, event: &sse::Event, secrets: &Secrets) -> Result<Read, ModelError> {
        let data = event.data.trim_ascii();
        if data.is_empty() {
            return Ok(Read::On(Vec::new()));
        }
        let said = match problem::parse(data) {
            Ok(said) => said,
            Err(_) if event.name == "error" => {
                return Err(problem::of_object(&String::from_utf8_lossy(data).into(), secrets));
            }
            Err(broken) => return Err(broken),
        };
        let index = || said["index"].as_u64().unwrap_or(0);
        let fragment = match said["type"].as_str().unwrap_or(&event.name) {
            "message_start" => {
                self.counted.take(&said["message"]["usage"]);
                None
            }
            "content_block_start" => self.begin(index(), &said["content_block"]),
            "content_block_delta" => self.go_on(index(), &said["delta"]),
            "message_delta" => {
                self.counted.take(&said["usage"]);
                self.stop(&said["delta"]);
                None
            }
            "message_stop" => return Ok(Read::End),
            "error" => return Err(refusal(&said, secrets)),
            _ if said["error"].is_object() => return Err(refusal(&said, secrets)),
            // `ping`, the end of a block, and whatever comes to be said later.
            _ => None,
        };
        Ok(Read::On(fragment.into_iter().collect()))
    }

    fn is_finished(&self) -> bool {
        self.finish.is_some()
    }

    fn end(mut self) -> Option<Vec<Fragment>> {
        let finish = match self.finish.take()? {
            // The calls speak for themselves.
            FinishReason::Stop if !self.calls.is_empty() => FinishReason::ToolCalls,
            finish => finish,
        };
        let mut end = self.close();
        end.extend(self.counted.usage().map(Fragment::Usage));
        end.push(Fragment::Finish(finish));
        Some(end)
    }

    fn whole(mut self, body: &[u8], secrets: &Secrets) -> Result<Vec<Fragment>, ModelError> {
        let body = problem::parse(body)?;
        if body["type"] == "error" || body["error"].is_object() {
            return Err(refusal(&body, secrets));
        }
        let Some(blocks) = body["content"].as_array() else {
            return Err(problem::error(ModelErrorKind::Malformed, "the model provider's answer holds no content"));
        };
        let mut fragments: Vec<_> = (0..).zip(blocks).filter_map(|(index, block)| self.begin(index, block)).collect();
        self.counted.take(&body["usage"]);
        self.stop(&body);
        // Nothing can be missing from a body that is whole.
        self.finish.get_or_insert(FinishReason::Stop);
        fragments.extend(self.end().into_iter().flatten());
        Ok(fragments)
    }
}

/// What a block or a part of one adds to the answer's text or reasoning. A signature, a citation and thinking that
/// was made unreadable add nothing.
fn said(part: &Value) -> Option<Fragment> {
    let text = |name: &str| part[name].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    match part["type"].as_str()? {
        "text" | "text_delta" => text("text").map(Fragment::Text),
        "thinking" | "thinking_delta" => text("thinking").map(Fragment::Reasoning),
        _ => None,
    }
}

fn refusal(said: &Value, secrets: &Secrets) -> ModelError {
    let object = &said["error"];
    problem::of_object(if object.is_null() { said } else { object }, secrets)
}

fn finish_reason(word: &str) -> FinishReason {
    match word {
        "end_turn" | "stop_sequence" => FinishReason::Stop,
        "tool_use" => FinishReason::ToolCalls,
        "max_tokens" => FinishReason::Length,
        other => FinishReason::Other(other.chars().take(64).collect()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn event(data: &Value) -> sse::Event {
        let name = data["type"].as_str().unwrap_or_default().to_owned();
        sse::Event { id: None, name, data: data.to_string().into_bytes() }
    }

    /// The fragments of these events, without the end.
    fn read(answer: &mut Answer, events: &[Value]) -> Vec<Fragment> {
        let secrets = Secrets::default();
        let read = |data: &Value| match answer.event(&event(data), &secrets).unwrap() {
            Read::On(fragments) => fragments,
            Read::End => Vec::new(),
        };
        events.iter().flat_map(read).collect()
    }

    fn start(index: u32, block: Value) -> Value {
        json!({"type": "content_block_start", "index": index, "content_block": block})
    }

    fn delta(index: u32, delta: Value) -> Value {
        json!({"type": "content_block_delta", "index": index, "delta": delta})
    }

    fn stop(reason: &str) -> Value {
        json!({"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": null}})
    }

    fn call(index: u32, call_id: Option<&str>, name: Option<&str>, arguments: &str) -> Fragment {
        let (call_id, name) = (call_id.map(str::to_owned), name.map(str::to_owned));
        Fragment::ToolCall { index, call_id, name, arguments: arguments.into() }
    }

    fn ends_with(events: &[Value]) -> Option<Vec<Fragment>> {
        let mut answer = Answer::default();
        read(&mut answer, events);
        answer.end()
    }

    #[test]
    fn text_and_thinking_come_in_order_and_a_signature_is_nothing() {
        let events = [
            json!({"type": "message_start", "message": {"id": "m", "content": [], "new": 1}}),
            start(0, json!({"type": "thinking", "thinking": "", "signature": ""})),
            json!({"type": "ping"}),
            delta(0, json!({"type": "thinking_delta", "thinking": "hm"})),
            delta(0, json!({"type": "signature_delta", "signature": "EqQ="})),
            json!({"type": "content_block_stop", "index": 0}),
            start(1, json!({"type": "redacted_thinking", "data": "x"})),
            start(2, json!({"type": "text", "text": "a"})),
            delta(2, json!({"type": "text_delta", "text": "b"})),
            delta(2, json!({"type": "citations_delta", "citation": {}})),
            json!({"type": "something_new", "text": "c"}),
        ];
        let expected = [Fragment::Reasoning("hm".into()), Fragment::Text("a".into()), Fragment::Text("b".into())];
        assert_eq!(read(&mut Answer::default(), &events), expected);
    }

    #[test]
    fn the_parts_of_a_tool_call_are_found_by_its_block() {
        let part = |index, text: &str| delta(index, json!({"type": "input_json_delta", "partial_json": text}));
        let events = [
            start(0, json!({"type": "text", "text": ""})),
            start(1, json!({"type": "tool_use", "id": "t1", "name": "ls", "input": {}})),
            part(1, ""),
            part(1, "{\"p\""),
            start(2, json!({"type": "tool_use", "id": "t2", "name": "cat", "input": {}})),
            part(2, "{}"),
            part(1, ":1}"),
            part(7, "of nothing"),
        ];
        let expected = [
            call(0, Some("t1"), Some("ls"), ""),
            call(0, None, None, "{\"p\""),
            call(1, Some("t2"), Some("cat"), ""),
            call(1, None, None, "{}"),
            call(0, None, None, ":1}"),
        ];
        assert_eq!(read(&mut Answer::default(), &events), expected);
    }

    #[test]
    fn arguments_that_come_whole_are_told_once() {
        let begun = start(0, json!({"type": "tool_use", "id": "t", "name": "ls", "input": {"p": 1}}));
        let part = delta(0, json!({"type": "input_json_delta", "partial_json": "{}"}));
        let end = |events: &[Value]| ends_with(&[events, &[stop("tool_use")]].concat()).unwrap();
        let finish = Fragment::Finish(FinishReason::ToolCalls);
        assert_eq!(end(std::slice::from_ref(&begun)), [call(0, None, None, "{\"p\":1}"), finish.clone()]);
        assert_eq!(end(&[begun, part]), [finish]);
    }

    #[test]
    fn what_was_cached_is_a_part_of_the_input() {
        let events = [
            json!({"type": "message_start", "message": {"usage": {
                "input_tokens": 5, "cache_creation_input_tokens": 20, "cache_read_input_tokens": 300, "output_tokens": 1,
            }}}),
            json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 42}}),
        ];
        let usage = Usage { input_tokens: 325, output_tokens: 42, cached_tokens: Some(300), ..Usage::default() };
        assert_eq!(ends_with(&events), Some(vec![Fragment::Usage(usage), Fragment::Finish(FinishReason::Stop)]));
        assert_eq!(ends_with(&[stop("end_turn")]), Some(vec![Fragment::Finish(FinishReason::Stop)]));
    }

    #[test]
    fn stop_reasons_are_mapped_and_without_one_there_is_no_end() {
        let other = |word: &str| FinishReason::Other(word.into());
        for (word, reason) in [
            ("end_turn", FinishReason::Stop),
            ("stop_sequence", FinishReason::Stop),
            ("tool_use", FinishReason::ToolCalls),
            ("max_tokens", FinishReason::Length),
            ("refusal", other("refusal")),
            ("pause_turn", other("pause_turn")),
            ("model_context_window_exceeded", other("model_context_window_exceeded")),
        ] {
            assert_eq!(ends_with(&[stop(word)]), Some(vec![Fragment::Finish(reason)]), "{word}");
        }
        assert_eq!(ends_with(&[start(0, json!({"type": "text", "text": "a"})), json!({"type": "message_stop"})]), None);
        assert_eq!(ends_with(&[stop("")]), None);
    }

    #[test]
    fn errors_within_a_stream_have_kinds() {
        for (word, kind) in [
            ("overloaded_error", ModelErrorKind::Unavailable),
            ("api_error", ModelErrorKind::Unavailable),
            ("timeout_error", ModelErrorKind::Unavailable),
            ("rate_limit_error", ModelErrorKind::RateLimited),
            ("invalid_request_error", ModelErrorKind::Rejected),
            ("authentication_error", ModelErrorKind::Rejected),
            ("billing_error", ModelErrorKind::Rejected),
        ] {
            let data = json!({"type": "error", "error": {"type": word, "message": "no"}, "request_id": "r"});
            let error = Answer::default().event(&event(&data), &Secrets::default()).unwrap_err();
            assert_eq!((error.kind, error.message.as_str()), (kind, "the model provider broke off: no"), "{word}");
        }
        let named = |data: &str| sse::Event { id: None, name: "error".into(), data: data.into() };
        for data in ["no", "{\"message\": \"no\"}"] {
            let error = Answer::default().event(&named(data), &Secrets::default()).unwrap_err();
            assert_eq!(error.message, "the model provider broke off: no");
        }
    }

    #[test]
    fn an_answer_in_one_piece_is_read_as_a_stream_is() {
        let whole = |body: Value| Answer::default().whole(body.to_string().as_bytes(), &Secrets::default());
        let body = json!({
            "type": "message",
            "content": [{"type": "text", "text": "a"}, {"type": "tool_use", "id": "t", "name": "ls", "input": {"p": 1}}],
            "stop_reason": "tool_use",
            "usage": {"input_tokens": 1, "output_tokens": 2},
        });
        let usage = Usage { input_tokens: 1, output_tokens: 2, ..Usage::default() };
        assert_eq!(
            whole(body).unwrap(),
            [
                Fragment::Text("a".into()),
                call(0, Some("t"), Some("ls"), ""),
                call(0, None, None, "{\"p\":1}"),
                Fragment::Usage(usage),
                Fragment::Finish(FinishReason::ToolCalls),
            ]
        );
        assert_eq!(whole(json!({"hello": 1})).unwrap_err().kind, ModelErrorKind::Malformed);
        let error = json!({"type": "error", "error": {"type": "overloaded_error", "message": "no"}});
        assert_eq!(whole(error).unwrap_err().kind, ModelErrorKind::Unavailable);
    }

    #[test]
    fn a_stream_may_be_cut_between_any_two_bytes() {
        let events = [
            start(0, json!({"type": "text", "text": ""})),
            delta(0, json!({"type": "text_delta", "text": "é😀"})),
            json!({"type": "ping"}),
            start(1, json!({"type": "tool_use", "id": "t", "name": "ls", "input": {}})),
            delta(1, json!({"type": "input_json_delta", "partial_json": "{\"ä\":1}"})),
            stop("tool_use"),
            json!({"type": "message_stop"}),
        ];
        let text: String = events.iter().map(|data| format!("event: x\r\ndata: {data}\r\n\r\n")).collect();
        let read = |pieces: [&[u8]; 2]| {
            let (mut parser, mut answer) = (sse::Parser::default(), Answer::default());
            let mut fragments = Vec::new();
            for piece in pieces {
                let mut found = Vec::new();
                parser.push(piece, &mut found).unwrap();
                for event in found {
                    if let Read::On(more) = answer.event(&event, &Secrets::default()).unwrap() {
                        fragments.extend(more);
                    }
                }
            }
            fragments.extend(answer.end().unwrap());
            fragments
        };
        let whole = read([text.as_bytes(), b""]);
        assert_eq!(whole.len(), 4);
        for at in 0..text.len() {
            let (head, tail) = text.as_bytes().split_at(at);
            assert_eq!(read([head, tail]), whole, "cut at {at}");
        }
    }

    /// JSON of any shape under the names that are read.
    fn oddities() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[a-z_]{0,8}".prop_map(Value::from),
            prop_oneof![Just("tool_use"), Just("input_json_delta"), Just("content_block_start"), Just("message_delta")]
                .prop_map(Value::from),
        ];
        let names = ["type", "index", "delta", "content_block", "message", "usage", "error", "input", "stop_reason"];
        leaf.prop_recursive(4, 24, 6, move |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map(proptest::sample::select(names.to_vec()), inner, 0..6)
                    .prop_map(|map| map.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_field_may_hold_anything(events in proptest::collection::vec(oddities(), 0..6)) {
            let mut answer = Answer::default();
            for data in &events {
                if answer.event(&event(data), &Secrets::default()).is_err() {
                    return Ok(());
                }
            }
            answer.end();
        }
    }
}
