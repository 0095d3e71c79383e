//! What goes wrong with the disk in a wide history, and what must be there still.

use std::path::{Path, PathBuf};

use mq::units::Name;

use crate::disk::{ENDLESS, Fault, SimDisk};
use crate::rng::Chance;
use crate::wide::Wide;
use crate::world::{World, trace};

/// A segment of so many bytes has no messages.
const SEGMENT_HEADER_BYTES: usize = 64;

/// The directory of a queue.
fn directory(queue: &Name) -> PathBuf {
    Path::new("queues").join(queue.as_str())
}

fn is_segment(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == "seg")
}

/// The segments of a queue, the oldest first, with their lengths.
pub fn segments_of(disk: &SimDisk, queue: &Name) -> Vec<(PathBuf, usize)> {
    let ours = |(path, length): &(PathBuf, usize)| {
        path.starts_with(directory(queue)) && is_segment(path) && *length > 0
    };
    disk.files().into_iter().filter(ours).collect()
}

impl World {
    /// The call that is `far` calls from now goes wrong. What a fault before it left undone in this
    /// life of the server stays so.
    pub fn plant(&mut self, far: u64, fault: Fault) {
        self.was_tight |= self.disk.faulted().is_some();
        self.disk.fail_in(far, fault);
    }

    /// The disk is full from now on, or there is room again; whether it is full.
    pub fn fill(&mut self) -> bool {
        let left = self.rng.below(4) * 4096;
        let is_full = self.disk.capacity() == ENDLESS;
        if is_full {
            self.disk.set_capacity(self.disk.used() + left);
        } else {
            self.disk.set_capacity(ENDLESS);
            self.was_tight = true;
        }
        is_full
    }
}

impl Wide {
    /// Something happens to the disk, as the weather has it.
    pub fn strike(&mut self) {
        let what = self.world.rng.below(10);
        match what {
            0..3 if self.weather.errors => {
                self.world.may_fail = true;
                let far = 1 + self.world.rng.below(60);
                self.world.plant(far, Fault::Eio);
            }
            3 | 4 if self.weather.full => {
                let far = 1 + self.world.rng.below(40);
                self.world.plant(far, Fault::Enospc);
            }
            5 | 6 if self.weather.full => {
                self.world.fill();
            }
            7 | 8 if self.weather.kills => {
                let far = 1 + self.world.rng.below(60);
                self.world.plant(far, Fault::Kill);
            }
            9 if self.weather.rot => self.spoil(),
            _ => {}
        }
    }

    /// Something on the disk of one queue changes by itself: a bit, or a block that was meant for
    /// another place, or for another time.
    fn spoil(&mut self) {
        let queue = Name::new("q0").expect("a name");
        let of_queue = segments_of(&self.world.disk, &queue);
        if of_queue.is_empty() {
            return;
        }
        let rng = &mut self.world.rng;
        let (path, length) = &of_queue[rng.below(of_queue.len() as u64) as usize];
        let at = rng.below(*length as u64) as usize;
        if rng.chance(60) {
            let bit = 1u8 << rng.below(8);
            trace(|| format!("spoils a bit of {path:?} at {at}"));
            self.world.disk.spoil(path, at, &|bytes| bytes[0] ^= bit);
        } else {
            let (from, _) = &of_queue[rng.below(of_queue.len() as u64) as usize];
            let block = 512 * (at / 512);
            let other = self.world.disk.contents(from);
            let start = 512 * rng.below(other.len().div_ceil(512) as u64) as usize;
            let stale = &other[start..(start + 512).min(other.len())];
            trace(|| format!("misplaces a block of {from:?} from {start} to {path:?} at {block}"));
            self.world.disk.spoil(path, block, &|bytes| {
                let n = bytes.len().min(stale.len());
                bytes[..n].copy_from_slice(&stale[..n]);
            });
        }
        self.queues.get_mut(&queue).expect("the first queue").spoilt = true;
        self.world.spoilt.insert(queue);
    }

    /// What damaged queues have on the disk must stay there (G11).
    pub fn keep_segments(&mut self) {
        let files = self.world.disk.files();
        self.kept.retain(|queue, _| self.world.damaged.contains(queue));
        for path in self.kept.values().flatten() {
            assert!(
                files.iter().any(|(there, _)| there == path),
                "G11: {path:?} of a damaged queue was deleted"
            );
        }
        for queue in &self.world.damaged {
            let of_queue = |(path, _): &(PathBuf, usize)| path.starts_with(directory(queue));
            let holds_any = |(path, length): &(PathBuf, usize)| {
                is_segment(path) && *length > SEGMENT_HEADER_BYTES
            };
            let found = files.iter().filter(|file| of_queue(file) && holds_any(file));
            let kept = self.kept.entry(queue.clone()).or_default();
            kept.extend(found.map(|(path, _)| path.clone()));
        }
    }
}
