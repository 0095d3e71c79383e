//! Every call of a start that fails, in every way (G10, G11, G12): it is an error that changes
//! nothing for the worse. The next start finds everything.

use std::collections::BTreeSet;

use mq::log::GroupPosition;
use mq::units::{Ending, Name, Offset, OffsetRange, SyncPolicy};

use crate::session::options;
use crate::sim::bench::{Bench, CLEAN, KILLED, REBOOTED, create};
use crate::sim::disk::{Fault, SimDisk};

/// A log that was left in the midst: unsynced batches, acks of a group, a dropped segment.
fn left(policy: SyncPolicy, seed: u64) -> (SimDisk, Vec<(u64, String)>) {
    let disk = SimDisk::new(seed);
    create(&disk, policy).unwrap();
    let mut bench = Bench::open(disk.clone(), CLEAN, &options()).unwrap().0;
    let group = bench.log.add_group(&Name::new("g").unwrap()).unwrap();
    for n in 0..14 {
        bench.append(&[&format!("{n} {}", "w".repeat(200))]);
        bench.settle();
    }
    let (number, extent) = bench.log.segment_extents(&[OffsetRange::new(Offset(0), Offset(1))])[0];
    let whole = GroupPosition { settled: vec![extent], handed: extent.end, ..Default::default() };
    bench.log.settled(group, &[extent], Ending::Acked, extent.end, || whole.clone()).unwrap();
    bench.log.drop_segment(number);
    bench.settle();
    let durable = bench.log.durable_end();
    let all = bench.read(durable, 1 << 20).unwrap();
    assert!(all.is_empty() || policy != SyncPolicy::Always);
    let kept = bench.read(Offset(0), 1 << 20).unwrap();
    let kept = kept.into_iter().filter(|(offset, _)| *offset < durable.0).collect();
    for n in 14..18 {
        bench.append(&[&format!("{n} unsynced")]);
    }
    drop(bench);
    (disk, kept)
}

/// Fails each call of a start, and then starts again.
fn every_start(policy: SyncPolicy, power: bool, fault: Fault) -> BTreeSet<&'static str> {
    let boot = if power { REBOOTED } else { KILLED };
    let mut failed = BTreeSet::new();
    for n in 1.. {
        let (disk, kept) = left(policy, n);
        if power {
            disk.crash();
        }
        disk.fail_in(n, fault);
        let opened = Bench::open(disk.clone(), boot, &options());
        let what = format!("{policy}, {boot:?}, call {n} ({:?}) {fault:?}", disk.faulted());
        let Some(call) = disk.faulted() else { return failed };
        failed.insert(call);
        if let Ok((bench, _)) = &opened {
            assert!(!matches!(call, "sync" | "sync_dir"), "G12: {what}: it opens all the same");
            assert!(bench.log.failed().is_none(), "{what}");
        }
        drop(opened);
        disk.revive();
        // What a start that broke off has left may itself be lost.
        let lost = disk.fork();
        lost.crash();
        for (disk, boot) in [(disk, boot), (lost, REBOOTED)] {
            let (mut bench, recovered) = Bench::open(disk, boot, &options())
                .unwrap_or_else(|error| panic!("{what}, then: {error}"));
            let found = bench.read(Offset(0), 1 << 20).unwrap();
            let first = kept.first().map_or(0, |(offset, _)| *offset);
            let found: Vec<_> = found.into_iter().skip_while(|(at, _)| *at < first).collect();
            assert!(found.starts_with(&kept), "{what}: lost");
            assert_eq!(recovered.groups.len(), 1, "{what}: the group is lost");
            let range = bench.append(&["after it all"]);
            bench.settle();
            assert!(range.start >= recovered.end, "{what}");
        }
    }
    failed
}

#[test]
fn any_call_of_a_start_may_fail() {
    for policy in [SyncPolicy::Always, SyncPolicy::Never] {
        for power in [false, true] {
            for fault in [Fault::Eio, Fault::Enospc, Fault::Kill] {
                let failed = every_start(policy, power, fault);
                // Only what takes space finds none.
                let among = match fault {
                    Fault::Enospc => ["allocate", "write_all_at"],
                    _ => ["read_at", "sync"],
                };
                assert!(among.iter().all(|call| failed.contains(call)), "{failed:?}");
            }
        }
    }
}
