//! A plan as people read it: a story of one line for each part.

use std::fmt;

use raddle_domain::tenant::Quotas;

use super::{
    plan::{Chore, Death, Fault, Kept, Leaves, Listener, Move, Plan, Verb},
    scheduler::Manner,
};

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kept = match self.kept {
            Kept::Memory => "a store in memory",
            Kept::Database => "the database on memory",
        };
        let order = if self.manner == Manner::CALM { "in order" } else { "in an order of its own" };
        let (loaded, tenants, pack) = (self.loaded, self.tenants, self.pack_ms);
        writeln!(
            f,
            "  {kept}; tasks run {order}; at most {loaded} loaded at rest; tenants: {tenants}; packed after {pack} ms"
        )?;
        if self.quotas != Quotas::default() {
            writeln!(f, "  every tenant may have {}", amounts(self.quotas))?;
        }
        for listener in &self.listeners {
            writeln!(f, "  {listener}")?;
        }
        for step in &self.moves {
            writeln!(f, "  {step}")?;
        }
        for fault in &self.faults {
            writeln!(f, "  {fault}")?;
        }
        Ok(())
    }
}

fn amounts(quotas: Quotas) -> String {
    let Quotas { threads, active_turns, queued_prompts, subscribers, .. } = quotas;
    let all = [
        ("threads", threads),
        ("turns at work", active_turns),
        ("waiting prompts", queued_prompts),
        ("streams", subscribers),
    ];
    let bounds = all.iter().filter_map(|(what, most)| Some(format!("{} {what}", (*most)?)));
    bounds.collect::<Vec<_>>().join(", ")
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, events, tenant, from_start, since_process, skips, most, answers } = self;
        let whose = tenant.map_or_else(|| "everybody".to_owned(), |of| format!("tenant {of}"));
        let from = if *from_start { "the first event" } else { "then" };
        let skips = if *skips { ", skips what is refused" } else { "" };
        write!(
            f,
            "hook {name} carries {:?} of {whose} since process {since_process}, from {from} on, {most} at once at \
             most{skips}; its sink: {answers:?}",
            events.patterns()
        )
    }
}

impl fmt::Display for Move {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at {:>6} ms  move {:<3} {}", self.at_ms, self.number, self.verb)?;
        let pause = self.pause_ms;
        match (self.insists, self.again) {
            (true, true) => write!(f, " (insists after {pause} ms, and asks again)"),
            (true, false) => write!(f, " (insists after {pause} ms)"),
            (false, _) => Ok(()),
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let back = |requeue: &bool| if *requeue { ", queued if too late" } else { "" };
        match self {
            Self::Create { to, auto_approve, interrupts, budget } => {
                let approves = if *auto_approve { " that approves by itself" } else { "" };
                let ends = if *interrupts { " that is interrupted by a restart" } else { "" };
                write!(f, "create thread {to}{approves}{ends}")?;
                budget.map_or(Ok(()), |tokens| write!(f, " that may spend {tokens} tokens"))
            }
            Self::Start { thread, delivery, script, requeue } => {
                write!(f, "start on thread {thread}, {delivery:?}: `{script}`{}", back(requeue))
            }
            Self::Steer { thread, script, requeue } => write!(f, "steer thread {thread}: `{script}`{}", back(requeue)),
            Self::EditLast { thread, script } => write!(f, "edit the last prompt of thread {thread}: `{script}`"),
            Self::EditPrompt { thread, nth, script, position } => {
                write!(f, "change waiting prompt {nth} of thread {thread}: {script:?} to place {position:?}")
            }
            Self::Withdraw { thread, nth } => write!(f, "withdraw waiting prompt {nth} of thread {thread}"),
            Self::Interrupt { thread, pause } => {
                write!(f, "interrupt thread {thread}{}", if *pause { " and pause its queue" } else { "" })
            }
            Self::Compact { thread, delivery } => write!(f, "compact thread {thread}, {delivery:?}"),
            Self::Decide { thread, nth, decision } => {
                write!(f, "decide approval {nth} of thread {thread}: {decision:?}")
            }
            Self::Answer { thread, nth } => write!(f, "answer question {nth} of thread {thread}"),
            Self::Resolve { thread, nth, resolution } => {
                write!(f, "resolve uncertain effect {nth} of thread {thread}: {resolution:?}")
            }
            Self::Patch { thread, change } => write!(f, "change thread {thread}: {change:?}"),
            Self::SaveCheckpoint { thread } => write!(f, "save a checkpoint of thread {thread}"),
            Self::DeleteCheckpoint { thread } => write!(f, "delete the checkpoint of thread {thread}"),
            Self::Fork { thread, to, at } => write!(f, "fork thread {thread} as thread {to}, {at:?}"),
            Self::Delete { thread } => write!(f, "delete thread {thread}"),
            Self::Read { thread } => write!(f, "read thread {thread}"),
            Self::Watch { thread, from_start, slow_ms, for_ms } => {
                let from = if *from_start { "its beginning" } else { "now" };
                write!(f, "watch thread {thread} from {from}, {slow_ms} ms for each piece")?;
                for_ms.map_or(Ok(()), |time| write!(f, ", for {time} ms"))
            }
            Self::WatchTenant { tenant, slow_ms } => {
                write!(f, "watch tenant {tenant} from its beginning, {slow_ms} ms for each piece")
            }
            Self::CreateRun { to } => write!(f, "create run {to}"),
            Self::AddTasks { run, count, attempts } => {
                write!(f, "add {count} tasks to run {run}, of {attempts} attempts each")
            }
            Self::Work { run, path, rebinds, lease_ms, beats, pause_ms, parting } => {
                let binds = if *rebinds { ", and binds it there" } else { "" };
                write!(
                    f,
                    "work on run {run} at path {path}{binds}: leases of {lease_ms} ms, {beats} heartbeats, \
                     {pause_ms} ms for each word, {parting:?}"
                )
            }
            Self::Enqueue { to, chore, attempts, base_ms } => {
                write!(f, "job {to} is to {chore}, with {attempts} retries after {base_ms} ms")
            }
            Self::Repeat { to, chore, overlap, catch_up } => {
                write!(
                    f,
                    "schedule {to}: every minute somebody is to {chore}; overlap {overlap:?}, missed {catch_up:?}"
                )
            }
            Self::Tell { job, word } => write!(f, "{word:?} job {job}"),
            Self::Erase { tenant } => write!(f, "erase tenant {tenant}"),
            Self::Grant { tenant, quotas } => write!(f, "let tenant {tenant} have {}", amounts(*quotas)),
            Self::Allow { tenant, tokens } => write!(f, "let tenant {tenant} spend {tokens} tokens"),
        }
    }
}

impl fmt::Display for Chore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Turn { thread, script } => write!(f, "start on thread {thread}: `{script}`"),
            Self::Command { thread, words } => write!(f, "run a command for thread {thread}: `{words}`"),
            Self::Webhook { words } => write!(f, "call a webhook: `{words}`"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fails { commit, leaves, reopens } => {
                let is = match leaves {
                    Leaves::Nothing => "is not stored",
                    Leaves::All => "is stored all the same",
                    Leaves::Hidden => "is stored all the same, which shows once the store is open again",
                };
                write!(f, "commit {commit} fails and {is}; opening the store fails {reopens} times")
            }
            Self::Full { commit, ms } => write!(f, "the disk is full from commit {commit} on, for {ms} ms"),
            Self::Stalls { commit, ms } => write!(f, "the disk stalls for {ms} ms after commit {commit}"),
            Self::Reads { at_ms, count } => write!(f, "{count} reads fail from {at_ms} ms on"),
            Self::Dies { commit, how, down_ms } => {
                let how = match how {
                    Death::Before => "which is not stored",
                    Death::After => "which is stored",
                    Death::Late => "which comes to the disk when the next process is there",
                };
                write!(f, "the process dies at commit {commit}, {how}; the next one starts after {down_ms} ms")
            }
            Self::Killed { at_ms, down_ms } => {
                write!(f, "the process is killed at {at_ms} ms; the next one starts after {down_ms} ms")
            }
            Self::Stops { at_ms, deadline_ms, down_ms } => write!(
                f,
                "the server is stopped at {at_ms} ms, with {deadline_ms} ms for what is open, and started {down_ms} ms later"
            ),
            Self::Clock { at_ms, by_ms } => write!(f, "at {at_ms} ms the clock is set by {by_ms} ms"),
        }
    }
}
