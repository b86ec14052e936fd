//! What a store keeps for a tenant, asked of every store: the feed, records by their id, what was spent, documents.

#[macro_use]
mod support;

use proptest::prelude::*;
use raddle_actors::store::{backend::MemoryMedium, memory::MemoryStore};
use raddle_domain::{
    id::{Seq, ThreadKey},
    ports::{Append, DocumentKind, Fed, Found, LogStore, RecordKind, SpentBy, View, Write, WriteRefused},
    price::Totals,
};
use support::{append, document, indexed, put, redb, settled, spent, tenant, thread};
use uuid::Uuid;

use DocumentKind::{Audit, HookCursor, PolicyRule, RoutingRule, Tenant};
use RecordKind::{Approval, Effect, Question};

suite! {
    appends_have_positions_in_the_order_of_their_commits
    each_tenant_has_a_feed_of_its_own
    the_tenants_that_have_a_feed_are_listed_however_long_it_is
    what_is_refused_or_says_nothing_takes_no_position
    the_feed_outlives_its_threads
    a_record_is_found_by_its_id_until_its_thread_goes
    a_record_that_closes_leaves_the_open_ones
    records_of_a_tenant_are_paged_in_the_order_of_their_ids
    a_record_of_another_thread_is_refused
    what_was_spent_adds_up_by_day_thread_and_model
    a_bill_is_paged_and_outlives_its_thread
    documents_are_put_beside_each_other_and_replaced_as_a_whole
    documents_are_read_in_pages
    tenants_are_those_with_a_document_of_their_own
}

fn view(store: &dyn LogStore) -> Box<dyn View + '_> {
    store.view().unwrap()
}

fn erase(store: &dyn LogStore, key: ThreadKey, expected: Seq) {
    assert_eq!(store.commit(&[Write::Erase { key, fence: 1, expected }]).unwrap(), [Ok(0)]);
}

fn with(key: ThreadKey, expected: Seq, change: impl FnOnce(&mut Append)) -> Append {
    let mut step = append(key, expected, 1);
    change(&mut step);
    step
}

fn fed(position: u64, key: ThreadKey, first: Seq, last: Seq) -> Fed {
    Fed { position, thread: key.thread, first, last }
}

fn appends_have_positions_in_the_order_of_their_commits(store: &dyn LogStore) {
    let (a, b) = (thread(1, 1), thread(1, 2));
    assert_eq!((view(store).feed_head(a.tenant), view(store).feed(a.tenant, 0, 9)), (Ok(0), Ok(vec![])));
    let both = [append(a, 0, 2), append(b, 0, 1)].map(Write::Append);
    assert_eq!(store.commit(&both).unwrap(), [Ok(1), Ok(2)]);
    assert_eq!(store.commit(&[Write::Append(append(a, 2, 3))]).unwrap(), [Ok(3)]);
    let all = [fed(1, a, 1, 2), fed(2, b, 1, 1), fed(3, a, 3, 5)];
    assert_eq!(view(store).feed(a.tenant, 0, 9).unwrap(), all);
    assert_eq!(view(store).feed(a.tenant, 1, 1).unwrap(), all[1..2]);
    assert_eq!(view(store).feed(a.tenant, 3, 9).unwrap(), []);
    assert_eq!(view(store).feed(a.tenant, u64::MAX, 9).unwrap(), []);
    assert_eq!(view(store).feed(a.tenant, 0, 0).unwrap(), []);
    assert_eq!(view(store).feed_head(a.tenant), Ok(3));
}

fn each_tenant_has_a_feed_of_its_own(store: &dyn LogStore) {
    let (a, b) = (thread(1, 1), thread(2, 1));
    let writes = [append(a, 0, 1), append(b, 0, 1), append(a, 1, 1), append(b, 1, 1)].map(Write::Append);
    assert_eq!(store.commit(&writes).unwrap(), [Ok(1), Ok(1), Ok(2), Ok(2)]);
    assert_eq!(view(store).feed(b.tenant, 1, 9).unwrap(), [fed(2, b, 2, 2)]);
    assert_eq!(view(store).feed_head(tenant(3)), Ok(0));
}

fn the_tenants_that_have_a_feed_are_listed_however_long_it_is(store: &dyn LogStore) {
    assert_eq!(view(store).feeds().unwrap(), []);
    // More than are one row.
    for seq in 0..300 {
        put(store, append(thread(2, 1), seq, 1)).unwrap();
    }
    put(store, append(thread(1, 1), 0, 1)).unwrap();
    put(store, append(thread(3, 1), 0, 1)).unwrap();
    store.commit(&[Write::Put { tenant: tenant(4), documents: vec![document(RoutingRule, 1, "x")] }]).unwrap();
    erase(store, thread(3, 1), 1);
    assert_eq!(view(store).feeds().unwrap(), [1, 2, 3].map(tenant));
}

fn what_is_refused_or_says_nothing_takes_no_position(store: &dyn LogStore) {
    let key = thread(1, 1);
    put(store, append(key, 0, 1)).unwrap();
    let writes = [append(key, 7, 1), append(key, 1, 0), append(key, 1, 1)].map(Write::Append);
    let results = store.commit(&writes).unwrap();
    assert_eq!(results, [Err(WriteRefused::Conflict { expected: 7, found: 1 }), Ok(0), Ok(2)]);
    assert_eq!(view(store).feed(key.tenant, 0, 9).unwrap(), [fed(1, key, 1, 1), fed(2, key, 2, 2)]);
}

fn the_feed_outlives_its_threads(store: &dyn LogStore) {
    let (a, b) = (thread(1, 1), thread(1, 2));
    put(store, append(a, 0, 2)).unwrap();
    erase(store, a, 2);
    assert_eq!(store.commit(&[Write::Append(append(b, 0, 1))]).unwrap(), [Ok(2)]);
    assert_eq!(view(store).feed(a.tenant, 0, 9).unwrap(), [fed(1, a, 1, 2), fed(2, b, 1, 1)]);
}

fn found(n: u128, key: ThreadKey, seq: Seq, open: bool) -> Found {
    Found { id: Uuid::from_u128(n), thread: key.thread, seq, open }
}

fn a_record_is_found_by_its_id_until_its_thread_goes(store: &dyn LogStore) {
    let (a, b) = (thread(1, 1), thread(1, 2));
    let id = Uuid::from_u128(7);
    put(store, with(a, 0, |step| step.indexed = vec![indexed(Approval, 7, 1, true), indexed(Effect, 7, 1, false)]))
        .unwrap();
    put(store, with(b, 0, |step| step.indexed = vec![indexed(Approval, 8, 1, true)])).unwrap();
    assert_eq!(view(store).record(a.tenant, Approval, id).unwrap(), Some(found(7, a, 1, true)));
    assert_eq!(view(store).record(a.tenant, Effect, id).unwrap(), Some(found(7, a, 1, false)));
    assert_eq!(view(store).record(a.tenant, Question, id).unwrap(), None);
    assert_eq!(view(store).record(tenant(2), Approval, id).unwrap(), None);
    erase(store, a, 1);
    assert_eq!(view(store).record(a.tenant, Approval, id).unwrap(), None);
    assert_eq!(view(store).record(a.tenant, Effect, id).unwrap(), None);
    assert_eq!(view(store).records(a.tenant, Approval, None, false, None, 9).unwrap(), [found(8, b, 1, true)]);
    assert_eq!(view(store).records(a.tenant, Approval, Some(a.thread), false, None, 9).unwrap(), []);
}

fn a_record_that_closes_leaves_the_open_ones(store: &dyn LogStore) {
    let key = thread(1, 1);
    for (expected, open) in [(0, true), (1, true), (2, false), (3, true), (4, false)] {
        let seq = expected + 1;
        put(store, with(key, expected, |step| step.indexed = vec![indexed(Question, 5, seq, open)])).unwrap();
        let now = [found(5, key, seq, open)];
        let records = |thread, open| view(store).records(key.tenant, Question, thread, open, None, 9).unwrap();
        for thread in [None, Some(key.thread)] {
            assert_eq!(records(thread, false), now);
            assert_eq!(records(thread, true), if open { &now[..] } else { &[] });
        }
        assert_eq!(view(store).record(key.tenant, Question, Uuid::from_u128(5)).unwrap(), Some(now[0]));
    }
    // The last word of one step holds.
    let twice = vec![indexed(Question, 6, 6, true), indexed(Question, 6, 6, false)];
    put(store, with(key, 5, |step| step.indexed = twice)).unwrap();
    assert_eq!(view(store).record(key.tenant, Question, Uuid::from_u128(6)).unwrap(), Some(found(6, key, 6, false)));
    assert_eq!(view(store).records(key.tenant, Question, None, true, None, 9).unwrap(), []);
}

fn records_of_a_tenant_are_paged_in_the_order_of_their_ids(store: &dyn LogStore) {
    let keys = [thread(1, 2), thread(1, 1)];
    for (at, n) in [5, 1, 4, 2, 3, 6].into_iter().enumerate() {
        let (key, expected) = (keys[at % 2], at as Seq / 2);
        let record = indexed(Approval, n, expected + 1, n % 3 != 0);
        put(store, with(key, expected, |step| step.indexed = vec![record])).unwrap();
    }
    let ids = |thread, open, after: Option<u128>, limit| {
        let after = after.map(Uuid::from_u128);
        let records = view(store).records(tenant(1), Approval, thread, open, after, limit).unwrap();
        records.iter().map(|record| record.id.as_u128()).collect::<Vec<_>>()
    };
    assert_eq!(ids(None, false, None, 9), [1, 2, 3, 4, 5, 6]);
    assert_eq!(ids(None, false, Some(2), 3), [3, 4, 5]);
    assert_eq!(ids(None, true, None, 3), [1, 2, 4]);
    assert_eq!(ids(None, true, Some(2), 9), [4, 5]);
    assert_eq!(ids(Some(keys[0].thread), false, None, 9), [3, 4, 5]);
    assert_eq!(ids(Some(keys[0].thread), true, Some(3), 1), [4]);
    assert_eq!(ids(None, false, None, 0), [] as [u128; 0]);
    assert_eq!(ids(None, false, Some(6), 9), [] as [u128; 0]);
}

fn a_record_of_another_thread_is_refused(store: &dyn LogStore) {
    let (a, b) = (thread(1, 1), thread(1, 2));
    put(store, with(a, 0, |step| step.indexed = vec![indexed(Approval, 7, 1, false)])).unwrap();
    let foreign = with(b, 0, |step| {
        step.indexed = vec![indexed(Approval, 8, 1, true), indexed(Approval, 7, 1, true)];
        step.spent = vec![spent(1, "m", 1)];
        step.documents = vec![document(PolicyRule, 1, "x")];
        step.settled = vec![settled(1)];
    });
    assert!(matches!(put(store, foreign), Err(WriteRefused::Corrupt(_))));
    let seen = view(store);
    assert_eq!(seen.row(b).unwrap(), None);
    assert_eq!(seen.record(b.tenant, Approval, Uuid::from_u128(8)).unwrap(), None);
    assert_eq!(seen.spent(b.tenant, 0, 9, None, 9).unwrap(), []);
    assert_eq!(seen.documents(b.tenant, PolicyRule).unwrap(), []);
    assert_eq!(seen.feed_head(b.tenant), Ok(1));
    // Under another tenant the same id is another record.
    put(store, with(thread(2, 2), 0, |step| step.indexed = vec![indexed(Approval, 7, 1, true)])).unwrap();
}

fn what_was_spent_adds_up_by_day_thread_and_model(store: &dyn LogStore) {
    let (a, b) = (thread(1, 1), thread(1, 2));
    put(store, with(a, 0, |step| step.spent = vec![spent(5, "n", 10), spent(5, "m", 1), spent(5, "n", 2)])).unwrap();
    put(store, with(a, 1, |step| step.spent = vec![spent(5, "n", 100), spent(6, "n", 3)])).unwrap();
    put(store, with(b, 0, |step| step.spent = vec![spent(5, "n", 50)])).unwrap();
    put(store, with(thread(2, 1), 0, |step| step.spent = vec![spent(5, "n", 9)])).unwrap();
    let tokens = |by: &SpentBy| {
        assert!(by.rows.iter().all(|row| row.day == by.day && row.totals.pico_usd == 7 * row.totals.input_tokens));
        let row = |row: &raddle_domain::ports::Spent| (row.model.clone(), row.totals.input_tokens);
        (by.day, by.thread, by.rows.iter().map(row).collect::<Vec<_>>())
    };
    let all = view(store).spent(a.tenant, 0, u32::MAX, None, 9).unwrap();
    let row = |model: &str, tokens| (model.to_owned(), tokens);
    assert_eq!(
        all.iter().map(tokens).collect::<Vec<_>>(),
        [
            (5, a.thread, vec![row("m", 1), row("n", 112)]),
            (5, b.thread, vec![row("n", 50)]),
            (6, a.thread, vec![row("n", 3)]),
        ]
    );
    assert_eq!(all[0].rows[1].totals.model_calls, 3);
    assert_eq!(all[0].rows[1].totals, Totals { model_calls: 3, input_tokens: 112, pico_usd: 784, ..Totals::default() });
}

fn a_bill_is_paged_and_outlives_its_thread(store: &dyn LogStore) {
    let key = thread(1, 1);
    for day in 1..=4 {
        put(store, with(key, Seq::from(day) - 1, |step| step.spent = vec![spent(day, "m", 1)])).unwrap();
    }
    put(store, with(thread(1, 2), 0, |step| step.spent = vec![spent(2, "m", 1)])).unwrap();
    erase(store, key, 4);
    let days = |from, to, after, limit| {
        let page = view(store).spent(key.tenant, from, to, after, limit).unwrap();
        page.iter().map(|by| (by.day, by.thread.as_bytes()[0])).collect::<Vec<_>>()
    };
    assert_eq!(days(0, 9, None, 9), [(1, 1), (2, 1), (2, 2), (3, 1), (4, 1)]);
    assert_eq!(days(2, 3, None, 9), [(2, 1), (2, 2), (3, 1)]);
    assert_eq!(days(2, 3, Some((2, key.thread)), 1), [(2, 2)]);
    assert_eq!(days(2, 3, Some((1, key.thread)), 1), [(2, 1)]);
    assert_eq!(days(2, 3, Some((3, key.thread)), 9), []);
    assert_eq!(days(2, 3, Some((7, key.thread)), 9), []);
    assert_eq!(days(3, 2, None, 9), []);
    assert_eq!(days(0, 9, None, 0), []);
}

fn documents_are_put_beside_each_other_and_replaced_as_a_whole(store: &dyn LogStore) {
    let key = thread(1, 1);
    let listed = |of: u8, kind| view(store).documents(tenant(of), kind).unwrap();
    let replace = |kind, documents: &[_]| {
        let write = Write::Documents { tenant: key.tenant, kind, documents: documents.to_vec() };
        assert_eq!(store.commit(&[write]).unwrap(), [Ok(0)]);
    };
    let rule = |n, text| document(PolicyRule, n, text);
    put(store, with(key, 0, |step| step.documents = vec![rule(9, "a"), rule(1, "b")])).unwrap();
    put(store, with(key, 1, |step| step.documents = vec![rule(9, "c")])).unwrap();
    assert_eq!(listed(1, PolicyRule), [rule(1, "b"), rule(9, "c")]);
    let route = |n| document(RoutingRule, n, "to there");
    replace(RoutingRule, &[route(3), route(0xff), route(0)]);
    assert_eq!(listed(1, RoutingRule), [route(0), route(3), route(0xff)]);
    replace(RoutingRule, &[route(4)]);
    assert_eq!(listed(1, RoutingRule), [route(4)]);
    assert_eq!(listed(1, PolicyRule).len(), 2);
    assert_eq!(listed(2, RoutingRule), []);
    // They are the tenant's, not the thread's.
    erase(store, key, 2);
    assert_eq!(listed(1, PolicyRule).len(), 2);
    let put = |documents: &[_]| {
        let write = Write::Put { tenant: key.tenant, documents: documents.to_vec() };
        assert_eq!(store.commit(&[write]).unwrap(), [Ok(0)]);
    };
    put(&[rule(9, "d"), route(5)]);
    assert_eq!(listed(1, PolicyRule), [rule(1, "b"), rule(9, "d")]);
    assert_eq!(listed(1, RoutingRule), [route(4), route(5)]);
    assert_eq!(listed(2, PolicyRule), []);
    replace(PolicyRule, &[]);
    assert_eq!(listed(1, PolicyRule), []);
    assert_eq!(view(store).feed_head(key.tenant), Ok(2));
}

fn documents_are_read_in_pages(store: &dyn LogStore) {
    let kinds = [PolicyRule, Audit];
    let all: Vec<_> = kinds.into_iter().flat_map(|kind| [1, 3, 7].map(|n| document(kind, n, "x"))).collect();
    for of in [1, 2] {
        let write = Write::Put { tenant: tenant(of), documents: all.clone() };
        assert_eq!(store.commit(&[write]).unwrap(), [Ok(0)]);
    }
    let page = |after: Option<u8>, limit| {
        let after = after.map(|n| document(Audit, n, "").id);
        view(store).documents_after(tenant(1), Audit, after, limit).unwrap()
    };
    let [one, three, seven] = [1, 3, 7].map(|n| document(Audit, n, "x"));
    assert_eq!(page(None, 2), [one, three.clone()]);
    assert_eq!(page(Some(1), 9), [three, seven.clone()]);
    assert_eq!(page(Some(4), 9), [seven]);
    assert_eq!(page(Some(7), 9), []);
    assert_eq!(page(None, 0), []);
}

fn tenants_are_those_with_a_document_of_their_own(store: &dyn LogStore) {
    assert_eq!(view(store).tenants().unwrap(), []);
    for (of, kind) in [(9, Tenant), (1, PolicyRule), (4, Tenant), (4, Audit), (9, HookCursor), (200, Tenant)] {
        let write = Write::Put { tenant: tenant(of), documents: vec![document(kind, 0, "x")] };
        assert_eq!(store.commit(&[write]).unwrap(), [Ok(0)]);
    }
    let mut expected = [4, 9, 200].map(tenant);
    expected.sort();
    assert_eq!(view(store).tenants().unwrap(), expected);
}

// ---- one life, many stores --------------------------------------------------------------------------

#[derive(Debug, Clone)]
enum Act {
    Append { n: u8, count: u64, records: Vec<(u8, u128, bool)>, spent: Vec<(u32, u8)>, documents: Vec<u8> },
    Erase { n: u8 },
    Replace { of: u8, documents: Vec<u8> },
    Put { of: u8, documents: Vec<u8> },
}

fn acts() -> impl Strategy<Value = Act> {
    use proptest::collection::vec;
    let record = (0u8..2, 0u128..6, any::<bool>());
    prop_oneof![
        8 => (0u8..4, 0u64..3, vec(record, 0..3), vec((0u32..3, 0u8..2), 0..3), vec(0u8..4, 0..2))
            .prop_map(|(n, count, records, spent, documents)| Act::Append { n, count, records, spent, documents }),
        1 => (0u8..4).prop_map(|n| Act::Erase { n }),
        1 => (0u8..2, vec(0u8..4, 0..3)).prop_map(|(of, documents)| Act::Replace { of, documents }),
        1 => (0u8..2, vec(0u8..4, 0..3)).prop_map(|(of, documents)| Act::Put { of, documents }),
    ]
}

/// Two tenants with equal thread ids.
fn named(n: u8) -> ThreadKey {
    thread(n % 2, n / 2)
}

/// Some acts together are one commit.
fn write(act: &Act, last: &mut [Seq; 4]) -> Write {
    match act {
        Act::Append { n, count, records, spent: days, documents } => {
            let mut step = append(named(*n), last[usize::from(*n)], *count);
            let seq = step.row.head.last_seq;
            let kind = |of| if of == 0 { Approval } else { Question };
            step.indexed = records.iter().map(|(of, id, open)| indexed(kind(*of), *id, seq, *open)).collect();
            let model = |n: &u8| if *n == 0 { "a" } else { "b" };
            step.spent = days.iter().map(|(day, n)| spent(*day, model(n), seq + 1)).collect();
            step.documents = documents.iter().map(|n| document(PolicyRule, *n, &seq.to_string())).collect();
            Write::Append(step)
        }
        Act::Erase { n } => Write::Erase { key: named(*n), fence: 1, expected: last[usize::from(*n)] },
        Act::Replace { of, documents } => {
            let documents = documents.iter().map(|n| document(PolicyRule, *n, "replaced")).collect();
            Write::Documents { tenant: tenant(*of), kind: PolicyRule, documents }
        }
        Act::Put { of, documents } => {
            let documents = documents.iter().map(|n| document(PolicyRule, *n, "put")).collect();
            Write::Put { tenant: tenant(*of), documents }
        }
    }
}

/// All that a view shows of tenants, asked in pages of `limit`.
fn shown(store: &dyn LogStore, limit: usize) -> String {
    let view = view(store);
    let of = |of: u8| {
        let (of, mut text) = (tenant(of), String::new());
        for after in 0..5 {
            text += &format!("{:?}\n", view.feed(of, after * 2, limit));
        }
        for kind in [Approval, Question] {
            for id in (0..6).map(Uuid::from_u128) {
                text += &format!("{:?}\n", view.record(of, kind, id));
                for thread in [None, Some(thread(0, 0).thread), Some(thread(0, 1).thread)] {
                    let records = |open| view.records(of, kind, thread, open, Some(id), limit);
                    text += &format!("{:?} {:?}\n", records(true), records(false));
                }
            }
        }
        let after = Some((1, thread(0, 0).thread));
        text += &format!("{:?} {:?}\n", view.spent(of, 0, 1, None, limit), view.spent(of, 0, 2, after, limit));
        text + &format!("{:?} {:?}", view.feed_head(of), view.documents(of, PolicyRule))
    };
    format!("{:?}\n", view.feeds()) + &of(0) + &of(1)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn every_store_answers_a_random_life_of_tenants_alike(
        commits in proptest::collection::vec(proptest::collection::vec(acts(), 1..4), 1..20),
        limit in 1usize..9,
    ) {
        let memory = MemoryStore::default();
        let stored = redb(&MemoryMedium::default());
        for acts in &commits {
            let mut last = [0, 1, 2, 3].map(|n| {
                view(&memory).row(named(n)).unwrap().map_or(0, |row| row.head.last_seq)
            });
            let mut writes = Vec::new();
            for act in acts {
                writes.push(write(act, &mut last));
                // As if each was stored: if one is refused, so are the thread's later ones, in both stores.
                match act {
                    Act::Append { n, count, .. } => last[usize::from(*n)] += count,
                    Act::Erase { n } => last[usize::from(*n)] = 0,
                    Act::Replace { .. } | Act::Put { .. } => {}
                }
            }
            prop_assert_eq!(memory.commit(&writes), stored.commit(&writes));
            prop_assert_eq!(shown(&memory, limit), shown(&stored, limit));
        }
    }
}
