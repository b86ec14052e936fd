//! What is received: the chunks of a chat completion as fragments. Pure; no network is needed to test it.
//!
//! Every field is optional and unknown ones are ignored; a field of another type than expected counts as absent.
//! However a provider orders its chunks, an answer's end is one [`Fragment::Usage`], if usage was reported, and
//! then one [`Fragment::Finish`]: usage comes behind the finish reason on the wire, so both are held until the end.

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

/// The data of the event that says nothing follows.
const DONE: &[u8] = b"[DONE]";

/// One answer, as far as it came.
#[derive(Debug, Default)]
pub struct Answer {
    finish: Option<FinishReason>,
    usage: Option<Usage>,
    /// The calls that have begun; a fragment's index is a place in here.
    calls: Vec<Begun>,
}

#[derive(Debug)]
struct Begun {
    /// The provider's index.
    index: u64,
    id: Option<String>,
}

impl Answer {
    /// Reads one chunk of a stream.
    fn chunk(&mut self, data: &[u8], secrets: &Secrets) -> Result<Vec<Fragment>, ModelError> {
        let chunk = problem::parse(data)?;
        refuse_error(&chunk, secrets)?;
        Ok(self.read(&chunk))
    }

    /// Reads the data of an event that is called an error, whether or not it says so itself.
    fn refusal(data: &[u8], secrets: &Secrets) -> ModelError {
        match problem::parse(data) {
            Ok(chunk) => refuse_error(&chunk, secrets).err().unwrap_or_else(|| problem::of_object(&chunk, secrets)),
            Err(_) => problem::of_object(&String::from_utf8_lossy(data).into(), secrets),
        }
    }

    fn read(&mut self, chunk: &Value) -> Vec<Fragment> {
        let mut fragments = Vec::new();
        // One answer is asked for: what a second choice says is not part of it.
        let choice = chunk["choices"]
            .as_array()
            .and_then(|choices| choices.iter().find(|choice| choice["index"].as_u64().unwrap_or(0) == 0));
        if let Some(choice) = choice {
            let delta = if choice["delta"].is_object() { &choice["delta"] } else { &choice["message"] };
            let text = |key: &str| Some(text_of(&delta[key])).filter(|text| !text.is_empty());
            fragments.extend(text("reasoning_content").or_else(|| text("reasoning")).map(Fragment::Reasoning));
            fragments.extend(text("content").map(Fragment::Text));
            // A refusal is what the model says instead of content.
            fragments.extend(text("refusal").map(Fragment::Text));
            for (place, call) in (0..).zip(delta["tool_calls"].as_array().into_iter().flatten()) {
                fragments.push(self.tool_call(place, call));
            }
            if let Some(reason) = choice["finish_reason"].as_str().filter(|reason| !reason.is_empty()) {
                self.finish = Some(finish_reason(reason));
            }
        }
        // Some report running totals: the last one is the sum.
        self.usage = usage(&chunk["usage"]).or(self.usage);
        fragments
    }

    fn tool_call(&mut self, place: u64, call: &Value) -> Fragment {
        let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        let (id, name) = (text(&call["id"]), text(&call["function"]["name"]));
        let number = call["index"].as_u64();
        let provider_index = number.unwrap_or(place);
        let known = self.calls.iter().rposition(|begun| begun.index == provider_index);
        // Some give every parallel call the same index, or none: then the id tells them apart.
        let same = |begun: &Begun| id.is_none() || begun.id.is_none() || begun.id == id;
        let index = known.filter(|known| same(&self.calls[*known])).unwrap_or_else(|| {
            self.calls.push(Begun { index: provider_index, id: None });
            self.calls.len() - 1
        });
        let begun = &mut self.calls[index].id;
        // The id is told once, whoever repeats it.
        let call_id = if begun.is_none() {
            begun.clone_from(&id);
            id
        } else {
            None
        };
        let arguments = match &call["function"]["arguments"] {
            Value::String(text) => text.clone(),
            object @ Value::Object(_) => object.to_string(),
            _ => String::new(),
        };
        Fragment::ToolCall { index: index as u32, call_id, name, arguments }
    }
}

impl Reader for Answer {
    fn event(&mut self, event: &sse::Event, secrets: &Secrets) -> Result<Read, ModelError> {
        match event.data.trim_ascii() {
            b"" => Ok(Read::On(Vec::new())),
            DONE => Ok(Read::End),
            data if event.name == "error" => Err(Self::refusal(data, secrets)),
            data => self.chunk(data, secrets).map(Read::On),
        }
    }

    fn is_finished(&self) -> bool {
        self.finish.is_some()
    }

    fn whole(mut self, body: &[u8], secrets: &Secrets) -> Result<Vec<Fragment>, ModelError> {
        let body = problem::parse(body)?;
        refuse_error(&body, secrets)?;
        if body["choices"].as_array().is_none_or(Vec::is_empty) {
            return Err(problem::error(ModelErrorKind::Malformed, "the model provider's answer holds no choice"));
        }
        let mut fragments = self.read(&body);
        // Nothing can be missing from a body that is whole.
        self.finish.get_or_insert(FinishReason::Stop);
        fragments.extend(self.end().into_iter().flatten());
        Ok(fragments)
    }

    fn end(self) -> Option<Vec<Fragment>> {
        let finish = match self.finish? {
            // Some say `stop` behind tool calls; the calls speak for themselves.
            FinishReason::Stop if !self.calls.is_empty() => FinishReason::ToolCalls,
            finish => finish,
        };
        Some(self.usage.map(Fragment::Usage).into_iter().chain([Fragment::Finish(finish)]).collect())
    }
}

fn refuse_error(chunk: &Value, secrets: &Secrets) -> Result<(), ModelError> {
    let told = |error: &&Value| error.is_object() || error.as_str().is_some_and(|text| !text.is_empty());
    let object = [&chunk["error"], &chunk["choices"][0]["error"]].into_iter().find(told);
    match object {
        Some(object) => Err(problem::of_object(object, secrets)),
        None => Ok(()),
    }
}

/// Text as a string, or as the list of parts that some send.
fn text_of(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect(),
        _ => String::new(),
    }
}

fn finish_reason(word: &str) -> FinishReason {
    match word {
        "stop" => FinishReason::Stop,
        "tool_calls" | "function_call" => FinishReason::ToolCalls,
        "length" | "max_tokens" => FinishReason::Length,
        other => FinishReason::Other(other.chars().take(64).collect()),
    }
}

fn usage(reported: &Value) -> Option<Usage> {
    let (input, output) = (reported["prompt_tokens"].as_u64(), reported["completion_tokens"].as_u64());
    // Without either it says nothing; providers fill in empty objects on the way.
    let (input_tokens, output_tokens) = match (input, output) {
        (None, None) => return None,
        (input, output) => (input.unwrap_or(0), output.unwrap_or(0)),
    };
    let cached = reported["prompt_tokens_details"]["cached_tokens"].as_u64();
    Some(Usage {
        input_tokens,
        output_tokens,
        cached_tokens: cached.or(reported["prompt_cache_hit_tokens"].as_u64()),
        reasoning_tokens: reported["completion_tokens_details"]["reasoning_tokens"].as_u64(),
        // Counted by whoever makes the calls.
        model_calls: 0,
        unreported_calls: 0,
        estimated_calls: 0,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn none() -> Secrets {
        Secrets::default()
    }

    /// Every fragment of these chunks, without the end.
    fn read(answer: &mut Answer, chunks: &[Value]) -> Vec<Fragment> {
        chunks.iter().flat_map(|chunk| answer.chunk(chunk.to_string().as_bytes(), &none()).unwrap()).collect()
    }

    fn delta(delta: Value) -> Value {
        json!({"choices": [{"index": 0, "delta": delta, "finish_reason": null}], "usage": null, "new": {"x": 1}})
    }

    fn finish(reason: &str) -> Value {
        json!({"choices": [{"delta": {}, "finish_reason": reason}]})
    }

    fn text(text: &str) -> Fragment {
        Fragment::Text(text.into())
    }

    fn call(index: u32, call_id: Option<&str>, name: Option<&str>, arguments: &str) -> Fragment {
        let (call_id, name) = (call_id.map(str::to_owned), name.map(str::to_owned));
        Fragment::ToolCall { index, call_id, name, arguments: arguments.into() }
    }

    #[test]
    fn text_and_reasoning_come_in_order() {
        let chunks = [
            delta(json!({"role": "assistant", "content": ""})),
            delta(json!({"reasoning_content": "h"})),
            delta(json!({"reasoning": "m", "content": null})),
            delta(json!({"reasoning_content": "same", "reasoning": "same", "content": "a"})),
            delta(json!({"content": [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]})),
            delta(json!({"refusal": "no"})),
        ];
        let thought = |text: &str| Fragment::Reasoning(text.into());
        let expected = [thought("h"), thought("m"), thought("same"), text("a"), text("bc"), text("no")];
        assert_eq!(read(&mut Answer::default(), &chunks), expected);
    }

    #[test]
    fn the_parts_of_a_tool_call_are_found_by_its_index() {
        let chunks = [
            delta(
                json!({"tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": {"name": "ls", "arguments": ""}}]}),
            ),
            delta(json!({"tool_calls": [{"index": 1, "id": "c2", "function": {"name": "cat"}}]})),
            delta(
                json!({"tool_calls": [{"index": 0, "function": {"arguments": "{\"p\""}}, {"index": 1, "function": {"arguments": "{}"}}]}),
            ),
            delta(json!({"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "", "arguments": ":1}"}}]})),
        ];
        let expected = [
            call(0, Some("c1"), Some("ls"), ""),
            call(1, Some("c2"), Some("cat"), ""),
            call(0, None, None, "{\"p\""),
            call(1, None, None, "{}"),
            call(0, None, None, ":1}"),
        ];
        assert_eq!(read(&mut Answer::default(), &chunks), expected);
    }

    #[test]
    fn calls_that_share_an_index_are_told_apart_by_their_ids() {
        let one = |id: &str| json!({"index": 0, "id": id, "function": {"name": "ls", "arguments": "{}"}});
        let bare = |id: &str| json!({"id": id, "function": {"name": "ls", "arguments": {"p": 1}}});
        let chunks = [delta(json!({"tool_calls": [one("a")]})), delta(json!({"tool_calls": [one("b")]}))];
        let ls = |index, id| call(index, Some(id), Some("ls"), "{}");
        assert_eq!(read(&mut Answer::default(), &chunks), [ls(0, "a"), ls(1, "b")]);
        let chunks = [delta(json!({"tool_calls": [bare("a"), bare("b")]})), delta(json!({"tool_calls": [bare("c")]}))];
        let ls = |index, id| call(index, Some(id), Some("ls"), "{\"p\":1}");
        assert_eq!(read(&mut Answer::default(), &chunks), [ls(0, "a"), ls(1, "b"), ls(2, "c")]);
    }

    #[test]
    fn usage_and_finish_end_an_answer_in_this_order() {
        let mut answer = Answer::default();
        let chunks = [
            json!({"choices": [], "usage": {"prompt_tokens": 1}}),
            finish("stop"),
            json!({"choices": [], "usage": {
                "prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14,
                "prompt_tokens_details": {"cached_tokens": 6}, "completion_tokens_details": {"reasoning_tokens": 3},
            }}),
            json!({"usage": null}),
        ];
        assert_eq!(read(&mut answer, &chunks), []);
        let usage = Usage {
            input_tokens: 10,
            output_tokens: 4,
            cached_tokens: Some(6),
            reasoning_tokens: Some(3),
            ..Usage::default()
        };
        assert_eq!(answer.end(), Some(vec![Fragment::Usage(usage), Fragment::Finish(FinishReason::Stop)]));
    }

    #[test]
    fn cached_tokens_have_two_names_and_missing_usage_is_none() {
        let cached = |value: Value| usage(&value).map(|usage| usage.cached_tokens);
        assert_eq!(cached(json!({"prompt_tokens": 9, "prompt_cache_hit_tokens": 5})), Some(Some(5)));
        assert_eq!(cached(json!({"prompt_tokens": 9, "completion_tokens": 1})), Some(None));
        for nothing in [json!(null), json!({}), json!("much"), json!({"prompt_tokens": -1})] {
            assert_eq!(cached(nothing), None);
        }
    }

    #[test]
    fn finish_reasons_are_mapped() {
        let end = |chunks: &[Value]| {
            let mut answer = Answer::default();
            read(&mut answer, chunks);
            answer.end().map(|mut end| end.pop().unwrap())
        };
        let tool = delta(json!({"tool_calls": [{"id": "a"}]}));
        let other = |word: &str| FinishReason::Other(word.into());
        for (chunks, reason) in [
            (vec![finish("stop")], FinishReason::Stop),
            (vec![finish("tool_calls")], FinishReason::ToolCalls),
            (vec![finish("function_call")], FinishReason::ToolCalls),
            (vec![tool.clone(), finish("stop")], FinishReason::ToolCalls),
            (vec![tool, finish("length")], FinishReason::Length),
            (vec![finish("content_filter")], other("content_filter")),
            (vec![finish("stop"), finish("")], FinishReason::Stop),
        ] {
            assert_eq!(end(&chunks), Some(Fragment::Finish(reason)));
        }
        assert_eq!(end(&[delta(json!({"content": "a"})), finish("")]), None);
    }

    #[test]
    fn a_second_choice_is_not_part_of_the_answer() {
        let chunk =
            json!({"choices": [{"index": 1, "delta": {"content": "b"}}, {"index": 0, "delta": {"content": "a"}}]});
        assert_eq!(read(&mut Answer::default(), &[chunk]), [text("a")]);
    }

    #[test]
    fn an_error_object_is_an_error() {
        for chunk in [
            json!({"error": {"message": "too much", "type": "overloaded_error"}}),
            json!({"choices": [{"error": {"message": "too much", "code": 502}, "finish_reason": "error"}]}),
        ] {
            let error = Answer::default().chunk(chunk.to_string().as_bytes(), &none()).unwrap_err();
            assert_eq!(
                (error.kind, error.message.as_str()),
                (ModelErrorKind::Unavailable, "the model provider broke off: too much")
            );
        }
        assert_eq!(read(&mut Answer::default(), &[json!({"error": null})]), []);
    }

    #[test]
    fn an_event_called_an_error_is_one_whatever_it_holds() {
        let refusal = |data: &str| {
            let error = Answer::refusal(data.as_bytes(), &none());
            (error.kind, error.message.replace("the model provider broke off: ", ""))
        };
        let overloaded = (ModelErrorKind::Unavailable, "too much".to_owned());
        assert_eq!(refusal(r#"{"error": {"message": "too much", "code": 503}}"#), overloaded);
        assert_eq!(refusal(r#"{"message": "too much", "code": 503}"#), overloaded);
        assert_eq!(refusal("too much"), (ModelErrorKind::Rejected, "too much".to_owned()));
    }

    #[test]
    fn what_is_no_json_is_malformed() {
        for data in [&b"{\"choices\""[..], b"", b"{\"a\": \"\xff\"}", b"[DONE"] {
            assert_eq!(Answer::default().chunk(data, &none()).unwrap_err().kind, ModelErrorKind::Malformed);
        }
    }

    #[test]
    fn an_answer_in_one_piece_is_read_as_a_stream_of_one() {
        let body = json!({"object": "chat.completion", "choices": [{"index": 0, "finish_reason": "tool_calls", "message": {
            "role": "assistant", "content": "hi", "reasoning_content": "hm",
            "tool_calls": [{"id": "a", "type": "function", "function": {"name": "ls", "arguments": "{}"}}],
        }}], "usage": {"prompt_tokens": 1, "completion_tokens": 2}});
        let usage = Usage { input_tokens: 1, output_tokens: 2, ..Usage::default() };
        assert_eq!(
            Answer::default().whole(body.to_string().as_bytes(), &none()).unwrap(),
            [
                Fragment::Reasoning("hm".into()),
                text("hi"),
                call(0, Some("a"), Some("ls"), "{}"),
                Fragment::Usage(usage),
                Fragment::Finish(FinishReason::ToolCalls),
            ]
        );
    }

    #[test]
    fn an_answer_in_one_piece_needs_a_choice_but_no_finish_reason() {
        let whole = |body: &str| Answer::default().whole(body.as_bytes(), &none());
        let stop = Fragment::Finish(FinishReason::Stop);
        assert_eq!(whole(r#"{"choices": [{"message": {"content": "a"}}]}"#).unwrap(), [text("a"), stop]);
        for body in ["{}", "[]", "{\"choices\": []}", "{\"choices\": [{\"mess"] {
            assert_eq!(whole(body).unwrap_err().kind, ModelErrorKind::Malformed, "{body}");
        }
        assert_eq!(whole(r#"{"error": {"code": 429}}"#).unwrap_err().kind, ModelErrorKind::RateLimited);
    }

    /// JSON with the names that are looked for, and anything beneath them.
    fn chunks() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[a-z]{0,4}".prop_map(Value::from),
        ];
        let names = "choices|delta|message|content|reasoning|tool_calls|function|arguments|index|id|usage|prompt_tokens|finish_reason";
        leaf.prop_recursive(6, 48, 4, move |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map(names, inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_json_is_read_without_a_panic(chunks in proptest::collection::vec(chunks(), 0..6)) {
            let mut answer = Answer::default();
            read(&mut answer, &chunks);
            if let Some(end) = answer.end() {
                prop_assert!(matches!(end.last(), Some(Fragment::Finish(_))));
            }
        }
    }
}
