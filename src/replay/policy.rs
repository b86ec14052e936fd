//! The calls of a trace under other rules: what would have been decided about each, beside what was.

use raddle_actors::redrive::{Numbered, Recorded, Trace};
use raddle_domain::{
    command::Command,
    history::ToolCall,
    policy::TenantRules,
    ports::{Answered, Gate, Judgement, Scene, Tools},
    thread::ThreadState,
    trace::{Came, Line, Logged, Told},
};
use serde::Serialize;

/// What became of all calls.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Rejudged {
    pub calls: u64,
    /// Of tools that are not configured here: nobody can say.
    pub unknown: u64,
    /// Those about which something else is decided, in the order of the trace.
    pub different: Vec<Otherwise>,
}

impl Rejudged {
    /// Whether it is known of all calls that the same is decided about them.
    pub const fn is_the_same(&self) -> bool {
        self.unknown == 0 && self.different.is_empty()
    }
}

/// A call about which something else is decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Otherwise {
    pub thread: String,
    /// The line of the trace in which the model asked for it.
    pub line: usize,
    pub tool: String,
    pub arguments: String,
    pub was: String,
    pub is: String,
}

/// Judges every call anew, with what its thread and turn were then. What the tenant had said of calls is not in a trace,
/// and has no say here.
pub fn rejudge(trace: &Trace, tools: &dyn Tools) -> Rejudged {
    let mut rejudged = Rejudged::default();
    for thread in &trace.threads {
        rejudge_one(thread, tools, &mut rejudged);
    }
    rejudged.different.sort_by_key(|otherwise| otherwise.line);
    rejudged
}

fn rejudge_one(thread: &Recorded, tools: &dyn Tools, rejudged: &mut Rejudged) {
    let mut state: Option<ThreadState> = None;
    for Numbered { number, line } in &thread.lines {
        let Came::Events(events) = &line.came else { continue };
        if let (Some(state), Some(answered)) = (&state, answered(line))
            && let Some(turn) = state.open().map(|open| open.turn())
        {
            let view = state.view();
            let scene = Scene {
                key: thread.key,
                workspace: view.workspace.as_deref(),
                policy: view.policy.as_ref(),
                run: view.run_id,
                settings: &turn.settings,
            };
            for requested in &answered.tool_calls {
                rejudged.calls += 1;
                let now = tools.judge(&requested.call, scene, &TenantRules::default());
                if now == Judgement::Unknown && requested.judgement != Judgement::Unknown {
                    rejudged.unknown += 1;
                } else if word(&now) != word(&requested.judgement) {
                    let ToolCall { name, arguments, .. } = &requested.call;
                    rejudged.different.push(Otherwise {
                        thread: thread.key.to_string(),
                        line: *number,
                        tool: name.clone(),
                        arguments: arguments.clone(),
                        was: said(&requested.judgement),
                        is: said(&now),
                    });
                }
            }
        }
        for Logged(record) in events {
            let folded = match &mut state {
                Some(known) => known.apply(record),
                None => ThreadState::begin(record).map(|begun| state = Some(begun)),
            };
            if folded.is_err() {
                // It is no thread's log: of what follows nobody knows in which turn it was.
                return;
            }
        }
    }
}

/// The answer of a model that a line brings.
fn answered(line: &Line) -> Option<&Answered> {
    let Told::Command { command, .. } = &line.told else { return None };
    let Command::Report(report) = &**command else { return None };
    report.end.as_ref()?.as_ref().ok()
}

/// What is decided, without why.
const fn word(judgement: &Judgement) -> &'static str {
    match judgement {
        Judgement::Unknown => "there is no such tool",
        Judgement::Invalid(_) => "its arguments do not fit",
        Judgement::Forbidden { .. } => "denied",
        Judgement::Question { .. } => "a person is asked a question",
        Judgement::Run(planned) => match planned.gate {
            Gate::Open => "allowed",
            Gate::Ask => "a person is asked",
            Gate::FullAccess => "a person is asked for full access",
            Gate::Person => "a person is asked, whatever the turn approves",
        },
    }
}

fn said(judgement: &Judgement) -> String {
    let why = match judgement {
        Judgement::Forbidden { reason, rule } => Some(format!("by `{rule}`: {reason}")),
        Judgement::Run(planned) => match (&planned.asked_by, &planned.permitted_by) {
            (Some(rule), _) | (None, Some(rule)) => Some(format!("by `{rule}`")),
            (None, None) => None,
        },
        _ => None,
    };
    let word = word(judgement);
    why.map_or_else(|| word.to_owned(), |why| format!("{word} {why}"))
}
