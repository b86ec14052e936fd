//! The plan of a seed: everything is drawn from one stream of numbers, so whoever draws more, or in another order, makes
//! another plan of every seed.

use raddle_domain::{
    hook::{EventFilter, REFUSALS},
    record::{Decision, Delivery, Resolution},
    schedule::{CatchUp, Overlap},
    tenant::Quotas,
};

use super::{
    numbers::Numbers,
    plan::{Answer, At, Change, Chore, Death, Fault, Kept, Leaves, Listener, Move, Parting, Plan, Verb, Word},
    scheduler::Manner,
};

impl Plan {
    /// The plan of a seed.
    pub fn new(seed: u64) -> Self {
        let numbers = &mut Numbers::new(seed, 0);
        let manner = match numbers.below(8) {
            0 => Manner::CALM,
            1 => Manner { later: 300, nap: 30, longest_ms: 400, read_ms: 30 },
            2 => Manner { later: 500, nap: 0, longest_ms: 1, read_ms: 2 },
            _ => Manner { later: 150, nap: 8, longest_ms: 60, read_ms: 5 },
        };
        let mut kept = if numbers.chance(125) { Kept::Database } else { Kept::Memory };
        let tenants = if numbers.chance(300) { 2 } else { 1 };
        let loaded = *numbers.pick(&[1, 1, 2, 2, 8]);
        let threads = numbers.within(1, 3) as usize;
        let pack_ms = *numbers.pick(&[3_600_000, 3_600_000, 60_000, 15_000]);
        let span = numbers.within(2_000, 45_000);
        let mut moves = Drawn { numbers, threads, tenants }.moves(span);
        let faults = if numbers.chance(150) { Vec::new() } else { faults(numbers, span) };
        if numbers.chance(250) {
            let known = moves.len() as u32;
            moves.extend(Drawn { numbers, threads, tenants }.chores(span, known));
            moves.sort_by_key(|step| step.at_ms);
        }
        let listeners = if numbers.chance(200) { listeners(numbers, tenants) } else { Vec::new() };
        let quotas = if numbers.chance(150) { quotas(numbers) } else { Quotas::default() };
        if quotas != Quotas::default() {
            let known = moves.len() as u32;
            moves.extend(Drawn { numbers, threads, tenants }.grants(quotas, span, known));
            moves.sort_by_key(|step| step.at_ms);
        }
        // A store in memory erases nobody.
        let erases = numbers.chance(if kept == Kept::Database { 200 } else { 40 });
        if erases {
            kept = Kept::Database;
            let erase = vec![(numbers.below(2 * span), Verb::Erase { tenant: tenants - 1 })];
            let known = moves.len() as u32;
            moves.extend(Drawn { numbers, threads, tenants }.moves_of(erase, known));
            moves.sort_by_key(|step| step.at_ms);
        }
        Self {
            seed,
            kept,
            manner,
            loaded,
            tenants,
            pack_ms,
            listeners,
            quotas,
            moves,
            faults,
            #[cfg(feature = "planted")]
            plant: None,
        }
    }
}

/// What moves are drawn from.
struct Drawn<'a> {
    numbers: &'a mut Numbers,
    threads: usize,
    tenants: usize,
}

impl Drawn<'_> {
    fn moves(&mut self, span: u64) -> Vec<Move> {
        let count = self.numbers.within(6, 26);
        let mut verbs: Vec<(u64, Verb)> =
            (0..self.threads).map(|to| (self.numbers.below(200), self.create(to))).collect();
        let mut to = self.threads;
        for tenant in 0..self.tenants {
            if self.numbers.chance(400) {
                verbs.push((self.numbers.below(span), Verb::WatchTenant { tenant, slow_ms: self.slow() }));
            }
        }
        for tenant in 0..self.tenants {
            if self.numbers.chance(200) {
                let (at, tokens) = (self.numbers.below(span), self.numbers.within(60, 1_500));
                verbs.push((at, Verb::Allow { tenant, tokens }));
                if self.numbers.chance(500) {
                    verbs.push((at + self.numbers.below(span), Verb::Allow { tenant, tokens: 2 * tokens }));
                }
            }
        }
        if self.numbers.chance(300) {
            verbs.extend(self.board(span));
        }
        for _ in 0..count {
            // Now and then several things are asked at the same moment.
            let at = match (self.numbers.chance(250), verbs.last()) {
                (true, Some((at, _))) => *at,
                _ => self.numbers.below(span),
            };
            let verb = self.verb(&mut to);
            verbs.extend(self.follow(&verb).map(|then| (at + self.numbers.within(20, 5_000), then)));
            verbs.push((at, verb));
        }
        verbs.sort_by_key(|(at, _)| *at);
        self.moves_of(verbs, 0)
    }

    /// A run, with tasks and those who work on them.
    fn board(&mut self, span: u64) -> Vec<(u64, Verb)> {
        let run = 0;
        let mut verbs = vec![(self.numbers.below(200), Verb::CreateRun { to: run })];
        for _ in 0..self.numbers.within(1, 2) {
            let (count, attempts) = (self.numbers.within(1, 3) as u32, self.numbers.within(1, 3) as u32);
            verbs.push((self.numbers.within(200, 3_000), Verb::AddTasks { run, count, attempts }));
        }
        for _ in 0..self.numbers.within(2, 8) {
            let parting =
                [Parting::Completes, Parting::Completes, Parting::Fails, Parting::Releases, Parting::Vanishes];
            let work = Verb::Work {
                run,
                path: self.numbers.below(2) as usize,
                rebinds: self.numbers.chance(300),
                lease_ms: *self.numbers.pick(&[5_000, 5_000, 8_000, 30_000]),
                beats: self.numbers.below(4) as u32,
                pause_ms: *self.numbers.pick(&[10, 900, 4_000, 4_990, 5_000, 9_000]),
                parting: *self.numbers.pick(&parting),
            };
            verbs.push((self.numbers.within(400, span), work));
        }
        verbs
    }

    /// Jobs, schedules, and what is said to them.
    fn chores(&mut self, span: u64, known: u32) -> Vec<Move> {
        let mut verbs = Vec::new();
        for to in 0..self.numbers.within(1, 4) as usize {
            let at = self.numbers.below(span);
            let (attempts, base_ms) = (self.numbers.below(3) as u32, *self.numbers.pick(&[1, 500, 5_000]));
            verbs.push((at, Verb::Enqueue { to, chore: self.chore(), attempts, base_ms }));
            for _ in 0..self.numbers.below(3) {
                let word = *self.numbers.pick(&[Word::Pause, Word::Resume, Word::Cancel, Word::Retry, Word::Retry]);
                verbs.push((at + self.numbers.within(1, 9_000), Verb::Tell { job: to, word }));
            }
        }
        if self.numbers.chance(400) {
            let overlap = *self.numbers.pick(&[Overlap::Skip, Overlap::Queue, Overlap::CancelRunning]);
            let catch_up = *self.numbers.pick(&[CatchUp::None, CatchUp::One, CatchUp::All]);
            verbs.push((self.numbers.below(span), Verb::Repeat { to: 0, chore: self.chore(), overlap, catch_up }));
        }
        self.moves_of(verbs, known)
    }

    /// Tenants that are let have more than usual.
    fn grants(&mut self, usual: Quotas, span: u64, known: u32) -> Vec<Move> {
        let mut verbs = Vec::new();
        for tenant in 0..self.tenants {
            if self.numbers.chance(500) {
                let more = self.numbers.within(1, 3);
                let raised = |most: Option<u64>| most.map(|most| most + more);
                let quotas = Quotas {
                    threads: raised(usual.threads),
                    active_turns: raised(usual.active_turns),
                    queued_prompts: raised(usual.queued_prompts),
                    subscribers: raised(usual.subscribers),
                    ..usual
                };
                verbs.push((self.numbers.below(span), Verb::Grant { tenant, quotas }));
            }
        }
        self.moves_of(verbs, known)
    }

    /// What is asked, as somebody asks for it who may insist.
    fn moves_of(&mut self, verbs: Vec<(u64, Verb)>, known: u32) -> Vec<Move> {
        let moves = verbs.into_iter().zip(known..).map(|((at_ms, verb), number)| {
            let insists = self.numbers.chance(700);
            // About as long as a store takes to be opened again: some come just before, and some just behind.
            let pause_ms = self.numbers.within(25, 60);
            Move { number, at_ms, verb, insists, pause_ms, again: insists && self.numbers.chance(200) }
        });
        moves.collect()
    }

    fn chore(&mut self) -> Chore {
        let thread = self.numbers.below(self.threads as u64) as usize;
        let words = |numbers: &mut Numbers| {
            let words = ["slow", "late", "says", "fails", "fails1", "never", "unknown", "unknown1"];
            let said: Vec<_> = words.into_iter().filter(|_| numbers.chance(180)).collect();
            format!("act {}", said.join(" "))
        };
        match self.numbers.below(4) {
            0 | 1 => Chore::Turn { thread, script: self.script() },
            2 => Chore::Command { thread, words: words(self.numbers) },
            _ => Chore::Webhook { words: words(self.numbers) },
        }
    }

    /// What a person says to what comes of a prompt.
    fn follow(&mut self, verb: &Verb) -> Option<Verb> {
        let (Verb::Start { thread, script, .. } | Verb::EditLast { thread, script }) = verb else { return None };
        let (thread, nth) = (*thread, self.numbers.below(2) as usize);
        let asks = ["gated_", "person_"].iter().any(|gate| script.contains(gate));
        if !self.numbers.chance(650) {
            None
        } else if asks {
            Some(Verb::Decide { thread, nth, decision: self.decision() })
        } else if script.contains("call ask") {
            Some(Verb::Answer { thread, nth })
        } else if script.contains("once") || script.contains("unknown") {
            Some(Verb::Resolve { thread, nth, resolution: self.resolution() })
        } else {
            None
        }
    }

    fn decision(&mut self) -> Decision {
        match self.numbers.below(10) {
            0..=5 => Decision::Approved,
            6 => Decision::ApprovedForSession,
            7 => Decision::ApprovedAlways,
            8 => Decision::Denied,
            _ => Decision::Abort,
        }
    }

    fn resolution(&mut self) -> Resolution {
        *self.numbers.pick(&[Resolution::Retry, Resolution::Retry, Resolution::Settle, Resolution::Abort])
    }

    fn create(&mut self, to: usize) -> Verb {
        let budget = self.numbers.chance(150).then(|| self.numbers.within(40, 700));
        Verb::Create { to, auto_approve: self.numbers.chance(200), interrupts: self.numbers.chance(250), budget }
    }

    fn start(&mut self, thread: usize) -> Verb {
        let delivery = match self.numbers.below(20) {
            0..=11 => Delivery::Queue,
            12..=14 => Delivery::Reject,
            15 | 16 => Delivery::Steer,
            17 | 18 => Delivery::Interrupt,
            _ => Delivery::Rollback,
        };
        Verb::Start { thread, delivery, script: self.script(), requeue: self.numbers.chance(500) }
    }

    fn slow(&mut self) -> u64 {
        *self.numbers.pick(&[0, 0, 1, 40, 700])
    }

    fn verb(&mut self, forks: &mut usize) -> Verb {
        let thread = self.numbers.below(*forks as u64) as usize;
        let nth = self.numbers.below(3) as usize;
        match self.numbers.below(100) {
            0..=31 => self.start(thread),
            32..=36 => Verb::Steer { thread, script: self.script(), requeue: self.numbers.chance(500) },
            37..=39 => Verb::EditLast { thread, script: self.script() },
            40..=42 => {
                let script = self.numbers.chance(600).then(|| self.script());
                let position = (script.is_none() || self.numbers.chance(400)).then(|| self.numbers.below(3) as u32);
                Verb::EditPrompt { thread, nth, script, position }
            }
            43..=45 => Verb::Withdraw { thread, nth },
            46..=51 => Verb::Interrupt { thread, pause: self.numbers.chance(250) },
            52..=54 => {
                let delivery = if self.numbers.chance(600) { Delivery::Queue } else { Delivery::Reject };
                Verb::Compact { thread, delivery }
            }
            55..=58 => Verb::Decide { thread, nth, decision: self.decision() },
            59 | 60 => Verb::Answer { thread, nth },
            61 | 62 => Verb::Resolve { thread, nth, resolution: self.resolution() },
            63..=70 => Verb::Watch { thread, from_start: self.numbers.chance(700), slow_ms: self.slow(), for_ms: None },
            71..=76 => {
                let change = match self.numbers.below(8) {
                    0 | 1 => Change::Title,
                    2 => Change::AutoApprove(self.numbers.chance(500)),
                    3 => Change::Archived(true),
                    4 => Change::Archived(false),
                    5 => Change::QueuePaused(true),
                    _ => Change::QueuePaused(false),
                };
                Verb::Patch { thread, change }
            }
            77 | 78 => Verb::SaveCheckpoint { thread },
            79 => Verb::DeleteCheckpoint { thread },
            80..=84 => {
                let to = *forks;
                *forks += 1;
                Verb::Fork {
                    thread,
                    to,
                    at: *self.numbers.pick(&[At::Settled, At::Settled, At::Checkpoint, At::LastTurn]),
                }
            }
            85 => Verb::Delete { thread },
            86..=88 => Verb::Read { thread },
            89..=91 => {
                let for_ms = Some(self.numbers.within(50, 8_000));
                Verb::Watch { thread, from_start: self.numbers.chance(700), slow_ms: self.slow(), for_ms }
            }
            _ => self.start(thread),
        }
    }

    /// What a model is to do; see [`super::model`].
    fn script(&mut self) -> String {
        let rounds = self.numbers.within(1, 2);
        let rounds: Vec<_> = (0..rounds).map(|_| self.round()).collect();
        rounds.join(" / ")
    }

    fn round(&mut self) -> String {
        let mut steps = Vec::new();
        if self.numbers.chance(150) {
            steps.push("think".to_owned());
        }
        if self.numbers.chance(700) {
            steps.push(format!("say {}", self.numbers.within(1, 4)));
        }
        if self.numbers.chance(300) {
            steps.push(format!("wait {}", *self.numbers.pick(&[5, 40, 300, 2_500, 20_000])));
        }
        match self.numbers.below(20) {
            0 => steps.push(format!("fail unavailable {}", self.numbers.within(1, 5))),
            1 => steps.push(format!("fail limited {}", self.numbers.within(1, 2))),
            2 => steps.push("fail rejected 9".to_owned()),
            3 | 4 => steps.push(format!("cut {}", self.numbers.within(1, 3))),
            5 if self.numbers.chance(300) => steps.push("hang".to_owned()),
            _ => {}
        }
        if self.numbers.chance(550) {
            for call in 0..self.numbers.within(1, 2) {
                steps.push(self.call(call));
            }
        }
        if steps.is_empty() {
            steps.push("say 1".to_owned());
        }
        steps.join("; ")
    }

    fn call(&mut self, call: u64) -> String {
        if self.numbers.chance(80) {
            return format!("call ask whether{call}");
        }
        let gate = *self.numbers.pick(&["", "", "", "gated_", "gated_", "person_"]);
        let class = *self.numbers.pick(&["read", "idempotent", "reconcilable", "once", "once"]);
        let mut words = vec![format!("call {gate}{class} act{call}")];
        let more = ["slow", "late", "says", "fails", "unknown", "unknown1", "undone1", "mute", "hang1"];
        for word in more {
            if self.numbers.chance(if matches!(word, "slow" | "late" | "says") { 250 } else { 70 }) {
                words.push(word.to_owned());
            }
        }
        words.join(" ")
    }
}

fn quotas(numbers: &mut Numbers) -> Quotas {
    let mut some = |first, last| numbers.chance(500).then(|| numbers.within(first, last));
    Quotas {
        threads: some(1, 4),
        active_turns: some(1, 2),
        queued_prompts: some(1, 2),
        subscribers: some(1, 2),
        ..Quotas::default()
    }
}

fn listeners(numbers: &mut Numbers, tenants: usize) -> Vec<Listener> {
    let names = ["audit", "crm"];
    let count = numbers.within(1, names.len() as u64) as usize;
    let listener = |name| {
        let patterns = *numbers.pick(&["*", "*", "* item.delta", "turn.* approval.*"]);
        let events = EventFilter::parse(patterns.split(' ').map(str::to_owned).collect());
        Listener {
            name,
            events: events.expect("they are the names of events"),
            tenant: numbers.chance(150).then(|| numbers.below(tenants as u64) as usize),
            from_start: numbers.chance(400),
            since_process: *numbers.pick(&[1, 1, 1, 2, 3]),
            skips: numbers.chance(400),
            most: *numbers.pick(&[1, 1, 3, 64, usize::MAX]),
            answers: answers(numbers),
        }
    };
    names.into_iter().take(count).map(listener).collect()
}

/// What a sink says: some of it again and again.
fn answers(numbers: &mut Numbers) -> Vec<Answer> {
    let mut answers = Vec::new();
    for _ in 0..numbers.below(8) {
        let most = u64::from(REFUSALS) + 1;
        let (answer, times) = match numbers.below(10) {
            // The last ones are later than any hook waits.
            0..=4 => (Answer::Takes { after_ms: *numbers.pick(&[0, 0, 5, 900, 20_000, 90_000]) }, numbers.within(1, 4)),
            5 | 6 => (Answer::Refuses, numbers.within(1, most)),
            7 | 8 => (Answer::Away { retry_ms: *numbers.pick(&[None, None, Some(3_000)]) }, numbers.within(1, 3)),
            _ => (Answer::Gone, u64::from(numbers.chance(400))),
        };
        answers.extend((0..times).map(|_| answer));
    }
    answers
}

fn faults(numbers: &mut Numbers, span: u64) -> Vec<Fault> {
    // Late commits are rarer than early ones.
    let commit = |numbers: &mut Numbers| {
        let most = *numbers.pick(&[10, 40, 120]);
        numbers.within(2, most) as u32
    };
    let down = |numbers: &mut Numbers| *numbers.pick(&[0, 20, 400, 3_000, 70_000]);
    (0..numbers.within(1, 4))
        .map(|_| match numbers.below(20) {
            0..=3 => {
                let reopens = numbers.below(4) as u32;
                let leaves = *numbers.pick(&[Leaves::Nothing, Leaves::All, Leaves::Hidden, Leaves::Hidden]);
                Fault::Fails { commit: commit(numbers), leaves, reopens }
            }
            4 | 5 => Fault::Full { commit: commit(numbers), ms: numbers.within(10, 6_000) },
            6 | 7 => Fault::Stalls { commit: commit(numbers), ms: *numbers.pick(&[5, 80, 900, 20_000]) },
            8 => Fault::Reads { at_ms: numbers.below(span), count: numbers.within(1, 4) as u32 },
            9..=14 => {
                let how = *numbers.pick(&[Death::Before, Death::After, Death::After, Death::Late]);
                Fault::Dies { commit: commit(numbers), how, down_ms: down(numbers) }
            }
            15 | 16 => Fault::Killed { at_ms: numbers.below(span), down_ms: down(numbers) },
            17 | 18 => {
                let deadline_ms = *numbers.pick(&[0, 100, 5_000]);
                Fault::Stops { at_ms: numbers.below(span), deadline_ms, down_ms: down(numbers) }
            }
            _ => Fault::Clock { at_ms: numbers.below(span), by_ms: *numbers.pick(&[-20_000, -50, 3_000, 400_000]) },
        })
        .collect()
}
