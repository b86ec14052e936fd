//! The shortest plan that breaks what another one broke: parts are left out, first many at once, as long as it still
//! breaks the same invariant (delta debugging; Zeller and Hildebrandt, IEEE TSE 2002).

use raddle_domain::tenant::Quotas;

use super::{Outcome, Plan, plan::Kept, run, scheduler::Manner, witness::Violation};

/// How a plan became shorter.
#[derive(Debug, Clone)]
pub struct Shrunk {
    pub plan: Plan,
    pub violation: Violation,
    /// What happened in it.
    pub lines: Vec<String>,
    /// Simulations that it took.
    pub runs: u32,
    /// How much there was, and how much is left.
    pub sizes: (usize, usize),
}

/// Makes a plan that breaks `violation` shorter, with so many simulations at most.
pub fn shrink(plan: &Plan, violation: &Violation, budget: u32) -> Shrunk {
    shrink_by(plan, violation, budget, &|plan, told| run(plan, told))
}

fn shrink_by(plan: &Plan, violation: &Violation, budget: u32, run: &dyn Fn(&Plan, bool) -> Outcome) -> Shrunk {
    let mut search = Search { best: plan.clone(), invariant: violation.invariant, left: budget, run };
    search.simpler(|plan| plan.manner = Manner::CALM);
    loop {
        let before = search.best.clone();
        search.thin(|plan| plan.faults.len(), |plan, part| drop(plan.faults.drain(part)));
        search.thin(|plan| plan.moves.len(), |plan, part| drop(plan.moves.drain(part)));
        search.thin(|plan| plan.listeners.len(), |plan, part| drop(plan.listeners.drain(part)));
        for at in 0..search.best.listeners.len() {
            search.thin(
                |plan| plan.listeners[at].answers.len(),
                |plan, part| drop(plan.listeners[at].answers.drain(part)),
            );
        }
        for at in 0..search.best.moves.len() {
            search.shorter(at, " / ");
            search.shorter(at, "; ");
            search.simpler(|plan| plan.moves[at].again = false);
            search.simpler(|plan| plan.moves[at].insists = false);
        }
        search.simpler(|plan| plan.kept = Kept::Memory);
        search.simpler(|plan| plan.quotas = Quotas::default());
        search.simpler(|plan| plan.tenants = 1);
        search.simpler(|plan| plan.pack_ms = 3_600_000);
        if search.best == before || search.left == 0 {
            break;
        }
    }
    let Search { best, left, .. } = search;
    let told = run(&best, true);
    Shrunk {
        violation: told.violation.unwrap_or_else(|| violation.clone()),
        lines: told.lines,
        runs: budget - left,
        sizes: (plan.size(), best.size()),
        plan: best,
    }
}

struct Search<'a> {
    best: Plan,
    invariant: &'static str,
    left: u32,
    run: &'a dyn Fn(&Plan, bool) -> Outcome,
}

impl Search<'_> {
    /// Whether a plan breaks the same; then it is the best one.
    fn still(&mut self, plan: Plan) -> bool {
        if self.left == 0 {
            return false;
        }
        self.left -= 1;
        let breaks = (self.run)(&plan, false).violation.is_some_and(|found| found.invariant == self.invariant);
        if breaks {
            self.best = plan;
        }
        breaks
    }

    /// Leaves out what can be left out of a list: halves of it, then quarters, and at last each alone.
    fn thin(&mut self, len: impl Fn(&Plan) -> usize, leave_out: impl Fn(&mut Plan, std::ops::Range<usize>)) {
        let mut portion = len(&self.best).div_ceil(2);
        while portion > 0 {
            // From the end, so that what a later part was about stays for it.
            let mut end = len(&self.best);
            while end > 0 {
                let part = end.saturating_sub(portion)..end;
                end = part.start;
                let mut plan = self.best.clone();
                leave_out(&mut plan, part);
                self.still(plan);
            }
            portion = if portion == 1 { 0 } else { portion.div_ceil(2) };
        }
    }

    /// Leaves out parts of what a move says.
    fn shorter(&mut self, at: usize, between: &str) {
        let mut part = 0;
        while let Some(script) = self.best.moves[at].verb.script().cloned() {
            let mut parts: Vec<&str> = script.split(between).collect();
            if part >= parts.len() || parts.len() == 1 {
                break;
            }
            parts.remove(part);
            let mut plan = self.best.clone();
            if let Some(said) = plan.moves[at].verb.script_mut() {
                *said = parts.join(between);
            }
            if !self.still(plan) {
                part += 1;
            }
        }
    }

    fn simpler(&mut self, change: impl FnOnce(&mut Plan)) {
        let mut plan = self.best.clone();
        change(&mut plan);
        if plan != self.best {
            self.still(plan);
        }
    }
}
