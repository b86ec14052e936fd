//! Agents: processes that speak the Agent Client Protocol over stdio and act by themselves, in a loop of their own.
//!
//! ```text
//! request ─▶ prompt (what is asked) ─▶ this file (process, session) ◀─▶ the agent
//!                                        │            ▲
//!                 says (fragments, acts) ▼            │ verdicts
//!                                      the thread: items, effects, approvals
//! ```
//! Each call has a process and a session of its own, so nothing of one is needed by the next, on this machine or after
//! a restart; what was said before goes with the prompt. An agent that is not needed any more is told so
//! (`session/cancel`), has [`GRACE`] to end, and is killed with all that it started in its process group.
//!
//! Its environment holds what a program needs to be found and to find its home, and what is configured; nothing else of
//! ours. What it writes to its stderr is logged, a line at a time. What is configured there is hidden in that, and in
//! what it says went wrong.
//!
//! Absent on purpose: the client's side of files and terminals. The agent acts by itself, and is to ask before it does;
//! raddle cannot keep one from acting that does not ask. `session/load`: a session that only its agent knows cannot be
//! edited, rolled back or forked.

mod prompt;
pub(super) mod says;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use agent_client_protocol::{
    Agent, Client, ErrorCode, Lines,
    schema::ProtocolVersion,
    v1::{
        ConnectionTo, Responder,
        schema::{
            CancelNotification, ContentBlock, Implementation, InitializeRequest, NewSessionRequest, PermissionOption,
            PromptRequest, RequestPermissionOutcome, RequestPermissionRequest, RequestPermissionResponse,
            SelectedPermissionOutcome, SessionId, SessionNotification, StopReason, TextContent,
        },
    },
};
use futures_util::{SinkExt, StreamExt, stream};
use raddle_domain::{
    id::ThreadKey,
    ports::{
        Errand, FinishReason, Fragment, Model, ModelError, ModelErrorKind, ModelRequest, ModelStream, Verdict, Verdicts,
    },
    record::Purpose,
};
use rustix::process::{Pid, Signal, kill_process_group};
use secrecy::{ExposeSecret, SecretString};
use tokio::{
    io::AsyncReadExt,
    process::{Child, ChildStderr, Command},
    sync::mpsc,
    time::timeout,
};
use tokio_util::{
    codec::{FramedRead, FramedWrite, LinesCodec},
    sync::CancellationToken,
};

use self::says::{Says, choice};
use crate::{mcp::secrets::Secrets, workspace::Workspaces};

/// How long an agent may take to end that was told to.
const GRACE: Duration = Duration::from_secs(2);

/// The longest message of an agent.
const LINE_BYTES: usize = 16 << 20;

/// The most of a line of its stderr that is looked at.
const LOGGED_BYTES: usize = 2 << 10;

/// The most of its sentence about what went wrong, or of a line of its stderr, that is shown.
const SHOWN_CHARS: usize = 500;

/// Fragments that may wait; an agent that says more has to.
const WAITING: usize = 64;

/// What of our environment an agent gets: where programs are, whose home it is, and how text is written.
const INHERITED: [&str; 8] = ["PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TMPDIR", "TZ"];

/// How to run an agent.
#[derive(Debug, Clone)]
pub struct AcpConfig {
    /// What it is called here.
    pub name: String,
    pub command: PathBuf,
    pub args: Vec<String>,
    /// Added to its environment.
    pub env: Vec<(String, SecretString)>,
    /// The directory in which it works for every thread, instead of the thread's own workspace.
    pub cwd: Option<PathBuf>,
    /// How long it may take until it has a session.
    pub start_timeout: Duration,
}

/// An agent that is run for each call.
#[derive(Debug, Clone)]
pub struct Acp {
    config: Arc<AcpConfig>,
    secrets: Secrets,
    workspaces: Arc<Workspaces>,
}

impl Acp {
    /// Runs nothing yet.
    pub fn new(config: AcpConfig, workspaces: Arc<Workspaces>) -> Self {
        let secrets = secrets(&config);
        Self { config: Arc::new(config), secrets, workspaces }
    }
}

impl Model for Acp {
    fn call(&self, _: ModelRequest) -> ModelStream {
        let why = error(ModelErrorKind::Engine, "an agent cannot be called without somebody who decides for it");
        Box::pin(stream::iter([Err(why)]))
    }

    fn act(&self, request: ModelRequest, errand: Errand) -> ModelStream {
        let (say, said) = mpsc::channel(WAITING);
        let given_up = CancellationToken::new();
        let Errand { key, turn: _, workspace, verdicts } = errand;
        let call = Call {
            config: self.config.clone(),
            secrets: self.secrets.clone(),
            workspaces: self.workspaces.clone(),
            place: (key, workspace),
            parts: prompt::parts(&request),
            asks: request.purpose == Purpose::Answer,
            say,
            given_up: given_up.clone(),
        };
        // It outlives the stream by its grace: whoever drops the stream does not wait.
        tokio::spawn(call.run(verdicts));
        let fragments = stream::unfold((said, given_up.drop_guard()), |(mut said, guard)| async move {
            let next = said.recv().await?;
            Some((next, (said, guard)))
        });
        Box::pin(fragments.fuse())
    }
}

/// What the agent was configured with, and can say.
fn secrets(config: &AcpConfig) -> Secrets {
    let mut secrets = Secrets::default();
    for (_, value) in &config.env {
        let value = value.expose_secret();
        secrets.add(value);
        // Its stderr is read by the line, and a key may have several.
        value.lines().for_each(|line| secrets.add(line));
    }
    secrets
}

fn error(kind: ModelErrorKind, message: impl Into<String>) -> ModelError {
    ModelError { kind, message: message.into(), retry_after: None }
}

type Say = mpsc::Sender<Result<Fragment, ModelError>>;

/// One call on its way.
struct Call {
    config: Arc<AcpConfig>,
    secrets: Secrets,
    workspaces: Arc<Workspaces>,
    /// Whose workspace it is.
    place: (ThreadKey, Option<String>),
    parts: Vec<String>,
    /// Whether the agent may ask for permission; where it may not, everything is refused.
    asks: bool,
    say: Say,
    given_up: CancellationToken,
}

/// What was heard and what is asked in this call.
struct Heard {
    says: Mutex<Says>,
    asked: Mutex<Asked>,
}

/// Questions that wait for a verdict, by the agent's name for the act.
#[derive(Default)]
struct Asked {
    open: HashMap<String, Question>,
    over: bool,
}

struct Question {
    options: Vec<PermissionOption>,
    responder: Responder<RequestPermissionResponse>,
}

impl Question {
    /// An agent that is gone needs no answer.
    fn answer(self, allowed: Option<bool>) {
        let chosen = allowed.and_then(|allowed| choice(&self.options, allowed));
        let outcome = match chosen {
            Some(option) => RequestPermissionOutcome::Selected(SelectedPermissionOutcome::new(option)),
            None => RequestPermissionOutcome::Cancelled,
        };
        let _ = self.responder.respond(RequestPermissionResponse::new(outcome));
    }
}

impl Heard {
    fn says(&self) -> MutexGuard<'_, Says> {
        self.says.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn asked(&self) -> MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes every question back, and all that come.
    fn end(&self) {
        let open = {
            let mut asked = self.asked();
            asked.over = true;
            std::mem::take(&mut asked.open)
        };
        open.into_values().for_each(|question| question.answer(None));
    }
}

impl Call {
    async fn run(self, verdicts: Verdicts) {
        let say = self.say.clone();
        let end = match self.start().await {
            Ok((process, cwd)) => self.talk(process, &cwd, verdicts).await,
            Err(why) => Err(why),
        };
        // Nobody listens to a call that was given up.
        let _ = say.send(end.map(Fragment::Finish)).await;
    }

    /// Runs the agent where it is to work.
    async fn start(&self) -> Result<(Process, PathBuf), ModelError> {
        let cwd = match &self.config.cwd {
            Some(cwd) => cwd.clone(),
            None => {
                let (workspaces, (key, name)) = (self.workspaces.clone(), self.place.clone());
                // The way to it is looked up, and made, on a disk.
                let found = tokio::task::spawn_blocking(move || {
                    workspaces.resolve(key, name.as_deref()).map(|workspace| workspace.path().to_owned())
                });
                let found = found.await.map_err(|why| error(ModelErrorKind::Engine, why.to_string()))?;
                found.map_err(|why| error(ModelErrorKind::Rejected, format!("the workspace {why}")))?
            }
        };
        Ok((Process::start(&self.config, &cwd, &self.secrets)?, cwd))
    }

    async fn talk(self, mut process: Process, cwd: &Path, mut verdicts: Verdicts) -> Result<FinishReason, ModelError> {
        let says = Says::new(&self.config.name, &cwd.display().to_string());
        let heard = Arc::new(Heard { says: Mutex::new(says), asked: Mutex::default() });
        let transport = process.transport()?;
        let (listener, asker) = (heard.clone(), heard.clone());
        let (told, asks_to) = (self.say.clone(), self.say.clone());
        let (may_ask, given_up, secrets) = (self.asks, self.given_up.clone(), self.secrets.clone());
        let connected = Client
            .v1()
            .name("raddle")
            .on_receive_notification(
                async move |heard: SessionNotification, _| {
                    let fragments = listener.says().update(heard.update);
                    pass_on(&told, fragments).await;
                    Ok(())
                },
                agent_client_protocol::on_receive_notification!(),
            )
            .on_receive_request(
                async move |asked: RequestPermissionRequest, responder, _| {
                    let question = Question { options: asked.options.clone(), responder };
                    if !may_ask {
                        question.answer(Some(false));
                        return Ok(());
                    }
                    let Some((id, fragments)) = asker.says().ask(asked) else {
                        question.answer(Some(false));
                        return Ok(());
                    };
                    let refused = {
                        let mut asked = asker.asked();
                        if asked.over || asked.open.contains_key(&id) {
                            Some(question)
                        } else {
                            asked.open.insert(id, question);
                            None
                        }
                    };
                    match refused {
                        Some(question) => question.answer(None),
                        None => pass_on(&asks_to, fragments).await,
                    }
                    Ok(())
                },
                agent_client_protocol::on_receive_request!(),
            )
            .connect_with(transport, async |agent: ConnectionTo<Agent>| {
                Ok(self.prompt(&agent, cwd, &heard, &mut verdicts).await)
            })
            .await;
        let end = match connected {
            Ok(end) => end,
            Err(why) => {
                let said = secrets.line(&why.message, SHOWN_CHARS);
                Err(error(ModelErrorKind::CutOff, format!("the agent broke off: {said}")))
            }
        };
        // Nobody waits for it to end, and a call that was given up has given it its time.
        let grace = if given_up.is_cancelled() { Duration::ZERO } else { GRACE };
        tokio::spawn(process.stop(grace));
        end
    }

    /// Opens a session, asks, and waits for the end of the answer.
    async fn prompt(
        &self,
        agent: &ConnectionTo<Agent>,
        cwd: &Path,
        heard: &Heard,
        verdicts: &mut Verdicts,
    ) -> Result<FinishReason, ModelError> {
        let session = tokio::select! {
            opened = timeout(self.config.start_timeout, self.open(agent, cwd)) => opened.unwrap_or_else(|_| {
                let waited = self.config.start_timeout;
                Err(error(ModelErrorKind::Timeout, format!("the agent opened no session within {waited:?}")))
            })?,
            () = self.given_up.cancelled() => return Err(error(ModelErrorKind::CutOff, "the call was given up")),
        };
        let parts = self.parts.iter().map(|part| ContentBlock::Text(TextContent::new(part.clone()))).collect();
        let answer = agent.send_request(PromptRequest::new(session.clone(), parts)).block_task();
        tokio::pin!(answer);
        let mut decided = true;
        let ended = loop {
            tokio::select! {
                // What was decided goes out before the end of an answer that came at the same time is looked at.
                biased;
                verdict = verdicts.next(), if decided => match verdict {
                    Some(verdict) => tell(heard, verdict),
                    None => decided = false,
                },
                ended = &mut answer => break ended,
                () = self.given_up.cancelled() => {
                    // First: an agent that hears only that nobody answers it may go on with the next thing.
                    let _ = agent.send_notification(CancelNotification::new(session));
                    heard.end();
                    // It is killed behind this, whatever it says.
                    let _ = timeout(GRACE, answer).await;
                    return Err(error(ModelErrorKind::CutOff, "the call was given up"));
                }
            }
        };
        heard.end();
        match ended {
            Ok(response) => Ok(finish_reason(response.stop_reason)),
            Err(_) if agent.is_incoming_closed() => {
                Err(error(ModelErrorKind::CutOff, "the agent ended before its answer did"))
            }
            Err(why) => Err(refused(&why, &self.secrets)),
        }
    }

    async fn open(&self, agent: &ConnectionTo<Agent>, cwd: &Path) -> Result<SessionId, ModelError> {
        let us = Implementation::new("raddle", env!("CARGO_PKG_VERSION"));
        let hello = InitializeRequest::new(ProtocolVersion::V1).client_info(us);
        let known = agent.send_request(hello).block_task().await;
        let known = known.map_err(|why| refused(&why, &self.secrets))?;
        if known.protocol_version != ProtocolVersion::V1 {
            return Err(error(ModelErrorKind::Rejected, "the agent speaks another version of the protocol"));
        }
        let session = agent.send_request(NewSessionRequest::new(cwd)).block_task().await;
        session.map(|session| session.session_id).map_err(|why| refused(&why, &self.secrets))
    }
}

async fn pass_on(say: &Say, fragments: Vec<Fragment>) {
    for fragment in fragments {
        // Nobody listens to a call that was given up.
        let _ = say.send(Ok(fragment)).await;
    }
}

fn tell(heard: &Heard, verdict: Verdict) {
    let question = heard.asked().open.remove(&verdict.call_id);
    if let Some(question) = question {
        question.answer(Some(verdict.allowed));
    }
}

fn finish_reason(reason: StopReason) -> FinishReason {
    match reason {
        StopReason::EndTurn => FinishReason::Stop,
        StopReason::MaxTokens => FinishReason::Length,
        StopReason::MaxTurnRequests => FinishReason::Other("max_turn_requests".to_owned()),
        StopReason::Refusal => FinishReason::Other("refusal".to_owned()),
        StopReason::Cancelled => FinishReason::Other("cancelled".to_owned()),
        _ => FinishReason::Other("unknown".to_owned()),
    }
}

/// What an error means that the agent, or the way to it, answers with.
fn refused(why: &agent_client_protocol::Error, secrets: &Secrets) -> ModelError {
    let said = secrets.line(&why.message, SHOWN_CHARS);
    match why.code {
        ErrorCode::AUTH_REQUIRED => {
            let message = "the agent is not logged in; log in with its own command, as the user that runs the server";
            error(ModelErrorKind::Rejected, message)
        }
        ErrorCode::INVALID_PARAMS | ErrorCode::INVALID_REQUEST | ErrorCode::METHOD_NOT_FOUND => {
            error(ModelErrorKind::Rejected, format!("the agent refused the call: {said}"))
        }
        _ => error(ModelErrorKind::Unavailable, format!("the agent failed: {said}")),
    }
}

/// A running agent. Dropping it kills its process group.
struct Process {
    child: Child,
    group: Group,
}

/// A process group that ends with this value.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0.take() {
            // It may have ended by itself.
            let _ = kill_process_group(leader, Signal::KILL);
        }
    }
}

impl Process {
    fn start(config: &AcpConfig, cwd: &Path, secrets: &Secrets) -> Result<Self, ModelError> {
        let mut command = Command::new(&config.command);
        command.args(&config.args).current_dir(cwd).env_clear();
        for name in INHERITED {
            command.envs(std::env::var_os(name).map(|value| (name, value)));
        }
        command.envs(config.env.iter().map(|(name, value)| (name, value.expose_secret())));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.process_group(0).kill_on_drop(true);
        let mut child = command.spawn().map_err(|why| {
            let message = format!("the agent `{}` cannot be started: {why}", config.name);
            error(ModelErrorKind::Rejected, message)
        })?;
        let group = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        if let Some(stderr) = child.stderr.take() {
            tokio::spawn(log(config.name.clone(), stderr, secrets.clone()));
        }
        Ok(Self { child, group: Group(group) })
    }

    /// Its messages, a line each.
    fn transport(
        &mut self,
    ) -> Result<
        Lines<
            impl futures_util::Sink<String, Error = std::io::Error> + Send + 'static + use<>,
            impl futures_util::Stream<Item = std::io::Result<String>> + Send + 'static + use<>,
        >,
        ModelError,
    > {
        let (Some(stdin), Some(stdout)) = (self.child.stdin.take(), self.child.stdout.take()) else {
            return Err(error(ModelErrorKind::Engine, "the agent has no pipes"));
        };
        let outgoing = FramedWrite::new(stdin, LinesCodec::new());
        let outgoing = SinkExt::<String>::sink_map_err(outgoing, std::io::Error::other);
        let incoming = FramedRead::new(stdout, LinesCodec::new_with_max_length(LINE_BYTES));
        Ok(Lines::new(outgoing, incoming.map(|line| line.map_err(std::io::Error::other))))
    }

    /// Its stdin is closed by now: that is its sign to end.
    async fn stop(mut self, grace: Duration) {
        let _ = timeout(grace, self.child.wait()).await;
        drop(self.group);
        let _ = self.child.wait().await;
    }
}

async fn log(agent: String, mut stderr: ChildStderr, secrets: Secrets) {
    let (mut bytes, mut line) = ([0; 4096], Vec::new());
    // It is read to its end whatever it holds: an agent that cannot write waits, or dies.
    while let Ok(count @ 1..) = stderr.read(&mut bytes).await {
        for byte in &bytes[..count] {
            match byte {
                b'\n' => {
                    let is_cut = line.len() == LOGGED_BYTES;
                    tracing::debug!(agent, "{}", secrets.logged(&line, is_cut, SHOWN_CHARS));
                    line.clear();
                }
                // The rest of a line that is too long is left out.
                byte if line.len() < LOGGED_BYTES => line.push(*byte),
                _ => {}
            }
        }
    }
}

/// Whether an agent may be called so: the name stands in that of its engine, and in keys.
pub fn is_name(name: &str) -> bool {
    let is_letter =
        |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || matches!(letter, '-' | '_');
    (1..=32).contains(&name.len()) && name.chars().all(is_letter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_agent_was_configured_with_is_hidden_in_its_errors() {
        let config = AcpConfig {
            name: "a".to_owned(),
            command: PathBuf::from("a"),
            args: Vec::new(),
            env: vec![("TOKEN".to_owned(), "hush-hush".into()), ("KEY".to_owned(), "line one\nline two\n".into())],
            cwd: None,
            start_timeout: Duration::ZERO,
        };
        let secrets = secrets(&config);
        let said = |text: &str| refused(&agent_client_protocol::Error::new(-32603, text), &secrets).message;
        assert_eq!(said("no such key:\nhush-hush"), "the agent failed: no such key: [hidden]");
        assert_eq!(secrets.logged(b"line two", false, SHOWN_CHARS), "[hidden]");
        // Across the cut it is hidden as well.
        let cut = said(&format!("{}hush-hush", "x".repeat(SHOWN_CHARS - 4)));
        assert!(cut.ends_with("x[hid…"), "{cut}");
    }
}
