//! One model call: built from the log, driven as a tokio task, told to its thread through an outbox.
//!
//! Absent on purpose: retries and deadlines, which the thread's machine decides.

use std::{
    collections::BTreeMap,
    panic::AssertUnwindSafe,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use futures_util::{FutureExt, StreamExt, stream};
use raddle_domain::{
    command::{Report, TextKind},
    history::{History, Message, Past, ToolCall},
    id::{RunId, Seq, TenantId, ThreadKey, TurnId},
    policy::{Policy, TenantRules},
    ports::{
        Act, ActStep, Answered, Errand, FinishReason, Fragment, Judgement, LogStore, ModelError, ModelErrorKind,
        ModelRequest, Models, Planned, Requested, Scene, StoreError, Tools, Verdict,
    },
    record::{Compaction, Item, Purpose, TurnSettings, Usage},
    thread::INSTRUCTION,
};
use tokio::{
    sync::mpsc::{self, UnboundedReceiver, UnboundedSender},
    task::AbortHandle,
};
use tracing::{Instrument, Span};

use crate::{
    budgets::{Tab, charged},
    disk,
    fair::{self, CallDoors},
    stage::Tasks,
    thread::Before,
    times::Calls,
};

/// Tool calls of one answer.
const TOOL_CALLS: usize = 128;

/// What an engine is started with.
pub(crate) struct EngineCall {
    pub key: ThreadKey,
    pub turn: TurnId,
    pub call: u32,
    pub settings: TurnSettings,
    pub system_prompt: Option<String>,
    pub workspace: Option<String>,
    /// The thread's own layer of the policy.
    pub policy: Option<Policy>,
    /// The run that the thread works for.
    pub run: Option<RunId>,
    /// The items of the open turn so far.
    pub items: Vec<Item>,
    /// The most bytes of all tool calls of the answer.
    pub tool_bytes: usize,
    /// What of the conversation was before the open turn.
    pub before: Before,
    /// The turn from which on the model sees the conversation, by its `started_seq`.
    pub context_seq: Seq,
    /// The compaction that the call is for, if it is for one.
    pub compaction: Option<Compaction>,
    pub span: Span,
    /// Where calls of this engine are counted.
    pub calls: Arc<Calls>,
    /// What it may spend.
    pub tab: Arc<Tab>,
    /// Where it runs, and reads.
    pub tasks: Tasks,
}

/// A running call. Dropping it cancels the call.
pub(crate) struct Engine {
    pub turn: TurnId,
    pub call: u32,
    pub outbox: Arc<Outbox>,
    pub tab: Arc<Tab>,
    verdicts: UnboundedSender<Verdict>,
    /// How many verdicts it was told.
    told: usize,
    task: AbortHandle,
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.task.abort();
        self.tab.close();
    }
}

/// What the engine says.
pub(crate) type Outbox = crate::outbox::Outbox<Said, Result<Answered, ModelError>>;

/// What a piece of it is. The output of an act is told as text, so that it is joined as text is.
#[derive(PartialEq)]
pub(crate) enum Said {
    Text(TextKind),
    Act(Box<Act>),
}

impl Engine {
    /// Takes what it has said: text and acts take turns. What it takes of budgets is told exactly where what comes next
    /// may end it.
    pub fn take(&self, exactly: bool) -> Vec<Report> {
        let (said, end) = self.outbox.take().unwrap_or_default();
        let empty = || {
            let (turn, call) = (self.turn, self.call);
            Report { turn, call, text: Vec::new(), acts: Vec::new(), metered: None, end: None }
        };
        let (mut reports, mut report) = (Vec::new(), empty());
        for (what, text) in said {
            match what {
                Said::Text(kind) => {
                    if !report.acts.is_empty() {
                        reports.push(std::mem::replace(&mut report, empty()));
                    }
                    report.text.push((kind, text));
                }
                Said::Act(mut act) => {
                    if let ActStep::Said(said) = &mut act.step {
                        *said = text;
                    }
                    report.acts.push(*act);
                }
            }
        }
        report.metered = self.tab.tell(exactly, end.is_some());
        report.end = end;
        reports.push(report);
        reports
    }

    /// Passes on what was decided and is saved; `all` are those of this call so far.
    pub fn tell(&mut self, all: &[Verdict]) {
        for verdict in all.iter().skip(self.told) {
            // An engine that answers no more needs none.
            let _ = self.verdicts.send(verdict.clone());
        }
        self.told = self.told.max(all.len());
    }

    /// Starts a call; `wake` is called when the outbox has something and the thread does not know it.
    pub fn start(
        call: EngineCall,
        store: Arc<dyn LogStore>,
        models: Arc<dyn Models>,
        tools: Arc<dyn Tools>,
        doors: CallDoors,
        wake: Box<dyn Fn() + Send + Sync>,
    ) -> Self {
        let (turn, number, span, calls) = (call.turn, call.call, call.span.clone(), call.calls.clone());
        let (tab, tasks) = (call.tab.clone(), call.tasks.clone());
        let outbox = Arc::new(Outbox::new(wake));
        let told = outbox.clone();
        let (verdicts, decided) = mpsc::unbounded_channel();
        let work = async move {
            let began = Instant::now();
            let driven =
                AssertUnwindSafe(drive(call, store, models, tools, doors, decided, &told)).catch_unwind().await;
            let driven = driven.unwrap_or_else(|_| Err(broken("the engine failed; this is a defect".to_owned())));
            note(&driven, began.elapsed(), &calls);
            told.end(driven);
        };
        let task = tasks.spawn(work.instrument(span));
        Self { turn, call: number, outbox, tab, verdicts, told: 0, task: task.abort_handle() }
    }
}

/// Counts how a call went, and says it of the span: neither what was asked nor what was answered.
fn note(driven: &Result<Answered, ModelError>, took: Duration, calls: &Calls) {
    calls.whole.took(took);
    let span = Span::current();
    match driven {
        Ok(answered) => {
            span.record("finish", answered.reason.as_str());
            if let Some(usage) = &answered.usage {
                span.record("input_tokens", usage.input_tokens);
                span.record("output_tokens", usage.output_tokens);
                calls.input_tokens.fetch_add(usage.input_tokens, Relaxed);
                calls.output_tokens.fetch_add(usage.output_tokens, Relaxed);
            }
        }
        Err(error) => {
            span.record("error", error.kind.code());
            calls.failed.fetch_add(1, Relaxed);
        }
    }
}

async fn drive(
    call: EngineCall,
    store: Arc<dyn LogStore>,
    models: Arc<dyn Models>,
    tools: Arc<dyn Tools>,
    doors: CallDoors,
    decided: UnboundedReceiver<Verdict>,
    outbox: &Outbox,
) -> Result<Answered, ModelError> {
    let EngineCall { key, turn, settings, system_prompt, workspace, policy, items, tool_bytes, .. } = call;
    let EngineCall { before, context_seq, compaction, run, calls, tab, tasks, .. } = call;
    let scene = Scene { key, workspace: workspace.as_deref(), policy: policy.as_ref(), run, settings: &settings };
    let model = models.engine(&settings.engine).ok_or_else(|| {
        let message = format!("the engine `{}` is not configured", settings.engine);
        ModelError { kind: ModelErrorKind::Rejected, message, retry_after: None }
    })?;
    let (mut messages, turn_start) = if let Some(past) = before.get() {
        conversation(past, system_prompt.as_deref(), &items)
    } else {
        let (store, before) = (store.clone(), before.clone());
        let reader = doors.to_read().await;
        let read = move || {
            // Held by what reads, which goes on although the turn may have ended meanwhile.
            let _reader = reader;
            let past = past(&*store, key, context_seq)?;
            let seen = conversation(&past, system_prompt.as_deref(), &items);
            before.learn(past);
            Ok(seen)
        };
        let seen = tasks.blocking(read).await.map_err(|why| broken(why.to_string()))?;
        seen.map_err(|why| unreadable("the conversation", &why))?
    };
    // The turn may end while the answer is awaited, and whoever adds it then need not copy what was before.
    drop(before);
    let (purpose, offered) = match compaction {
        None => (Purpose::Answer, tools.specs(scene)),
        Some(compaction) => {
            let content = match compaction.reason {
                Some(reason) => format!("{INSTRUCTION}\n\n{reason}"),
                None => INSTRUCTION.to_owned(),
            };
            messages.push(Message::User { content });
            (Purpose::Compaction, Vec::new())
        }
    };
    let request = ModelRequest {
        model: settings.model.clone(),
        messages,
        turn_start,
        purpose,
        tools: offered,
        temperature: settings.temperature,
        top_p: settings.top_p,
        max_tokens: settings.max_tokens,
    };
    // Counted once: it goes through the schema of every tool.
    let bytes = request.bytes();
    // Until the answer is whole, or nobody waits for it.
    let _place = doors.models.enter(fair::tokens(bytes)).await;
    let verdicts = stream::unfold(decided, |mut decided| async move { Some((decided.recv().await?, decided)) });
    let errand = Errand { key, turn, workspace: workspace.clone(), verdicts: Box::pin(verdicts) };
    let mut metering = tab.begin(bytes, request.max_tokens).await?;
    let (mut asked, mut answer) = (Some(Instant::now()), model.act(request, errand));
    let mut rest = Rest { room: tool_bytes, ..Rest::default() };
    while let Some(fragment) = answer.next().await {
        if let (Some(asked), Ok(_)) = (asked.take(), &fragment) {
            calls.first.took(asked.elapsed());
        }
        let fragment = fragment?;
        let bytes = charged(&fragment);
        match fragment {
            Fragment::Text(text) => outbox.say(Said::Text(TextKind::Answer), text).await,
            Fragment::Reasoning(text) => outbox.say(Said::Text(TextKind::Reasoning), text).await,
            Fragment::ToolCall { index, call_id, name, arguments } => {
                rest.tool_call(index, call_id, name, &arguments)?;
            }
            Fragment::Act(act) => tell_act(act, (&tasks, &store), &*tools, scene, outbox).await?,
            Fragment::Usage(usage) => {
                metering.reported(&usage);
                rest.usage = Some(usage);
            }
            Fragment::Finish(reason) => rest.finish = Some(reason),
        }
        metering.take(bytes).await?;
    }
    let Rest { finish, usage, tool_calls, .. } = rest;
    let Some(reason) = finish else {
        let message = "the model's answer was cut off".to_owned();
        return Err(ModelError { kind: ModelErrorKind::CutOff, message, retry_after: None });
    };
    let rules =
        if tool_calls.is_empty() { TenantRules::default() } else { rules_of((&tasks, &store), key.tenant).await? };
    let requested = |call: ToolCall| Requested { judgement: tools.judge(&call, scene, &rules), call };
    Ok(Answered { reason, usage, tool_calls: tool_calls.into_values().map(requested).collect() })
}

async fn tell_act(
    mut act: Act,
    from: (&Tasks, &Arc<dyn LogStore>),
    tools: &dyn Tools,
    scene: Scene<'_>,
    outbox: &Outbox,
) -> Result<(), ModelError> {
    /// About what an act takes beside its arguments.
    const BYTES: usize = 512;
    match &mut act.step {
        ActStep::Said(text) => {
            let text = std::mem::take(text);
            outbox.say(Said::Act(Box::new(act)), text).await;
            return Ok(());
        }
        ActStep::Asks(planned) => {
            let (planned, rules) = (Planned::clone(planned), rules_of(from, scene.key.tenant).await?);
            act.step = match tools.judge_act(&act.tool, planned.clone(), scene, &rules) {
                Judgement::Run(planned) => ActStep::Asks(planned),
                Judgement::Forbidden { reason, rule } => {
                    ActStep::Forbidden { planned: Box::new(planned), reason, rule }
                }
                // An agent's own calls are no tools, and no questions, of ours.
                Judgement::Unknown | Judgement::Invalid(_) | Judgement::Question { .. } => {
                    ActStep::Asks(Box::new(planned))
                }
            };
        }
        ActStep::Announced | ActStep::Forbidden { .. } | ActStep::Started | ActStep::Ended { .. } => {}
    }
    let bytes = BYTES
        + match &act.step {
            ActStep::Ended { output, .. } => output.len(),
            _ => 0,
        };
    outbox.note(Said::Act(Box::new(act)), bytes).await;
    Ok(())
}

async fn rules_of((tasks, store): (&Tasks, &Arc<dyn LogStore>), tenant: TenantId) -> Result<TenantRules, ModelError> {
    let store = store.clone();
    let read = tasks.blocking(move || disk::rules(&*store.view()?, tenant));
    let read = read.await.map_err(|why| broken(why.to_string()))?;
    read.map_err(|why| unreadable("the tenant's policy", &why))
}

/// A store that is being opened again is worth another try.
fn unreadable(what: &str, why: &StoreError) -> ModelError {
    let kind = match why {
        StoreError::Unavailable(_) | StoreError::Full => ModelErrorKind::Unavailable,
        StoreError::Corrupt(_) => ModelErrorKind::Engine,
    };
    ModelError { kind, message: format!("{what} cannot be read: {why}"), retry_after: None }
}

fn broken(message: String) -> ModelError {
    ModelError { kind: ModelErrorKind::Engine, message, retry_after: None }
}

/// What of an answer is only known when it is whole.
#[derive(Default)]
struct Rest {
    usage: Option<Usage>,
    finish: Option<FinishReason>,
    tool_calls: BTreeMap<u32, ToolCall>,
    /// Bytes that the tool calls may still grow by.
    room: usize,
}

impl Rest {
    fn tool_call(
        &mut self,
        index: u32,
        call_id: Option<String>,
        name: Option<String>,
        arguments: &str,
    ) -> Result<(), ModelError> {
        let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        let room = self.room.checked_sub(arguments.len() + text(&call_id) + text(&name));
        self.room = room.filter(|_| self.tool_calls.len() <= TOOL_CALLS).ok_or_else(|| {
            let message = format!("the model's tool calls are more than {TOOL_CALLS}, or larger than an item may be");
            ModelError { kind: ModelErrorKind::TooLarge, message, retry_after: None }
        })?;
        let call = self.tool_calls.entry(index).or_default();
        // Some providers repeat the id and the name with every fragment, some leave them empty after the first.
        if let Some(call_id) = call_id.filter(|id| !id.is_empty()) {
            call.call_id = call_id;
        }
        if let Some(name) = name.filter(|name| !name.is_empty()) {
            call.name = name;
        }
        call.arguments.push_str(arguments);
        Ok(())
    }
}

/// Reads every settled turn that is part of the conversation, from the one at `context_seq` on.
fn past(store: &dyn LogStore, key: ThreadKey, context_seq: Seq) -> Result<Past, StoreError> {
    const TURNS: usize = 256;
    let mut history = History::default();
    let view = store.view()?;
    let mut after = context_seq.saturating_sub(1);
    loop {
        let turns = view.turns(key, after, TURNS)?;
        for turn in &turns {
            after = turn.started_seq;
            if turn.reverted.is_some() {
                continue;
            }
            history.turn();
            for item in disk::items(&*view, key, turn)? {
                history.push(&item);
            }
        }
        if turns.len() < TURNS {
            return Ok(history.past());
        }
    }
}

/// What the model is to see: settled turns, then the open one, which begins at the returned index.
fn conversation(past: &Past, system_prompt: Option<&str>, open: &[Item]) -> (Vec<Message>, usize) {
    let mut history = History::after(past, system_prompt);
    history.turn();
    open.iter().for_each(|item| history.push(item));
    let turn_start = history.turn_start();
    (history.finish(), turn_start)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rest(room: usize) -> Rest {
        Rest { room, ..Rest::default() }
    }

    #[test]
    fn the_fragments_of_a_tool_call_become_one() {
        let mut rest = rest(100);
        rest.tool_call(0, Some("c1".into()), Some("ls".into()), "{\"a\"").unwrap();
        rest.tool_call(1, Some("c2".into()), Some("cat".into()), "{}").unwrap();
        rest.tool_call(0, Some(String::new()), None, ":1}").unwrap();
        let calls: Vec<_> = rest.tool_calls.into_values().collect();
        assert_eq!(calls[0], ToolCall { call_id: "c1".into(), name: "ls".into(), arguments: "{\"a\":1}".into() });
        assert_eq!(calls[1].name, "cat");
    }

    #[test]
    fn tool_calls_are_bounded_in_bytes_and_in_number() {
        let mut long = rest(10);
        long.tool_call(0, None, None, "12345").unwrap();
        assert_eq!(long.tool_call(0, None, None, "678901").unwrap_err().kind, ModelErrorKind::TooLarge);
        let mut many = rest(1_000_000);
        let refused = (0..10_000).find_map(|index| many.tool_call(index, None, Some("x".into()), "{}").err());
        assert_eq!(refused.map(|error| error.kind), Some(ModelErrorKind::TooLarge));
        assert!(many.tool_calls.len() <= TOOL_CALLS + 1);
    }
}
