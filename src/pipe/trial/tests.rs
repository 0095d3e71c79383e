//! Trials of filters that fail in all ways.

use super::*;

const BACKOFF: Backoff = Backoff { first: Micros(10), max: Micros(100) };

fn rules() -> Rules {
    Rules { limit: Some(3), may_bury: true, may_halve: true, backoff: BACKOFF }
}

/// Goes through a trial with a filter that fails as `fails` says; what was committed and
/// given up, in order, the runs, and how it ended.
fn go(
    count: u64,
    rules: Rules,
    mut fails: impl FnMut(&Range<u64>) -> Ran,
) -> (Vec<(bool, u64)>, usize, Step) {
    let mut trial = Trial::new(count, rules);
    let (mut done, mut runs) = (Vec::new(), 0);
    for _ in 0..1_000_000 {
        match trial.step() {
            Step::Run(range) => {
                runs += 1;
                trial.ran(fails(&range));
            }
            Step::Commit(range) => done.extend(range.map(|n| (true, n))),
            Step::Dead(range, _) => done.extend(range.map(|n| (false, n))),
            Step::Pause(pause) => assert!((10..=100).contains(&pause.0)),
            end => return (done, runs, end),
        }
    }
    panic!("it never ends");
}

#[test]
fn what_succeeds_is_committed_at_once() {
    assert_eq!(go(5, rules(), |_| Ran::Well).1, 1);
}

#[test]
fn each_poison_alone_is_given_up_and_all_else_committed_in_order() {
    for count in [1u64, 2, 3, 8, 100] {
        for bad in 0..count {
            let poison = |range: &Range<u64>| {
                if range.contains(&bad) { Ran::Failed } else { Ran::Well }
            };
            let (done, _, end) = go(count, rules(), poison);
            assert_eq!(end, Step::Done);
            let expected: Vec<_> = (0..count).map(|n| (n != bad, n)).collect();
            assert_eq!(done, expected, "message {bad} of {count}");
        }
    }
}

#[test]
fn several_poisons_are_found() {
    let many = Rules { limit: Some(30), ..rules() };
    let bad = [0u64, 1, 2, 7, 31, 32, 63];
    let (done, _, end) =
        go(
            64,
            many,
            |range| {
                if bad.iter().any(|n| range.contains(n)) { Ran::Failed } else { Ran::Well }
            },
        );
    assert_eq!(end, Step::Done);
    assert_eq!(done, (0..64).map(|n| (!bad.contains(&n), n)).collect::<Vec<_>>());
}

/// Once, a batch came down to single messages by one halving of all of it in a round, and the
/// trial was over before: with a limit of 3, one message in nine was enough.
#[test]
fn many_poisons_in_a_large_batch_are_found() {
    let every = |step: u64| move |n: u64| n % step == step - 1;
    let within = |range: Range<u64>| move |n: u64| range.contains(&n);
    check_bad(100_000, every(9));
    check_bad(100_000, every(2));
    check_bad(100_000, within(0..70_000));
    check_bad(100_000, within(30_000..100_000));
    check_bad(1000, |n| n * n % 7 != 2);
    // Each message of a small batch is tried before anybody says that all of them fail.
    (0..50).for_each(|good| check_bad(50, move |n| n != good));
}

/// Whatever is bad is given up, and nothing else, in few runs.
fn check_bad(count: u64, is_bad: impl Fn(u64) -> bool) {
    for limit in [1, 3] {
        let bad: Vec<u64> = (0..count).filter(|n| is_bad(*n)).collect();
        let any_bad = |range: &Range<u64>| {
            let first = bad.partition_point(|n| *n < range.start);
            bad.get(first).is_some_and(|n| *n < range.end)
        };
        let fails = |range: &Range<u64>| if any_bad(range) { Ran::Failed } else { Ran::Well };
        let (done, runs, end) = go(count, Rules { limit: Some(limit), ..rules() }, fails);
        assert_eq!(end, Step::Done, "{} bad ones of {count}, limit {limit}", bad.len());
        assert!(done == (0..count).map(|n| (!is_bad(n), n)).collect::<Vec<_>>());
        let most = 2 * count as usize + (1 + limit as usize) * bad.len() + 200;
        assert!(runs < most, "{runs} runs for {} bad ones of {count}", bad.len());
    }
}

/// What a filter fails on while its database is down is not at fault: also when the database
/// comes back between two messages, and when it goes away after some were well. Once, failures
/// of that time counted.
#[test]
fn nobody_is_given_up_for_a_database_that_is_down() {
    let bad = [3u64, 4, 11];
    let fails = |range: &Range<u64>| bad.iter().any(|n| range.contains(n));
    for limit in 1..5 {
        let rules = Rules { limit: Some(limit), ..rules() };
        for turn in 0..150 {
            let mut runs = 0;
            let (done, _, end) = go(16, rules, |range| {
                runs += 1;
                if runs <= turn || fails(range) { Ran::Failed } else { Ran::Well }
            });
            let expected: Vec<_> = (0..16).map(|n| (!bad.contains(&n), n)).collect();
            match end {
                Step::Done => assert_eq!(done, expected, "limit {limit}, up from {turn}"),
                _ => assert_eq!(done, [], "limit {limit}, up from {turn}"),
            }
            let mut runs = 0;
            let (done, _, _) = go(16, rules, |range| {
                runs += 1;
                if runs > turn || fails(range) { Ran::Failed } else { Ran::Well }
            });
            assert_eq!(done, expected[..done.len()], "limit {limit}, down from {turn}");
        }
    }
}

#[test]
fn when_everything_fails_nothing_is_given_up() {
    let usual = Rules { limit: Some(20), ..rules() };
    for (count, rules, most) in [(1000, rules(), 200), (1 << 20, usual, 1000)] {
        let (done, runs, end) = go(count, rules, |_| Ran::Failed);
        assert_eq!((done, end), (Vec::new(), Step::GiveUp));
        assert!(runs < most, "{runs} runs");
    }
    let endless = Rules { limit: None, ..rules() };
    let mut left = 5000;
    let (done, _, end) = go(16, endless, |_| {
        left -= 1;
        if left > 0 { Ran::Failed } else { Ran::Well }
    });
    assert_eq!((done.len(), end), (16, Step::Done), "it comes back in the end");
}

#[test]
fn a_batch_that_may_not_be_halved_is_tried_whole() {
    let whole = Rules { may_halve: false, ..rules() };
    let (done, runs, end) = go(4, whole, |_| Ran::Failed);
    assert_eq!((runs, end), (3, Step::Done));
    assert_eq!(done, (0..4).map(|n| (false, n)).collect::<Vec<_>>());
    let stops = Rules { may_bury: false, ..whole };
    assert_eq!(go(4, stops, |_| Ran::Failed).2, Step::GiveUp);
    let stops = Rules { may_bury: false, ..rules() };
    let poison = |range: &Range<u64>| {
        if range.contains(&2) { Ran::Failed } else { Ran::Well }
    };
    let (done, _, end) = go(4, stops, poison);
    assert_eq!((done, end), (vec![(true, 0), (true, 1)], Step::GiveUp));
    let mut trial = Trial::new(4, stops);
    while trial.step() != Step::GiveUp {
        if let Some(Running::Part(at)) = trial.running {
            let how = poison(&trial.parts[at].messages.clone());
            trial.ran(how);
        } else if trial.running.is_some() {
            trial.ran(Ran::Well);
        }
    }
    assert_eq!(trial.at_fault(), 2..3);
    let mut trial = Trial::new(4, stops);
    trial.step();
    trial.ran(Ran::Failed);
    assert_eq!(trial.at_fault(), 0..4);
}

/// Once, all parts of a size were run before any of half of it: a thousand runs, each with 64
/// MiB of output, before it was seen that one message alone makes more.
#[test]
fn what_is_too_much_is_soon_found() {
    let mut trial = Trial::new(1 << 16, rules());
    let mut runs = 0;
    while let Step::Run(range) = trial.step() {
        runs += 1;
        if range == (0..1) {
            break;
        }
        trial.ran(Ran::TooMuch);
    }
    assert_eq!(runs, 17);
    let fits = |range: &Range<u64>| {
        if range.end - range.start > 100 { Ran::TooMuch } else { Ran::Well }
    };
    let (done, runs, end) = go(1024, rules(), fits);
    assert_eq!((done, end), ((0..1024).map(|n| (true, n)).collect::<Vec<_>>(), Step::Done));
    assert_eq!(runs, 16 + 15, "each part is run once");
}

#[test]
fn what_can_never_succeed_is_given_up_at_once() {
    let (done, runs, end) =
        go(8, rules(), |range| if range.contains(&5) { Ran::Never } else { Ran::Well });
    assert_eq!(end, Step::Done);
    assert_eq!(done, (0..8).map(|n| (n != 5, n)).collect::<Vec<_>>());
    assert!(runs < 12, "{runs} runs");
    let (done, _, end) =
        go(8, rules(), |range| if range.end - range.start > 2 { Ran::TooMuch } else { Ran::Well });
    assert_eq!((done.len(), end), (8, Step::Done), "smaller batches");
}
