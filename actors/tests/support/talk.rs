//! Threads that talk: appends with the records that a machine would have written, made short.

use raddle_domain::{
    event::{Event, ItemDelta, Record},
    id::{ItemId, Seq, ThreadKey, TurnId},
    ports::{Append, Chunk, LogStore, SettledTurn, StoredEvent, View},
    record::{
        Item, ItemKind, Metadata, OnRestart, Thread, ThreadStatus, Turn, TurnKind, TurnSettings, TurnStatus, Usage,
    },
    time::UnixMs,
};
use uuid::Uuid;

use super::append;

fn thread_record(key: ThreadKey, seq: Seq, title: &str) -> Thread {
    Thread {
        id: key.thread,
        title: Some(title.to_owned()),
        status: ThreadStatus::Idle,
        engine: "test".into(),
        model: "test".into(),
        mode: "agent".into(),
        system_prompt: None,
        workspace: None,
        allow_shell: false,
        auto_approve: false,
        trust_mode: false,
        on_restart: OnRestart::Resume,
        policy: None,
        run_id: None,
        budget: None,
        spent: None,
        archived: false,
        active_turn: None,
        queued: 0,
        queue_paused: false,
        pending_approvals: 0,
        forked_from: None,
        created_at: UnixMs(1),
        updated_at: UnixMs(seq),
        seq,
        metadata: Metadata::new(),
    }
}

fn turn_record(key: ThreadKey, id: TurnId, status: TurnStatus) -> Turn {
    Turn {
        id,
        thread_id: key.thread,
        kind: TurnKind::Prompt,
        status,
        input_summary: "\"thread_id\":\"thr_\" is a text".into(),
        task_id: None,
        settings: TurnSettings {
            engine: "test".into(),
            model: "test".into(),
            mode: "agent".into(),
            allow_shell: false,
            auto_approve: false,
            trust_mode: false,
            temperature: None,
            top_p: None,
            max_tokens: None,
            price: None,
        },
        budget: None,
        spent: None,
        usage: Usage::default(),
        error: None,
        item_ids: Vec::new(),
        steer_count: 0,
        resume_count: 0,
        not_delivered: Vec::new(),
        created_at: UnixMs(1),
        started_at: None,
        ended_at: None,
        duration_ms: None,
    }
}

fn item_record(turn: TurnId, kind: ItemKind, text: &str) -> Item {
    Item {
        id: ItemId::from_bytes(*turn.as_bytes()),
        turn_id: turn,
        kind,
        status: TurnStatus::Completed,
        summary: String::new(),
        detail: text.to_owned(),
        metadata: Metadata::new(),
        artifact_refs: Vec::new(),
        started_at: UnixMs(1),
        ended_at: None,
    }
}

/// An append of these events behind `expected`.
pub fn of_events(key: ThreadKey, expected: Seq, events: Vec<Event>) -> Append {
    let records =
        (expected + 1..).zip(events).map(|(seq, event)| Record { seq, ts: UnixMs(seq), thread: key.thread, event });
    let stored = |record: Record| StoredEvent {
        name: record.event.name().into(),
        json: serde_json::to_vec(&record).unwrap().into(),
    };
    let events: Vec<_> = records.map(stored).collect();
    let mut append = append(key, expected, events.len() as u64);
    append.chunk = Chunk { events, ..append.chunk };
    append
}

/// A remark outside of any turn.
pub fn remark(key: ThreadKey, expected: Seq, title: &str) -> Append {
    of_events(key, expected, vec![Event::ThreadUpdated(Box::new(thread_record(key, expected + 1, title)))])
}

pub fn id(number: u128) -> TurnId {
    TurnId::new(Uuid::from_u128(number))
}

/// A whole turn behind `expected`, its answer in these deltas, saved in appends of `together` events. It ends at `at`.
pub fn turn(key: ThreadKey, expected: Seq, number: u128, deltas: &[&str], together: usize, at: UnixMs) -> Vec<Append> {
    let turn = id(number);
    let item = |text: &str| Box::new(item_record(turn, ItemKind::AgentMessage, text));
    let delta = |text: &&str| {
        let (item, kind) = (ItemId::from_bytes(*turn.as_bytes()), ItemKind::AgentMessage);
        Event::ItemDelta(ItemDelta { turn, item, kind, delta: (*text).to_owned() })
    };
    let mut events = vec![
        Event::TurnStarted(Box::new(turn_record(key, turn, TurnStatus::InProgress))),
        Event::ItemStarted(item("")),
    ];
    events.extend(deltas.iter().map(delta));
    events.push(Event::ItemCompleted(item(&deltas.concat())));
    let ended = turn_record(key, turn, TurnStatus::Completed);
    events.push(Event::TurnCompleted(Box::new(ended.clone())));
    let last = expected + events.len() as Seq;
    let settled = SettledTurn {
        id: turn,
        started_seq: expected + 1,
        turn: serde_json::to_vec(&ended).unwrap(),
        items: vec![last - 1],
        context_seq: expected / 2,
        reverted: None,
    };
    let mut appends = Vec::new();
    let mut before = expected;
    let mut events = events.into_iter().peekable();
    while events.peek().is_some() {
        let some: Vec<_> = events.by_ref().take(together.max(1)).collect();
        let count = some.len() as Seq;
        let mut append = of_events(key, before, some);
        append.at = at;
        appends.push(append);
        before += count;
    }
    appends.last_mut().unwrap().settled.push(settled);
    appends
}

/// Every event after `after`, with its place.
pub fn events(view: &dyn View, key: ThreadKey, after: Seq) -> Vec<(Seq, StoredEvent)> {
    let chunks = view.events(key, after, usize::MAX, usize::MAX).unwrap();
    chunks.into_iter().flat_map(|chunk| (chunk.first..).zip(chunk.events)).collect()
}

/// The places at which no turn is open.
pub fn rests(store: &dyn LogStore, key: ThreadKey) -> Vec<Seq> {
    let (mut open, mut rests) = (false, Vec::new());
    for (seq, event) in events(&*store.view().unwrap(), key, 0) {
        match &*event.name {
            "turn.started" => open = true,
            "turn.completed" => open = false,
            _ => {}
        }
        if !open {
            rests.push(seq);
        }
    }
    rests
}
