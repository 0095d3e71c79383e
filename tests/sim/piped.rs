//! The history of a pipe: senders, a pipe from queue to queue, and falls. What is in the
//! destination at the end is what the filter makes of the senders' input, once, whatever the policies
//! of both queues (G14). Where the source may lose what it confirmed, senders have names: they send
//! it again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mq::settings::Wanted;
use mq::units::{Name, QueueId, SyncPolicy};
use mq::wire::{GroupInfo, OpenReceive, ReceiveMode, Reply, Request};

use crate::disk::{ENDLESS, Fault};
use crate::filter::{by_key, undisturbed};
use crate::model::{Message, QueueModel};
use crate::pipes::Pipe;
use crate::plan::{Plan, STEPS};
use crate::rng::Chance;
use crate::runner::Happened;
use crate::sender::{Manner, Sender};
use crate::state_files::SimFiles;
use crate::strikes::segments_of;
use crate::wide::{Weather, any_policy, draw_weather, name, plan_falls};
use crate::wire::{CHANNEL, hello, messages_of, take_frames};
use crate::world::{Fall, World, trace};

struct Piped {
    world: World,
    source: Name,
    destination: Name,
    senders: Vec<Sender>,
    pipe: Pipe,
    /// The source's, and at the end those of the queues that the pipe writes.
    queues: BTreeMap<Name, QueueModel>,
    draining: bool,
    weather: Weather,
    /// All that is left went through the pipe.
    is_through: bool,
    ended_by_itself: usize,
    /// Times that the disk was full, and that a bit of it changed.
    filled: usize,
    spoilt: usize,
    /// Power was lost since: what had changed above the durable mark was a torn end, and whatever a commit
    /// said, the epoch of an instance included, may be forgotten. Nothing can be proved of the pipe then.
    torn: bool,
}

/// Runs the history of a plan.
pub fn history(plan: &Plan) -> Happened {
    let (mut piped, falls) = Piped::new(plan);
    for &number in &plan.steps {
        piped.world.begin_step(plan.draws(number));
        if let Some(how) = falls.get(&number) {
            piped.fall(*how);
        }
        piped.step();
    }
    piped.world.begin_step(plan.draws(STEPS + 1));
    piped.world.disk.forget_faults();
    piped.world.disk.set_capacity(ENDLESS);
    piped.rise();
    if piped.weather.errors || piped.weather.rot {
        // A queue that could not be read stands still until the next start.
        piped.fall(Fall::Stop);
    }
    piped.drain();
    piped.check()
}

impl Piped {
    fn new(plan: &Plan) -> (Piped, BTreeMap<u32, Fall>) {
        let mut world = World::new(plan);
        world.begin_step(plan.draws(STEPS));
        let (source, destination) = (name("src"), name("dst"));
        let policies = [any_policy(&mut world.rng), any_policy(&mut world.rng)];
        for (queue, policy) in [&source, &destination].into_iter().zip(policies) {
            let wanted =
                Wanted { sync: Some(policy), delivery_limit: Some(3), ..Wanted::default() };
            world.declare(queue, wanted);
        }
        let weather = draw_weather(&mut world);
        let mut senders = Vec::new();
        for id in 1..=1 + world.rng.below(2) {
            let manner = Manner { delays: world.rng.chance(50), ..Manner::default() };
            let named = world.rng.chance(50) || policies[0] != SyncPolicy::Always;
            senders.push(Sender::new(id, source.clone(), manner, named, &mut world.rng));
        }
        let files = SimFiles(Arc::clone(&world.disk));
        let pipe = Pipe::new(source.clone(), destination.clone(), files, &mut world.rng);
        let queues = BTreeMap::from([(source.clone(), QueueModel::new(policies[0]))]);
        let falls = plan_falls(&mut world.rng);
        let piped = Piped {
            world,
            source,
            destination,
            senders,
            pipe,
            queues,
            draining: false,
            weather,
            is_through: false,
            ended_by_itself: 0,
            filled: 0,
            spoilt: 0,
            torn: false,
        };
        (piped, falls)
    }

    fn step(&mut self) {
        let what = self.world.rng.below(100);
        self.world.note(what);
        let sender = self.world.rng.below(self.senders.len() as u64) as usize;
        match what {
            0..25 => self.step_sender(sender),
            25..64 if !self.torn => self.step_pipe(),
            64..79 => self.world.run_job(),
            79..84 => self.world.run_late_job(),
            84..91 => {
                let micros = 1 << self.world.rng.below(22);
                self.world.pass_time(micros);
            }
            91..93 => {
                if let Some(connection) = self.senders[sender].connection {
                    self.senders[sender].lost();
                    self.world.hung_up(connection);
                }
            }
            93..95 if !self.torn => self.replace_pipe(),
            95..98 => self.strike(),
            98 if self.weather.slow => {
                self.world.slow_until = self.world.age + (1 << self.world.rng.below(24));
            }
            _ => {}
        }
        self.world.turn();
        self.world.check_accounts();
        self.rise();
    }

    /// Something happens to the disk, as the weather has it: under the server, and under the state of
    /// the pipe's filters.
    fn strike(&mut self) {
        let (what, far) = (self.world.rng.below(8), 1 + self.world.rng.below(60));
        match what {
            0 | 1 if self.weather.errors => {
                self.world.may_fail = true;
                self.world.plant(far, Fault::Eio);
            }
            2 | 3 if self.weather.kills => self.world.plant(far, Fault::Kill),
            4 if self.weather.full => self.world.plant(far, Fault::Enospc),
            5 | 6 if self.weather.full => {
                self.filled += usize::from(self.world.fill());
            }
            7 if self.weather.rot => self.spoil(),
            _ => {}
        }
    }

    /// A bit changes in a segment that is not the newest.
    fn spoil(&mut self) {
        let queues = [&self.source, &self.destination];
        let queue = queues[self.world.rng.below(2) as usize].clone();
        let files = segments_of(&self.world.disk, &queue);
        let Some(sealed) = files.len().checked_sub(1).filter(|sealed| *sealed > 0) else { return };
        let (path, length) = &files[self.world.rng.below(sealed as u64) as usize];
        let at = self.world.rng.below(*length as u64) as usize;
        let bit = 1u8 << self.world.rng.below(8);
        trace(|| format!("spoils a bit of {path:?} at {at}"));
        self.world.disk.spoil(path, at, &|bytes| bytes[0] ^= bit);
        self.spoilt += 1;
        if let Some(model) = self.queues.get_mut(&queue) {
            model.spoilt = true;
        }
        self.pipe.may_be_damaged = true;
        self.world.spoilt.insert(queue);
    }

    fn step_sender(&mut self, which: usize) {
        let sender = &mut self.senders[which];
        let Some(connection) = sender.connection.filter(|_| !sender.refused) else {
            if let Some(connection) = sender.connection {
                self.world.hung_up(connection);
            }
            if !sender.ended {
                let connection = self.world.connect();
                let frames = sender.connect(connection);
                self.world.say(connection, &frames);
            }
            return;
        };
        let rng = &mut self.world.rng;
        let limit = if rng.chance(20) { 1 + rng.below(60) } else { u64::MAX };
        let bytes = self.world.receive(connection, limit);
        let model = self.queues.get_mut(&self.source).expect("the source");
        sender.inbound.extend(bytes);
        let mut frames = sender.hear(model);
        if self.world.is_heard(connection) {
            let (rng, wall) = (&mut self.world.rng, self.world.wall);
            frames.extend(sender.publish(model, rng, wall, self.draining));
        }
        self.world.say(connection, &frames);
        sender.refused |= self.world.is_ending(connection);
    }

    fn step_pipe(&mut self) {
        let Some(connections) = self.pipe.connections.filter(|_| !self.pipe.refused) else {
            for connection in self.pipe.connections.into_iter().flatten() {
                self.world.hung_up(connection);
            }
            let connections = [self.world.connect(), self.world.connect()];
            let frames = self.pipe.connect(connections);
            for (connection, frames) in connections.into_iter().zip(frames) {
                self.world.say(connection, &frames);
            }
            return;
        };
        for (n, connection) in connections.into_iter().enumerate() {
            let rng = &mut self.world.rng;
            let limit = if rng.chance(20) { 1 + rng.below(200) } else { u64::MAX };
            let bytes = self.world.receive(connection, limit);
            self.pipe.inbound[n].extend(bytes);
        }
        let frames = self.pipe.step(&mut self.world.rng, self.draining);
        for (connection, frames) in connections.into_iter().zip(frames) {
            self.world.say(connection, &frames);
        }
        self.pipe.refused |= connections.into_iter().any(|c| self.world.is_ending(c));
    }

    /// A pipe is killed, or an instance of it takes over while the old one is still there.
    fn replace_pipe(&mut self) {
        let before = self.pipe.connections.take();
        let overlaps = self.world.rng.chance(50);
        if overlaps {
            self.step_pipe();
            self.world.turn();
        }
        for connection in before.into_iter().flatten() {
            self.world.hung_up(connection);
        }
    }

    fn rise(&mut self) {
        if self.world.down.is_some() {
            self.ended_by_itself += 1;
            let how = if self.world.rng.chance(50) { Fall::Kill } else { Fall::Power };
            self.fall(how);
        }
    }

    fn fall(&mut self, how: Fall) {
        self.world.end(how);
        if how == Fall::Power {
            self.torn |= self.spoilt > 0;
            self.queues.values_mut().for_each(QueueModel::lose_power);
        }
        self.senders.iter_mut().for_each(Sender::lost);
        self.pipe.lost();
        self.world.begin();
    }

    /// Whether a queue of the pipe stands still, because of what changed by itself.
    fn is_damaged(&mut self) -> bool {
        let (source, destination) = (self.source.clone(), self.destination.clone());
        let ours = |queue: &Name| *queue == source || *queue == destination;
        let list = self.world.list();
        self.world.damaged.iter().any(ours)
            || list.queues.iter().any(|info| ours(&info.queue) && info.trouble.is_some())
    }

    /// No more falls: everything that is in the source goes through the pipe, unless one of its queues
    /// stands still.
    fn drain(&mut self) {
        self.draining = true;
        if self.torn {
            return;
        }
        for round in 0..2_000 {
            if round % 50 == 49 && self.spoilt > 0 && self.is_damaged() {
                return;
            }
            for sender in 0..self.senders.len() {
                if !self.senders[sender].is_idle() {
                    self.step_sender(sender);
                }
            }
            self.step_pipe();
            self.world.settle();
            self.world.pass_time(20_000);
            let quiet = self.senders.iter().all(|s| s.ended || s.is_idle());
            if !quiet || !self.pipe.is_done() {
                continue;
            }
            match self.left() {
                [0, 0] if self.pipe.held() == 0 => {
                    self.is_through = true;
                    return;
                }
                // All that is left is in open windows.
                [0, held] => self.pipe.flush_if_all(held),
                _ => {}
            }
        }
        panic!(
            "what is left does not go through the pipe\n{:?}\n{:?}",
            self.world.list(),
            self.pipe
        );
    }

    /// How many messages of the source wait for the pipe or for their time, and how many it holds.
    fn left(&mut self) -> [u64; 2] {
        // What is on its way into a queue is nowhere for a moment.
        self.world.settle();
        let list = self.world.list();
        let queue =
            list.queues.iter().find(|queue| queue.queue == self.source).expect("the source");
        let waiting = |group: &GroupInfo| group.ready.0 + group.resting.0;
        let held = |group: &GroupInfo| group.unacked.0;
        let groups = queue.groups.iter().map(waiting).sum::<u64>();
        // Its group may have found no room yet: then all that is there waits for it.
        let all = if queue.groups.is_empty() { queue.ready.0 } else { 0 };
        let waiting = queue.delayed.0 + groups + all;
        [waiting, queue.groups.iter().map(held).sum()]
    }

    /// All that is in a queue that the pipe writes.
    fn read_all(&mut self, queue: &Name) -> Vec<Vec<u8>> {
        let connection = self.world.connect();
        let mut frames = Vec::new();
        hello(&mut frames);
        let open = OpenReceive::new(queue.clone(), Name::default(), ReceiveMode::Take);
        Request::OpenReceive(open).encode(CHANNEL, &mut frames);
        self.world.say(connection, &frames);
        let (mut bytes, mut id) = (Vec::new(), QueueId::default());
        let mut found = BTreeMap::new();
        for _ in 0..60 {
            self.world.settle();
            // Past the grace for receivers that may come back, and past the pause after which a log tries
            // again what found a full disk.
            self.world.pass_time(50_000);
            bytes.extend(self.world.receive(connection, u64::MAX));
            for (header, body) in take_frames(&mut bytes) {
                match Reply::decode(&header, &body).expect("the server speaks the protocol") {
                    Reply::Receiving(receiving) => {
                        id = receiving.queue_id.unwrap_or(id);
                        let mut credit = Vec::new();
                        Request::Credit(u64::MAX >> 1).encode(CHANNEL, &mut credit);
                        self.world.say(connection, &credit);
                    }
                    Reply::Deliver(head, batches) => {
                        let (messages, bad) = messages_of(id, &head, batches);
                        assert!(bad.is_none() || self.spoilt > 0, "G11: {bad:?} does not verify");
                        found.extend(messages);
                        if let Some(place) = bad {
                            let mut complaint = Vec::new();
                            Request::Complain(place.segment, place.position)
                                .encode(CHANNEL, &mut complaint);
                            self.world.say(connection, &complaint);
                            return found.into_values().collect();
                        }
                    }
                    _ => {}
                }
            }
        }
        found.into_values().collect()
    }

    fn check(mut self) -> Happened {
        let (destination, dead) = (self.destination.clone(), name("src.pipe.dead"));
        let there = self.read_all(&destination);
        let letters = self.read_all(&dead);
        let text = |body: Vec<u8>| String::from_utf8(body).expect("text of ours");
        let there: Vec<String> = there.into_iter().map(text).collect();
        let is_damaged = self.spoilt > 0 && self.is_damaged();
        let mut happened = Happened::default();
        happened.count("pipes that met damage", usize::from(is_damaged));
        if self.torn {
            // Nothing tells a change by itself from a write that was broken off: what was confirmed may
            // be gone, and with it what the pipe had let go of.
        } else if is_damaged {
            self.check_beginning(&there);
        } else {
            assert!(self.is_through, "nothing is damaged, and the pipe stands still");
            self.check_all(&there, &letters);
        }
        let pipe = &self.pipe;
        happened.count("commits", pipe.confirmed);
        happened.count("commits in several frames", pipe.in_parts);
        happened.count("messages buried", pipe.buried);
        happened.count("windows", pipe.windows_closed);
        happened.count("messages read again for windows", pipe.reread);
        happened.count("times told", pipe.times_told);
        happened.count("unplanned falls", self.ended_by_itself);
        happened.count("full disks", self.filled);
        happened.count("pipes stopped by the disk under their state", pipe.stopped);
        self.world.trace = self.world.trace.rotate_left(7) ^ there.len() as u64;
        let disk = self.world.disk.trace();
        self.world.note(disk);
        happened.trace = self.world.trace;
        happened
    }

    /// A queue stands still: what came through before is what one run begins with (G11, G14).
    fn check_beginning(&self, there: &[String]) {
        let pipe = &self.pipe;
        let outputs = by_key(pipe.manner, undisturbed(pipe.manner, &pipe.read).outputs);
        let there = by_key(pipe.manner, there.to_vec());
        let key = |output: &String| output.split('/').next().map(str::to_owned);
        let is_divided = pipe.manner.parts > 1 && pipe.manner.windows.is_none();
        let mut expected = outputs.iter().peekable();
        for output in &there {
            while is_divided && expected.peek().is_some_and(|next| key(next) < key(output)) {
                expected.next();
            }
            assert_eq!(expected.next(), Some(output), "G14: not what one run begins with");
        }
    }

    fn check_all(&self, there: &[String], letters: &[Vec<u8>]) {
        let (pipe, model) = (&self.pipe, &self.queues[&self.source]);
        let read: BTreeSet<Message> = pipe.read.values().copied().collect();
        for message in model.confirmed.keys() {
            assert!(read.contains(message), "G1: {message:?} was confirmed and not read");
        }
        assert_eq!(read.len(), pipe.read.len(), "G2: a message is in the source twice");
        let mut expected = undisturbed(pipe.manner, &pipe.read);
        let outputs = std::mem::take(&mut expected.outputs);
        assert_eq!(
            by_key(pipe.manner, there.to_vec()),
            by_key(pipe.manner, outputs),
            "G14: the destination is not what one run gives"
        );
        let (state, mark) = pipe.committed();
        if pipe.manner.state {
            assert_eq!(state, expected.state, "G14: the state is not what one run gives");
        }
        let counted = (mark.figures.late, mark.figures.untimed);
        assert_eq!(counted, (expected.late, expected.untimed), "G14: what the commits counted");
        if pipe.manner.windows.is_some() {
            assert_eq!(mark.figures.read, pipe.read.len() as u64, "G14: what was read");
        }
        let different: BTreeSet<Message> =
            letters.iter().map(|body| Message::parse(body).expect("what was sent")).collect();
        assert_eq!(letters.len(), different.len(), "G13: a dead letter is there twice");
        assert_eq!(different, expected.dead, "G13: the dead letters");
    }
}
