//! Every workload of up to three operations on a log that has a past, broken off at every call
//! that it makes of the disk, with every subset of the sectors, lengths and directory entries that
//! were not synced (G1, G2, G9).
//!
//! A crash in the first two operations is one of a shorter workload, so only the last operation is
//! broken off; and what a kill alone leaves is looked at too.

use mq::units::{Micros, SyncPolicy};

use crate::choices::Choices;
use crate::depth;
use crate::session::{ACTS, Act, Case, Model, goes_on, verify};
use crate::sim::bench::{KILLED, REBOOTED};
use crate::sim::disk::{Fault, SimDisk};

/// Subsets of what was not synced that are tried of one crash in the ordinary run.
const SUBSETS_MAX: u64 = 12;

#[derive(Debug, Default)]
struct Figures {
    workloads: u64,
    crashes: u64,
    starts: u64,
}

/// Breaks off the last act of a workload at each of its calls.
fn break_off(past: &SimDisk, model: &Model, policy: SyncPolicy, acts: &[Act], sum: &mut Figures) {
    let (last, first) = acts.split_last().expect("a workload does something");
    sum.workloads += 1;
    let mut case = Case::fork(past, KILLED, model, policy);
    first.iter().for_each(|act| case.act(*act));
    let before = case.bench.disk.calls();
    case.act(*last);
    let calls = case.bench.disk.calls() - before;
    // One more: it breaks off just behind the last.
    for n in 1..=calls + 1 {
        sum.crashes += 1;
        let what = format!("{policy}, {acts:?}, call {n} of {calls}");
        let mut case = Case::fork(past, KILLED, model, policy);
        first.iter().for_each(|act| case.act(*act));
        case.bench.disk.fail_in(n, Fault::Kill);
        case.act(*last);
        case.bench.disk.revive();
        let mut arities = Vec::new();
        case.bench.disk.fork().crash_choosing(&mut |n| {
            arities.push(n);
            0
        });
        for (at, answers) in Choices::new(arities, SUBSETS_MAX * depth()).enumerate() {
            sum.starts += 1;
            let disk = case.bench.disk.fork();
            let mut answers = answers.into_iter();
            disk.crash_choosing(&mut |_| answers.next().expect("as many questions as before"));
            let bench = verify(&disk, REBOOTED, &case, &what);
            if at == 1 {
                goes_on(bench, &what);
            }
        }
        sum.starts += 1;
        goes_on(verify(&case.bench.disk.fork(), KILLED, &case, &what), &what);
    }
}

fn every_workload(policy: SyncPolicy) {
    let past = Case::with_past(policy);
    let (disk, model) = (past.bench.disk.clone(), past.model.clone());
    drop(past);
    let mut sum = Figures::default();
    for one in ACTS {
        break_off(&disk, &model, policy, &[one], &mut sum);
        for two in ACTS {
            break_off(&disk, &model, policy, &[one, two], &mut sum);
            for three in ACTS {
                break_off(&disk, &model, policy, &[one, two, three], &mut sum);
            }
        }
    }
    println!("{policy}: {sum:?}");
    assert!(sum.crashes > 3_000, "the workloads do too little: {sum:?}");
}

#[test]
fn every_crash_of_every_small_workload_keeps_the_promises_under_always() {
    every_workload(SyncPolicy::Always);
}

#[test]
fn every_crash_of_every_small_workload_keeps_the_promises_under_interval() {
    every_workload(SyncPolicy::Interval(Micros::from_millis(500)));
}

#[test]
fn every_crash_of_every_small_workload_keeps_the_promises_under_never() {
    every_workload(SyncPolicy::Never);
}
