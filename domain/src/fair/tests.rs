use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn tenant(n: u8) -> TenantId {
    format!("tenant-{n}").parse().unwrap()
}

fn weight(weight: u32) -> NonZeroU32 {
    NonZeroU32::new(weight).unwrap()
}

/// Whose items are served, in order.
fn order(fair: &mut Fair<u32>) -> Vec<(TenantId, u32)> {
    fair.drain().collect()
}

#[test]
fn who_asks_once_is_next_after_one_item_of_who_floods() {
    let mut fair = Fair::new(1);
    for n in 0..1_000 {
        fair.enqueue(tenant(1), weight(1), 1, n);
    }
    assert_eq!(fair.serve(), Some((tenant(1), 0)));
    fair.enqueue(tenant(2), weight(1), 1, 7);
    fair.enqueue(tenant(3), weight(1), 1, 8);
    assert_eq!(fair.serve(), Some((tenant(2), 7)));
    assert_eq!(fair.serve(), Some((tenant(3), 8)));
    assert_eq!(fair.serve(), Some((tenant(1), 1)));
}

#[test]
fn twice_the_weight_is_twice_the_share() {
    let mut fair = Fair::new(10);
    for n in 0..90 {
        fair.enqueue(tenant(1), weight(1), 10, n);
        fair.enqueue(tenant(2), weight(2), 10, n);
    }
    let served: Vec<_> = (0..90).map(|_| fair.serve().unwrap().0).collect();
    assert_eq!(served.iter().filter(|served| **served == tenant(1)).count(), 30);
    assert_eq!(served[..6], [1, 2, 2, 1, 2, 2].map(tenant));
}

#[test]
fn dear_items_take_their_share_not_their_number() {
    let mut fair = Fair::new(10);
    for n in 0..100 {
        fair.enqueue(tenant(1), weight(1), 30, n);
        fair.enqueue(tenant(2), weight(1), 10, n);
    }
    let served: Vec<_> = (0..80).map(|_| fair.serve().unwrap().0).collect();
    assert_eq!(served.iter().filter(|served| **served == tenant(1)).count(), 20);
}

#[test]
fn nothing_is_saved_up_while_nothing_waits() {
    let mut fair = Fair::new(100);
    fair.enqueue(tenant(1), weight(1), 1, 0);
    fair.serve();
    assert_eq!((fair.tenants(), fair.round.len()), (0, 0));
    // It had 99 left of its turn. Had it kept them, both of the next would be its own.
    fair.enqueue(tenant(2), weight(1), 100, 0);
    fair.enqueue(tenant(1), weight(1), 100, 1);
    fair.enqueue(tenant(1), weight(1), 99, 2);
    assert_eq!(order(&mut fair), [(tenant(2), 0), (tenant(1), 1), (tenant(1), 2)]);
    let mut fair = Fair::new(100);
    fair.enqueue(tenant(1), weight(1), 1, 0);
    fair.serve();
    fair.enqueue(tenant(1), weight(1), 100, 1);
    fair.enqueue(tenant(1), weight(1), 99, 2);
    fair.enqueue(tenant(2), weight(1), 100, 0);
    assert_eq!(order(&mut fair), [(tenant(1), 1), (tenant(2), 0), (tenant(1), 2)]);
}

#[test]
fn who_goes_leaves_no_hole() {
    let mut fair = Fair::new(1);
    let gone = fair.enqueue(tenant(1), weight(1), 1, 1);
    let kept = fair.enqueue(tenant(1), weight(1), 1, 2);
    let alone = fair.enqueue(tenant(2), weight(1), 1, 3);
    assert_eq!(fair.remove(gone), Some(1));
    assert_eq!(fair.remove(gone), None);
    assert_eq!(fair.remove(alone), Some(3));
    assert_eq!((fair.len(), fair.tenants(), fair.round.len()), (1, 1, 1));
    assert_eq!(fair.serve(), Some((tenant(1), 2)));
    assert_eq!((fair.remove(kept), fair.serve()), (None, None));
    assert!(fair.is_empty() && fair.flows.is_empty() && fair.round.is_empty());
}

#[test]
fn what_is_not_wanted_stays_next() {
    let mut fair = Fair::new(1);
    fair.enqueue(tenant(1), weight(1), 1, 1);
    fair.enqueue(tenant(2), weight(1), 1, 2);
    assert_eq!(fair.serve_by(|_| Choice::Stop), None);
    assert_eq!(fair.serve_by(|_| Choice::Stop), None);
    assert_eq!(order(&mut fair), [(tenant(1), 1), (tenant(2), 2)]);
}

#[test]
fn an_item_dearer_than_any_other_waits_for_a_bounded_number_of_turns() {
    let mut fair = Fair::new(1);
    fair.enqueue(tenant(1), weight(1), u64::MAX, 0);
    for n in 0..200 {
        fair.enqueue(tenant(2), weight(1), 1, n);
    }
    let before = fair.drain().position(|(served, _)| served == tenant(1)).unwrap() as u64;
    assert_eq!(before, QUANTA - 1);
}

/// What happens to a queue.
#[derive(Debug, Clone)]
enum Act {
    Enqueue { tenant: u8, cost: u64 },
    Remove { nth: usize },
    Serve,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (0_u8..5, 1_u64..200).prop_map(|(tenant, cost)| Act::Enqueue { tenant, cost }),
        1 => (0_usize..1_000).prop_map(|nth| Act::Remove { nth }),
        3 => Just(Act::Serve),
    ]
}

proptest! {
    /// Whatever comes and goes: everything is served once, in its tenant's order, unless it was taken back; and
    /// while two tenants both wait, what each is served by its weight differs by no more than the bound.
    #[test]
    fn whatever_comes_everybody_gets_his_share_in_his_order(
        acts in prop::collection::vec(act(), 1..400),
        weights in prop::collection::vec(1_u32..5, 5),
        quantum in 1_u64..64,
    ) {
        let mut fair = Fair::new(quantum);
        let (mut tickets, mut waiting) = (Vec::new(), BTreeMap::<u8, Vec<u32>>::new());
        let mut costs = Vec::new();
        // Served since the pair last began to wait together: (of the one, of the other).
        let mut since: BTreeMap<(u8, u8), (f64, f64)> = BTreeMap::new();
        let most = |cost: u64| cost.clamp(1, quantum * QUANTA);
        let dearest = acts.iter().filter_map(|act| match act { Act::Enqueue { cost, .. } => Some(most(*cost)), _ => None });
        let dearest = dearest.max().unwrap_or(1);
        for act in acts.into_iter().chain(std::iter::repeat_n(Act::Serve, 400)) {
            match act {
                Act::Enqueue { tenant: of, cost } => {
                    let item = costs.len() as u32;
                    costs.push(most(cost));
                    tickets.push((of, item, fair.enqueue(tenant(of), weight(weights[usize::from(of)]), cost, item)));
                    waiting.entry(of).or_default().push(item);
                }
                Act::Remove { nth } => {
                    let Some((of, item, ticket)) = tickets.get(nth % tickets.len().max(1)).copied() else { continue };
                    let waits = waiting.get_mut(&of).is_some_and(|all| {
                        let before = all.len();
                        all.retain(|known| *known != item);
                        all.len() < before
                    });
                    prop_assert_eq!(fair.remove(ticket), waits.then_some(item));
                }
                Act::Serve => {
                    let served = fair.serve();
                    let Some((of, item)) = served else {
                        prop_assert!(waiting.values().all(Vec::is_empty), "nothing is served though something waits");
                        continue;
                    };
                    let of = (0..5).find(|n| tenant(*n) == of).unwrap();
                    let all = waiting.get_mut(&of).unwrap();
                    prop_assert_eq!(all.first(), Some(&item), "out of order, or twice");
                    all.remove(0);
                    for ((one, other), (of_one, of_other)) in &mut since {
                        let by = costs[item as usize] as f64 / f64::from(weights[usize::from(of)]);
                        if *one == of { *of_one += by }
                        if *other == of { *of_other += by }
                    }
                }
            }
            waiting.retain(|_, all| !all.is_empty());
            prop_assert_eq!(fair.len(), waiting.values().map(Vec::len).sum::<usize>());
            prop_assert_eq!(fair.tenants(), waiting.len());
            prop_assert_eq!(fair.round.len(), waiting.len());
            let both = |one: u8, other: u8| waiting.contains_key(&one) && waiting.contains_key(&other);
            since.retain(|(one, other), _| both(*one, *other));
            for one in 0..5 {
                for other in 0..one {
                    if both(one, other) {
                        since.entry((one, other)).or_default();
                    }
                }
            }
            // A turn of each and what it had saved before, which is less than an item.
            let bound = 2.0 * quantum as f64 + 2.0 * dearest as f64;
            for (pair, (one, other)) in &since {
                prop_assert!((one - other).abs() <= bound, "{:?}: {} and {} by weight", pair, one, other);
            }
        }
        prop_assert!(fair.is_empty());
    }
}

#[test]
fn who_is_passed_over_keeps_his_turn_and_what_he_saved() {
    let mut fair = Fair::new(10);
    for n in 0..3 {
        fair.enqueue(tenant(1), weight(1), 5, n);
        fair.enqueue(tenant(2), weight(1), 15, n);
    }
    let not_one = |next: Next<'_, u32>| if next.tenant == tenant(1) { Choice::PassOver } else { Choice::Serve };
    // The other's cost a turn and a half: he gets one in his second turn, with five left of it.
    assert_eq!(fair.serve_by(not_one), Some((tenant(2), 0)));
    assert_eq!(fair.serve(), Some((tenant(1), 0)));
    assert_eq!(fair.serve_by(|_| Choice::Stop), None);
    assert_eq!(fair.serve_by(|_| Choice::PassOver), None);
    assert_eq!(order(&mut fair), [(tenant(1), 1), (tenant(2), 1), (tenant(1), 2), (tenant(2), 2)]);
}

#[test]
fn what_is_offered_tells_one_turn_from_the_next() {
    let mut fair = Fair::new(2);
    for n in 0..4 {
        fair.enqueue(tenant(1), weight(1), 1, n);
        fair.enqueue(tenant(2), weight(1), 1, n);
    }
    let mut turns = Vec::new();
    let mut offered = |next: Next<'_, u32>| {
        turns.push(next.turn);
        Choice::Serve
    };
    while fair.serve_by(&mut offered).is_some() {}
    assert_eq!(turns.chunk_by(|a, b| a == b).map(<[_]>::len).collect::<Vec<_>>(), [2, 2, 2, 2]);
    turns.dedup();
    turns.sort_unstable();
    turns.dedup();
    assert_eq!(turns.len(), 4);
}

#[test]
fn the_shortest_and_the_longest_queue_are_known() {
    let mut fair = Fair::new(1);
    assert_eq!(fair.extremes(), None);
    for n in 0..3 {
        fair.enqueue(tenant(1), weight(1), 1, n);
    }
    fair.enqueue(tenant(2), weight(1), 1, 0);
    assert_eq!(fair.extremes(), Some((1, 3)));
}
