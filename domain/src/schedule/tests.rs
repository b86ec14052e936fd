use uuid::Uuid;

use super::*;
use crate::job::{WebhookWork, Work};

fn at(text: &str) -> UnixMs {
    serde_json::from_str(&format!("\"{text}\"")).unwrap()
}

fn template() -> Template {
    let hook = WebhookWork { url: "http://localhost/".into(), body: serde_json::Value::Null, secret: None };
    Template::new("n", Work::Webhook(hook))
}

fn new(cron: &str, timezone: &str) -> NewSchedule {
    NewSchedule {
        name: None,
        cron: Some(cron.into()),
        at: None,
        timezone: Some(timezone.into()),
        overlap: Overlap::default(),
        catch_up: CatchUp::default(),
        job: template(),
    }
}

fn id() -> ScheduleId {
    ScheduleId::new(Uuid::from_u128(0x0190_5d3c_7e57_7abc_8def_0123_4567_89ab))
}

fn schedule(cron: &str, timezone: &str, now: &str) -> Schedule {
    Schedule::create(id(), new(cron, timezone), at(now)).unwrap()
}

/// The first slots after `from`, in UTC to the minute.
fn next(cron: &str, timezone: &str, from: &str, count: usize) -> Vec<String> {
    let slots = slots(Some(cron), None, timezone).unwrap();
    let first = slots.next(at(from));
    let list = std::iter::successors(first, |slot| slots.next(*slot)).take(count);
    list.map(|slot| slot.to_string()[..16].to_owned()).collect()
}

#[test]
fn a_local_time_that_there_is_not_becomes_the_first_that_there_is() {
    // Berlin: 02:00 becomes 03:00 on 29 March 2026, at 01:00 UTC.
    let berlin = next("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", 3);
    assert_eq!(berlin, ["2026-03-29T01:00", "2026-03-30T00:30", "2026-03-31T00:30"]);
    // New York: 02:00 becomes 03:00 on 8 March 2026, at 07:00 UTC.
    let york = next("30 2 * * *", "America/New_York", "2026-03-07T12:00:00Z", 2);
    assert_eq!(york, ["2026-03-08T07:00", "2026-03-09T06:30"]);
    // Lord Howe goes forward by half an hour, at 02:00, on 4 October 2026.
    let howe = next("15 2 * * *", "Australia/Lord_Howe", "2026-10-03T00:00:00Z", 2);
    assert_eq!(howe, ["2026-10-03T15:30", "2026-10-04T15:15"]);
}

#[test]
fn a_local_time_that_there_is_twice_is_meant_once() {
    // Berlin: 03:00 becomes 02:00 on 25 October 2026, at 01:00 UTC.
    let berlin = next("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", 2);
    assert_eq!(berlin, ["2026-10-25T00:30", "2026-10-26T01:30"]);
    let york = next("30 1 * * *", "America/New_York", "2026-10-31T12:00:00Z", 2);
    assert_eq!(york, ["2026-11-01T05:30", "2026-11-02T06:30"]);
    // Where summer is in January.
    let sydney = next("30 2 * * *", "Australia/Sydney", "2026-04-04T00:00:00Z", 2);
    assert_eq!(sydney, ["2026-04-04T15:30", "2026-04-05T16:30"]);
}

#[test]
fn what_comes_through_the_hours_goes_by_elapsed_time() {
    let berlin = next("*/30 * * * *", "Europe/Berlin", "2026-10-25T00:00:00Z", 4);
    assert_eq!(berlin, ["2026-10-25T00:30", "2026-10-25T01:00", "2026-10-25T01:30", "2026-10-25T02:00"]);
    let forward = next("*/30 * * * *", "Europe/Berlin", "2026-03-29T00:15:00Z", 3);
    assert_eq!(forward, ["2026-03-29T00:30", "2026-03-29T01:00", "2026-03-29T01:30"]);
}

#[test]
fn the_calendar_is_kept() {
    let leap = next("0 0 29 2 *", "UTC", "2026-01-01T00:00:00Z", 2);
    assert_eq!(leap, ["2028-02-29T00:00", "2032-02-29T00:00"]);
    let last = next("0 0 L * *", "UTC", "2027-01-15T00:00:00Z", 3);
    assert_eq!(last, ["2027-01-31T00:00", "2027-02-28T00:00", "2027-03-31T00:00"]);
    let long = next("0 0 31 * *", "UTC", "2026-01-31T12:00:00Z", 2);
    assert_eq!(long, ["2026-03-31T00:00", "2026-05-31T00:00"]);
    let weekdays = next("0 9 * * MON-FRI", "UTC", "2026-11-20T12:00:00Z", 2);
    assert_eq!(weekdays, ["2026-11-23T09:00", "2026-11-24T09:00"]);
}

#[test]
fn an_expression_that_is_none_is_refused_with_what_is_wrong() {
    let why = |cron: &str, zone: &str| match Schedule::create(id(), new(cron, zone), at("2026-01-01T00:00:00Z")) {
        Err(JobRefused::Invalid { field, why }) => (field, why),
        other => panic!("{cron}: {other:?}"),
    };
    for bad in ["", "x", "* * * *", "* * * * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "* * * 13 *", "*/0 * * * *"]
    {
        let (field, why) = why(bad, "UTC");
        assert_eq!(field, "cron", "{bad}");
        assert!(why.contains("five fields"), "{bad}: {why}");
    }
    assert_eq!(why("0 0 30 2 *", "UTC"), ("cron", "has no time to come".to_owned()));
    assert_eq!(why("0 0 * * *", "Mars/Olympus").0, "timezone");
    let both = NewSchedule { at: Some(UnixMs(1)), ..new("* * * * *", "UTC") };
    assert!(matches!(Schedule::create(id(), both, UnixMs(0)), Err(JobRefused::Invalid { field: "at", .. })));
    let none = NewSchedule { cron: None, ..new("", "UTC") };
    assert!(matches!(Schedule::create(id(), none, UnixMs(0)), Err(JobRefused::Invalid { field: "cron", .. })));
    let nameless = NewSchedule { job: Template { name: "".into(), ..template() }, ..new("* * * * *", "UTC") };
    assert!(matches!(Schedule::create(id(), nameless, UnixMs(0)), Err(JobRefused::Invalid { field: "job.name", .. })));
}

#[test]
fn a_slot_that_comes_is_fired_whatever_is_caught_up_with() {
    for catch_up in [CatchUp::None, CatchUp::One, CatchUp::All] {
        let schedule = Schedule { catch_up, ..schedule("0 * * * *", "UTC", "2026-01-01T00:30:00Z") };
        assert_eq!(schedule.plan(at("2026-01-01T00:59:59Z")).unwrap().fire, []);
        let plan = schedule.plan(at("2026-01-01T01:00:30Z")).unwrap();
        assert_eq!(plan.fire, [at("2026-01-01T01:00:00Z")]);
        assert_eq!((plan.missed, plan.next), (0, Some(at("2026-01-01T02:00:00Z"))));
    }
}

#[test]
fn missed_slots_are_made_up_for_as_it_was_asked() {
    let plan = |catch_up, now| {
        let schedule = Schedule { catch_up, ..schedule("0 * * * *", "UTC", "2026-01-01T00:30:00Z") };
        let plan = schedule.plan(at(now)).unwrap();
        let hours: Vec<_> = plan.fire.iter().map(|slot| slot.to_string()[11..13].to_owned()).collect();
        assert_eq!(plan.next.unwrap().to_string()[14..16], *"00");
        (hours.join(" "), plan.missed)
    };
    assert_eq!(plan(CatchUp::None, "2026-01-01T05:30:00Z"), ("".into(), 5));
    assert_eq!(plan(CatchUp::One, "2026-01-01T05:30:00Z"), ("05".into(), 4));
    assert_eq!(plan(CatchUp::All, "2026-01-01T05:30:00Z"), ("01 02 03 04 05".into(), 0));
    // The newest is on time.
    assert_eq!(plan(CatchUp::None, "2026-01-01T05:00:10Z"), ("05".into(), 4));
}

#[test]
fn years_of_missed_slots_are_bounded() {
    let schedule = Schedule { catch_up: CatchUp::All, ..schedule("* * * * *", "UTC", "2020-01-01T00:00:00Z") };
    let plan = schedule.plan(at("2026-01-01T00:00:30Z")).unwrap();
    assert_eq!((plan.fire.len(), plan.missed), (MOST, COUNTED));
    assert_eq!(plan.fire[MOST - 1], at("2026-01-01T00:00:00Z"));
    assert_eq!(plan.next, Some(at("2026-01-01T00:01:00Z")));
}

#[test]
fn what_was_missed_over_a_change_of_the_clock_is_found_once() {
    let schedule =
        Schedule { catch_up: CatchUp::All, ..schedule("30 2 * * *", "Europe/Berlin", "2026-10-23T12:00:00Z") };
    let plan = schedule.plan(at("2026-10-26T12:00:00Z")).unwrap();
    let forward = next("30 2 * * *", "Europe/Berlin", "2026-10-23T12:00:00Z", 3);
    let found: Vec<_> = plan.fire.iter().map(|slot| slot.to_string()[..16].to_owned()).collect();
    assert_eq!(found, forward);
}

#[test]
fn a_time_that_has_come_is_a_slot_once() {
    let once = NewSchedule { cron: None, at: Some(at("2026-01-01T01:00:00Z")), ..new("", "UTC") };
    let mut schedule = Schedule::create(id(), once, at("2026-01-01T00:00:00Z")).unwrap();
    let plan = schedule.plan(at("2026-01-02T00:00:00Z")).unwrap();
    assert_eq!((plan.fire.as_slice(), plan.next), (&[at("2026-01-01T01:00:00Z")][..], None));
    schedule.fire(plan.fire[0]);
    schedule.advance(plan.next);
    assert_eq!(schedule.status, ScheduleStatus::Completed);
    assert_eq!(schedule.plan(at("2026-01-03T00:00:00Z")).unwrap().fire, []);
}

#[test]
fn what_is_missed_while_it_is_paused_is_not_made_up_for() {
    let active = schedule("0 * * * *", "UTC", "2026-01-01T00:30:00Z");
    let pause = SchedulePatch { paused: Some(true), ..SchedulePatch::default() };
    let paused = active.patched(pause, at("2026-01-01T00:40:00Z")).unwrap();
    assert_eq!((paused.status, paused.head(1).wake_at, paused.seq), (ScheduleStatus::Paused, None, 2));
    assert_eq!(paused.plan(at("2026-01-01T05:30:00Z")).unwrap().fire, []);
    let renamed = SchedulePatch { name: Some(Some("x".into())), ..SchedulePatch::default() };
    assert_eq!(paused.patched(renamed, at("2026-01-01T00:50:00Z")).unwrap().status, ScheduleStatus::Paused);
    let resume = SchedulePatch { paused: Some(false), ..SchedulePatch::default() };
    let resumed = paused.patched(resume, at("2026-01-01T05:30:00Z")).unwrap();
    assert_eq!((resumed.status, resumed.next_at), (ScheduleStatus::Active, Some(at("2026-01-01T06:00:00Z"))));
}

#[test]
fn a_change_of_what_is_made_leaves_the_next_slot() {
    let active = schedule("0 * * * *", "UTC", "2026-01-01T00:30:00Z");
    let patch = SchedulePatch { overlap: Some(Overlap::Queue), ..SchedulePatch::default() };
    // Also where the slot has come meanwhile.
    let patched = active.patched(patch, at("2026-01-01T01:30:00Z")).unwrap();
    assert_eq!((patched.next_at, patched.overlap), (active.next_at, Overlap::Queue));
    let moved = SchedulePatch { at: Some(at("2026-01-01T09:00:00Z")), ..SchedulePatch::default() };
    let moved = active.patched(moved, at("2026-01-01T01:30:00Z")).unwrap();
    assert_eq!((moved.cron, moved.next_at), (None, Some(at("2026-01-01T09:00:00Z"))));
}

#[test]
fn of_slots_left_out_in_a_row_the_first_is_an_event() {
    let mut schedule = schedule("0 * * * *", "UTC", "2026-01-01T00:30:00Z");
    assert!(schedule.skip(1, UnixMs(9)));
    assert!(!schedule.skip(2, UnixMs(9)));
    assert_eq!((schedule.skipped, schedule.seq), (3, 2));
    schedule.fire(at("2026-01-01T03:00:00Z"));
    assert!(schedule.skip(1, UnixMs(9)));
}

#[test]
fn slots_that_wait_are_bounded_and_wait_once() {
    let mut schedule = schedule("0 * * * *", "UTC", "2026-01-01T00:30:00Z");
    assert!((0..MOST as u64).all(|n| schedule.wait(UnixMs(n))));
    assert!(schedule.wait(UnixMs(0)));
    assert!(!schedule.wait(UnixMs(MOST as u64)));
    assert!(schedule.head(1).owes_since.is_some());
    schedule.fire(UnixMs(0));
    assert_eq!(schedule.waiting.len(), MOST - 1);
}
