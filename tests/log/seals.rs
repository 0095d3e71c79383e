//! The footer of a segment, of which a loss of power leaves a part.
//!
//! Everything runs on the simulated disk.

use std::path::Path;

use crate::sim::bench::{Bench, CLEAN, REBOOTED, create, small};
use crate::sim::disk::SimDisk;
use mq::log::storage::{Storage, StorageFile};
use mq::units::{Bytes, Offset, Position, SyncPolicy};

/// Runs the jobs that do this, as often as there are any.
fn run_only(bench: &mut Bench, what: &str) {
    bench.collect();
    while let Some(at) = bench.jobs.iter().position(|job| job.what() == what) {
        bench.run(at);
        bench.collect();
    }
}

/// Writes over what is in a segment, from its first batch on, and makes that durable.
fn overwrite(disk: &SimDisk, path: &Path, bytes: &[u8]) {
    let file = disk.open(path).unwrap();
    file.truncate(Bytes(64)).unwrap();
    file.write_all_at(&[bytes], Position(64)).unwrap();
    file.sync().unwrap();
}

/// Segments that a loss of power had emptied, in front of one that the log went on in: the seal of the first
/// was broken off by the next loss of power, and the queue was called damaged (`extents:2028633`).
#[test]
fn a_footer_that_is_torn_in_front_of_an_empty_segment_is_no_damage() {
    let disk = SimDisk::new(1);
    create(&disk, SyncPolicy::Always).unwrap();
    let mut bench = Bench::open(disk.clone(), CLEAN, &small()).unwrap().0;
    bench.append(&["first"]);
    bench.settle();
    // Segments of which nothing is synced but that they are there.
    while crate::segments(&disk).iter().filter(|(_, bytes)| *bytes > 64).count() < 4 {
        let _ = bench.try_append(&["x".repeat(1900)]);
        run_only(&mut bench, "prepare a segment");
    }
    drop(bench);
    let segments = crate::segments(&disk);
    let [(one, _), (two, _), (three, _)] = &segments[1..4] else { panic!("{segments:?}") };
    for (path, left) in [(one, &[][..]), (two, &[]), (three, &[7; 500])] {
        overwrite(&disk, path, left);
    }
    disk.crash();
    let mut bench = Bench::open(disk.clone(), REBOOTED, &small()).unwrap().0;
    // The last one says how much is durable.
    for line in ["second", "third"] {
        bench.try_append(&[line.to_owned()]).expect("there is room");
        run_only(&mut bench, "sync");
    }
    drop(bench);
    let length = |path: &Path| disk.open(path).unwrap().len().unwrap().0;
    assert!(length(one) == 64 && length(two) == 64 && length(three) > 64, "it went on behind them");
    for torn in [&[one][..], &[two], &[one, two]] {
        let disk = disk.fork();
        torn.iter().for_each(|path| overwrite(&disk, path, &[7; 71]));
        disk.crash();
        let (mut bench, _) = Bench::open(disk, REBOOTED, &small()).expect("it is sound");
        let found = bench.read(Offset(0), 100).unwrap();
        assert_eq!(found, crate::numbered(&["first", "second", "third"]));
        bench.settle();
    }
}
