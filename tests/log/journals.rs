//! What the journal of a group was told comes back, and counts as durable when it is, wherever the
//! group was set meanwhile.
//!
//! Everything runs on the simulated disk.

use crate::facts::{bench_with, range};
use crate::sim::bench::{Bench, KILLED, REBOOTED, small};
use crate::sim::disk::Fault;
use mq::log::{GroupAccount, GroupFact, GroupFile, GroupPosition, LeasedRange, TriedRange};
use mq::settings::Settings;
use mq::units::{Attempts, Ending, LeaseNumber, Micros, Name, Offset, OffsetRange, WallTime};

fn facts() -> (Vec<GroupFact>, GroupPosition) {
    let tried =
        TriedRange { range: range(2, 6), attempts: Attempts(3), ready_at: Some(WallTime(1 << 50)) };
    let number = LeaseNumber((7 << 32) | 12345);
    let lease = LeasedRange { range: range(8, 10), number, deadline: WallTime(99) };
    let over = LeaseNumber((9 << 32) | 1);
    let facts = vec![
        GroupFact::Tried(TriedRange { attempts: Attempts(2), ready_at: None, ..tried }),
        GroupFact::Tried(tried),
        GroupFact::Leased(LeasedRange { deadline: WallTime(50), ..lease }),
        GroupFact::Leased(lease),
        GroupFact::Leased(LeasedRange { range: range(11, 12), number: over, ..lease }),
        GroupFact::Returned { range: range(11, 12), number: over },
        GroupFact::Epoch(4),
        GroupFact::Epoch(3),
    ];
    let position = GroupPosition {
        settled: vec![range(0, 3)],
        handed: Offset(12),
        tried: vec![TriedRange { range: range(3, 6), ..tried }],
        leases: vec![lease],
        epoch: 4,
        lease_counter: 9,
        account: acked(3),
    };
    (facts, position)
}

/// The account of a group that has acked so many messages, and does not know more of itself.
pub fn acked(messages: u64) -> GroupAccount {
    let mut account = GroupAccount::default();
    account.tally.add(Ending::Acked, messages);
    account
}

#[test]
fn what_a_group_was_told_comes_back() {
    let (facts, position) = facts();
    for compacted in [false, true] {
        let mut bench = bench_with(&Settings::default(), &small());
        for _ in 0..20 {
            bench.append(&["x"]);
        }
        bench.settle();
        let group = bench.log.add_group(&Name::new("g").unwrap()).unwrap();
        bench.settle();
        bench.log.note_group(group, &facts, || unreachable!("small")).unwrap();
        bench
            .log
            .settled(group, &[range(0, 3)], Ending::Acked, Offset(12), || unreachable!("small"))
            .unwrap();
        if compacted {
            // Much is noted, until the journal is written anew.
            for _ in 0..40_000 {
                let again = [GroupFact::Epoch(1)];
                bench.log.note_group(group, &again, || position.clone()).unwrap();
            }
            bench.settle();
            assert!(bench.log.bytes().0 < 1 << 20);
        }
        let mark = bench.log.want_group_durable(group);
        assert!(bench.log.group_durable(group) < mark || compacted);
        bench.settle();
        assert!(bench.log.group_durable(group) >= mark, "a sync is not waited for");
        assert!(bench.progress.iter().any(|progress| progress.groups_durable.contains(&group)));
        for boot in [KILLED, REBOOTED] {
            let disk = bench.disk.clone();
            drop(bench);
            if boot == REBOOTED {
                disk.crash();
            }
            let (next, recovered) = Bench::open(disk, boot, &small()).unwrap();
            bench = next;
            assert_eq!(recovered.groups, [(Name::new("g").unwrap(), position.clone())]);
        }
    }
}

#[test]
fn group_that_was_set_elsewhere_is_there_and_forgets_what_was() {
    let (facts, _) = facts();
    let mut bench = bench_with(&Settings::default(), &small());
    for _ in 0..20 {
        bench.append(&["x"]);
    }
    bench.settle();
    let group = bench.log.add_group(&Name::new("g").unwrap()).unwrap();
    bench.log.note_group(group, &facts, || unreachable!("small")).unwrap();
    assert!(!bench.log.may_reset(group), "its first file is not installed yet");
    bench.settle();
    let position = GroupPosition { settled: vec![range(0, 1)], epoch: 4, ..Default::default() };
    bench.log.reset_group(group, &position).unwrap();
    bench
        .log
        .settled(group, &[range(5, 6)], Ending::Acked, Offset(6), || unreachable!("small"))
        .unwrap();
    assert!(!bench.log.may_reset(group), "two places would wait for each other");
    let installed = |bench: &Bench| bench.progress.iter().filter(|p| p.groups == [group]).count();
    assert_eq!(installed(&bench), 1);
    bench.settle();
    assert_eq!((installed(&bench), bench.log.may_reset(group)), (2, true));
    let after = |settled: Vec<OffsetRange>, handed| GroupPosition {
        settled,
        handed: Offset(handed),
        epoch: 4,
        ..GroupPosition::default()
    };
    let opened = |bench: &Bench| Bench::open(bench.disk.fork(), KILLED, &small()).unwrap().1.groups;
    let expected = GroupPosition { account: acked(1), ..after(vec![range(0, 1), range(5, 6)], 6) };
    assert_eq!(opened(&bench), [(Name::new("g").unwrap(), expected)]);
    bench.log.reset_group(group, &after(vec![range(0, 2)], 2)).unwrap();
    bench.settle();
    assert_eq!(opened(&bench), [(Name::new("g").unwrap(), after(vec![range(0, 2)], 2))]);
}

/// After a kill whatever had been written and not synced was taken for durable, as nothing was
/// noted in the new life: a mover replaced the only word that its messages had been moved, and a
/// loss of power then let them die, and be moved, once more. (A wide history of the simulator,
/// seed 9260.)
#[test]
fn facts_of_a_life_before_a_kill_are_durable_only_when_they_were_synced_since() {
    let mut bench = bench_with(&Settings::default(), &small());
    bench.append(&["x"]);
    bench.settle();
    let group = bench.log.add_group(&Name::new("g").unwrap()).unwrap();
    bench.settle();
    let settled = [range(0, 1)];
    bench.log.settled(group, &settled, Ending::Dead, Offset(1), || unreachable!("small")).unwrap();
    let disk = bench.disk.clone();
    drop(bench);
    let (mut bench, recovered) = Bench::open(disk, KILLED, &small()).unwrap();
    let [(_, position)] = &recovered.groups[..] else { panic!("{:?}", recovered.groups) };
    assert_eq!(position.settled, settled, "the page cache has it");
    let group = bench.log.find_group(&Name::new("g").unwrap()).unwrap();
    let mark = bench.log.want_group_durable(group);
    assert!(bench.log.group_durable(group) < mark, "nobody has synced it");
    bench.settle();
    assert!(bench.log.group_durable(group) >= mark);
    let disk = bench.disk.fork();
    disk.crash();
    let recovered = Bench::open(disk, REBOOTED, &small()).unwrap().1;
    assert_eq!(recovered.groups[0].1.settled, settled);
}

#[test]
fn facts_that_found_no_room_are_asked_for_again() {
    let mut bench = bench_with(&Settings::default(), &small());
    bench.append(&["x"]);
    bench.settle();
    let group = bench.log.add_group(&Name::new("g").unwrap()).unwrap();
    bench.settle();
    bench.disk.break_calls(Some(("write_all_at", Fault::Enospc)));
    let fact = [GroupFact::Epoch(5)];
    bench.log.note_group(group, &fact, GroupPosition::default).unwrap();
    let mark = bench.log.want_group_durable(group);
    bench.wait(Micros::from_secs(2));
    assert!(bench.log.group_durable(group) < mark);
    assert_eq!(bench.log.incomplete_groups(), [group]);
    bench.disk.break_calls(None);
    let position = GroupPosition { epoch: 5, ..GroupPosition::default() };
    bench.log.keep_group(group, &position).unwrap();
    bench.settle();
    assert!(bench.log.group_durable(group) >= mark);
    assert_eq!(bench.log.incomplete_groups(), []);
    let (_, recovered) = Bench::open(bench.disk.clone(), KILLED, &small()).unwrap();
    assert_eq!(recovered.groups[0].1.epoch, 5);
}

/// A turn began where a group was set, before that was durable. After a kill the group stood where it
/// was before, with the number of the turn, and who had its place there was refused for good.
#[test]
fn a_turn_is_where_its_group_was_set_and_nowhere_else() {
    let mut bench = bench_with(&Settings::default(), &small());
    bench.append(&["x", "y"]);
    bench.settle();
    let name = Name::new("g").unwrap();
    let group = bench.log.add_group(&name).unwrap();
    bench.log.note_group(group, &[GroupFact::Epoch(4)], || unreachable!("small")).unwrap();
    bench.settle();
    let place = GroupPosition { settled: vec![range(0, 1)], epoch: 8, ..Default::default() };
    bench.log.reset_group(group, &place).unwrap();
    bench.log.note_group(group, &[GroupFact::Epoch(9)], || unreachable!("small")).unwrap();
    let mark = bench.log.want_group_durable(group);
    bench.disk.break_calls(Some(("rename", Fault::Enospc)));
    bench.wait(Micros::from_secs(2));
    assert!(bench.log.group_durable(group) < mark, "the place is not durable");
    let found = |bench: &Bench| Bench::open(bench.disk.fork(), KILLED, &small()).unwrap().1.groups;
    let before = GroupPosition { epoch: 4, ..GroupPosition::default() };
    assert_eq!(found(&bench), [(name.clone(), before)]);
    bench.disk.break_calls(None);
    bench.wait(Micros::from_secs(2));
    assert!(bench.log.group_durable(group) >= mark);
    assert_eq!(found(&bench), [(name, GroupPosition { epoch: 9, ..place })]);
}

fn note_until_written_anew(bench: &mut Bench, group: GroupFile) {
    while bench.log.may_reset(group) {
        bench.log.note_group(group, &[GroupFact::Epoch(1)], GroupPosition::default).unwrap();
    }
}

/// A journal was being written anew, what was noted found no room there, and then the whole of it
/// found none. What was noted counted as durable only when something else was noted.
#[test]
fn what_found_no_room_in_a_file_that_goes_is_durable_where_it_stands() {
    for calls in 1..4 {
        let mut bench = bench_with(&Settings::default(), &small());
        bench.append(&["x"]);
        bench.settle();
        let mut add = |name| bench.log.add_group(&Name::new(name).unwrap()).unwrap();
        let (group, other) = (add("g"), add("other"));
        bench.settle();
        // The file of another finds no room, so that of this one waits a moment.
        note_until_written_anew(&mut bench, other);
        bench.disk.break_calls(Some(("rename", Fault::Enospc)));
        bench.settle();
        bench.disk.break_calls(None);
        note_until_written_anew(&mut bench, group);
        bench.disk.fail_in(calls, Fault::Enospc);
        bench.log.note_group(group, &[GroupFact::Epoch(5)], GroupPosition::default).unwrap();
        bench.disk.forget_faults();
        let mark = bench.log.want_group_durable(group);
        bench.settle();
        bench.disk.break_calls(Some(("rename", Fault::Enospc)));
        bench.wait(Micros::from_secs(2));
        bench.disk.break_calls(None);
        for group in bench.log.incomplete_groups() {
            let position = GroupPosition { epoch: 5, ..GroupPosition::default() };
            bench.log.keep_group(group, &position).unwrap();
        }
        bench.wait(Micros::from_secs(2));
        assert!(bench.log.group_durable(group) >= mark, "at call {calls}");
    }
}
