//! Who works for a thread: the engine of the model call that is due, and the tools that are.
//!
//! Streamed text waits a moment to be joined by more. What tools said is kept until it is saved: how a tool ended is
//! told once, and if the disk is full then, nobody else knows.

use std::time::Duration;

#[cfg(feature = "planted")]
use raddle_domain::planted;
use raddle_domain::{
    command::{Command, ToolReport},
    id::{ThreadKey, TurnId},
    thread::Due,
};
use tokio::time::Instant;
use tracing::{Id, Span, field::Empty};

use super::ThreadMachine;
use crate::{
    budgets::Tab,
    engine::{Engine, EngineCall},
    host::{Crew, Place, Said},
    outbox::DELTA_BYTES,
    system::Shared,
    tool::ToolTask,
};

/// How long streamed text may wait to be joined by more, unless there is enough of it. It only matters while no
/// append is under way.
const DELTA_LINGER: Duration = Duration::from_millis(30);

#[derive(Default)]
pub(crate) struct ThreadCrew {
    engine: Option<Engine>,
    /// When streamed text was last saved.
    spoke: Option<Instant>,
    tools: Vec<ToolTask>,
    /// What tools said in the step that is being saved.
    told: Vec<ToolReport>,
    /// What tools said in a step for which there was no room: it goes before whatever they say next.
    held: Vec<ToolReport>,
    /// The turn that is open, as it is traced: from when this process knows of it to its end.
    turn: Option<(TurnId, Span)>,
    /// Who asked for the turn that may begin with the step that is being saved.
    by: Option<Span>,
}

impl Crew<ThreadMachine> for ThreadCrew {
    fn pay(&mut self, machine: &ThreadMachine, leaving: bool, place: &Place<'_, ThreadMachine>) {
        self.trace(machine, place.key);
        let owed = machine.state.owed();
        let runs = self.engine.as_ref().map(|engine| (engine.turn, engine.call));
        if runs != owed.call {
            self.engine = None;
            self.spoke = None;
            if let (Some((turn, call)), false) = (owed.call, leaving) {
                self.engine = Some(start_engine(machine, turn, call, self.span(), place));
            }
        }
        if let Some(engine) = &mut self.engine {
            engine.tab.bound(machine.state.levels());
            engine.tell(&owed.verdicts);
        }
        self.tools.retain(|tool| owed.tools.contains(&tool.due));
        if !leaving {
            for due in &owed.tools {
                if !self.tools.iter().any(|tool| tool.due == *due) {
                    let task = start_tool(machine, *due, self.span(), place);
                    self.tools.extend(task);
                    #[cfg(feature = "planted")]
                    if planted::is(planted::Fault::DoubleEffect) {
                        self.tools.extend(start_tool(machine, *due, self.span(), place));
                    }
                }
            }
        }
    }

    fn works(&self) -> bool {
        self.engine.is_some() || !self.tools.is_empty()
    }

    fn said(&mut self, hurry: bool) -> Said<Command> {
        let mut commands: Vec<_> = self.held.drain(..).map(Command::ToolReport).collect();
        let mut lingers: Option<Duration> = None;
        let mut is_due = |(bytes, ended): (usize, bool), spoke: Option<Instant>| {
            if bytes == 0 && !ended {
                return false;
            }
            let lingered = spoke.map_or(DELTA_LINGER, |spoke| spoke.elapsed());
            let due = hurry || ended || bytes >= DELTA_BYTES || lingered >= DELTA_LINGER;
            if !due {
                let left = DELTA_LINGER - lingered;
                lingers = Some(lingers.map_or(left, |known| known.min(left)));
            }
            due
        };
        if let Some(engine) = &self.engine
            && (is_due(engine.outbox.waiting(), self.spoke) || (hurry && engine.tab.has_news()))
        {
            self.spoke = Some(Instant::now());
            commands.extend(engine.take(hurry).into_iter().map(Command::Report));
        }
        for tool in &mut self.tools {
            if is_due(tool.outbox.waiting(), tool.spoke) {
                commands.extend(tool.take().map(Command::ToolReport));
            }
        }
        Said { commands, lingers }
    }

    fn has_more(&self) -> bool {
        let tools = self.tools.iter().map(|tool| tool.outbox.waiting());
        let mut waiting = tools.chain(self.engine.iter().map(|engine| engine.outbox.waiting()));
        waiting.any(|(bytes, ended)| bytes > 0 || ended)
    }

    fn told(&mut self, command: &Command, by: &Span) {
        match command {
            Command::ToolReport(report) => self.told.push(report.clone()),
            Command::Start(_) | Command::Edit(_) | Command::Compact(_) => self.by = Some(by.clone()),
            _ => {}
        }
    }

    fn saved(&mut self) {
        self.told.clear();
    }

    /// An outcome that is known must not become one that nobody knows; a model call can be made again.
    fn stays(&self) -> bool {
        self.engine.is_none() && !(self.tools.is_empty() && self.told.is_empty())
    }

    fn hold(&mut self) {
        self.held.append(&mut self.told);
    }
}

impl ThreadCrew {
    /// Opens the span of a turn that is new here, and closes that of one that has ended.
    fn trace(&mut self, machine: &ThreadMachine, key: ThreadKey) {
        let by = self.by.take();
        let open = machine.state.open().map(|open| open.turn());
        if self.turn.as_ref().map(|(turn, _)| *turn) == open.map(|turn| turn.id) {
            return;
        }
        self.turn = open.map(|turn| {
            let (engine, model) = (turn.settings.engine.as_str(), turn.settings.model.as_str());
            let span = tracing::debug_span!(
                // Still held when this is made: the answer may be out, and its span closed but for us.
                parent: by.as_ref().and_then(Span::id),
                "turn", tenant = %key.tenant, thread = %key.thread, turn = %turn.id, engine, model
            );
            (turn.id, span)
        });
    }

    fn span(&self) -> Option<Id> {
        self.turn.as_ref().and_then(|(_, span)| span.id())
    }
}

fn start_engine(
    machine: &ThreadMachine,
    turn: TurnId,
    call: u32,
    parent: Option<Id>,
    place: &Place<'_, ThreadMachine>,
) -> Engine {
    let Shared { store, models, tools, tasks, config, registry, gates, tenants, .. } = &**place.shared;
    let doors = gates.of_a_call(&tenants.account(place.key.tenant));
    let state = &machine.state;
    let open = state.open();
    let settings = open.map(|open| open.turn().settings.clone()).expect("a call is owed by an open turn");
    let span = tracing::debug_span!(
        parent: parent,
        "model_call", thread = %place.key.thread, call, engine = settings.engine, model = settings.model,
        finish = Empty, input_tokens = Empty, output_tokens = Empty, error = Empty
    );
    let price = settings.price.clone();
    let call = EngineCall {
        tab: Tab::open(place.shared, place.key, price, state.levels()),
        tasks: tasks.clone(),
        span,
        calls: registry.counters.engines.of(&settings.engine),
        key: place.key,
        turn,
        call,
        settings,
        system_prompt: state.view().system_prompt.clone(),
        workspace: state.view().workspace.clone(),
        run: state.view().run_id,
        policy: state.view().policy.clone(),
        items: open.map(|open| open.items().cloned().collect()).unwrap_or_default(),
        tool_bytes: config.limits.item_bytes,
        before: machine.kept.before_open(),
        context_seq: state.context_seq(),
        compaction: open.and_then(|open| open.compacting().cloned()),
    };
    Engine::start(call, store.clone(), models.clone(), tools.clone(), doors, place.wake())
}

fn start_tool(
    machine: &ThreadMachine,
    due: Due,
    parent: Option<Id>,
    place: &Place<'_, ThreadMachine>,
) -> Option<ToolTask> {
    let (invocation, class) = machine.state.invocation(place.key, due)?;
    let span = tracing::debug_span!(
        parent: parent,
        "tool", thread = %place.key.thread, tool = invocation.tool, call_id = machine.state.call_id(due),
        attempt = due.attempt, error = Empty
    );
    Some(ToolTask::start(due, class, invocation, place.shared, span, place.wake()))
}
