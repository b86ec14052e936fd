//! How a board looks: a pure function of the board, the room that there is, and the time.
//!
//! ```text
//!   Ship the parser                                                     running
//!   run_…  interactive  revision 12  event 34
//!   next: task `a` can be claimed
//!
//!   PLAN 1 of 3 done                    each part is there while it has something to show and there is room for it;
//!   TASKS 4 of 9 done, 1 cancelled      what room there is they share, and what does not fit is counted
//!   NOTES
//!   EVENTS
//! ```

use raddle_domain::{
    run::{Entry, EntryKind, RunStatus, RunStep, StepStatus, Task},
    time::UnixMs,
};
use unicode_width::UnicodeWidthChar;

use super::{
    super::{brief, model as model_of, notes, watch, workspace},
    model::{Board, Column},
};

/// The least that a column is wide, and what is between two.
const COLUMN: usize = 22;
const GAP: usize = 2;
/// Entries of a column that are drawn, however much room there is.
const MOST: usize = 200;
/// Characters of a task's id: one that was made up is longer, and its end tells it from others.
const ID: usize = 18;

/// How a part of a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ink {
    Plain,
    Bold,
    Dim,
    Red,
    Green,
    Yellow,
    Cyan,
}

/// A line of a drawing. Its texts hold no control characters.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Line(Vec<(Ink, String)>);

impl Line {
    pub fn new(ink: Ink, text: impl Into<String>) -> Self {
        Self(vec![(ink, text.into())])
    }

    pub fn and(mut self, ink: Ink, text: impl Into<String>) -> Self {
        self.0.push((ink, text.into()));
        self
    }

    fn width(&self) -> usize {
        self.0.iter().map(|(_, text)| width_of(text)).sum()
    }

    /// What of it fits, with a sign where that is not all.
    pub fn cut(self, width: usize) -> Self {
        if self.width() <= width {
            return self;
        }
        let mut left = width.saturating_sub(1);
        let mut cut = Self::default();
        for (ink, text) in self.0 {
            let whole = width_of(&text) <= left;
            let fits: String = text
                .chars()
                .take_while(|char| match left.checked_sub(char.width().unwrap_or(0)) {
                    Some(rest) => {
                        left = rest;
                        true
                    }
                    None => false,
                })
                .collect();
            if whole {
                cut.0.push((ink, fits));
                continue;
            }
            let sign = if width > 0 { "…" } else { "" };
            return cut.and(ink, fits + sign);
        }
        cut
    }

    /// As wide as that, no more and no less.
    fn padded(self, width: usize) -> Self {
        let line = self.cut(width);
        let missing = width - line.width();
        if missing > 0 { line.and(Ink::Plain, " ".repeat(missing)) } else { line }
    }

    fn join(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }

    /// Without looks.
    pub fn text(&self) -> String {
        let text: String = self.0.iter().map(|(_, text)| text.as_str()).collect();
        text.trim_end().to_owned()
    }

    /// As a terminal takes it.
    pub fn painted(&self) -> String {
        let painted = self.0.iter().map(|(ink, text)| match ink {
            Ink::Plain => text.clone(),
            Ink::Bold => format!("\u{1b}[1m{text}\u{1b}[0m"),
            Ink::Dim => format!("\u{1b}[2m{text}\u{1b}[0m"),
            Ink::Red => format!("\u{1b}[31m{text}\u{1b}[0m"),
            Ink::Green => format!("\u{1b}[32m{text}\u{1b}[0m"),
            Ink::Yellow => format!("\u{1b}[33m{text}\u{1b}[0m"),
            Ink::Cyan => format!("\u{1b}[36m{text}\u{1b}[0m"),
        });
        painted.collect()
    }
}

fn width_of(text: &str) -> usize {
    text.chars().map(|char| char.width().unwrap_or(0)).sum()
}

/// A part of a drawing: how many lines it would take, and what it makes of those that it gets.
struct Part<'a> {
    /// Of two that do not both fit, the one with the lower stays.
    rank: u8,
    title: Line,
    wants: usize,
    draws: Box<dyn Fn(usize) -> Vec<Line> + 'a>,
}

/// Draws a board: at most `height` lines, none wider than `width`.
pub fn draw(board: &Board, width: usize, height: usize, now: UnixMs) -> Vec<Line> {
    let mut lines = head(board, width);
    let mut parts: Vec<Part<'_>> =
        [plan(board), tasks(board, width, now), marks(board, width), news(board)].into_iter().flatten().collect();
    // A blank line, a title, and something under it.
    while lines.len() + 3 * parts.len() > height {
        let Some(last) = (0..parts.len()).max_by_key(|at| parts[*at].rank) else { break };
        parts.remove(last);
    }
    let room = height.saturating_sub(lines.len() + 2 * parts.len());
    let wants: Vec<_> = parts.iter().map(|part| part.wants).collect();
    for (part, rows) in parts.into_iter().zip(share(&wants, room)) {
        lines.push(Line::default());
        lines.push(part.title);
        lines.extend((part.draws)(rows));
    }
    lines.truncate(height);
    lines.into_iter().map(|line| line.cut(width)).collect()
}

/// Divides `room` among those who want a part of it: equal parts, and what one does not want is for the others.
fn share(wants: &[usize], room: usize) -> Vec<usize> {
    let mut given = vec![0; wants.len()];
    let mut left = room;
    loop {
        let open: Vec<_> = (0..wants.len()).filter(|at| given[*at] < wants[*at]).collect();
        if open.is_empty() || left == 0 {
            return given;
        }
        let each = (left / open.len()).max(1);
        for at in open {
            let more = each.min(wants[at] - given[at]).min(left);
            given[at] += more;
            left -= more;
        }
    }
}

fn head(board: &Board, width: usize) -> Vec<Line> {
    let run = board.run();
    let status = Line::new(ink_of(run.status), run.status.as_str());
    let objective = Line::new(Ink::Bold, brief(&run.objective));
    let room = width.saturating_sub(status.width() + GAP);
    let first = objective.padded(room).and(Ink::Plain, " ".repeat(GAP)).join(status);
    let about = [Some(run.id.to_string()), Some(brief(&run.run_type)), model_of(run), workspace(run)];
    let mut about: Vec<_> = about.into_iter().flatten().collect();
    about.push(format!("revision {}", run.revision));
    about.push(format!("event {}", run.last_event_seq));
    let mut lines = vec![first, Line::new(Ink::Dim, about.join("  "))];
    if let Some(why) = &run.why_next_step {
        lines.push(Line::new(Ink::Plain, "next: ").and(Ink::Cyan, brief(why)));
    }
    if let Some(error) = &run.last_error {
        lines.push(Line::new(Ink::Plain, "error: ").and(Ink::Red, brief(error)));
    }
    lines
}

const fn ink_of(status: RunStatus) -> Ink {
    match status {
        RunStatus::Queued | RunStatus::Planning => Ink::Cyan,
        RunStatus::Running | RunStatus::Completed => Ink::Green,
        RunStatus::AwaitingApproval | RunStatus::Paused | RunStatus::Blocked => Ink::Yellow,
        RunStatus::Failed => Ink::Red,
        RunStatus::Cancelled => Ink::Dim,
    }
}

fn title(name: &str, more: &str) -> Line {
    let title = Line::new(Ink::Bold, name);
    if more.is_empty() { title } else { title.and(Ink::Dim, format!(" {more}")) }
}

// ---- the plan ------------------------------------------------------------------------------------

fn plan(board: &Board) -> Option<Part<'_>> {
    let steps = &board.run().steps;
    let done = steps.iter().filter(|step| step.status == StepStatus::Done).count();
    let draws = move |rows: usize| {
        // What is behind goes first where not all of it fits.
        let begun = steps.iter().position(|step| step.status != StepStatus::Done).unwrap_or(steps.len());
        let from = begun.min(steps.len().saturating_sub(rows));
        let ahead: Vec<_> = steps[from..].iter().take(MOST).map(|step| vec![step_line(step)]).collect();
        stack(ahead, steps.len() - from, rows)
    };
    (!steps.is_empty()).then(|| Part {
        rank: 2,
        title: title("PLAN", &format!("{done} of {} done", steps.len())),
        wants: steps.len().min(MOST),
        draws: Box::new(draws),
    })
}

fn step_line(step: &RunStep) -> Line {
    let (mark, ink) = match step.status {
        StepStatus::Pending => ("·", Ink::Plain),
        StepStatus::Runnable => ("○", Ink::Plain),
        StepStatus::InProgress => ("▶", Ink::Cyan),
        StepStatus::Blocked => ("‖", Ink::Yellow),
        StepStatus::Done => ("✓", Ink::Dim),
        StepStatus::Failed => ("✗", Ink::Red),
    };
    Line::new(ink, format!("{mark} {}", brief(&step.title))).and(Ink::Dim, format!("  {}", brief(&step.step_id)))
}

// ---- columns -------------------------------------------------------------------------------------

/// Entries under a title.
struct Stack {
    title: Line,
    /// Those that may be drawn; an entry is never torn.
    entries: Vec<Vec<Line>>,
    /// All of them.
    count: usize,
}

impl Stack {
    fn rows(&self) -> usize {
        1 + self.entries.iter().map(Vec::len).sum::<usize>() + usize::from(self.count > self.entries.len())
    }
}

/// The first entries as far as they fit, and how many there are more.
fn stack(entries: Vec<Vec<Line>>, count: usize, rows: usize) -> Vec<Line> {
    let all = entries.len() == count && entries.iter().map(Vec::len).sum::<usize>() <= rows;
    let room = if all { rows } else { rows.saturating_sub(1) };
    let mut lines = Vec::new();
    let mut shown = 0;
    for entry in entries {
        if lines.len() + entry.len() > room {
            break;
        }
        lines.extend(entry);
        shown += 1;
    }
    if shown < count && rows > 0 {
        lines.push(Line::new(Ink::Dim, format!("… {} more", count - shown)));
    }
    lines
}

/// Columns side by side; where they do not all fit, in rows, and then only those that hold something.
fn in_rows(columns: Vec<Stack>, width: usize) -> Vec<Vec<Stack>> {
    let fit = ((width + GAP) / (COLUMN + GAP)).max(1);
    let columns: Vec<_> = match columns.len() <= fit {
        true => columns,
        false => columns.into_iter().filter(|column| column.count > 0).collect(),
    };
    let mut rows: Vec<Vec<Stack>> = Vec::new();
    for column in columns {
        match rows.last_mut() {
            Some(row) if row.len() < fit => row.push(column),
            _ => rows.push(vec![column]),
        }
    }
    rows
}

fn wanted(row: &[Stack]) -> usize {
    row.iter().map(Stack::rows).max().unwrap_or(0)
}

fn side_by_side(rows: &[Vec<Stack>], width: usize, room: usize) -> Vec<Line> {
    let wants: Vec<_> = rows.iter().map(|row| wanted(row)).collect();
    let mut lines = Vec::new();
    for (row, room) in rows.iter().zip(share(&wants, room)) {
        let each = width.saturating_sub(GAP * (row.len() - 1)) / row.len();
        let drawn = row.iter().map(|column| {
            let mut lines = vec![column.title.clone()];
            lines.extend(stack(column.entries.clone(), column.count, room.saturating_sub(1)));
            lines
        });
        let drawn: Vec<_> = drawn.collect();
        for at in 0..room {
            let mut line = Line::default();
            for (number, column) in drawn.iter().enumerate() {
                let gap = if number > 0 { GAP } else { 0 };
                let cell = column.get(at).cloned().unwrap_or_default().padded(each);
                line = line.and(Ink::Plain, " ".repeat(gap)).join(cell);
            }
            lines.push(line);
        }
    }
    lines
}

// ---- tasks ---------------------------------------------------------------------------------------

fn tasks<'a>(board: &'a Board, width: usize, now: UnixMs) -> Option<Part<'a>> {
    let column = |name: &str, ink: Ink, column: Column| {
        let tasks = board.tasks(column);
        let title = Line::new(if tasks.is_empty() { Ink::Dim } else { ink }, format!("{name} {}", tasks.len()));
        let entries = tasks.iter().take(MOST).map(|task| task_lines(board, task, column, now)).collect();
        Stack { title, entries, count: tasks.len() }
    };
    let rows = in_rows(
        vec![
            column("WAITING", Ink::Bold, Column::Waiting),
            column("CLAIMABLE", Ink::Bold, Column::Claimable),
            column("IN PROGRESS", Ink::Cyan, Column::InProgress),
            column("BLOCKED", Ink::Yellow, Column::Blocked),
            column("FAILED", Ink::Red, Column::Failed),
        ],
        width,
    );
    let (done, cancelled) = (board.tasks(Column::Done).len(), board.tasks(Column::Cancelled).len());
    let cancelled = if cancelled > 0 { format!(", {cancelled} cancelled") } else { String::new() };
    (board.count() > 0).then(|| Part {
        rank: 0,
        title: title("TASKS", &format!("{done} of {} done{cancelled}", board.count())),
        wants: rows.iter().map(|row| wanted(row)).sum(),
        draws: Box::new(move |room| side_by_side(&rows, width, room)),
    })
}

/// A task: what it is, and under that what there is to say about it.
fn task_lines(board: &Board, task: &Task, column: Column, now: UnixMs) -> Vec<Line> {
    let priority = if task.priority == 0 { String::new() } else { format!(" {:+}", task.priority) };
    let first =
        Line::new(Ink::Plain, short(&brief(&task.id))).and(Ink::Dim, format!(" {}{priority}", brief(&task.task_type)));
    let error = task.last_error.as_deref().map(brief);
    let second = match column {
        Column::Waiting => {
            let waits: Vec<_> = board.waits_for(task).map(|id| short(&brief(id))).collect();
            Some(Line::new(Ink::Dim, format!("  after {}", waits.join(", "))))
        }
        Column::InProgress => task.lease.as_ref().map(|lease| {
            let owner = Line::new(Ink::Cyan, format!("  {} ", brief(&lease.owner)));
            match lease.expires_at.since(now) {
                0 => owner.and(Ink::Red, "lease over"),
                left => owner.and(Ink::Plain, span(left)),
            }
        }),
        Column::Failed => {
            let error = error.map(|error| format!(": {error}")).unwrap_or_default();
            Some(match task.next_retry_at.map(|at| at.since(now)) {
                None => Line::new(Ink::Red, format!("  for good{error}")),
                Some(0) => Line::new(Ink::Yellow, format!("  again now{error}")),
                Some(left) => Line::new(Ink::Yellow, format!("  again in {}{error}", span(left))),
            })
        }
        // Of one that comes back: why it had to.
        Column::Claimable | Column::Blocked => error.map(|error| Line::new(Ink::Yellow, format!("  {error}"))),
        Column::Done | Column::Cancelled => None,
    };
    std::iter::once(first).chain(second).collect()
}

/// A name with its middle left out where it is long.
fn short(id: &str) -> String {
    let count = id.chars().count();
    if count <= ID {
        return id.to_owned();
    }
    let half = ID / 2;
    let start: String = id.chars().take(half - 1).collect();
    let end: String = id.chars().skip(count - half).collect();
    format!("{start}…{end}")
}

/// Milliseconds as a person counts them; what is left of a second is a second.
fn span(ms: u64) -> String {
    let seconds = ms.div_ceil(1_000);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3_600, seconds / 60 % 60),
    }
}

// ---- notes and events ----------------------------------------------------------------------------

fn marks(board: &Board, width: usize) -> Option<Part<'_>> {
    let column = |name: &str, kind: EntryKind| {
        // A question that was answered is no longer open.
        let shown = |entry: &&Entry| kind != EntryKind::OpenQuestion || !entry.resolved;
        let entries: Vec<_> = board.notes(kind).filter(shown).collect();
        let ink = |entry: &Entry| if entry.resolved { Ink::Dim } else { Ink::Plain };
        let count = entries.len();
        let title = Line::new(if count == 0 { Ink::Dim } else { Ink::Bold }, format!("{name} {count}"));
        let entries = entries.iter().take(MOST).map(|entry| vec![Line::new(ink(entry), notes::content(entry))]);
        Stack { title, entries: entries.collect(), count }
    };
    let columns = vec![
        column("FACTS", EntryKind::Fact),
        column("DECISIONS", EntryKind::Decision),
        column("OPEN QUESTIONS", EntryKind::OpenQuestion),
        column("ARTIFACTS", EntryKind::Artifact),
    ];
    let any = columns.iter().any(|column| column.count > 0) || !board.summary().is_empty();
    let rows = in_rows(columns, width);
    any.then(|| Part {
        rank: 3,
        title: title("NOTES", &brief(board.summary())),
        wants: rows.iter().map(|row| wanted(row)).sum::<usize>().max(1),
        draws: Box::new(move |room| side_by_side(&rows, width, room)),
    })
}

fn news(board: &Board) -> Option<Part<'_>> {
    let count = board.news().count();
    let draws = move |rows: usize| {
        let newest = board.news().rev().take(rows).map(|event| {
            // The day is of little interest to who watches.
            let at = event.ts.to_string();
            let at = at.get(11..19).unwrap_or_default().to_owned();
            Line::new(Ink::Dim, format!("{:>6} {at} ", event.seq))
                .and(Ink::Plain, format!("{:<26} ", brief(&event.event)))
                .and(Ink::Dim, format!("{:<14} ", brief(&event.by)))
                .and(Ink::Plain, watch::about(event))
        });
        let mut newest: Vec<_> = newest.collect();
        newest.reverse();
        newest
    };
    (count > 0).then(|| Part { rank: 1, title: title("EVENTS", ""), wants: count, draws: Box::new(draws) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use raddle_domain::run::{Run, TaskStatus};
    use serde_json::json;

    use super::{
        super::model::tests::{board, entry, event, held, run, task},
        *,
    };

    fn drawn(board: &Board, width: usize, height: usize, now: u64) -> String {
        let lines: Vec<_> = draw(board, width, height, UnixMs(now)).iter().map(Line::text).collect();
        lines.join("\n")
    }

    fn step(id: &str, status: StepStatus) -> RunStep {
        RunStep { step_id: id.to_owned(), title: format!("Do {id}"), status }
    }

    /// A run in which there is something of everything.
    fn busy() -> Board {
        let run = Run {
            why_next_step: Some("task `parse` is in progress".to_owned()),
            last_error: Some("the first build broke".to_owned()),
            steps: vec![
                step("one", StepStatus::Done),
                step("two", StepStatus::InProgress),
                step("three", StepStatus::Pending),
            ],
            ..run("Ship the parser\nby Friday")
        };
        let tasks = vec![
            task("read", TaskStatus::Done),
            held("parse", "ada", 34_500),
            Task { depends_on_task_ids: vec!["parse".into()], ..task("print", TaskStatus::Pending) },
            Task { priority: 5, ..task("docs", TaskStatus::Runnable) },
            Task { last_error: Some("no key".into()), ..task("deploy", TaskStatus::Blocked) },
            Task {
                next_retry_at: Some(UnixMs(14_000)),
                last_error: Some("flaky".into()),
                ..task("test", TaskStatus::Failed)
            },
            Task { last_error: Some("no".into()), ..task("sign", TaskStatus::Failed) },
            task("old", TaskStatus::Cancelled),
        ];
        let settled = Entry { resolved: true, ..entry(7, EntryKind::OpenQuestion, "which year?") };
        let entries = vec![
            entry(2, EntryKind::Fact, "LL(1) is enough"),
            entry(3, EntryKind::Fact, "tabs are eight"),
            entry(4, EntryKind::Decision, "no generator"),
            entry(5, EntryKind::OpenQuestion, "which license?"),
            Entry { path: Some("a.md".into()), ..entry(6, EntryKind::Artifact, "") },
            settled,
        ];
        let mut board = board(run, tasks, entries);
        let claimed = json!({ "task": Task { task_rev: 1, ..held("parse", "ada", 34_500) } });
        board.apply(event(8, "context.task.claimed", claimed));
        board.apply(event(9, "deployed", json!({})));
        board
    }

    #[test]
    fn a_board_shows_where_everything_stands() {
        let expected = "\
Ship the parser by Friday                                                                                        running
run_01905d3c-7e57-7abc-8def-000000000001  interactive  revision 9  event 9
next: task `parse` is in progress
error: the first build broke

PLAN 1 of 3 done
✓ Do one  one
▶ Do two  two
· Do three  three

TASKS 1 of 8 done, 1 cancelled
WAITING 1               CLAIMABLE 1             IN PROGRESS 1           BLOCKED 1               FAILED 2
print research          docs research +5        parse research          deploy research         test research
  after parse                                     ada 25s                 no key                  again in 4s: flaky
                                                                                                sign research
                                                                                                  for good: no

NOTES
FACTS 2                       DECISIONS 1                   OPEN QUESTIONS 1              ARTIFACTS 1
tabs are eight                no generator                  which license?                a.md
LL(1) is enough

EVENTS
     8 00:00:08 context.task.claimed       client         parse
     9 00:00:09 deployed                   client";
        assert_eq!(drawn(&busy(), 120, 200, 10_000), expected);
    }

    #[test]
    fn a_narrow_board_puts_its_columns_in_rows_and_leaves_out_empty_ones() {
        let tasks = vec![held("a", "me", 5_000), task("b", TaskStatus::Pending)];
        let board = board(run("x"), tasks, vec![]);
        let expected = "\
x                              running
run_01905d3c-7e57-7abc-8def-000000000…

TASKS 0 of 2 done
CLAIMABLE 1
b research
IN PROGRESS 1
a research
  me lease over";
        assert_eq!(drawn(&board, 38, 50, 5_000), expected);
    }

    #[test]
    fn time_left_is_counted_from_the_end_of_the_lease() {
        let board = board(run("x"), vec![held("a", "me", 100_000)], vec![]);
        let at = |now: u64| drawn(&board, 120, 50, now).lines().last().unwrap().trim().to_owned();
        assert_eq!(at(0), "me 1m40s");
        assert_eq!(at(40_001), "me 1m00s");
        assert_eq!(at(99_001), "me 1s");
        assert_eq!(at(99_999), "me 1s");
        assert_eq!(at(100_000), "me lease over");
        assert_eq!(span(7_384_000), "2h03m");
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        let tasks = (0..30).map(|n| task(&format!("t{n}"), TaskStatus::Pending)).collect();
        let steps = [vec![step("behind", StepStatus::Done); 9], vec![step("ahead", StepStatus::Pending); 9]].concat();
        let board = board(Run { steps, ..run("x") }, tasks, vec![]);
        let lines = drawn(&board, 120, 16, 0);
        let expected = "\
PLAN 9 of 18 done
· Do ahead  ahead
· Do ahead  ahead
· Do ahead  ahead
· Do ahead  ahead
… 5 more

TASKS 0 of 30 done
WAITING 0               CLAIMABLE 30            IN PROGRESS 0           BLOCKED 0               FAILED 0
                        t0 research
                        t1 research
                        t2 research
                        … 27 more";
        assert_eq!(lines.lines().skip(3).collect::<Vec<_>>().join("\n"), expected);
    }

    #[test]
    fn without_room_for_all_parts_the_tasks_stay_longest() {
        let board = busy();
        let titles = |height| {
            let shown = drawn(&board, 120, height, 0);
            ["PLAN", "TASKS", "NOTES", "EVENTS"].into_iter().filter(|name| shown.contains(name)).collect::<Vec<_>>()
        };
        assert_eq!(titles(16), ["PLAN", "TASKS", "NOTES", "EVENTS"]);
        assert_eq!(titles(15), ["PLAN", "TASKS", "EVENTS"]);
        assert_eq!(titles(12), ["TASKS", "EVENTS"]);
        assert_eq!(titles(9), ["TASKS"]);
        assert_eq!(titles(6), [] as [&str; 0]);
    }

    #[test]
    fn nothing_that_somebody_wrote_drives_the_terminal() {
        let evil = "a\u{1b}[2J\u{7}\r\nb\u{9b}31m";
        let run = Run { why_next_step: Some(evil.into()), last_error: Some(evil.into()), ..run(evil) };
        let run = Run {
            run_type: evil.into(),
            model_id: Some(evil.into()),
            steps: vec![step(evil, StepStatus::Done)],
            ..run
        };
        let evil_task =
            Task { task_type: evil.into(), last_error: Some(evil.into()), ..task(evil, TaskStatus::Blocked) };
        let mut board = board(run, vec![evil_task, held("h", evil, 1)], vec![entry(2, EntryKind::Fact, evil)]);
        board.apply(event(3, evil, json!({})));
        for line in draw(&board, 120, 100, UnixMs(0)) {
            assert!(!line.text().chars().any(char::is_control), "{line:?}");
        }
    }

    #[test]
    fn a_long_name_keeps_its_end() {
        assert_eq!(short("task-01a1fefc-697c-76f9-ab74-5287d7a8b757"), "task-01a…7d7a8b757");
        assert_eq!(short("eighteen-letters-x"), "eighteen-letters-x");
    }

    #[test]
    fn a_wide_character_takes_its_two_columns() {
        let line = |text: &str, width| Line::new(Ink::Plain, text).cut(width).text();
        assert_eq!(line("日本語", 6), "日本語");
        assert_eq!(line("日本語", 5), "日本…");
        assert_eq!(line("日本語", 4), "日…");
        assert_eq!(line("日本語", 0), "");
        assert_eq!(Line::new(Ink::Plain, "日").and(Ink::Red, "本").padded(6).width(), 6);
    }

    #[test]
    fn ink_is_put_on_and_taken_off() {
        let line = Line::new(Ink::Red, "a").and(Ink::Plain, "b");
        assert_eq!((line.painted().as_str(), line.text().as_str()), ("\u{1b}[31ma\u{1b}[0mb", "ab"));
    }

    proptest! {
        #[test]
        fn a_drawing_keeps_to_its_room(width in 0usize..200, height in 0usize..60, now in 0u64..60_000) {
            let lines = draw(&busy(), width, height, UnixMs(now));
            prop_assert!(lines.len() <= height);
            for line in lines {
                prop_assert!(line.width() <= width, "{:?}", line);
            }
        }

        #[test]
        fn room_is_shared_whole_and_nobody_gets_more_than_he_wants(
            wants in proptest::collection::vec(0usize..40, 0..6),
            room in 0usize..100,
        ) {
            let given = share(&wants, room);
            prop_assert_eq!(given.iter().sum::<usize>(), room.min(wants.iter().sum()));
            for (given, wants) in given.iter().zip(&wants) {
                prop_assert!(given <= wants);
            }
        }
    }
}
