use super::*;

fn user(content: &str) -> Message {
    Message::User { content: content.into() }
}

fn request(messages: Vec<Message>) -> ModelRequest {
    ModelRequest {
        model: "scripted".into(),
        messages,
        turn_start: 0,
        purpose: raddle_domain::record::Purpose::Answer,
        tools: Vec::new(),
        temperature: None,
        top_p: None,
        max_tokens: None,
    }
}

fn call(prompt: &str) -> ModelStream {
    Scripted.call(request(vec![user(prompt)]))
}

async fn fragments(stream: ModelStream) -> Vec<Result<Fragment, ModelError>> {
    stream.collect().await
}

/// What was said and thought, and what else came, in order.
async fn answer(messages: Vec<Message>) -> (String, String, Vec<Fragment>) {
    let (mut text, mut reasoning, mut rest) = (String::new(), String::new(), Vec::new());
    for fragment in fragments(Scripted.call(request(messages))).await {
        match fragment.unwrap() {
            Fragment::Text(piece) => text.push_str(&piece),
            Fragment::Reasoning(piece) => reasoning.push_str(&piece),
            other => rest.push(other),
        }
    }
    (text, reasoning, rest)
}

async fn text(prompt: &str) -> String {
    answer(vec![user(prompt)]).await.0
}

fn usage(input_tokens: u64, output_tokens: u64) -> Fragment {
    Fragment::Usage(Usage { input_tokens, output_tokens, ..Usage::default() })
}

fn word(text: &str) -> Result<Fragment, ModelError> {
    Ok(Fragment::Text(text.into()))
}

const STOP: Fragment = Fragment::Finish(FinishReason::Stop);

#[tokio::test]
async fn text_is_streamed_word_by_word_and_ends_with_usage_and_finish() {
    assert_eq!(
        fragments(call("hello  world")).await,
        [word("echo:"), word(" hello"), word("  world"), Ok(usage(2, 3)), Ok(STOP)]
    );
}

#[tokio::test]
async fn the_lines_of_a_call_are_one_answer() {
    let (text, reasoning, rest) =
        answer(vec![user("a\nb\n@say c\n@think d e\n@tokens 3\n@think f\n@say \n@tokens 0\n@say g")]).await;
    assert_eq!(text, "echo: a\nb\nc\nw1 w2 w3\n\ng");
    assert_eq!(reasoning, "d e\nf");
    assert_eq!(rest, [usage(16, 11), STOP]);
}

#[tokio::test]
async fn the_spaces_of_a_text_are_kept() {
    assert_eq!(text("@say  a\t b ").await, " a\t b ");
}

#[tokio::test]
async fn a_batch_of_calls_ends_the_call_and_the_next_one_goes_on() {
    let prompt = user("@tool ls {\"p\": 1}\n@also cat {}\n@say done");
    let (text, _, rest) = answer(vec![prompt.clone()]).await;
    let head = |index, name: &str| Fragment::ToolCall {
        index,
        call_id: Some(format!("call_1_{index}")),
        name: Some(name.into()),
        arguments: String::new(),
    };
    let tail =
        |index, arguments: &str| Fragment::ToolCall { index, call_id: None, name: None, arguments: arguments.into() };
    assert_eq!(text, "");
    let calls = [head(0, "ls"), tail(0, "{\"p\": 1}"), head(1, "cat"), tail(1, "{}")];
    assert_eq!(rest[..4], calls);
    assert_eq!(rest[4..], [usage(9, 0), Fragment::Finish(FinishReason::ToolCalls)]);

    let call = |id: &str| ToolCall { call_id: id.into(), name: "ls".into(), arguments: "{}".into() };
    let tool_calls = vec![call("call_1_0"), call("call_1_1")];
    let assistant = Message::Assistant { content: String::new(), reasoning: String::new(), tool_calls };
    let result = |id: &str| Message::Tool { call_id: id.into(), content: "ok".into(), failed: false };
    let messages = vec![prompt, assistant, result("call_1_0"), result("call_1_1"), user("faster")];
    assert_eq!(answer(messages[..4].to_vec()).await.0, "done");
    assert_eq!(answer(messages).await.0, "heard: faster\ndone");
}

#[tokio::test]
async fn a_question_is_asked_and_its_answer_said() {
    let prompt = user("@ask who are you?\n@say bye");
    let (_, _, rest) = answer(vec![prompt.clone()]).await;
    let Fragment::ToolCall { name: Some(name), call_id: Some(call_id), .. } = rest[0].clone() else {
        panic!("{rest:?}")
    };
    assert_eq!(name, "ask_user");
    let call = ToolCall { call_id: call_id.clone(), name, arguments: String::new() };
    let assistant = Message::Assistant { content: String::new(), reasoning: String::new(), tool_calls: vec![call] };
    let messages = vec![prompt, assistant, Message::Tool { call_id, content: "Ada".into(), failed: false }];
    assert_eq!(answer(messages).await.0, "answer: Ada\nbye");
}

#[tokio::test]
async fn a_scripted_failure_has_the_kind_of_its_status() {
    for (prompt, kind) in [
        ("@fail 429 slow down", ModelErrorKind::RateLimited),
        ("@fail 500 oops", ModelErrorKind::Unavailable),
        ("@fail 529 oops", ModelErrorKind::Unavailable),
        ("@fail 401 who", ModelErrorKind::Rejected),
    ] {
        let text = prompt[10..].to_owned();
        assert_eq!(fragments(call(prompt)).await, [Err(failure(kind, text))]);
    }
}

#[tokio::test]
async fn a_failure_comes_behind_what_was_said() {
    let fragments = fragments(call("@say a\n@fail 503 oops")).await;
    assert_eq!(fragments, [word("a"), Err(failure(ModelErrorKind::Unavailable, "oops".into()))]);
}

#[tokio::test]
async fn a_dropped_stream_has_no_finish() {
    assert_eq!(fragments(call("@say a\n@drop\n@say b")).await, [word("a")]);
}

#[tokio::test]
async fn a_bad_script_is_rejected_with_a_sentence_and_nothing_is_said() {
    let message = "line 2 of the script: unknown directive `@dance`".to_owned();
    assert_eq!(fragments(call("hi\n@dance")).await, [Err(failure(ModelErrorKind::Rejected, message))]);
}

#[tokio::test]
async fn reported_usage_replaces_the_counted_words() {
    assert_eq!(answer(vec![user("@say a\n@usage 100 7")]).await.2, [usage(100, 7), STOP]);
}

#[tokio::test]
async fn the_words_of_all_messages_are_input() {
    let system = Message::System { content: "be kind".into() };
    let assistant = Message::Assistant { content: "a b".into(), reasoning: "c".into(), tool_calls: Vec::new() };
    let request = ModelRequest { turn_start: 3, ..request(vec![system, user("x"), assistant, user("y z")]) };
    let last = fragments(Scripted.call(request)).await.split_off(3);
    assert_eq!(last, [Ok(usage(8, 3)), Ok(STOP)]);
}

#[tokio::test(start_paused = true)]
async fn paced_words_come_at_their_rate() {
    let start = Instant::now();
    let mut stream = call("@tokens 5 2");
    let mut times = Vec::new();
    while let Some(Ok(Fragment::Text(_))) = stream.next().await {
        times.push(start.elapsed().as_millis());
    }
    assert_eq!(times, [0, 500, 1000, 1500, 2000]);
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_does_not_slow_the_pace() {
    let start = Instant::now();
    let mut stream = call("@tokens 3 1");
    stream.next().await;
    tokio::time::advance(Duration::from_millis(1900)).await;
    stream.next().await;
    stream.next().await;
    assert_eq!(start.elapsed().as_millis(), 2000);
}

#[tokio::test(start_paused = true)]
async fn a_wait_takes_its_time_and_says_nothing() {
    let start = Instant::now();
    assert_eq!(text("@wait 86400000\n@say a").await, "a");
    assert_eq!(start.elapsed().as_secs(), 86_400);
}

#[tokio::test(start_paused = true)]
async fn a_wait_without_end_is_dropped_with_its_stream() {
    let mut stream = call("@say a\n@wait 18446744073709551615");
    assert_eq!(stream.next().await, Some(word("a")));
    let more = tokio::time::timeout(Duration::from_secs(1), stream.next()).await;
    assert!(more.is_err());
    drop(stream);
}

#[tokio::test]
async fn fast_words_let_others_run() {
    // One thread: were the words never pending, the other task would not run before they end.
    let counting = tokio::spawn(async {
        let mut stream = call("@tokens 4000000000");
        while stream.next().await.is_some() {}
    });
    tokio::task::yield_now().await;
    counting.abort();
    assert!(counting.await.unwrap_err().is_cancelled());
}

#[tokio::test]
async fn the_same_call_answers_the_same() {
    let prompt = "a\n@think b\n@tokens 3\n@tool ls {}";
    assert_eq!(fragments(call(prompt)).await, fragments(call(prompt)).await);
}

/// A call that compacts `messages`, the last of which is the instruction.
fn compaction(messages: Vec<Message>, turn_start: usize) -> ModelStream {
    Scripted.call(ModelRequest { turn_start, purpose: Purpose::Compaction, ..request(messages) })
}

fn assistant(content: &str) -> Message {
    Message::Assistant { content: content.into(), reasoning: String::new(), tool_calls: Vec::new() }
}

#[tokio::test]
async fn a_compaction_is_answered_with_a_summary() {
    let system = Message::System { content: "be kind".into() };
    let conversation = vec![system, user("@say x"), assistant("x"), user("Sum up.\n\nit got long")];
    assert_eq!(
        fragments(compaction(conversation, 3)).await,
        [word("summary"), word(" of"), word(" 2"), word(" messages"), Ok(usage(10, 4)), Ok(STOP)]
    );
}

#[tokio::test]
async fn a_compaction_plays_its_reason_if_that_is_a_script() {
    let compact = |reason: &str| compaction(vec![user("hi"), assistant("echo: hi"), user(reason)], 2);
    let played = fragments(compact("Sum up.\n\n@say we met\n@usage 3 2")).await;
    assert_eq!(played, [word("we"), word(" met"), Ok(usage(3, 2)), Ok(STOP)]);
    let failed = fragments(compact("Sum up.\n\n@fail 503 oops")).await;
    assert_eq!(failed, [Err(failure(ModelErrorKind::Unavailable, "oops".into()))]);
    let mistake = "line 1 of the script: unknown directive `@dance`".to_owned();
    assert_eq!(fragments(compact("Sum up.\n\n@dance")).await, [Err(failure(ModelErrorKind::Rejected, mistake))]);
}

#[tokio::test]
async fn a_compaction_without_an_instruction_is_rejected() {
    let lost = "the call that compacts does not end with an instruction".to_owned();
    for messages in [vec![], vec![user("hi"), assistant("echo: hi")]] {
        assert_eq!(fragments(compaction(messages, 0)).await, [Err(failure(ModelErrorKind::Rejected, lost.clone()))]);
    }
}

#[tokio::test]
async fn a_conversation_that_begins_with_a_summary_goes_on() {
    let summary = user("[Summary]\n\nsummary of 2 messages");
    let request = ModelRequest { turn_start: 1, ..request(vec![summary, user("hello")]) };
    assert_eq!(fragments(Scripted.call(request)).await, [word("echo:"), word(" hello"), Ok(usage(6, 2)), Ok(STOP)]);
}

#[tokio::test]
async fn a_script_that_is_compacted_on_its_way_goes_on_where_it_was() {
    let prompt = user("@tool ls\n@tool cat\n@say done");
    let called = |call_id: &str| {
        let call = ToolCall { call_id: call_id.into(), name: "ls".into(), arguments: "{}".into() };
        Message::Assistant { content: String::new(), reasoning: String::new(), tool_calls: vec![call] }
    };
    let result = |call_id: &str| Message::Tool { call_id: call_id.into(), content: "ok".into(), failed: false };
    let heading = |text: &str| user(&format!("[Summary]\n\n{text}"));
    let said = |fragments: Vec<Result<Fragment, ModelError>>| {
        fragments
            .into_iter()
            .filter_map(|part| if let Ok(Fragment::Text(text)) = part { Some(text) } else { None })
            .collect::<String>()
    };

    let first = vec![prompt.clone(), user("faster"), called("call_2_0"), result("call_2_0"), user("Sum up.")];
    let summary = said(fragments(compaction(first, 0)).await);
    assert_eq!(summary, "summary of 4 messages; of the turn so far 1 answers, 1 steers");

    // What users said in the turn is still there; it has been heard.
    let turn = |more: Vec<Message>| {
        let messages = [heading(&summary), prompt.clone(), user("faster")].into_iter().chain(more).collect();
        ModelRequest { turn_start: 1, ..request(messages) }
    };
    let second = fragments(Scripted.call(turn(vec![]))).await;
    let id = |fragments: &[Result<Fragment, ModelError>]| match fragments.first() {
        Some(Ok(Fragment::ToolCall { call_id: Some(id), name: Some(name), .. })) => (id.clone(), name.clone()),
        other => panic!("{other:?}"),
    };
    assert_eq!(id(&second), ("call_3_1_0".to_owned(), "cat".to_owned()));
    let rest = vec![called("call_3_1_0"), result("call_3_1_0")];
    assert_eq!(said(fragments(Scripted.call(turn(rest.clone()))).await), "done");

    // And once more.
    let request = turn(rest.into_iter().chain([user("Sum up.")]).collect());
    let again = said(fragments(compaction(request.messages, 1)).await);
    assert_eq!(again, "summary of 5 messages; of the turn so far 2 answers, 1 steers");
    let messages = vec![heading(&again), prompt, user("faster"), user("slower")];
    let last = ModelRequest { turn_start: 1, ..super::tests::request(messages) };
    assert_eq!(said(fragments(Scripted.call(last)).await), "heard: slower\ndone");
}
