//! What the broker claims, one by one, in small scenes. The model finds what nobody thought of;
//! these say what was meant.

use super::*;

fn range(start: u64, end: u64) -> OffsetRange {
    OffsetRange::new(Offset(start), Offset(end))
}

fn name(text: &str) -> Name {
    Name::new(text).expect("a good name")
}

/// A queue of messages `0..end` with the group `default`.
fn scene(end: u64) -> (Broker, QueueKey, GroupKey) {
    let mut broker = Broker::new();
    let q = broker.add_queue(Offset(0), Offset(end), &[], &[]);
    let g = broker.add_group(q, &name("default"), None).expect("the first group");
    (broker, q, g)
}

fn take_until(until: u64) -> Kind {
    Kind { until: Some(Offset(until)), ..Kind::TAKE }
}

fn taker(broker: &mut Broker, g: GroupKey, credit: u64) -> ConsumerKey {
    let q = broker.group(g).queue;
    let (c, _) = broker.add_consumer(q, Some(g), Kind::TAKE, &[]);
    broker.credit(c, credit);
    c
}

fn taker_until(broker: &mut Broker, g: GroupKey, credit: u64, until: u64) -> ConsumerKey {
    let q = broker.group(g).queue;
    let (c, _) = broker.add_consumer(q, Some(g), take_until(until), &[]);
    broker.credit(c, credit);
    c
}

fn peeker(broker: &mut Broker, q: QueueKey, g: Option<GroupKey>, until: u64) -> ConsumerKey {
    let (c, _) = broker.add_consumer(q, g, Kind::peek(Offset(until)), &[]);
    broker.credit(c, u64::MAX);
    c
}

/// Takes the whole of the next offer.
fn serve(broker: &mut Broker, c: ConsumerKey, max: u64) -> Option<Offer> {
    let offer = broker.offer(c, max);
    offer.inspect(|offer| broker.take(c, offer.range))
}

fn outputs(broker: &mut Broker) -> Vec<Output> {
    std::iter::from_fn(|| broker.next_output()).collect()
}

fn ready(consumer: ConsumerKey) -> Output {
    Output::Ready { consumer }
}

fn end(consumer: ConsumerKey) -> Output {
    Output::End { consumer }
}

fn fresh(start: u64, end: u64) -> Option<Offer> {
    Some(Offer { range: range(start, end), redelivered: false, attempt: Attempts(1) })
}

fn again(start: u64, end: u64) -> Option<Offer> {
    Some(Offer { range: range(start, end), redelivered: true, attempt: Attempts(1) })
}

#[test]
fn an_offer_takes_nothing_and_a_take_may_be_shorter() {
    let (mut broker, _, g) = scene(10);
    let c = taker(&mut broker, g, 8);
    assert_eq!(broker.offer(c, 100), fresh(0, 8));
    assert_eq!(broker.offer(c, 5), fresh(0, 5));
    assert_eq!(broker.counts(g).leased, Count(0));
    broker.take(c, range(0, 3));
    assert_eq!(broker.counts(g).leased, Count(3));
    assert_eq!(broker.offer(c, 100), fresh(3, 8));
}

#[test]
fn credit_counts_all_messages_ever_delivered() {
    let (mut broker, _, g) = scene(10);
    let c = taker(&mut broker, g, 4);
    assert_eq!(serve(&mut broker, c, 100), fresh(0, 4));
    broker.release(c, &[range(0, 4)]);
    assert_eq!(broker.offer(c, 100), None, "a release gives no credit back");
    broker.credit(c, 5);
    assert_eq!(serve(&mut broker, c, 100), again(0, 1));
}

#[test]
fn a_released_message_comes_again_in_its_old_place_and_is_marked() {
    let (mut broker, _, g) = scene(10);
    let c = taker(&mut broker, g, 100);
    assert_eq!(serve(&mut broker, c, 6), fresh(0, 6));
    assert_eq!(broker.ack(c, &[range(0, 2)]), [range(0, 2)]);
    broker.release(c, &[range(4, 5)]);
    assert_eq!(serve(&mut broker, c, 100), again(4, 5));
    broker.release(c, &[range(5, 6)]);
    assert_eq!(serve(&mut broker, c, 100), again(5, 6), "old and new are never mixed");
    assert_eq!(serve(&mut broker, c, 100), fresh(6, 10));
}

#[test]
fn what_a_consumer_held_is_ready_at_once_when_it_goes() {
    let (mut broker, _, g) = scene(4);
    let [gone, waiting] = [(); 2].map(|()| taker(&mut broker, g, 4));
    assert_eq!(outputs(&mut broker), [ready(gone), ready(waiting)]);
    assert_eq!(serve(&mut broker, gone, 9), fresh(0, 4));
    assert_eq!(broker.offer(waiting, 9), None);
    assert_eq!(outputs(&mut broker), []);
    broker.remove_consumer(gone);
    assert_eq!(outputs(&mut broker), [ready(waiting)]);
    assert_eq!(serve(&mut broker, waiting, 9), again(0, 4));
    assert_eq!(broker.counts(g).consumers, 1);
}

#[test]
fn an_ack_of_what_is_not_held_is_ignored() {
    let (mut broker, _, g) = scene(10);
    let [mine, other] = [(); 2].map(|()| taker(&mut broker, g, 3));
    assert_eq!(serve(&mut broker, mine, 9), fresh(0, 3));
    assert_eq!(serve(&mut broker, other, 9), fresh(3, 6));
    let refused = broker.check_held(mine, &[range(0, 3), range(2, 8)]);
    assert_eq!(refused, Err(Refusal::NotHeld { range: range(3, 8) }));
    assert_eq!(broker.ack(mine, &[range(2, 8), range(0, 2)]), [range(2, 3), range(0, 2)]);
    assert_eq!(broker.ack(mine, &[range(0, 3)]), [], "not twice");
    assert_eq!((broker.counts(g).floor, broker.counts(g).leased), (Offset(3), Count(3)));
}

#[test]
fn single_acks_in_a_row_are_one_range_for_the_journal() {
    let (mut broker, _, g) = scene(10);
    let c = taker(&mut broker, g, 10);
    serve(&mut broker, c, 10);
    let singles: Vec<OffsetRange> = (2..7).map(|n| range(n, n + 1)).collect();
    assert_eq!(broker.ack(c, &singles), [range(2, 7)]);
}

#[test]
fn gaps_are_no_messages() {
    let mut broker = Broker::new();
    let q = broker.add_queue(Offset(5), Offset(20), &[range(8, 10)], &[]);
    let g = broker.add_group(q, &name("default"), None).unwrap();
    broker.extend(q, range(1000, 1002));
    assert_eq!(broker.counts(g).ready, Count(15));
    assert_eq!(broker.counts(g).oldest, Some(Offset(5)));
    let c = taker(&mut broker, g, 100);
    assert_eq!(serve(&mut broker, c, 100), fresh(5, 8));
    assert_eq!(serve(&mut broker, c, 100), fresh(10, 20));
    assert_eq!(serve(&mut broker, c, 100), fresh(1000, 1002));
    assert_eq!(broker.ack(c, &[range(5, 20)]), [range(5, 8), range(10, 20)]);
    assert_eq!(broker.counts(g).floor, Offset(1000), "the floor moves across gaps");
    assert!(broker.is_gone(q, range(0, 1000)));
    assert!(!broker.is_gone(q, range(0, 1001)));
}

#[test]
fn two_consumers_share_evenly_whatever_their_credit() {
    let (mut broker, _, g) = scene(1000);
    let [greedy, modest] = [1_000_000, 1_000].map(|credit| taker(&mut broker, g, credit));
    let mut served = Vec::new();
    while let Some(Output::Ready { consumer }) = broker.next_output() {
        while serve(&mut broker, consumer, 10).is_some() {
            served.push(consumer);
        }
    }
    assert_eq!(served.len(), 100);
    assert!(served.chunks(2).all(|turns| turns == [greedy, modest]));
}

/// The event loop may also ask for all outputs first and serve later; that must not starve
/// anybody either.
#[test]
fn a_greedy_loop_does_not_starve_those_that_were_called_too() {
    let (mut broker, _, g) = scene(90);
    let all = [(); 3].map(|()| taker(&mut broker, g, 1_000));
    let mut served = Vec::new();
    loop {
        let called = outputs(&mut broker);
        if called.is_empty() {
            break;
        }
        for output in called {
            let Output::Ready { consumer } = output else { panic!("{output:?}") };
            while serve(&mut broker, consumer, 10).is_some() {
                served.push(consumer);
            }
        }
    }
    assert_eq!(served, all.repeat(3));
}

#[test]
fn a_consumer_that_was_called_and_cannot_be_written_to_holds_up_nobody() {
    let (mut broker, q, g) = scene(1);
    let [stopped, healthy] = [(); 2].map(|()| taker(&mut broker, g, 100));
    assert_eq!(broker.next_output(), Some(ready(stopped)));
    assert_eq!(broker.next_output(), Some(ready(healthy)));
    assert!(serve(&mut broker, healthy, 10).is_some());
    for n in 1..10 {
        assert_eq!(broker.offer(healthy, 10), None);
        assert_eq!(outputs(&mut broker), []);
        broker.extend(q, range(n, n + 1));
        assert_eq!(outputs(&mut broker), [ready(healthy)]);
        assert_eq!(serve(&mut broker, healthy, 10), fresh(n, n + 1));
    }
}

#[test]
fn a_consumer_alone_keeps_its_turn() {
    let (mut broker, _, g) = scene(100);
    let c = taker(&mut broker, g, 100);
    assert_eq!(outputs(&mut broker), [ready(c)]);
    for n in 0..10 {
        assert_eq!(serve(&mut broker, c, 10), fresh(n * 10, n * 10 + 10));
    }
    assert_eq!(broker.offer(c, 10), None);
    assert_eq!(outputs(&mut broker), []);
}

#[test]
fn one_message_wakes_one_consumer_of_many() {
    let (mut broker, q, g) = scene(0);
    let all: Vec<ConsumerKey> = (0..50).map(|_| taker(&mut broker, g, 100)).collect();
    for n in 0..100 {
        broker.extend(q, range(n, n + 1));
        let next = all[n as usize % 50];
        assert_eq!(broker.next_output(), Some(ready(next)), "they come in turn");
        assert_eq!(serve(&mut broker, next, 10), fresh(n, n + 1));
        assert_eq!(broker.next_output(), None);
    }
}

/// Found by the model: a consumer that was offered something before it was called, and took it,
/// stood as called without ever having been told.
#[test]
fn who_asks_before_being_called_is_still_called() {
    let (mut broker, q, g) = scene(3);
    let c = taker(&mut broker, g, 4);
    broker.take(c, range(0, 1));
    assert_eq!(outputs(&mut broker), [ready(c)]);
    assert_eq!(serve(&mut broker, c, 9), fresh(1, 3));
    broker.extend(q, range(3, 4));
    assert_eq!(serve(&mut broker, c, 9), fresh(3, 4));
}

#[test]
fn an_end_comes_once_and_does_not_wait_for_leases_of_others() {
    let (mut broker, q, g) = scene(4);
    let other = taker(&mut broker, g, 2);
    assert_eq!(serve(&mut broker, other, 9), fresh(0, 2));
    let c = taker_until(&mut broker, g, 9, 4);
    broker.extend(q, range(4, 6));
    assert_eq!(outputs(&mut broker), [ready(c)]);
    assert_eq!(serve(&mut broker, c, 9), fresh(2, 4), "nothing from its end on");
    assert_eq!(outputs(&mut broker), [end(c)]);
    broker.remove_consumer(other);
    assert_eq!((broker.offer(c, 9), outputs(&mut broker)), (None, vec![]));
    assert_eq!(broker.ack(c, &[range(2, 4)]), [range(2, 4)], "it may still settle");
}

#[test]
fn an_end_comes_straight_away_where_nothing_is_ready() {
    let (mut broker, q, g) = scene(0);
    let (c, _) = broker.add_consumer(q, Some(g), take_until(0), &[]);
    let (p, _) = broker.add_consumer(q, None, Kind::peek(Offset(0)), &[]);
    assert_eq!(outputs(&mut broker), [end(c), end(p)]);
}

#[test]
fn an_end_comes_when_others_took_the_rest() {
    let (mut broker, q, g) = scene(4);
    let other = taker(&mut broker, g, 9);
    let without_credit = taker_until(&mut broker, g, 0, 4);
    let (peek, _) = broker.add_consumer(q, Some(g), Kind::peek(Offset(4)), &[]);
    let (outside, _) = broker.add_consumer(q, None, Kind::peek(Offset(4)), &[]);
    assert_eq!(outputs(&mut broker), [ready(other)]);
    assert_eq!(serve(&mut broker, other, 9), fresh(0, 4));
    assert_eq!(outputs(&mut broker), [end(without_credit), end(peek)]);
    broker.ack(other, &[range(0, 4)]);
    let ends = outputs(&mut broker);
    assert!(ends.contains(&end(outside)) && ends.contains(&Output::Quiet { queue: q }));
}

/// Once, an exclusive receiver that was to end at the end of what was ready was at its end as long
/// as another held all: so an instance of a pipe that took over from a running one had nothing to
/// do, and what that one gave back lay there.
#[test]
fn an_exclusive_consumer_comes_to_its_end_in_its_turn() {
    let (mut broker, q, g) = scene(4);
    let exclusive = Kind { exclusive: true, ..take_until(4) };
    let (first, _) = broker.add_consumer(q, Some(g), Kind { until: None, ..exclusive }, &[]);
    broker.credit(first, 9);
    assert_eq!(outputs(&mut broker), [Output::Holder { consumer: first, epoch: 1 }]);
    broker.begin_tenure(first);
    assert_eq!(serve(&mut broker, first, 9), fresh(0, 4));
    let (next, _) = broker.add_consumer(q, Some(g), exclusive, &[]);
    broker.credit(next, 9);
    let (last, _) = broker.add_consumer(q, Some(g), exclusive, &[]);
    assert_eq!(outputs(&mut broker), [], "all is held, and nobody is at an end");
    broker.remove_consumer(first);
    assert_eq!(outputs(&mut broker), [Output::Holder { consumer: next, epoch: 2 }]);
    broker.begin_tenure(next);
    assert_eq!(serve(&mut broker, next, 9), again(0, 4));
    broker.ack(next, &[range(0, 4)]);
    assert!(outputs(&mut broker).contains(&end(next)));
    broker.remove_consumer(next);
    assert_eq!(outputs(&mut broker), [Output::Holder { consumer: last, epoch: 3 }]);
    broker.begin_tenure(last);
    assert_eq!(outputs(&mut broker), [end(last)]);
}

#[test]
fn a_peek_sees_what_is_ready_once_and_takes_nothing() {
    let (mut broker, q, g) = scene(6);
    let c = taker(&mut broker, g, 2);
    assert_eq!(serve(&mut broker, c, 9), fresh(0, 2));
    let inside = peeker(&mut broker, q, Some(g), 6);
    assert_eq!(serve(&mut broker, inside, 3), fresh(2, 5));
    broker.release(c, &[range(0, 2)]);
    assert_eq!(serve(&mut broker, inside, 9), fresh(5, 6), "it never goes back");
    assert_eq!(broker.offer(inside, 9), None);
    let outside = peeker(&mut broker, q, None, 6);
    assert_eq!(serve(&mut broker, outside, 9), fresh(0, 6));
    assert_eq!(broker.counts(g).ready, Count(6));
    assert_eq!(broker.counts(g).handed, Offset(2));
}

#[test]
fn gone_is_what_every_group_has_settled_and_stays_so() {
    let (mut broker, q, first) = scene(10);
    let second = broker.add_group(q, &name("second"), None).unwrap();
    for (g, acked) in [(first, range(2, 8)), (second, range(5, 10))] {
        let c = taker(&mut broker, g, 10);
        serve(&mut broker, c, 10);
        broker.ack(c, &[acked]);
    }
    assert!(broker.gone(q).iter().eq([range(5, 8)]));
    assert!(broker.is_gone(q, range(5, 8)) && !broker.is_gone(q, range(4, 8)));
    let third = broker.add_group(q, &name("third"), None).unwrap();
    assert_eq!(broker.counts(third).ready, Count(7));
    assert_eq!(broker.counts_without_group(q), Count(7));
    for g in [first, second, third] {
        broker.remove_group(g);
    }
    assert!(broker.is_gone(q, range(5, 8)), "gone is gone");
    let fourth = broker.add_group(q, &name("fourth"), None).unwrap();
    let c = taker(&mut broker, fourth, 99);
    assert_eq!(serve(&mut broker, c, 99), fresh(0, 5), "what was never delivered here is new");
    assert_eq!(serve(&mut broker, c, 99), fresh(8, 10));
}

#[test]
fn a_queue_without_groups_settles_nothing_but_by_a_purge() {
    let mut broker = Broker::new();
    let q = broker.add_queue(Offset(1), Offset(11), &[], &[range(3, 5)]);
    assert!(!broker.is_quiet(q));
    assert_eq!(broker.counts_without_group(q), Count(8));
    assert_eq!(broker.purge(q), []);
    assert_eq!(broker.counts_without_group(q), Count(0));
    assert_eq!(outputs(&mut broker), [Output::Quiet { queue: q }]);
    let g = broker.add_group(q, &name("late"), None).unwrap();
    assert_eq!(broker.counts(g).floor, Offset(11));
}

#[test]
fn a_purge_leaves_what_is_leased() {
    let (mut broker, q, g) = scene(10);
    let c = taker(&mut broker, g, 3);
    serve(&mut broker, c, 9);
    assert_eq!(broker.purge(q), [(g, vec![range(3, 10)])]);
    assert_eq!((broker.counts(g).ready, broker.counts(g).leased), (Count(0), Count(3)));
    assert_eq!(broker.purge(q), []);
    broker.release(c, &[range(0, 3)]);
    assert_eq!(broker.counts(g).ready, Count(3));
}

#[test]
fn a_queue_is_quiet_when_nothing_is_ready_or_leased() {
    let (mut broker, q, g) = scene(0);
    let c = taker(&mut broker, g, 9);
    assert_eq!((broker.is_quiet(q), outputs(&mut broker)), (true, vec![]));
    broker.extend(q, range(0, 2));
    assert_eq!(outputs(&mut broker), [ready(c)]);
    serve(&mut broker, c, 9);
    assert_eq!((broker.is_quiet(q), outputs(&mut broker)), (false, vec![]));
    broker.ack(c, &[range(0, 2)]);
    assert_eq!(outputs(&mut broker), [Output::Quiet { queue: q }]);
    broker.extend(q, range(2, 3));
    serve(&mut broker, c, 9);
    broker.ack(c, &[range(2, 3)]);
    broker.extend(q, range(3, 4));
    let said = outputs(&mut broker);
    assert!(!said.contains(&Output::Quiet { queue: q }), "it is not any more");
}

#[test]
fn a_resumed_receiver_keeps_what_has_not_gone_to_another() {
    let mut broker = Broker::new();
    let q = broker.add_queue(Offset(0), Offset(20), &[], &[]);
    let state = GroupState {
        settled: vec![range(0, 2), range(5, 6)],
        handed: Offset(8),
        ..GroupState::default()
    };
    let g = broker.add_group(q, &name("default"), Some(state.clone())).unwrap();
    assert_eq!(broker.group_state(g), state);
    let quick = taker(&mut broker, g, 2);
    assert_eq!(serve(&mut broker, quick, 9), again(2, 4));
    let holding = [range(7, 10), range(0, 8), range(30, 40)];
    let (c, kept) = broker.add_consumer(q, Some(g), Kind::TAKE, &holding);
    assert_eq!(kept, [range(4, 5), range(6, 10)]);
    broker.credit(c, 6);
    assert_eq!(broker.counts(g).handed, Offset(10));
    assert_eq!(serve(&mut broker, c, 9), fresh(10, 11), "what it kept counts as delivered");
}

#[test]
fn a_journal_that_knows_more_than_the_log_does_not_reach_beyond_it() {
    let mut broker = Broker::new();
    let q = broker.add_queue(Offset(0), Offset(10), &[], &[]);
    let state =
        GroupState { settled: vec![range(0, 15)], handed: Offset(15), ..GroupState::default() };
    let g = broker.add_group(q, &name("default"), Some(state)).unwrap();
    broker.extend(q, range(10, 20));
    let c = taker(&mut broker, g, 99);
    assert_eq!(serve(&mut broker, c, 99), fresh(10, 20));
}

#[test]
fn a_group_with_too_many_holes_gets_nothing_new_until_they_close() {
    let (mut broker, q, g) = scene(0);
    let max = limits::SETTLED_RANGES_PER_GROUP_MAX as u64;
    broker.extend(q, range(0, 4 * max));
    let c = taker(&mut broker, g, u64::MAX);
    serve(&mut broker, c, 2 * max + 2);
    let odd: Vec<OffsetRange> = (0..=max).map(|n| range(2 * n + 1, 2 * n + 2)).collect();
    broker.ack(c, &odd[1..]);
    assert!(!broker.counts(g).stuck);
    broker.ack(c, &odd[..1]);
    assert!(broker.counts(g).stuck);
    assert_eq!(broker.counts(g).settled_ranges as u64, max + 1);
    assert_eq!(broker.offer(c, 9), None, "nothing new");
    assert!(!broker.is_behind(c) && broker.counts(g).ready > Count(0));
    assert_eq!(outputs(&mut broker), []);
    broker.release(c, &[range(4, 5)]);
    assert_eq!(outputs(&mut broker), [ready(c)]);
    assert_eq!(serve(&mut broker, c, 9), again(4, 5), "but what lies in the holes");
    assert_eq!(broker.offer(c, 9), None);
    broker.ack(c, &[range(4, 5)]);
    assert_eq!(outputs(&mut broker), [ready(c)]);
    assert_eq!(broker.offer(c, 9), fresh(2 * max + 2, 2 * max + 11));
}

/// Also when what was handed out lies above everything settled: only what nobody has had yet can
/// make holes that were not there already.
#[test]
fn a_stuck_group_gets_again_whatever_it_had() {
    let mut broker = Broker::with_bounds(Bounds { settled_ranges: 1, ..Bounds::REAL });
    let q = broker.add_queue(Offset(0), Offset(20), &[], &[]);
    let g = broker.add_group(q, &name("default"), None).unwrap();
    let c = taker(&mut broker, g, 99);
    serve(&mut broker, c, 10);
    broker.ack(c, &[range(1, 2), range(3, 4)]);
    broker.release(c, &[range(8, 10)]);
    assert!(broker.counts(g).stuck);
    assert_eq!(serve(&mut broker, c, 99), again(8, 10));
    assert_eq!(broker.offer(c, 99), None);
}

/// What is gone may have more holes than a group may have; a group that is made then can close
/// them, although nothing was ever handed to it.
#[test]
fn a_group_that_is_born_stuck_gets_what_lies_in_its_holes() {
    let mut broker = Broker::with_bounds(Bounds { settled_ranges: 1, ..Bounds::REAL });
    let gone = [range(2, 3), range(5, 6)];
    let q = broker.add_queue(Offset(0), Offset(20), &[range(15, 16)], &gone);
    let g = broker.add_group(q, &name("late"), None).unwrap();
    let c = taker(&mut broker, g, 99);
    assert!(broker.counts(g).stuck);
    assert_eq!(serve(&mut broker, c, 99), fresh(0, 2));
    assert_eq!(serve(&mut broker, c, 99), fresh(3, 5));
    assert_eq!(broker.offer(c, 99), None, "what lies before the gap is new");
    broker.ack(c, &[range(0, 5)]);
    assert_eq!(serve(&mut broker, c, 99), fresh(6, 15));
}

#[test]
fn a_receiver_is_told_that_more_is_waiting_than_its_credit_admits() {
    let (mut broker, q, g) = scene(10);
    let c = taker(&mut broker, g, 9);
    assert!(broker.is_behind(c));
    broker.credit(c, 10);
    assert!(!broker.is_behind(c));
    let p = peeker(&mut broker, q, None, 5);
    assert!(!broker.is_behind(p));
    broker.credit(p, 4);
    assert!(broker.is_behind(p));
}

#[test]
fn groups_are_found_by_name_and_bounded() {
    let (mut broker, q, g) = scene(1);
    assert_eq!(broker.find_group(q, &name("default")), Some(g));
    assert_eq!(broker.find_group(q, &name("defualt")), None);
    let twice = broker.add_group(q, &name("default"), None);
    assert_eq!(twice, Err(Refusal::GroupExists { name: name("default") }));
    for n in 1..limits::GROUPS_PER_QUEUE_MAX {
        assert!(broker.add_group(q, &name(&format!("g{n}")), None).is_ok());
    }
    assert_eq!(broker.add_group(q, &name("more"), None), Err(Refusal::TooManyGroups));
    let names: Vec<&Name> = broker.groups(q).map(|(_, name)| name).collect();
    assert!(names.is_sorted() && names.len() == limits::GROUPS_PER_QUEUE_MAX);
}

#[test]
fn a_removed_queue_leaves_no_trace() {
    let (mut broker, q, g) = scene(10);
    let takes = taker(&mut broker, g, 9);
    let ended = taker_until(&mut broker, g, 9, 0);
    let peeks = peeker(&mut broker, q, None, 10);
    serve(&mut broker, takes, 4);
    let keys = broker.remove_queue(q);
    assert_eq!(keys, [takes, ended, peeks]);
    assert_eq!(outputs(&mut broker), []);
}

#[test]
fn consumers_that_come_and_go_leave_nothing_behind() {
    let (mut broker, q, g) = scene(10);
    for _ in 0..100 {
        let c = taker(&mut broker, g, 9);
        let p = peeker(&mut broker, q, Some(g), 10);
        let e = taker_until(&mut broker, g, 9, 0);
        [c, p, e].into_iter().for_each(|c| broker.remove_consumer(c));
    }
    assert!(broker.group(g).line.is_empty() && broker.group(g).watch.is_empty());
    assert_eq!(broker.consumers.iter().count(), 0);
    assert_eq!(outputs(&mut broker), []);
}

#[test]
#[should_panic(expected = "9..12 was taken, but the offer is")]
fn taking_what_was_not_offered_is_found_out() {
    let (mut broker, _, g) = scene(10);
    let c = taker(&mut broker, g, 99);
    broker.take(c, range(9, 12));
}

#[test]
#[should_panic(expected = "lie before the end 10")]
fn messages_that_come_twice_are_found_out() {
    let (mut broker, q, _) = scene(10);
    broker.extend(q, range(9, 12));
}

/// Each message goes to a consumer of its own, is acked in an order that makes as many holes as
/// there can be, and half of them come back first. Quadratic work would take minutes.
#[test]
fn a_thousand_consumers_and_ten_thousand_holes_stay_cheap() {
    let (mut broker, q, g) = scene(0);
    let all: Vec<ConsumerKey> = (0..1_000).map(|_| taker(&mut broker, g, u64::MAX)).collect();
    let watching = taker_until(&mut broker, g, 0, u64::MAX);
    assert_eq!(outputs(&mut broker), [end(watching)]);
    const MESSAGES: u64 = 20_000;
    let started = std::time::Instant::now();
    let mut holders = Vec::new();
    for n in 0..MESSAGES {
        broker.extend(q, range(n, n + 1));
        while let Some(Output::Ready { consumer }) = broker.next_output() {
            holders
                .push((consumer, serve(&mut broker, consumer, 100).expect("one is ready").range));
        }
    }
    assert_eq!(holders.len() as u64, MESSAGES);
    let (even, odd): (Vec<_>, Vec<_>) = holders.into_iter().partition(|(_, r)| r.start.0 % 2 == 0);
    for (c, range) in odd {
        assert_eq!(broker.ack(c, &[range]), [range]);
    }
    assert_eq!(broker.counts(g).settled_ranges as u64, MESSAGES / 2);
    for (c, range) in even {
        broker.release(c, &[range]);
    }
    for peek in [Some(g), None] {
        let c = peeker(&mut broker, q, peek, MESSAGES);
        while let Some(offer) = serve(&mut broker, c, 100) {
            assert_eq!(offer.range.span(), 1);
        }
        broker.remove_consumer(c);
    }
    while let Some(output) = broker.next_output() {
        if let Output::Ready { consumer } = output
            && let Some(offer) = serve(&mut broker, consumer, 100)
        {
            broker.ack(consumer, &[offer.range]);
        }
    }
    assert!(broker.is_quiet(q));
    for c in all {
        broker.remove_consumer(c);
    }
    let took = started.elapsed();
    assert!(took.as_secs() < 20, "{took:?}");
}

/// The broker stays pure: it uses nothing of mq but units, limits and settings, and nothing of the
/// standard library that reaches outside.
#[test]
fn the_broker_is_pure() {
    let mut looked_at = 0;
    let mut dirs =
        vec![std::path::PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src/broker"))];
    while let Some(dir) = dirs.pop() {
        for file in std::fs::read_dir(dir).expect("the sources are here") {
            let path = file.expect("a file").path();
            if path.is_dir() {
                dirs.push(path);
            } else if !path.ends_with("claims.rs") {
                check_purity(&path);
                looked_at += 1;
            }
        }
    }
    assert!(looked_at > 10, "{looked_at} sources");
}

fn check_purity(path: &std::path::Path) {
    let text = std::fs::read_to_string(path).expect("a source is text");
    for used in text.split("crate::").skip(1) {
        // What is planted is a constant in every build that is used.
        let modules = ["units", "limits", "settings", "planted"];
        let pure = modules.iter().any(|module| used.starts_with(module));
        assert!(pure, "{}: crate::{}", path.display(), &used[..used.len().min(20)]);
    }
    for outside in ["time", "fs", "io", "net", "os", "env", "thread", "process", "sync"] {
        assert!(!text.contains(&format!("std::{outside}")), "{}: {outside}", path.display());
    }
}

#[test]
fn an_attempt_counts_once_whether_or_not_the_last_server_was_told() {
    let (mut broker, q, g) = scene(4);
    let (c, kept) = broker.add_consumer(q, Some(g), Kind::TAKE, &[range(0, 4)]);
    assert_eq!(kept, [range(0, 4)]);
    let attempts = |broker: &Broker| [0, 1, 2, 3].map(|n| broker.attempts(g, Offset(n)).0);
    // Begun for the third time on another server, whose word of it was lost.
    let third = Tried { range: range(1, 2), attempts: Attempts(3), ready_at: None };
    assert_eq!(broker.has_begun(c, &[range(1, 2)], Attempts(3)), [third]);
    assert_eq!(broker.has_begun(c, &[range(1, 2)], Attempts(3)), []);
    assert_eq!(broker.begin(c, &[range(1, 2)]), [], "it is begun");
    assert_eq!(attempts(&broker), [0, 3, 0, 0]);
    // What only waited is begun later, and counts then.
    assert_eq!(broker.begin(c, &[range(0, 1)]).len(), 1);
    assert_eq!(attempts(&broker), [1, 3, 0, 0]);
    // What it does not hold is none of its business.
    broker.release(c, &[range(2, 3)]);
    assert_eq!(broker.has_begun(c, &[range(2, 3)], Attempts(9)), []);
    assert_eq!(attempts(&broker), [1, 3, 0, 0]);
}
