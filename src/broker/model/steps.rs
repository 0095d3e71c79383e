//! Steps: operations made out of random numbers.

use proptest::prelude::*;

use super::*;

const GROUP_NAMES: [&str; 3] = ["default", "audit", "zoo"];
const CONSUMERS_MAX: usize = 5;

/// One operation as the test generates it: what to do, and three numbers to do it with.
type Step = (u8, u64, u64, u64);

fn nth<K: Copy>(mut keys: impl ExactSizeIterator<Item = K>, n: u64) -> Option<K> {
    let len = keys.len() as u64;
    (len > 0).then(|| keys.nth((n % len) as usize)).flatten()
}

fn some_ranges(end: u64, a: u64, b: u64) -> Vec<OffsetRange> {
    let (a, b) = (a % (end + 2), b % (end + 2));
    // A peer may name a range twice, in any order, and beyond what there is.
    match (a + b) % 3 {
        0 => vec![range(0, end + 3)],
        1 => vec![range(b, b + a % 4), range(a, a + b % 5)],
        _ => vec![range(a, a + 1), range(a / 2, a / 2 + 1), range(a, a + 2)],
    }
}

fn some_state(model: &Model, a: u64, b: u64, c: u64) -> GroupState {
    let one = |n: u64| range(n % 20, n % 20 + 1 + n % 3);
    let ready_at = (c.is_multiple_of(2)).then(|| Monotonic(model.now + 1 + c % 7));
    let tried = Tried { range: one(a), attempts: Attempts(1 + b as u32 % 4), ready_at };
    let deadline = Monotonic(model.now + 1 + a % 5);
    let lease = Lease { range: one(b / 3), number: LeaseNumber(7), deadline };
    GroupState {
        settled: some_ranges(model.end, b, c),
        handed: Offset(c % 20),
        tried: if a.is_multiple_of(2) { vec![tried] } else { Vec::new() },
        leases: if b.is_multiple_of(2) { vec![lease] } else { Vec::new() },
        epoch: c % 3,
        ..GroupState::default()
    }
}

fn some_kind(model: &Model, b: u64, c: u64) -> Kind {
    let until = (b.is_multiple_of(3)).then(|| Offset((model.end + 1).saturating_sub(c % 4)));
    Kind { until, exclusive: b % 7 == 1, leases: c.is_multiple_of(5), ..Kind::TAKE }
}

fn act(model: &mut Model, (what, a, b, c): Step) {
    let group = nth(model.groups.keys().copied(), a);
    let consumer = nth(model.consumers.keys().copied(), a);
    let full = model.consumers.len() >= CONSUMERS_MAX;
    let ranges = some_ranges(model.end, b, c);
    match (what, group, consumer) {
        (0..=11, g, _) => {
            let only = g.filter(|_| a.is_multiple_of(16));
            model.extend(if c.is_multiple_of(8) { c / 8 % 3 } else { 0 }, b % 6, only);
        }
        (12..=14, _, _) => {
            let state = (b.is_multiple_of(4)).then(|| some_state(model, a, b, c));
            model.add_group(GROUP_NAMES[(a % 3) as usize], state);
        }
        (15..=24, Some(g), _) if !full => {
            let holding = if c.is_multiple_of(4) { ranges } else { Vec::new() };
            model.add_consumer(Some(g), some_kind(model, b, c), &holding);
        }
        (25..=27, g, _) if !full => {
            let until = Offset((model.end + 1).saturating_sub(c % 4));
            model.add_consumer(g.filter(|_| b % 3 > 0), Kind::peek(until), &[]);
        }
        (28..=41, _, Some(consumer)) => {
            let more = model.consumers[&consumer].delivered + b % 8;
            model.credit(consumer, more.saturating_sub(c % 3));
        }
        (42..=64, _, Some(consumer)) => model.serve(consumer, 1 + b % 6, c % 5),
        (65..=71, _, Some(consumer)) => model.ack(consumer, &ranges),
        (72..=76, _, Some(consumer)) => model.release(consumer, &ranges),
        (77..=81, _, Some(consumer)) => model.begin(consumer, &ranges),
        (82..=83, _, Some(consumer)) => model.has_begun(consumer, &ranges, 1 + (a % 3) as u32),
        (84..=90, _, Some(consumer)) => model.nack(consumer, &ranges),
        (91..=92, _, Some(consumer)) => model.bury(consumer, &ranges),
        (93..=96, _, Some(consumer)) => model.begin_tenure(consumer),
        (97..=98, _, Some(consumer)) => model.pass(consumer, b % (model.end + 2)),
        (99..=101, _, Some(consumer)) => model.remove_consumer(consumer),
        (102..=108, Some(g), _) => model.receipt(g, b, c, a.is_multiple_of(8)),
        (109..=112, Some(g), _) => model.settle_dying(g, &ranges),
        (113, Some(g), _) => model.kill(g, &ranges),
        (114, Some(g), _) => model.expire(g, &ranges),
        (115..=121, _, _) => model.pass_time(1 + a % 3),
        (122..=123, _, _) => model.set_limit((a % 4 > 0).then_some(1 + b as u32 % 3)),
        (124, _, _) => {
            let log = a.is_multiple_of(2);
            model.set_retention(if log { Retention::Log } else { Retention::Acked });
        }
        (125, _, _) => model.drop_oldest(a % 5),
        (126, _, _) => model.drop_before(a % (model.end + 2)),
        (127, _, _) => model.purge(),
        (128, Some(g), _) => model.remove_group(g),
        (129, Some(g), _) => model.reset_group(g, some_state(model, a, b, c)),
        (130, _, _) => model.restart(),
        _ => model.drain(if b.is_multiple_of(2) { u64::MAX } else { 1 + c % 3 }),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn broker_does_what_the_model_does(
        start in 0u64..3,
        gap in 0u64..2,
        span in 0u64..6,
        steps in prop::collection::vec((0u8..150, any::<u64>(), any::<u64>(), any::<u64>()), 1..150),
    ) {
        let mut model = Model::new(start, gap, span);
        model.check();
        for step in steps {
            act(&mut model, step);
            model.check();
        }
    }
}
