//! Runs jobs that are no turns: a webhook through the guarded way out, a command through the shell tool.
//!
//! * A **webhook** is a POST of the body as JSON. Its `webhook-id` is the job's, the same for every attempt, so that a
//!   receiver knows a repeat; with a secret it is signed by Standard Webhooks. Any answer but a 2xx, and none in time,
//!   is a failure that is tried again; an address that may not be reached is one that is not.
//! * A **command** is what the model's shell tool would run, in the workspace and under the policy of its thread, with
//!   the job's id as its operation. What a rule forbids is refused when the job is made, and again when it runs. What
//!   a person would be asked about runs: it was a person who asked for it, and the record says what would have been
//!   asked.
//!
//! Invariants: a secret is in no record, only its name; where a job goes is checked when it is made and at each connect.
//! Absent on purpose: retries and timers, which are the job's own (see `raddle_domain::job`).

use std::{collections::BTreeMap, sync::Arc};

use raddle_domain::{
    history::ToolCall,
    id::{OperationId, ThreadKey, TurnId},
    job::{CommandWork, WebhookWork, Work},
    ports::{
        Gate, Invocation, JobDenied, JobEnd, JobRun, JobRunner, JobWork, Judgement, Output, Planned, Scene, ToolEnd,
        Tools,
    },
    record::{Thread, TurnSettings},
};
use secrecy::ExposeSecret;
use serde_json::json;

use crate::{
    egress::{Egress, EgressError, Outgoing},
    webhook::Secrets,
};

/// The tool that runs commands.
const SHELL: &str = "exec_shell";
/// How much of an answer is kept.
const ANSWER_BYTES: usize = 16 * 1024;

/// Secrets to sign webhooks with, by the names that jobs give.
pub type Named = BTreeMap<String, Secrets>;

/// The runner of this server.
pub struct Runner {
    tools: Arc<dyn Tools>,
    egress: Egress,
    secrets: Named,
}

/// Why a file of secrets cannot be used. It repeats none of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadSecrets {
    #[error("it is not TOML")]
    Syntax,
    #[error("`{0}` is not a text")]
    NoText(String),
    #[error("`{name}` {why}")]
    Bad { name: String, why: crate::webhook::BadSecret },
}

/// Reads secrets from a TOML file of names and texts.
pub fn secrets(text: &secrecy::SecretString) -> Result<Named, BadSecrets> {
    let table: toml::Table = text.expose_secret().parse().map_err(|_| BadSecrets::Syntax)?;
    let named = table.into_iter().map(|(name, value)| {
        let text = value.as_str().ok_or_else(|| BadSecrets::NoText(name.clone()))?;
        let secrets = Secrets::parse(text).map_err(|why| BadSecrets::Bad { name: name.clone(), why })?;
        Ok((name, secrets))
    });
    named.collect()
}

impl Runner {
    pub fn new(tools: Arc<dyn Tools>, egress: Egress, secrets: Named) -> Self {
        Self { tools, egress, secrets }
    }

    fn check(&self, hook: &WebhookWork) -> Result<(), JobDenied> {
        let invalid = |field, why: String| Err(JobDenied::Invalid { field, why });
        if let Err(refused) = self.egress.check(&hook.url) {
            return invalid("payload.url", format!("is not requested: {refused}"));
        }
        match &hook.secret {
            Some(name) if !self.secrets.contains_key(name) => invalid(
                "payload.secret",
                "is the name of no secret of this server (see `jobs.secrets_file`)".to_owned(),
            ),
            _ => Ok(()),
        }
    }

    /// What the shell tool makes of the command.
    fn plan(&self, run: &JobRun, work: &CommandWork, thread: &Thread) -> Result<Box<Planned>, JobDenied> {
        let invalid = |field, why: String| Err(JobDenied::Invalid { field, why });
        if thread.archived {
            return invalid("payload.thread_id", "names a thread that is archived".to_owned());
        }
        let mut arguments = json!({ "command": work.command });
        if let Some(cwd) = &work.cwd {
            arguments["cwd"] = json!(cwd);
        }
        if let Some(timeout_ms) = work.timeout_ms {
            arguments["timeout_ms"] = json!(timeout_ms);
        }
        let call = ToolCall { call_id: run.job.to_string(), name: SHELL.to_owned(), arguments: arguments.to_string() };
        let settings = settings(thread);
        let scene = Scene {
            key: ThreadKey { tenant: run.tenant, thread: thread.id },
            workspace: thread.workspace.as_deref(),
            policy: thread.policy.as_ref(),
            run: thread.run_id,
            settings: &settings,
        };
        match self.tools.judge(&call, scene, &run.rules) {
            Judgement::Run(planned) => Ok(planned),
            Judgement::Unknown => invalid("kind", "needs a shell, which this server does not offer".to_owned()),
            Judgement::Invalid(why) => invalid("payload.command", format!("cannot be run: {why}")),
            Judgement::Question { .. } => invalid("payload.command", "is a question".to_owned()),
            Judgement::Forbidden { reason, rule } => Err(JobDenied::Forbidden { reason, rule }),
        }
    }
}

/// A turn of the thread in which a person runs a command: he needs no leave of the thread for that.
fn settings(thread: &Thread) -> TurnSettings {
    TurnSettings {
        engine: thread.engine.clone(),
        model: thread.model.clone(),
        mode: thread.mode.clone(),
        allow_shell: true,
        auto_approve: thread.auto_approve,
        trust_mode: thread.trust_mode,
        temperature: None,
        top_p: None,
        max_tokens: None,
        price: None,
    }
}

/// What a person would have been asked.
fn question(planned: &Planned) -> Option<String> {
    if planned.gate == Gate::Open || planned.permitted_by.is_some() {
        return None;
    }
    let rule = planned.asked_by.as_ref().map(|rule| format!(" (rule {rule})")).unwrap_or_default();
    Some(format!("asked for by the caller; a model would have needed approval: {}{rule}", planned.reason))
}

impl JobRunner for Runner {
    fn judge(&self, run: &JobRun) -> Result<Option<String>, JobDenied> {
        let no_thread = || JobDenied::Invalid { field: "payload.thread_id", why: "names no thread".to_owned() };
        match &run.work {
            Work::Turn(_) => Ok(None),
            Work::Webhook(hook) => self.check(hook).map(|()| None),
            Work::Command(work) => {
                let thread = run.thread.as_ref().ok_or_else(no_thread)?;
                self.plan(run, work, thread).map(|planned| question(&planned))
            }
        }
    }

    fn run(&self, run: JobRun, output: Arc<dyn Output>) -> JobWork {
        let failed = |why: &str| -> JobWork {
            let why = why.to_owned();
            Box::pin(async { JobEnd::Failed { why, again: false } })
        };
        match &run.work {
            Work::Turn(_) => failed("turns are run by the runtime"),
            Work::Webhook(hook) => {
                let (egress, hook) = (self.egress.clone(), hook.clone());
                let secrets = hook.secret.as_ref().and_then(|name| self.secrets.get(name)).cloned();
                if hook.secret.is_some() && secrets.is_none() {
                    return failed("its secret is no longer configured");
                }
                Box::pin(async move { post(&egress, &run, &hook, secrets.as_ref()).await })
            }
            Work::Command(work) => {
                let Some(thread) = &run.thread else { return failed("its thread is gone") };
                let planned = match self.plan(&run, work, thread) {
                    Ok(planned) => planned,
                    Err(JobDenied::Invalid { field, why }) => return failed(&format!("`{field}` {why}")),
                    Err(JobDenied::Forbidden { reason, rule }) => {
                        return failed(&format!("the rule {rule} forbids it: {reason}"));
                    }
                };
                let invocation = Invocation {
                    key: ThreadKey { tenant: run.tenant, thread: thread.id },
                    turn: TurnId::from_bytes(*run.job.as_bytes()),
                    operation: OperationId::from_bytes(*run.job.as_bytes()),
                    attempt: run.run,
                    tool: SHELL.to_owned(),
                    arguments: planned.arguments,
                    workspace: thread.workspace.clone(),
                    policy: thread.policy.clone(),
                    trusted: thread.trust_mode,
                    // A job is in the ledger of no run, whatever its thread works for.
                    run: None,
                };
                let at_work = self.tools.run(invocation, output);
                Box::pin(async move {
                    match at_work.await {
                        ToolEnd::Done(output) => exited(output),
                        ToolEnd::Failed(why) => JobEnd::Failed { why, again: true },
                        ToolEnd::NotDone => JobEnd::Failed { why: "it was not done".to_owned(), again: true },
                        ToolEnd::Unknown(why) => JobEnd::Unknown(why),
                    }
                })
            }
        }
    }
}

/// How a command ended that ran: the shell tool says so in the last words of its output, which are its own. To a model
/// any exit is an answer; to whoever wanted it done it is not.
fn exited(output: String) -> JobEnd {
    let last = output.rsplit_once('[').map_or("", |(_, last)| last);
    let failed = match last.strip_prefix("exit ") {
        Some(code) => code != "0]",
        None => last.starts_with("killed by signal "),
    };
    if failed { JobEnd::Failed { why: output, again: true } } else { JobEnd::Done(json!(output)) }
}

async fn post(egress: &Egress, run: &JobRun, hook: &WebhookWork, secrets: Option<&Secrets>) -> JobEnd {
    let body = hook.body.to_string();
    let (id, seconds) = (run.job.to_string(), run.at.0 / 1000);
    let mut headers = vec![("content-type", "application/json".to_owned())];
    match secrets {
        Some(secrets) => headers.extend(secrets.headers(&id, seconds, body.as_bytes())),
        None => {
            headers.extend([(crate::webhook::ID, id), (crate::webhook::TIMESTAMP, seconds.to_string())]);
        }
    }
    let outgoing = Outgoing { read: ANSWER_BYTES, ..Outgoing::post(&hook.url, headers, body.into()) };
    match egress.send(outgoing).await {
        Ok(answer) if answer.is_success() => {
            JobEnd::Done(json!({ "status": answer.status, "body": String::from_utf8_lossy(&answer.body) }))
        }
        Ok(answer) => {
            let said = String::from_utf8_lossy(&answer.body);
            let said: String = said.chars().take(200).collect();
            let said = if said.is_empty() { said } else { format!(": {said}") };
            JobEnd::Failed { why: format!("it was answered with {}{said}", answer.status), again: true }
        }
        Err(error @ EgressError::Refused(_)) => JobEnd::Failed { why: error.to_string(), again: false },
        Err(error) => JobEnd::Failed { why: error.to_string(), again: true },
    }
}

#[cfg(test)]
mod tests;
