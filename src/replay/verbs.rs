//! A trace against a server whose own models and tools answer: only what callers said is said again, each at the place of
//! the log at which it was said.
//!
//! ```text
//!   follow the replica's log ──so many events have come──▶ the next verb, with the replica's ids ──▶ ...
//! ```
//! A place is counted in events without deltas: how an answer is cut into pieces is not the caller's doing. Ids are found
//! by the order in which they come up, which is the same as long as the logs are.
//!
//! Left out: threads that were there before the recording began, preconditions (a place by another count), and the runs
//! that threads worked for.

use std::{collections::HashMap, sync::atomic::Ordering::Relaxed, time::Duration};

use futures_util::StreamExt;
use raddle_actors::redrive::{Difference, Numbered, Progress, Recorded, Replica, Report, ThreadReport, Trace};
use raddle_domain::{
    command::{Command, NewThread, StartTurn, ThreadPatch},
    event::{Event, Record, SCHEMA},
    id::ThreadId,
    record::{ItemKind, ModelChoice, TurnStatus},
    trace::{Came, Canon, Deltas, Logged, Told},
};
use reqwest::Method;
use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use crate::client::{Client, ClientError, Refusal};

/// Differences that a report shows in full.
const SHOWN: usize = 20;
/// A server that is busy is not asked again sooner.
const SHORTEST: Duration = Duration::from_millis(100);

/// What of a recorded thread is said again.
pub struct Plan {
    pub thread: String,
    verbs: Vec<Verb>,
    /// The events of its log but deltas, as they were stored.
    events: Vec<String>,
    pub canon: Canon,
}

struct Verb {
    line: usize,
    /// Events that come before it.
    after: usize,
    /// An item was growing when it was said.
    growing: bool,
    told: Told,
    refused: bool,
}

/// What became of one replica.
pub struct Played {
    pub thread: Option<ThreadId>,
    pub canon: Canon,
    /// Verbs that were refused again.
    pub refused: u64,
    pub said: u64,
    /// The line of a verb of which something else came, and what.
    pub slipped: Option<(usize, String)>,
}

/// How a trace is said.
#[derive(Debug, Clone)]
pub struct Manner {
    /// In place of the recorded models.
    pub model: Option<String>,
    /// How long nothing may happen before a replica is taken for what it will be.
    pub patience: Duration,
}

/// The threads that can be said again, and how many cannot.
pub fn plans(trace: &Trace) -> (Vec<Plan>, usize) {
    let plans: Vec<_> = trace.threads.iter().filter_map(Plan::of).collect();
    let left_out = trace.threads.len() - plans.len();
    (plans, left_out)
}

const fn is_delta(record: &Record) -> bool {
    matches!(record.event, Event::ItemDelta(_))
}

impl Plan {
    fn of(recorded: &Recorded) -> Option<Self> {
        if !matches!(recorded.lines.first()?.line.told, Told::Created(_)) {
            return None;
        }
        let (mut verbs, mut events, mut growing) = (Vec::new(), Vec::new(), false);
        for Numbered { number, line } in &recorded.lines {
            let refused = match &line.came {
                // It depended on what else the tenant had, or on the number of an event.
                Came::Refused { quota: true, .. } => continue,
                Came::Refused { .. } if has_precondition(&line.told) => continue,
                Came::Refused { .. } => true,
                Came::Events(_) => false,
            };
            if is_verb(&line.told) {
                let (told, after) = (line.told.clone(), events.len());
                verbs.push(Verb { line: *number, after, growing, told, refused });
            }
            if let Came::Events(came) = &line.came {
                for Logged(record) in came {
                    growing = is_delta(record);
                    if !growing {
                        events.push(serde_json::to_string(record).ok()?);
                    }
                }
            }
        }
        let canon = canon(recorded.log().cloned());
        Some(Self { thread: recorded.key.to_string(), verbs, events, canon })
    }

    /// Says everything to a new thread, each when it is due.
    pub async fn play(&self, client: &Client, manner: &Manner, progress: &Progress) -> Result<Played, ClientError> {
        let mut played = Played { thread: None, canon: Canon::default(), refused: 0, said: 0, slipped: None };
        let [first, verbs @ ..] = self.verbs.as_slice() else { return Ok(played) };
        let Told::Created(new) = &first.told else { return Ok(played) };
        let path = ["v1", "threads"].map(str::to_owned).to_vec();
        let create = Request { method: Method::POST, path, body: created(new, manner) };
        let made = create.send(client, manner.patience, false).await?;
        let id: ThreadId = made["id"].as_str().unwrap_or_default().parse().map_err(|_| odd("it names no thread"))?;
        played.thread = Some(id);
        played.said = 1;
        progress.told.fetch_add(1, Relaxed);
        let thread = id.to_string();
        let (mut log, mut names) = (Vec::new(), HashMap::new());
        let (mut events, mut growing, mut next) = (0, false, 0);
        let mut follow = client.follow(&thread, 0);
        let lost = follow.lost();
        loop {
            while let Some(verb) = verbs.get(next)
                && (events > verb.after || (events == verb.after && (growing || !verb.growing)))
                && played.slipped.is_none()
            {
                next += 1;
                played.said += 1;
                progress.told.fetch_add(1, Relaxed);
                let request = request(&thread, &verb.told, &names, manner);
                match (request.send(client, manner.patience, verb.refused).await, verb.refused) {
                    (Ok(_), false) => {}
                    (Err(ClientError::Refused(why)), _) if is_busy(&why, true) => {
                        return Err(ClientError::Refused(why));
                    }
                    (Err(ClientError::Refused(_)), true) => played.refused += 1,
                    (Ok(_), true) => {
                        played.slipped = Some((verb.line, "it was refused when it was recorded".to_owned()));
                    }
                    (Err(ClientError::Refused(why)), false) => {
                        played.slipped = Some((verb.line, format!("it is refused: {}", why.detail)));
                    }
                    (Err(why), _) => return Err(why),
                }
            }
            if played.slipped.is_some() || (next == verbs.len() && events >= self.events.len()) {
                break;
            }
            let told = match timeout(manner.patience, follow.next()).await {
                Ok(Ok(Some(told))) => told,
                // The thread is gone.
                Ok(Ok(None)) => break,
                Ok(Err(why)) => return Err(why),
                Err(_) => {
                    // Only a thread of a server that answers can be quiet, and only while it is heard.
                    answers(client, &thread).await?;
                    if lost.load(Relaxed) {
                        continue;
                    }
                    break;
                }
            };
            let record = Record::decode(SCHEMA, told.json.as_bytes()).map_err(|why| odd(&why.to_string()))?;
            growing = is_delta(&record);
            if !growing {
                if let Some(recorded) = self.events.get(events) {
                    name(recorded, &told.json, &mut names);
                }
                events += 1;
            }
            log.push(record);
        }
        played.canon = canon(log);
        Ok(played)
    }
}

/// An error if the server does not answer any more.
async fn answers(client: &Client, thread: &str) -> Result<(), ClientError> {
    match client.verb(Method::GET, &["v1", "threads", thread], &Value::Null).await {
        Err(ClientError::Unreachable { server, why }) => {
            Err(ClientError::Unreachable { server, why: format!("it does not answer any more: {why}") })
        }
        _ => Ok(()),
    }
}

/// Whether the server refuses for the moment, whatever the thread is. What the thread itself has too much of does not
/// pass by waiting where it was refused when it was recorded.
fn is_busy(why: &Refusal, refused: bool) -> bool {
    match (why.status, why.code.as_str()) {
        (503, "thread-unavailable") => false,
        (503, _) | (429, "rate-limited") => true,
        (429, _) => !refused,
        _ => false,
    }
}

/// What of a log does not depend on how an answer is cut into pieces. An item that is streamed begins with a summary of its
/// first piece, and one that is interrupted holds what had come by then.
fn canon(log: impl IntoIterator<Item = Record>) -> Canon {
    let streamed = |kind| matches!(kind, ItemKind::AgentMessage | ItemKind::Reasoning | ItemKind::ContextCompaction);
    let log = log.into_iter().map(|mut record| {
        match &mut record.event {
            Event::ItemStarted(item) if streamed(item.kind) => item.summary.clear(),
            Event::ItemCompleted(item) if streamed(item.kind) && item.status != TurnStatus::Completed => {
                item.summary.clear();
                item.detail.clear();
            }
            _ => {}
        }
        record
    });
    Canon::of(&log.collect::<Vec<_>>(), Deltas::Left)
}

fn odd(why: &str) -> ClientError {
    ClientError::Failed(format!("the answer is not as expected: {why}"))
}

/// Learns the ids of the replica from two events that stand at the same place.
fn name(recorded: &str, found: &str, names: &mut HashMap<Uuid, Uuid>) {
    for (recorded, found) in Replica::ids(recorded).zip(Replica::ids(found)) {
        names.entry(recorded).or_insert(found);
    }
}

fn has_precondition(told: &Told) -> bool {
    matches!(told, Told::Command { if_match: Some(_), .. })
}

/// Whether somebody said it who was not the runtime itself.
const fn is_verb(told: &Told) -> bool {
    match told {
        Told::Created(_) => true,
        Told::Given => false,
        Told::Command { command, .. } => !matches!(
            **command,
            Command::Report(_) | Command::Begin | Command::ToolReport(_) | Command::Recover { .. } | Command::Tick
        ),
    }
}

/// A request to the API.
struct Request {
    method: Method,
    path: Vec<String>,
    body: Value,
}

impl Request {
    /// Asks, and while the server is busy asks again for the same, when it says so, until the patience is at its end.
    async fn send(self, client: &Client, patience: Duration, refused: bool) -> Result<Value, ClientError> {
        let path: Vec<&str> = self.path.iter().map(String::as_str).collect();
        let client = client.once(Uuid::now_v7().to_string());
        let until = Instant::now() + patience;
        loop {
            let why = match client.verb(self.method.clone(), &path, &self.body).await {
                Err(ClientError::Refused(why)) if is_busy(&why, refused) => why,
                done => return done,
            };
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ClientError::Refused(why));
            }
            sleep(why.retry_after.unwrap_or_default().max(SHORTEST).min(left)).await;
        }
    }
}

/// A body without what is not given.
fn body(fields: Value) -> Value {
    match fields {
        Value::Object(fields) => fields.into_iter().filter(|(_, value)| !value.is_null()).collect::<Map<_, _>>().into(),
        other => other,
    }
}

fn model(choice: Option<&ModelChoice>, manner: &Manner) -> Value {
    match (&manner.model, choice) {
        (Some(model), _) => json!(model),
        (None, Some(ModelChoice { engine, model })) if engine == model => json!(model),
        (None, Some(ModelChoice { engine, model })) => json!(format!("{engine}/{model}")),
        (None, None) => Value::Null,
    }
}

fn created(new: &NewThread, manner: &Manner) -> Value {
    body(json!({
        "title": new.title, "model": model(Some(&new.choice), manner), "mode": new.mode,
        "system_prompt": new.system_prompt, "workspace": new.workspace, "allow_shell": new.allow_shell,
        "auto_approve": new.auto_approve, "trust_mode": new.trust_mode, "on_restart": new.on_restart,
        "policy": new.policy, "budget": new.budget, "metadata": new.metadata,
    }))
}

fn started(start: &StartTurn, manner: &Manner) -> Value {
    let overrides = &start.overrides;
    let steers = start.delivery == raddle_domain::record::Delivery::Steer;
    let choice = overrides.choice.as_ref().map_or(Value::Null, |choice| model(Some(choice), manner));
    body(json!({
        "prompt": start.prompt, "delivery": start.delivery, "if_idle": steers.then_some(start.if_idle),
        "undelivered": steers.then_some(start.undelivered), "expected_turn": start.expected_turn,
        "model": choice, "mode": overrides.mode, "allow_shell": overrides.allow_shell,
        "auto_approve": overrides.auto_approve, "trust_mode": overrides.trust_mode,
        "temperature": overrides.temperature, "top_p": overrides.top_p, "max_tokens": overrides.max_tokens,
        "budget": overrides.budget, "input_summary": overrides.input_summary,
    }))
}

/// An edit is always of the last turn, and starts at once.
fn edited(start: &StartTurn, manner: &Manner) -> Value {
    let Value::Object(mut fields) = started(start, manner) else { return Value::Null };
    ["delivery", "if_idle", "undelivered", "expected_turn"].iter().for_each(|field| drop(fields.remove(*field)));
    fields.into()
}

/// Everything but the model and the run is called the same.
fn patched(patch: &ThreadPatch, manner: &Manner) -> Value {
    let Ok(Value::Object(mut fields)) = serde_json::to_value(patch) else { return Value::Null };
    fields.remove("run_id");
    if fields.remove("choice").is_some() {
        fields.insert("model".to_owned(), model(patch.choice.as_ref(), manner));
    }
    fields.into()
}

/// The request that a verb is made with, about the replica's own.
fn request(thread: &str, told: &Told, names: &HashMap<Uuid, Uuid>, manner: &Manner) -> Request {
    let Told::Command { command, .. } = told else { return nothing() };
    let own = |text: String| Replica::renamed(&text, |id| names.get(&id).copied().unwrap_or(id));
    let of = |method: Method, path: &[&str], body: Value| {
        let body = serde_json::from_str(&own(body.to_string())).unwrap_or(Value::Null);
        Request { method, path: path.iter().map(|part| own((*part).to_owned())).collect(), body }
    };
    let in_thread = |method: Method, path: &[&str], body: Value| {
        let Request { method, path, body } = of(method, path, body);
        let path = ["v1", "threads", thread].map(str::to_owned).into_iter().chain(path).collect();
        Request { method, path, body }
    };
    match &**command {
        Command::Patch(patch) => in_thread(Method::PATCH, &[], patched(patch, manner)),
        Command::Delete => in_thread(Method::DELETE, &[], json!({})),
        Command::Start(start) => in_thread(Method::POST, &["turns"], started(start, manner)),
        Command::Edit(start) => in_thread(Method::POST, &["edit"], edited(start, manner)),
        Command::Steer(steer) => {
            let body = json!({ "prompt": steer.prompt, "undelivered": steer.undelivered });
            in_thread(Method::POST, &["turns", &steer.turn.to_string(), "steer"], body)
        }
        Command::Compact(compact) => in_thread(
            Method::POST,
            &["compact"],
            body(json!({ "reason": compact.reason, "delivery": compact.delivery })),
        ),
        Command::Interrupt(interrupt) => {
            let body = json!({ "pause_queue": interrupt.pause_queue });
            in_thread(Method::POST, &["turns", &interrupt.turn.to_string(), "interrupt"], body)
        }
        Command::EditPrompt(edit) => {
            let fields = body(json!({ "prompt": edit.prompt, "position": edit.position }));
            in_thread(Method::PATCH, &["inbox", &edit.input.to_string()], fields)
        }
        Command::Withdraw(input) => in_thread(Method::DELETE, &["inbox", &input.to_string()], json!({})),
        Command::Decide(decide) => {
            let fields = body(json!({ "decision": decide.decision, "reason": decide.reason }));
            of(Method::POST, &["v1", "approvals", &decide.approval.to_string()], fields)
        }
        Command::Answer(answer) => {
            let fields = json!({ "answer": answer.answer });
            of(Method::POST, &["v1", "questions", &answer.question.to_string()], fields)
        }
        Command::Resolve(resolve) => {
            let fields = body(json!({ "resolution": resolve.resolution, "output": resolve.output }));
            of(Method::POST, &["v1", "effects", &resolve.operation.to_string()], fields)
        }
        Command::SaveCheckpoint(name) => in_thread(Method::POST, &["checkpoints"], json!({ "name": name })),
        Command::DeleteCheckpoint(name) => in_thread(Method::DELETE, &["checkpoints", name], json!({})),
        Command::Report(_) | Command::Begin | Command::ToolReport(_) | Command::Recover { .. } | Command::Tick => {
            nothing()
        }
    }
}

/// What is no verb is not asked for.
fn nothing() -> Request {
    Request { method: Method::GET, path: vec!["healthz".to_owned()], body: Value::Null }
}

/// Says a trace to a server, `copies` of each thread, so many at once, and compares what became of them.
pub async fn run(
    trace: &Trace,
    client: &Client,
    manner: &Manner,
    copies: u32,
    at_once: usize,
    progress: &Progress,
) -> Result<(Report, usize), ClientError> {
    let (plans, left_out) = plans(trace);
    let lines: usize = plans.iter().map(|plan| plan.verbs.len()).sum();
    progress.lines.store(lines as u64 * u64::from(copies), Relaxed);
    let began = Instant::now();
    let all = (0..copies).flat_map(|copy| plans.iter().enumerate().map(move |(of, plan)| (copy, of, plan)));
    let played =
        futures_util::stream::iter(all)
            .map(|(copy, of, plan)| async move {
                plan.play(client, manner, progress).await.map(|played| (copy, of, played))
            })
            .buffer_unordered(at_once.max(1));
    let mut played = std::pin::pin!(played);
    let threads = plans.iter().map(|plan| ThreadReport {
        thread: plan.thread.clone(),
        lines: plan.verbs.len(),
        events: plan.canon.len(),
        digest: plan.canon.digest(),
        equal: 0,
        differing: 0,
    });
    let mut report = Report { equal: true, threads: threads.collect(), ..Report::default() };
    while let Some(done) = played.next().await {
        let (copy, of, played) = done?;
        report.replicas += 1;
        report.told += played.said;
        report.refused += played.refused;
        report.events += played.canon.len() as u64;
        match plans[of].difference(copy, &played) {
            None => report.threads[of].equal += 1,
            Some(difference) => {
                report.equal = false;
                report.differing += 1;
                report.threads[of].differing += 1;
                report.differences.push(difference);
            }
        }
    }
    report.differences.sort_by(|a, b| (a.replica, &a.thread).cmp(&(b.replica, &b.thread)));
    report.differences.truncate(SHOWN);
    report.seconds = began.elapsed().as_secs_f64();
    Ok((report, left_out))
}

impl Plan {
    fn difference(&self, replica: u32, played: &Played) -> Option<Difference> {
        let of = |line, seq, what, expected, found| Difference {
            thread: self.thread.clone(),
            replica,
            line,
            seq,
            what,
            expected,
            found,
        };
        if let Some(first) = self.canon.first_difference(&played.canon) {
            let text = |event: Option<(u64, &str)>| event.map(|(_, json)| json.to_owned());
            let line = self.verbs.iter().rev().find(|verb| verb.after <= first.after).map(|verb| verb.line);
            let seq = first.expected.or(first.found).map(|(seq, _)| seq);
            let what = "the first event that differs; the line is the last that was said before it";
            return Some(of(line, seq, what, text(first.expected), text(first.found)));
        }
        let (line, why) = played.slipped.clone()?;
        Some(of(Some(line), None, "something else came of it", None, Some(why)))
    }
}

#[cfg(test)]
mod tests {
    use raddle_domain::{
        id::{ItemId, TurnId},
        record::{Item, Metadata},
        time::UnixMs,
    };

    use super::*;

    #[test]
    fn how_far_an_interrupted_answer_came_is_nobodys_word() {
        let ended = |kind, status, detail: &str| {
            let item = Item {
                id: ItemId::from_bytes([1; 16]),
                turn_id: TurnId::from_bytes([2; 16]),
                kind,
                status,
                summary: detail.to_owned(),
                detail: detail.to_owned(),
                metadata: Metadata::default(),
                artifact_refs: Vec::new(),
                started_at: UnixMs(1),
                ended_at: Some(UnixMs(2)),
            };
            let event = Event::ItemCompleted(Box::new(item));
            canon([Record { seq: 1, ts: UnixMs(2), thread: ThreadId::from_bytes([3; 16]), event }]).digest()
        };
        let equal = |kind, status| ended(kind, status, "w1 w2") == ended(kind, status, "w1");
        assert!(equal(ItemKind::AgentMessage, TurnStatus::Interrupted));
        assert!(!equal(ItemKind::AgentMessage, TurnStatus::Completed));
        assert!(!equal(ItemKind::UserMessage, TurnStatus::Interrupted));
    }
}
