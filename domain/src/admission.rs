//! How many commands may be under way, from how long they take: bursts are taken in, a queue that stays is not.
//!
//! What is measured is the time from admission to the durable reply, and of an interval the fastest one: when even that
//! one waited, everybody does, and the queue stands; a burst has somebody who did not wait. Standing means longer than
//! a multiple of what a command takes when nobody else is there, which is learned at such times. Then the limit goes
//! down to a part of what was under way, the smaller the longer the wait; it goes up by little while commands are
//! refused that could have been taken, and doubles while nobody is.
//!
//! What was accepted is not over with its reply: a turn that waits to go on, for somebody to read what it goes on from,
//! counts as a command under way, and a queue of these stands when even the one that waited shortest waited too long.
//!
//! Time is an argument, as the span since any one origin. Absent on purpose: waiting. A command has a place or it has
//! none; whoever has none is told so before anything was done for him.

use std::time::Duration;

/// How long is looked before the limit is moved: longer than a machine that is shared usually stands still, and so short
/// that what is let in until a flood is noticed is soon done.
pub const INTERVAL: Duration = Duration::from_millis(50);
/// Replies without which an interval goes on: fewer say nothing.
const ENOUGH: u32 = 8;
/// How often a lone command's time even the fastest may take.
const STRETCH: u32 = 3;
/// What the limit is multiplied with at least, and at most, when the queue stands.
const BACK_OFF: (f64, f64) = (0.3, 0.9);

/// Who may come in.
#[derive(Debug, Clone)]
pub struct Admission {
    floor: u32,
    ceiling: u32,
    bearable: Duration,
    limit: u32,
    under_way: u32,
    /// Turns that wait to go on.
    waiting: u32,
    /// What a command takes when it is nearly alone.
    alone: Option<Duration>,
    interval: Interval,
}

#[derive(Debug, Clone, Copy, Default)]
struct Interval {
    began: Duration,
    fastest: Option<Duration>,
    /// The shortest wait of a turn.
    waited: Option<Duration>,
    /// Of both together.
    replies: u32,
    /// The most that were under way.
    peak: u32,
    /// Somebody was refused, or the last place taken.
    full: bool,
}

impl Admission {
    /// At most `ceiling` under way, and never fewer than `floor`, if the ceiling allows. What takes no longer than
    /// `bearable` waits in no queue, however fast a lone command is; where everything is bearable, the limit stays.
    pub fn new(floor: u32, ceiling: u32, bearable: Duration) -> Self {
        let floor = floor.min(ceiling);
        Self {
            floor,
            ceiling,
            bearable,
            limit: ceiling,
            under_way: 0,
            waiting: 0,
            alone: None,
            interval: Interval::default(),
        }
    }

    pub const fn limit(&self) -> u32 {
        self.limit
    }

    pub const fn under_way(&self) -> u32 {
        self.under_way
    }

    pub const fn waiting(&self) -> u32 {
        self.waiting
    }

    /// Whether a command would be let in.
    pub const fn has_room(&self) -> bool {
        self.at_work() < self.limit
    }

    const fn at_work(&self) -> u32 {
        self.under_way.saturating_add(self.waiting)
    }

    /// Lets a command in, or does not.
    #[must_use]
    pub fn enter(&mut self, now: Duration) -> bool {
        self.look(now);
        let room = self.has_room();
        self.take(room)
    }

    /// The same for what ends work: it makes the queue shorter, so only the ceiling keeps it out.
    #[must_use]
    pub fn enter_to_end_work(&mut self, now: Duration) -> bool {
        self.look(now);
        let room = self.under_way < self.ceiling;
        self.take(room)
    }

    fn take(&mut self, room: bool) -> bool {
        self.under_way += u32::from(room);
        self.crowd();
        room
    }

    /// Takes note of how many there are.
    fn crowd(&mut self) {
        self.interval.peak = self.interval.peak.max(self.at_work());
        if !self.has_room() {
            self.interval.full = true;
        }
    }

    /// A turn waits to go on. It was accepted before, so it always may.
    pub fn wait(&mut self, now: Duration) {
        self.look(now);
        self.waiting += 1;
        self.crowd();
    }

    /// It waits no more: it goes on after so long, or it ended meanwhile.
    pub fn go_on(&mut self, now: Duration, waited: Option<Duration>) {
        self.waiting = self.waiting.saturating_sub(1);
        if let Some(waited) = waited {
            self.interval.replies += 1;
            self.interval.waited = Some(self.interval.waited.map_or(waited, |shortest| shortest.min(waited)));
        }
        self.look(now);
    }

    /// Somebody was turned away who only looked.
    pub fn turned_away(&mut self, now: Duration) {
        self.look(now);
        self.interval.full = true;
    }

    /// A command is over. `took` is how long its durable reply took, if it had one: a refusal waits for no disk.
    pub fn leave(&mut self, now: Duration, took: Option<Duration>) {
        self.under_way = self.under_way.saturating_sub(1);
        if let Some(took) = took {
            self.interval.replies += 1;
            self.interval.fastest = Some(self.interval.fastest.map_or(took, |fastest| fastest.min(took)));
        }
        self.look(now);
    }

    /// Ends the interval if it is over.
    fn look(&mut self, now: Duration) {
        let Interval { began, fastest, waited, replies, peak, full } = self.interval;
        if replies < ENOUGH || now.saturating_sub(began) < INTERVAL {
            return;
        }
        if let Some(fastest) = fastest {
            // With a few beside it a command is as good as alone. More than that only a faster one tells anything.
            self.alone = Some(match self.alone {
                Some(alone) if peak > self.floor => alone.min(fastest),
                _ => fastest,
            });
        }
        let part = |time: Option<Duration>, target: Duration| {
            time.map_or(f64::INFINITY, |time| target.as_secs_f64() / time.as_secs_f64())
        };
        // Alone a turn waits for nothing.
        let share = part(fastest, self.target()).min(part(waited, self.bearable));
        self.limit = if share < 1.0 {
            (f64::from(peak.min(self.limit)) * share.clamp(BACK_OFF.0, BACK_OFF.1)) as u32
        } else if full {
            self.limit.saturating_add((self.limit / 16).max(1))
        } else {
            self.limit.saturating_mul(2)
        }
        .clamp(self.floor, self.ceiling);
        self.interval = Interval { began: now, peak: self.at_work(), ..Interval::default() };
    }

    /// Beyond it the queue stands.
    fn target(&self) -> Duration {
        self.alone.map_or(self.bearable, |alone| self.bearable.max(alone * STRETCH))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const BEARABLE: Duration = Duration::from_millis(5);

    /// So many commands come in at once at the begin of the interval; each is over when it says.
    fn interval(rule: &mut Admission, at: u32, commands: u32, took: impl Fn(u32) -> Duration) -> u32 {
        let began = at * INTERVAL;
        let taken = (0..commands).filter(|_| rule.enter(began)).count() as u32;
        for nth in 0..taken {
            rule.leave(began + MS * nth.min(49), Some(took(nth)));
        }
        // Somebody has to come for the interval to be over.
        rule.turned_away((at + 1) * INTERVAL);
        rule.limit()
    }

    /// One that has learned that a lone command takes a millisecond.
    fn learned(ceiling: u32) -> Admission {
        let mut rule = Admission::new(16, ceiling, BEARABLE);
        interval(&mut rule, 0, 10, |_| MS);
        rule
    }

    #[test]
    fn a_burst_is_taken_in_whole() {
        let mut rule = learned(1000);
        // The last of them waits for half a second, the first for nobody.
        assert_eq!(interval(&mut rule, 1, 1000, |nth| MS + MS * nth / 2), 1000);
    }

    #[test]
    fn a_queue_that_stands_is_cut_to_a_part_of_what_was_under_way() {
        let mut rule = learned(4096);
        // Twice as long as is bearable: half of them.
        assert_eq!(interval(&mut rule, 1, 400, |_| 10 * MS), 200);
        assert_eq!(interval(&mut rule, 2, 400, |_| 10 * MS), 100);
        // Never to less than a part at once, however long they wait.
        assert_eq!(interval(&mut rule, 3, 400, |_| 60_000 * MS), 30);
        // Never below the floor.
        assert_eq!(interval(&mut rule, 4, 400, |_| 60_000 * MS), 16);
    }

    #[test]
    fn the_limit_goes_up_by_little_while_somebody_is_refused_and_doubles_when_nobody_is() {
        let mut rule = learned(100);
        assert_eq!(interval(&mut rule, 1, 64, |_| 10 * MS), 32);
        assert_eq!(interval(&mut rule, 2, 64, |_| 2 * MS), 34);
        let quiet = |rule: &mut Admission, at: u32| {
            for _ in 0..ENOUGH {
                assert!(rule.enter(at * INTERVAL));
                rule.leave(at * INTERVAL, Some(MS));
            }
            assert!(rule.enter((at + 1) * INTERVAL));
            rule.leave((at + 1) * INTERVAL, None);
            rule.limit()
        };
        assert_eq!([quiet(&mut rule, 3), quiet(&mut rule, 4), quiet(&mut rule, 5)], [36, 72, 100]);
    }

    #[test]
    fn what_bears_is_a_multiple_of_what_a_lone_command_takes_on_this_disk() {
        let mut rule = Admission::new(16, 1000, BEARABLE);
        interval(&mut rule, 0, 10, |_| 20 * MS);
        // On a disk of 20 ms a wait of 60 is no queue.
        assert_eq!(interval(&mut rule, 1, 100, |_| 60 * MS), 1000);
        assert_eq!(interval(&mut rule, 2, 100, |_| 120 * MS), 50);
    }

    #[test]
    fn a_queue_is_not_taken_for_the_usual_however_long_it_stands() {
        let mut rule = learned(1000);
        let mut limits = (1..600).map(|at| {
            let taken = rule.limit().min(400);
            interval(&mut rule, at, 400, |_| MS * taken / 40)
        });
        // At 40 in a millisecond, 200 are as many as are bearable.
        assert!(limits.by_ref().skip(10).all(|limit| (180..=220).contains(&limit)));
    }

    #[test]
    fn a_disk_that_became_slower_is_learned_once_few_are_under_way() {
        let mut rule = learned(1000);
        for at in 1..20 {
            interval(&mut rule, at, 400, |_| 30 * MS);
        }
        // At the floor nobody is in anybody's way: what is measured is the disk.
        let reached = rule.limit();
        assert!(reached > 16, "{reached}");
        assert_eq!(rule.target(), 90 * MS);
    }

    #[test]
    fn what_ends_work_is_let_in_up_to_the_ceiling() {
        let mut rule = learned(40);
        interval(&mut rule, 1, 40, |_| 60_000 * MS);
        let now = 2 * INTERVAL;
        assert_eq!((0..40).filter(|_| rule.enter(now)).count(), 16);
        assert!(!rule.has_room());
        assert_eq!((0..40).filter(|_| rule.enter_to_end_work(now)).count(), 24);
    }

    #[test]
    fn a_refusal_says_nothing_of_how_long_a_command_takes() {
        let mut rule = learned(1000);
        for _ in 0..100 {
            assert!(rule.enter(INTERVAL));
        }
        for _ in 0..50 {
            rule.leave(INTERVAL, None);
        }
        for _ in 0..50 {
            rule.leave(2 * INTERVAL + MS, Some(10 * MS));
        }
        assert!(rule.limit() <= 50, "{}", rule.limit());
    }

    /// So many turns wait at the begin of the interval, and go on after so long.
    fn waits(rule: &mut Admission, at: u32, turns: u32, waited: Duration) {
        (0..turns).for_each(|_| rule.wait(at * INTERVAL));
        (0..turns).for_each(|_| rule.go_on(at * INTERVAL, Some(waited)));
        rule.turned_away((at + 1) * INTERVAL);
    }

    #[test]
    fn turns_that_wait_to_go_on_take_the_places_of_commands_and_are_never_refused() {
        let mut rule = learned(20);
        (0..18).for_each(|_| rule.wait(MS));
        assert_eq!((0..20).filter(|_| rule.enter(MS)).count(), 2);
        (0..18).for_each(|_| rule.wait(MS));
        // They keep out nothing that makes the queue shorter.
        assert!(!rule.has_room() && rule.enter_to_end_work(MS));
        (0..36).for_each(|_| rule.go_on(MS, None));
        assert_eq!((rule.waiting(), rule.under_way()), (0, 3));
        assert!(rule.has_room());
    }

    #[test]
    fn a_queue_of_turns_that_stands_lets_fewer_commands_in_however_quick_these_are() {
        let mut rule = learned(1000);
        waits(&mut rule, 1, 400, 10 * MS);
        assert_eq!(rule.limit(), 200);
        // One that waited for nothing says that it does not stand.
        rule.wait(2 * INTERVAL);
        rule.go_on(2 * INTERVAL, Some(Duration::ZERO));
        waits(&mut rule, 2, 100, 10 * MS);
        assert_eq!(rule.limit(), 212);
    }

    #[test]
    fn few_replies_move_nothing() {
        let mut rule = Admission::new(16, 1000, BEARABLE);
        assert_eq!(interval(&mut rule, 0, ENOUGH - 1, |_| 1_000 * MS), 1000);
        assert_eq!(rule.target(), BEARABLE);
    }

    #[test]
    fn where_everything_is_bearable_the_limit_stays() {
        let mut rule = Admission::new(16, 1000, Duration::MAX);
        assert_eq!(interval(&mut rule, 0, 400, |_| MS), 1000);
        assert_eq!(interval(&mut rule, 1, 400, |_| 60_000 * MS), 1000);
    }

    #[test]
    fn a_ceiling_below_the_floor_holds() {
        let mut rule = Admission::new(16, 1, BEARABLE);
        assert!(rule.enter(MS) && !rule.enter(MS));
        rule.leave(MS, None);
        assert!(rule.enter(MS));
    }
}
