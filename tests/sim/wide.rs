//! The wide history: queues of every policy and setting, senders and receivers of every kind, and
//! everything that may go wrong with clients, clocks, servers and disks.
//!
//! Each seed draws a *weather*: which kinds of faults it has. So faults meet each other in some
//! histories, and in others the checks need not excuse anything.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use mq::server::engine::ConnectionId;
use mq::settings::{IdWindow, Overflow, Retention, Start, Wanted};
use mq::units::{Count, Micros, Name, Offset, OffsetRange, SyncPolicy, WallTime};
use mq::wire::{Admin, Fault as Said, Settlement};

use crate::group::{Delivery, GroupModel};
use crate::junk;
use crate::model::QueueModel;
use crate::plan::{Plan, STEPS};
use crate::receiver::{Receiver, Take};
use crate::rng::{Chance, Random};
use crate::sender::{Manner, Sender};
use crate::several::Several;
use crate::watch::Watch;
use crate::world::{Fall, World, trace};

/// Which faults a history has.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weather {
    /// Errors of the disk.
    pub errors: bool,
    /// Times in which it is full.
    pub full: bool,
    /// Bits and blocks that change by themselves.
    pub rot: bool,
    /// Kills in the middle of a call to the disk, wherever it comes from.
    pub kills: bool,
    /// A wall clock that is set.
    pub clocks: bool,
    /// Times in which nothing comes back from the disk.
    pub slow: bool,
}

/// A queue that is purged, and of which a group comes, goes and is set elsewhere: of its messages
/// only the accounts are checked.
pub fn aside() -> Name {
    name("aside")
}

pub fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

/// A group that takes nothing before the end.
pub fn witness() -> Name {
    name("witness")
}

/// Where the dead letters of a group go.
pub fn dead_letters_of(queue: &Name, group: &Name) -> Name {
    if *group == Name::default() {
        return name(&format!("{queue}.dead"));
    }
    name(&format!("{queue}.{group}.dead"))
}

/// How long `interval` waits at most.
const INTERVAL: Micros = Micros::from_millis(20);

pub fn any_policy(rng: &mut Random) -> SyncPolicy {
    [SyncPolicy::Always, SyncPolicy::Interval(INTERVAL), SyncPolicy::Never][rng.below(3) as usize]
}

pub struct Wide {
    pub world: World,
    pub weather: Weather,
    pub queues: BTreeMap<Name, QueueModel>,
    pub senders: Vec<Sender>,
    pub receivers: Vec<Receiver>,
    pub several: Option<Several>,
    /// Connections whose clients have gone without a word.
    zombies: Vec<ConnectionId>,
    watch: Watch,
    /// Nothing new is sent; receivers ack all that they hold.
    pub draining: bool,
    /// Segments of damaged queues: they must stay.
    pub kept: BTreeMap<Name, BTreeSet<PathBuf>>,
    pub falls: usize,
    pub ended_by_itself: usize,
    /// Times that a client stalled, and that the disk became slow.
    pub stalls: usize,
    pub slow_times: usize,
}

impl Wide {
    pub fn new(plan: &Plan) -> (Wide, BTreeMap<u32, Fall>) {
        let mut world = World::new(plan);
        world.begin_step(plan.draws(STEPS));
        let weather = draw_weather(&mut world);
        let mut wide = Wide {
            world,
            weather,
            queues: BTreeMap::new(),
            senders: Vec::new(),
            receivers: Vec::new(),
            several: None,
            zombies: Vec::new(),
            watch: Watch::default(),
            draining: false,
            kept: BTreeMap::new(),
            falls: 0,
            ended_by_itself: 0,
            stalls: 0,
            slow_times: 0,
        };
        for n in 0..1 + wide.world.rng.below(2) {
            wide.make_queue(&name(&format!("q{n}")));
        }
        if wide.world.rng.chance(30) {
            let queues: Vec<Name> = wide.queues.keys().cloned().collect();
            wide.several = Some(Several::new(queues, name("several"), &mut wide.world.rng));
        }
        if wide.world.rng.chance(40) {
            wide.set_aside();
        }
        let falls = plan_falls(&mut wide.world.rng);
        (wide, falls)
    }

    /// Declares a queue with any settings, and those who use it.
    fn make_queue(&mut self, queue: &Name) {
        let rng = &mut self.world.rng;
        let policy = any_policy(rng);
        let mut wanted =
            Wanted { sync: Some(policy), delivery_limit: Some(3), ..Wanted::default() };
        let mut manner = Manner { delays: rng.chance(60), ..Manner::default() };
        let mut gives_up = false;
        match rng.below(10) {
            0 | 1 => {
                wanted.unique_ids = Some(IdWindow::Count(10_000));
                manner.ids = true;
            }
            2 => {
                let overflows = [Overflow::Block, Overflow::Reject, Overflow::DropOldest];
                let overflow = overflows[rng.below(3) as usize];
                wanted.max_messages = Some(10 + rng.below(60));
                wanted.overflow = Some(overflow);
                gives_up = overflow == Overflow::DropOldest;
                manner.in_parts = true;
            }
            3 => {
                wanted.retain = Some(Retention::Log);
                wanted.max_messages = Some(40 + rng.below(200));
                gives_up = true;
            }
            _ => {}
        }
        let limited = wanted.max_messages.is_some();
        self.declare(queue, wanted);
        let model = self.queues.get_mut(queue).expect("it was declared");
        model.gives_up = gives_up;
        let has_witness = !limited && self.world.rng.chance(60);
        if has_witness {
            let group = witness();
            self.world.ask(Admin::AddGroup { queue: queue.clone(), group, from: Start::Oldest });
            self.world.settle();
        }
        self.staff(queue, manner, has_witness);
    }

    fn staff(&mut self, queue: &Name, manner: Manner, has_witness: bool) {
        let rng = &mut self.world.rng;
        for _ in 0..1 + rng.below(3) {
            let id = self.senders.len() as u64 + 1;
            let named = rng.chance(30);
            self.senders.push(Sender::new(id, queue.clone(), manner, named, rng));
        }
        for _ in 0..1 + rng.below(2) {
            self.receivers.push(Receiver::new(queue.clone(), Name::default(), Take::Plain, rng));
        }
        if rng.chance(40) {
            let span = Micros(10_000 << rng.below(6));
            let takes = [Take::Plain, Take::Exclusive, Take::Leased(span)];
            let take = takes[rng.below(3) as usize];
            for _ in 0..1 + rng.below(2) {
                self.receivers.push(Receiver::new(queue.clone(), name("g"), take, rng));
            }
        }
        // What it loses is gone where nobody else has a group.
        if has_witness && rng.chance(40) {
            self.receivers.push(Receiver::new(queue.clone(), name("once"), Take::AtMostOnce, rng));
        }
    }

    fn declare(&mut self, queue: &Name, wanted: Wanted) {
        let mut model = QueueModel::new(wanted.sync.unwrap_or_default());
        self.world.declare(queue, wanted);
        model.group(&Name::default()).fails = true;
        self.queues.insert(queue.clone(), model);
    }

    /// Makes the queue that is meddled with, with one who sends and one who receives.
    fn set_aside(&mut self) {
        let policy = any_policy(&mut self.world.rng);
        let wanted = Wanted { sync: Some(policy), delivery_limit: Some(3), ..Wanted::default() };
        self.declare(&aside(), wanted);
        let id = self.senders.len() as u64 + 1;
        let rng = &mut self.world.rng;
        let manner = Manner { delays: true, ..Manner::default() };
        self.senders.push(Sender::new(id, aside(), manner, false, rng));
        self.receivers.push(Receiver::new(aside(), Name::default(), Take::Plain, rng));
        self.queues.get_mut(&aside()).expect("it was declared").gives_up = true;
    }

    /// One step, whatever it draws.
    pub fn step(&mut self, number: u32) {
        let what = self.world.rng.below(100);
        self.world.note(what);
        trace(|| format!("step {number}: {what}"));
        let sender = self.world.rng.below(self.senders.len() as u64) as usize;
        let receiver = self.world.rng.below(self.receivers.len() as u64) as usize;
        match what {
            0..32 => self.step_sender(sender),
            32..60 => self.step_receiver(receiver),
            60..71 => self.world.run_job(),
            71..74 => self.world.run_late_job(),
            74..76 => self.meddle(),
            76..82 => {
                let micros = 1 << self.world.rng.below(22);
                self.world.pass_time(micros);
            }
            82..84 => self.leave_sender(sender),
            84..86 => self.leave_receiver(receiver),
            86 => self.bury_zombies(),
            87..89 => self.requeue(),
            89 => {
                let queue = self.senders[sender].queue.clone();
                junk::visit(&mut self.world, &queue);
            }
            90 => self.breathe(),
            91 => self.set_clock(),
            92..97 => self.strike(),
            97 => self.stall(sender, receiver),
            98 if self.weather.slow => {
                self.world.slow_until = self.world.age + (1 << self.world.rng.below(24));
                self.slow_times += 1;
            }
            99 => self.leave_several(),
            _ => {}
        }
        if number.is_multiple_of(4) {
            self.step_several();
        }
        self.world.turn();
        self.check_accounts();
        if number.is_multiple_of(8) && self.world.is_up() {
            self.watch.look(&mut self.world);
        }
        self.rise();
    }

    /// A client does nothing for a while, neither reads nor writes, and stays connected.
    fn stall(&mut self, sender: usize, receiver: usize) {
        let until = self.world.age + (1 << self.world.rng.below(23));
        if self.world.rng.chance(50) {
            self.senders[sender].stalled_until = until;
        } else {
            self.receivers[receiver].stalled_until = until;
        }
        self.stalls += 1;
    }

    pub fn step_sender(&mut self, which: usize) {
        let sender = &mut self.senders[which];
        if sender.stalled_until > self.world.age && !self.draining {
            return;
        }
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
        let model = self.queues.get_mut(&sender.queue).expect("a queue's model");
        sender.inbound.extend(bytes);
        let mut frames = sender.hear(model);
        if self.world.is_heard(connection) {
            let (rng, wall) = (&mut self.world.rng, self.world.wall);
            frames.extend(sender.publish(model, rng, wall, self.draining));
        }
        self.world.say(connection, &frames);
        // It may be told off without a word of its own channel.
        if self.world.is_ending(connection) {
            sender.refused = true;
        }
    }

    pub fn step_receiver(&mut self, which: usize) {
        let receiver = &mut self.receivers[which];
        if receiver.stalled_until > self.world.age && !self.draining {
            return;
        }
        let Some(connection) = receiver.connection.filter(|_| !receiver.refused) else {
            if let Some(connection) = receiver.connection {
                self.world.hung_up(connection);
                receiver.held.clear();
            }
            if !receiver.ended {
                let connection = self.world.connect();
                let keep = self.world.rng.chance(50);
                let frames = receiver.connect(connection, keep);
                receiver.heard_at = self.world.age;
                self.world.say(connection, &frames);
            }
            return;
        };
        let rng = &mut self.world.rng;
        let limit = if rng.chance(20) { 1 + rng.below(200) } else { u64::MAX };
        let bytes = self.world.receive(connection, limit);
        let now = self.delivery();
        let receiver = &mut self.receivers[which];
        let model = self.queues.get_mut(&receiver.queue).expect("a queue's model");
        receiver.inbound.extend(bytes);
        let mut frames = receiver.hear(model, &now);
        if limit == u64::MAX {
            receiver.heard_at = self.world.age;
        }
        let rng = &mut self.world.rng;
        if rng.chance(50) {
            frames.extend(receiver.more_credit(rng));
        }
        if rng.chance(20) && !self.draining {
            frames.extend(receiver.begin(rng));
        }
        if self.draining {
            frames.extend(receiver.ack_all(model));
        } else if rng.chance(50) {
            frames.extend(receiver.ack(model, rng));
        }
        self.world.say(connection, &frames);
        if self.world.is_heard(connection) {
            self.served(which);
        }
        if matches!(self.receivers[which].take, Take::Leased(_)) && self.world.rng.chance(50) {
            self.settle_by_receipt(which);
        }
    }

    /// What there is to say of a delivery that comes now.
    fn delivery(&self) -> Delivery {
        Delivery {
            offset: Offset(0),
            redelivered: false,
            wall: self.world.wall_max,
            age: self.world.age,
            leased_until: None,
            lease: 0,
            is_noted: !self.world.is_tight(),
            leases_hold: !self.weather.clocks,
        }
    }

    /// The receiver of several queues, if there is one.
    pub fn step_several(&mut self) {
        let now = self.delivery();
        let Some(several) = &mut self.several else { return };
        let Some(connection) = several.connection.filter(|_| !several.refused) else {
            if let Some(connection) = several.connection.take() {
                self.world.hung_up(connection);
            }
            if several.queues.is_empty() {
                return;
            }
            let connection = self.world.connect();
            let frames = several.connect(connection);
            return self.world.say(connection, &frames);
        };
        let rng = &mut self.world.rng;
        let limit = if rng.chance(20) { 1 + rng.below(200) } else { u64::MAX };
        several.inbound.extend(self.world.receive(connection, limit));
        let frames = several.step(&mut self.queues, &now, &mut self.world.rng, self.draining);
        self.world.say(connection, &frames);
        several.refused |= self.world.is_gone(connection);
        if !self.world.is_heard(connection) || several.refused {
            return;
        }
        // A channel may have failed, and what was said there was dropped.
        let is_sound = self.queues.values().all(|model| !model.spoilt);
        for (queue, acked) in several.served() {
            if is_sound && !self.world.is_tight() && !self.world.may_fail {
                let model = self.queues.get_mut(&queue).expect("a queue's model");
                model.group(&several.group).settle(&acked, true);
            }
        }
    }

    fn leave_several(&mut self) {
        let Some(several) = &mut self.several else { return };
        if let Some(connection) = several.connection.take() {
            self.world.hung_up(connection);
        }
    }

    /// The server has taken in the acks of a receiver.
    fn served(&mut self, which: usize) {
        let receiver = &mut self.receivers[which];
        let acked = receiver.served();
        let model = self.queues.get_mut(&receiver.queue).expect("a queue's model");
        let is_tight = self.world.is_tight();
        if is_tight || self.world.may_fail || model.spoilt {
            // The channel may have failed, and what was said there was dropped.
            let Some(connection) = receiver.connection else { return };
            let bytes = self.world.receive(connection, u64::MAX);
            receiver.inbound.extend(bytes);
            if self.world.is_gone(connection) || receiver.was_refused() {
                return;
            }
        }
        model.group(&receiver.group).settle(&acked, !is_tight);
    }

    /// Settles one of the leased deliveries, any, by its receipt.
    fn settle_by_receipt(&mut self, which: usize) {
        let receiver = &mut self.receivers[which];
        if receiver.leases.is_empty() {
            return;
        }
        let rng = &mut self.world.rng;
        let nth = rng.below(receiver.leases.len() as u64) as usize;
        let (&offset, leased) = receiver.leases.iter().nth(nth).expect("one of them");
        let leased = leased.clone();
        let span = 10_000 + rng.below(100_000);
        let how = match rng.below(10) {
            0 => Settlement::Nack,
            1 | 2 => Settlement::Extend(Micros(span)),
            _ => Settlement::Ack,
        };
        let receipts = vec![leased.receipt.clone()];
        let said = self.world.ask(Admin::Settle { receipts, how });
        let said = said.map(|said| serde_json::from_slice::<Vec<Option<Said>>>(&said));
        trace(|| format!("  {how:?} of {}: {said:?}", leased.receipt));
        let model = self.queues.get_mut(&receiver.queue).expect("a queue's model");
        let Some(Ok(said)) = said.filter(|_| self.world.is_up()) else {
            if let Settlement::Ack = how {
                // The server has ended in the midst of it, which may have been done.
                model.group(&receiver.group).acked.insert(offset);
            }
            return;
        };
        let is_valid = leased.until > self.world.age && leased.era == model.era;
        let is_sure = !self.weather.clocks && !self.weather.errors && !self.weather.full;
        if let Some(fault) = &said[0] {
            let excused = !is_valid || !is_sure || model.spoilt || model.gives_up;
            assert!(excused, "G5: {leased:?} is refused at {}: {fault:?}", self.world.age);
            receiver.leases.remove(&offset);
            return;
        }
        let group = model.group(&receiver.group);
        match how {
            Settlement::Extend(span) => {
                let until = self.world.age + span.0;
                let kept = receiver.leases.get_mut(&offset).expect("it is there");
                kept.until = kept.until.max(until);
                if let Some(known) = group.leases.get_mut(&offset) {
                    *known = (*known).max(until);
                }
            }
            Settlement::Nack => {
                receiver.leases.remove(&offset);
                group.leases.remove(&offset);
            }
            Settlement::Ack => {
                receiver.leases.remove(&offset);
                group.leases.remove(&offset);
                group.acked.insert(offset);
                let is_noted = !self.world.is_tight();
                group.settle(&[OffsetRange::new(offset, Offset(offset.0 + 1))], is_noted);
            }
        }
    }

    /// A sender hangs up, or is gone without a word; another may take over what it left.
    fn leave_sender(&mut self, which: usize) {
        let sender = &mut self.senders[which];
        let Some(connection) = sender.connection else { return };
        sender.lost();
        if self.world.rng.chance(30) {
            self.zombies.push(connection);
        } else {
            self.world.hung_up(connection);
        }
        if self.world.rng.chance(50) {
            sender.hand_over(&mut self.world.rng);
        }
    }

    fn leave_receiver(&mut self, which: usize) {
        let receiver = &mut self.receivers[which];
        let Some(connection) = receiver.connection else { return };
        receiver.lost();
        // What it held is ready again for everyone: it must not present it on a server that
        // never went down.
        receiver.held.clear();
        if self.world.rng.chance(30) {
            self.zombies.push(connection);
        } else {
            self.world.hung_up(connection);
        }
    }

    /// The server notices that clients are gone.
    pub fn bury_zombies(&mut self) {
        for connection in std::mem::take(&mut self.zombies) {
            self.world.hung_up(connection);
        }
    }

    /// Everything that is under way comes to its end, and `interval` has its sync: what was
    /// confirmed by now is on the disk.
    fn breathe(&mut self) {
        for _ in 0..2 {
            self.world.settle();
            self.world.pass_time(2 * INTERVAL.0);
        }
        self.world.settle();
        if !self.world.is_up() || self.world.is_tight() {
            return;
        }
        for model in self.queues.values_mut() {
            if matches!(model.policy, SyncPolicy::Interval(_)) {
                model.make_safe();
            }
        }
    }

    /// The wall clock is set, forwards or backwards.
    fn set_clock(&mut self) {
        if self.weather.clocks {
            let by = self.world.rng.below(4_000_000);
            let wall = WallTime(self.world.wall.0 + by - 2_000_000);
            self.world.set_wall(wall);
        }
    }

    /// Asks that dead letters go back home, and does not wait for it.
    fn requeue(&mut self) {
        let rng = &mut self.world.rng;
        let which = rng.below(2);
        let count = rng.chance(50).then(|| Count(1 + rng.below(4)));
        let reason = rng.chance(50).then(|| "oiso".to_owned());
        let queue = name(&format!("q{which}"));
        let Some(model) = self.queues.get_mut(&queue) else { return };
        model.requeued = true;
        let queue = dead_letters_of(&queue, &Name::default());
        self.world.ask_for_later(Admin::Requeue { queue, count, to: None, reason });
    }

    /// Purges the queue that is set aside, or does something to a group of it.
    fn meddle(&mut self) {
        if !self.queues.contains_key(&aside()) {
            return;
        }
        let (queue, group) = (aside(), name("other"));
        let rng = &mut self.world.rng;
        let place = [Start::Oldest, Start::Newest, Start::Offset(Offset(rng.below(40)))]
            [rng.below(3) as usize];
        let what = match rng.below(6) {
            0 => Admin::Purge { queue },
            1 => Admin::RemoveGroup { queue, group },
            2 | 3 => Admin::AddGroup { queue, group, from: place },
            _ => Admin::SeekGroup { queue, group, to: place },
        };
        self.world.ask(what);
    }

    /// Nobody receives for that group: what it has would stay.
    pub fn stop_meddling(&mut self) {
        if !self.queues.contains_key(&aside()) {
            return;
        }
        // One that is being made waits for room that it found none of, and cannot go yet.
        for _ in 0..4 {
            self.world.settle();
            self.world.ask(Admin::RemoveGroup { queue: aside(), group: name("other") });
            self.world.settle();
            self.world.pass_time(2_000_000);
        }
    }

    /// The accounts of all groups add up.
    pub fn check_accounts(&mut self) {
        self.world.check_accounts();
    }

    /// Whether the server has ended by itself, or was killed: then another one starts.
    pub fn rise(&mut self) {
        if self.world.down.is_none() {
            return;
        }
        self.ended_by_itself += 1;
        let how = if self.world.rng.chance(50) { Fall::Kill } else { Fall::Power };
        self.fall(how);
    }

    /// The server's life ends, and another begins.
    pub fn fall(&mut self, how: Fall) {
        self.falls += 1;
        self.world.trace_accounts();
        // A group of it that was made, removed or set elsewhere may be as it was before.
        let sought = Some(aside());
        let was_tight = self.world.is_tight();
        let in_order = self.world.end(how);
        self.watch.forget(how, in_order, was_tight, sought.as_ref());
        for model in self.queues.values_mut().filter(|_| !in_order) {
            model.groups.values_mut().for_each(GroupModel::lose_memory);
        }
        if how == Fall::Power {
            // What a kill left damaged may be a torn end after a loss of power.
            self.kept.clear();
            self.queues.values_mut().for_each(QueueModel::lose_power);
        }
        for sender in &mut self.senders {
            sender.lost();
        }
        for receiver in &mut self.receivers {
            receiver.lost();
        }
        self.several.iter_mut().for_each(Several::lost);
        self.zombies.clear();
        self.world.begin();
        self.world.trace_accounts();
        self.keep_segments();
    }

    /// How things stand, for a failure.
    pub fn describe(&mut self) -> String {
        let mut text = String::new();
        for queue in self.world.list().queues {
            text += &format!("{queue:?}\n");
        }
        for sender in &self.senders {
            text += &format!("{sender:?}\n");
        }
        for receiver in &self.receivers {
            text += &format!("{receiver:?}\n");
        }
        text
    }
}

/// When the server falls, and how: at least three times.
pub fn plan_falls(rng: &mut Random) -> BTreeMap<u32, Fall> {
    let kinds = [Fall::Kill, Fall::Kill, Fall::Power, Fall::Power, Fall::Stop];
    let mut falls = BTreeMap::new();
    let count = 3 + rng.below(3) as usize;
    while falls.len() < count {
        falls.insert(rng.below(u64::from(STEPS)) as u32, kinds[rng.below(5) as usize]);
    }
    falls
}

pub fn draw_weather(world: &mut World) -> Weather {
    let rng = &mut world.rng;
    if rng.chance(30) {
        world.disk.disturb(Some(2 + rng.below(8)));
    }
    if rng.chance(25) {
        world.disk.tear_sectors();
    }
    if rng.chance(30) {
        world.disk.set_cold(Some(2 + rng.below(6)));
    }
    let mut weather = Weather {
        kills: rng.chance(50),
        clocks: rng.chance(20),
        slow: rng.chance(40),
        ..Weather::default()
    };
    match rng.below(10) {
        0 | 1 => weather.errors = true,
        2 | 3 => weather.full = true,
        4 => (weather.errors, weather.full) = (true, true),
        5 => weather.rot = true,
        _ => {}
    }
    weather
}
