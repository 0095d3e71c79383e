//! How a wide history ends: no more faults, everything that is left comes through, and the books
//! are compared.

use std::collections::BTreeSet;

use mq::units::{Name, SyncPolicy};

use crate::disk::ENDLESS;
use crate::model::{Message, QueueModel};
use crate::receiver::{Receiver, Take};
use crate::runner::Happened;
use crate::several::Several;
use crate::wide::{Wide, aside, dead_letters_of, name, witness};
use crate::world::Fall;

impl Wide {
    /// The end of a history; what happened in it.
    pub fn end(mut self) -> Happened {
        self.world.disk.set_capacity(ENDLESS);
        self.world.disk.forget_faults();
        self.world.disk.disturb(None);
        self.bury_zombies();
        self.world.turn();
        self.rise();
        if self.weather.errors {
            // A queue that could not be read stands still until the next start.
            self.fall(Fall::Stop);
        }
        self.stop_meddling();
        self.drain();
        let groups = self.exhume();
        self.drain();
        self.check(&groups)
    }

    /// No more falls: everything that is left is sent, confirmed, delivered and acked.
    fn drain(&mut self) {
        self.draining = true;
        self.check_accounts();
        for receiver in &mut self.receivers {
            // A damaged queue may be sound again once power was lost, and is asked once more.
            receiver.ended &= !self.world.spoilt.contains(&receiver.queue);
            if let Take::Leased(_) = receiver.take {
                // Leases run out by themselves.
                receiver.take = Take::Plain;
                receiver.refused = receiver.connection.is_some();
            }
        }
        self.several.iter_mut().for_each(Several::ask_again);
        for round in 0..2_000u64 {
            for sender in 0..self.senders.len() {
                let waiting = &self.senders[sender];
                if waiting.connection.is_none() || waiting.refused || !waiting.is_idle() {
                    self.step_sender(sender);
                }
            }
            for receiver in 0..self.receivers.len() {
                self.step_receiver(receiver);
            }
            self.step_several();
            self.world.settle();
            assert!(self.world.down.is_none(), "the server ends without a fault");
            // Some wait long: what had its last attempt when the server fell, for its holder.
            self.world.pass_time(if round < 40 { 10_000 } else { 200_000 });
            let quiet = self.senders.iter().all(|s| s.ended || s.is_idle());
            if quiet && round > 40 && self.is_empty() {
                self.check_accounts();
                return;
            }
        }
        panic!(
            "what is left does not come through: a delivery or a confirmation is stuck\n{}",
            self.describe()
        );
    }

    /// Whether nothing is ready or leased anywhere, but for those who only look on.
    fn is_empty(&mut self) -> bool {
        // What is on its way into a queue is nowhere for a moment.
        self.world.settle();
        let list = self.world.list();
        let known = list.queues.iter().filter(|queue| self.queues.contains_key(&queue.queue));
        let mut left = 0;
        for queue in known.filter(|queue| !self.world.spoilt.contains(&queue.queue)) {
            // What could not be read or moved is tried again.
            left += queue.delayed.0 + u64::from(queue.trouble.is_some());
            for group in &queue.groups {
                let looks_on = group.group == witness()
                    && !self
                        .receivers
                        .iter()
                        .any(|r| r.queue == queue.queue && r.group == witness());
                if !looks_on {
                    left += group.ready.0 + group.unacked.0 + group.resting.0;
                }
            }
        }
        left == 0
    }

    fn taken_once(&self) -> usize {
        let once = name("once");
        self.queues
            .values()
            .filter_map(|model| model.groups.get(&once))
            .map(|g| g.acked.len())
            .sum()
    }

    /// Begins to read the dead letters of each group, and what the witnesses have.
    fn exhume(&mut self) -> Vec<(Name, Name)> {
        let list = self.world.list();
        let mut groups = Vec::new();
        let known: Vec<(Name, BTreeSet<Message>)> =
            self.queues.iter().map(|(n, m)| (n.clone(), m.announced.clone())).collect();
        for (queue, announced) in known {
            let Some(info) = list.queues.iter().find(|info| info.queue == queue) else { continue };
            for group in info.groups.iter().map(|group| group.group.clone()) {
                if group == witness() {
                    let reader =
                        Receiver::new(queue.clone(), group, Take::Plain, &mut self.world.rng);
                    self.receivers.push(reader);
                    continue;
                }
                let dead = dead_letters_of(&queue, &group);
                let mut letters = QueueModel::new(SyncPolicy::Always);
                letters.announced.clone_from(&announced);
                letters.from_spoilt = self.queues[&queue].spoilt;
                let reader =
                    Receiver::new(dead.clone(), Name::default(), Take::Plain, &mut self.world.rng);
                self.receivers.push(reader);
                self.queues.insert(dead, letters);
                groups.push((queue.clone(), group));
            }
        }
        groups
    }

    fn check(mut self, groups: &[(Name, Name)]) -> Happened {
        self.world.trace_accounts();
        let mut happened = Happened::default();
        for (queue, group) in groups.iter().filter(|(queue, _)| *queue != aside()) {
            let model = &self.queues[queue];
            if model.spoilt {
                continue;
            }
            let dead = &self.queues[&dead_letters_of(queue, group)];
            if model.groups.contains_key(group) {
                model.check_dead(group, dead);
            }
            happened.count("dead letters", dead.seen.len());
        }
        let dead: Vec<Name> =
            groups.iter().map(|(queue, group)| dead_letters_of(queue, group)).collect();
        for (queue, model) in &self.queues {
            if *queue == aside() || dead.contains(queue) {
                continue;
            }
            if !model.gives_up && !model.spoilt {
                model.check_order();
            }
            let letters = groups.iter().filter(|(of, _)| of == queue);
            let letters = letters.map(|(of, group)| &self.queues[&dead_letters_of(of, group)]);
            let letters = letters.flat_map(|letters| letters.seen.values());
            model.check_nothing_lost(&letters.map(|seen| seen.message).collect());
            model.check_witness(&witness());
            let [waited, came_back, large] = model.figures();
            happened.count("messages", model.seen.len());
            happened.count("waited", waited);
            happened.count("large messages", large);
            happened.count("came back from the dead", came_back);
            self.world.trace = self.world.trace.rotate_left(7) ^ model.hash();
        }
        self.keep_segments();
        happened.count("falls", self.falls);
        happened.count("stalled clients", self.stalls);
        happened.count("slow disks", self.slow_times);
        happened.count("messages taken at most once", self.taken_once());
        let several = self.several.as_ref().map_or(0, |several| several.taken);
        happened.count("messages taken from several queues", several);
        happened.count("unplanned falls", self.ended_by_itself);
        happened.count("damaged queues", self.world.damaged.len());
        happened.count("there already", self.senders.iter().map(|s| s.there as usize).sum());
        let disk = self.world.disk.trace();
        self.world.note(disk);
        happened.trace = self.world.trace;
        happened
    }
}
