//! The administrative requests.

use std::ops::Bound;
use std::sync::Arc;

use crate::broker::GroupKey;
use crate::limits;
use crate::log::storage::Storage;
use crate::server::findings;
use crate::units::{Count, DEFAULT_GROUP, Ending, Moment, Name, OffsetRange, WallTime};
use crate::wire::{
    Admin, CheckReport, ClockInfo, ErrorCode, Fault, GroupInfo, PipeInfo, QueueInfo, Reply,
    StoreInfo,
};

use super::hosting::Place;
use super::session::{Channel, RequeueWanted};
use super::{ConnectionId, Engine, QueueNumber, Trouble, Work, fault, protocol};

impl<S: Storage> Engine<S> {
    pub(super) fn admin(
        &mut self,
        connection: ConnectionId,
        channel: u16,
        admin: Admin,
        moment: Moment,
    ) -> Result<(), Trouble> {
        let session = self.sessions.get_mut(&connection).expect("a connected client");
        session.request(channel).map_err(protocol)?;
        match admin {
            Admin::Declare { queue, wanted, change } => {
                self.declare(connection, channel, &queue, wanted, change, moment)
            }
            Admin::List { after } => {
                let page = self.page(after);
                self.answer(connection, channel, &page);
                Ok(())
            }
            Admin::Show { queue } => {
                let number = self.find(&queue)?;
                let info = self.info_of(number);
                let info = QueueInfo { pipes: self.pipes_to(number), ..info };
                self.answer(connection, channel, &info);
                Ok(())
            }
            Admin::Clock { queue, group } => {
                let clock = self.clock(&queue, &group, moment.wall)?;
                self.answer(connection, channel, &clock);
                Ok(())
            }
            Admin::Figures(wanted) => {
                let figures = self.figures(&wanted)?;
                self.answer(connection, channel, &figures);
                Ok(())
            }
            Admin::Purge { queue } => self.purge(connection, channel, &queue),
            Admin::Remove { queue } => self.remove(connection, channel, &queue),
            Admin::Wait { queue } => self.wait(connection, channel, &queue),
            Admin::Requeue { queue, count, to, reason } => {
                let wanted = RequeueWanted { queue, count, to, reason };
                self.requeue(connection, channel, wanted)
            }
            Admin::Settle { receipts, how } => {
                self.settle_receipts(connection, channel, &receipts, how)
            }
            Admin::AddGroup { .. } | Admin::RemoveGroup { .. } | Admin::SeekGroup { .. } => {
                self.group_request(connection, channel, admin)
            }
            Admin::Check { queue } => self.check(connection, channel, queue.as_ref()),
        }
    }

    pub(super) fn answer<T: serde::Serialize>(
        &mut self,
        connection: ConnectionId,
        channel: u16,
        value: &T,
    ) {
        let json = serde_json::to_vec(value).expect("our own types serialize");
        self.reply(connection, channel, &Reply::Reply(&json));
    }

    /// Ends the wait of a request. False when nobody waits any more.
    pub(super) fn answered(&mut self, connection: ConnectionId, channel: u16) -> bool {
        let Some(session) = self.sessions.get_mut(&connection) else { return false };
        let waits = matches!(session.channels.get(&channel), Some(Channel::Admin));
        if waits {
            session.channels.remove(&channel);
        }
        waits
    }

    /// The channel waits.
    pub(super) fn hold(&mut self, connection: ConnectionId, channel: u16, state: Channel<S>) {
        let session = self.sessions.get_mut(&connection).expect("a connected client");
        session.channels.insert(channel, state);
    }

    fn describe(&mut self, name: &Name) -> Option<QueueInfo> {
        match self.places.get(name)? {
            Place::Live(number) => {
                let number = *number;
                Some(self.info_of(number))
            }
            Place::Damaged(why) => Some(QueueInfo {
                queue: name.clone(),
                trouble: Some(why.clone()),
                ..QueueInfo::default()
            }),
            Place::Making(_) | Place::Removing => None,
        }
    }

    /// What time it is for the readers of a group.
    fn clock(&mut self, queue: &Name, group: &Name, wall: WallTime) -> Result<ClockInfo, Fault> {
        let number = self.find_here(queue)?;
        let hosted = self.hosted.get_mut(&number).expect("a live queue");
        let now = hosted.log.reach_time(wall);
        // What the broker does not know was not handed out, though it may be durable by now; and what is
        // being copied has its time already.
        let hidden = hosted.log.written_end().0 - self.broker.visible_end(hosted.key).0;
        let copied = u64::from(hosted.log.is_copying());
        let mut clock = ClockInfo { now, waiting: Count(hidden + copied), dying: Count(0) };
        let mut groups = self.broker.groups(hosted.key);
        if let Some((key, _)) = groups.find(|(_, name)| *name == group) {
            let counts = self.broker.counts(key);
            clock.waiting.0 += counts.ready.0;
            clock.dying = counts.dying;
        }
        Ok(clock)
    }

    /// The queues behind `after`, as many as fit one answer.
    fn page(&mut self, after: Option<Name>) -> StoreInfo {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut bytes = 0;
        let mut queues = Vec::new();
        let names: Vec<Name> =
            self.places.range((start, Bound::Unbounded)).map(|(name, _)| name.clone()).collect();
        for name in &names {
            if bytes >= LIST_BYTES {
                return StoreInfo { queues, more: true };
            }
            let Some(info) = self.describe(name) else { continue };
            bytes += serde_json::to_vec(&info).expect("our own types serialize").len();
            queues.push(info);
        }
        StoreInfo { queues, more: false }
    }

    /// The pipes that write to a queue, by their last commits.
    pub(super) fn pipes_to(&self, number: QueueNumber) -> Vec<PipeInfo> {
        let annexes = self.hosted[&number].log.producers_known().annexes();
        // Annexes of others are no JSON.
        let pipes = annexes.filter_map(|(_, annex)| serde_json::from_slice::<PipeInfo>(annex).ok());
        let pipes = pipes.filter(|pipe| !pipe.late);
        let mut pipes: Vec<PipeInfo> = pipes.take(limits::PIPES_SHOWN_MAX).collect();
        for pipe in &mut pipes {
            pipe.lag = self.lag_of(pipe);
        }
        pipes.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        pipes
    }

    fn lag_of(&self, pipe: &PipeInfo) -> Option<Count> {
        let source = self.find(&Name::new(&pipe.src).ok()?).ok()?;
        let group = Name::new(&format!("{}{}", limits::PIPE_GROUP_PREFIX, pipe.name)).ok()?;
        let group = self.broker.find_group(self.hosted[&source].key, &group)?;
        let counts = self.broker.counts(group);
        Some(Count(counts.ready.0 + counts.leased.0))
    }

    pub(super) fn group_info(&self, number: QueueNumber, group: GroupKey) -> GroupInfo {
        let counts = self.broker.counts(group);
        GroupInfo {
            group: self.broker.group_name(group).clone(),
            ready: counts.ready,
            passed: Count(0),
            unacked: Count(counts.leased.0 + counts.dying.0),
            resting: counts.resting,
            receivers: counts.consumers as u64,
            oldest: counts.oldest,
            settled_ranges: counts.settled_ranges as u64,
            stuck: counts.stuck,
            dead: Count(self.dead_of(number, group).0),
            account: self.account(number, group),
            unknown: Vec::new(),
        }
    }

    pub(super) fn info_of(&mut self, number: QueueNumber) -> QueueInfo {
        let (oldest, oldest_time) = self.oldest(number);
        let hosted = self.hosted.get_mut(&number).expect("a live queue");
        let counters = *hosted.log.counters();
        let hosted = &self.hosted[&number];
        let counted = hosted.counted(&self.broker);
        let keys = self.broker.groups(hosted.key).map(|(key, _)| key);
        let mut groups: Vec<GroupInfo> = keys.map(|key| self.group_info(number, key)).collect();
        groups.sort_by(|a, b| a.group.cmp(&b.group));
        let default = groups.iter().find(|group| group.group.as_str() == DEFAULT_GROUP);
        QueueInfo {
            queue: hosted.name.clone(),
            id: hosted.log.id(),
            settings: hosted.log.settings().shown(),
            created: hosted.log.created(),
            ready: default
                .map_or_else(|| self.broker.counts_without_group(hosted.key), |group| group.ready),
            unacked: default.map_or(Count(0), |group| group.unacked),
            end: self.broker.visible_end(hosted.key),
            bytes: hosted.bytes().0,
            segments: hosted.log.segments() as u64,
            receivers: groups.iter().map(|group| group.receivers).sum(),
            senders: hosted.senders,
            delayed: hosted.delayed(),
            groups,
            pipes: Vec::new(),
            trouble: hosted.trouble.as_deref().or(self.movers_trouble(number)).map(str::to_owned),
            oldest_time,
            oldest_group: oldest,
            dropped: counters.dropped,
            expired: counters.expired,
            counted,
            unknown: Vec::new(),
        }
    }

    /// The group that holds the oldest message that is not settled, and when that was stored.
    fn oldest(&mut self, number: QueueNumber) -> (Option<Name>, Option<WallTime>) {
        let hosted = self.hosted.get_mut(&number).expect("a live queue");
        let groups = self.broker.groups(hosted.key);
        let oldest = groups
            .filter_map(|(key, name)| Some((self.broker.counts(key).oldest?, Some(name))))
            .min_by_key(|(offset, _)| *offset);
        let all = OffsetRange::new(hosted.log.start(), self.broker.visible_end(hosted.key));
        let (offset, group) = match oldest {
            Some(oldest) => oldest,
            None if self.broker.groups(hosted.key).next().is_some() => return (None, None),
            None => match self.broker.oldest_in(hosted.key, all) {
                Some(offset) => (offset, None),
                None => return (None, None),
            },
        };
        let group = group.cloned();
        (group, hosted.log.time_of(offset))
    }

    pub(super) fn purge(
        &mut self,
        connection: ConnectionId,
        channel: u16,
        name: &Name,
    ) -> Result<(), Trouble> {
        let number = self.find_here(name)?;
        let key = self.hosted[&number].key;
        let before = self.describe(name).map_or(0, |info| info.ready.0);
        if self.broker.groups(key).next().is_none() {
            // Without a group nothing could be settled durably; the default one is made by this.
            self.group_to_take_from(number, &Name::default())?;
        }
        let groups: Vec<GroupKey> = self.broker.groups(key).map(|(group, _)| group).collect();
        if groups
            .into_iter()
            .any(|group| self.waits_for_group(number, group, (connection, channel)))
        {
            self.hold(connection, channel, Channel::Purging(name.clone()));
            return Ok(());
        }
        for (group, settled) in self.broker.purge(key) {
            self.settle(number, group, &settled, Ending::Purged);
        }
        let hosted = self.hosted.get_mut(&number).expect("a live queue");
        let delayed = hosted.purge_delayed();
        self.touch(number);
        self.answer(connection, channel, &Count(before + delayed.0));
        Ok(())
    }

    fn remove(
        &mut self,
        connection: ConnectionId,
        channel: u16,
        name: &Name,
    ) -> Result<(), Trouble> {
        if let Some(Place::Damaged(_)) = self.places.get(name) {
            self.hold(connection, channel, Channel::Admin);
            self.places.insert(name.clone(), Place::Removing);
            let storage = Arc::clone(&self.storage);
            let id = (self.new_queue_id)();
            self.jobs.push(Work::remove(storage, name.clone(), id, (connection, channel)));
            return Ok(());
        }
        let number = self.find(name)?;
        if self.hosted[&number].removing.is_some() {
            return Err(super::hosting::being_removed(name).into());
        }
        let gone = fault(ErrorCode::Gone, format!("queue {name} was removed"));
        self.fail_channels_of(number, &gone);
        let hosted = self.hosted.get_mut(&number).expect("a live queue");
        hosted.removing = Some((connection, channel));
        let waiters = std::mem::take(&mut hosted.quiet_waiters);
        self.places.insert(name.clone(), Place::Removing);
        for (waiting, id) in waiters {
            self.fail_channel(waiting, id, gone.clone());
        }
        self.hold(connection, channel, Channel::Admin);
        self.touch(number);
        Ok(())
    }

    fn wait(&mut self, connection: ConnectionId, channel: u16, name: &Name) -> Result<(), Trouble> {
        let number = self.find_here(name)?;
        let hosted = self.hosted.get_mut(&number).expect("a live queue");
        if self.broker.is_quiet(hosted.key) && hosted.awaiting.is_empty() {
            self.answer(connection, channel, &());
            return Ok(());
        }
        hosted.quiet_waiters.push((connection, channel));
        self.hold(connection, channel, Channel::Admin);
        Ok(())
    }

    fn check(
        &mut self,
        connection: ConnectionId,
        channel: u16,
        name: Option<&Name>,
    ) -> Result<(), Trouble> {
        let mut bounds = Vec::new();
        let mut report = CheckReport::default();
        let names: Vec<Name> = match name {
            Some(name) => vec![name.clone()],
            None => self.places.keys().cloned().collect(),
        };
        for name in names {
            match self.places.get(&name) {
                Some(Place::Live(number)) => {
                    bounds.push((name, self.hosted[number].check_bound()));
                }
                Some(Place::Damaged(why)) => {
                    report.queues += 1;
                    report.findings.push(findings::unreadable(&name, why));
                }
                Some(Place::Making(_) | Place::Removing) => {}
                None => {
                    self.find(&name)?;
                }
            }
        }
        self.hold(connection, channel, Channel::Admin);
        let storage = Arc::clone(&self.storage);
        self.checks.push_back(Work::check(storage, bounds, report, (connection, channel)));
        self.next_check();
        Ok(())
    }

    /// One check at a time: it reads all there is, and the other helpers must stay free to sync.
    fn next_check(&mut self) {
        if !self.check_under_way
            && let Some(check) = self.checks.pop_front()
        {
            self.check_under_way = true;
            self.jobs.push(check);
        }
    }

    /// A check has been made.
    pub(super) fn checked(
        &mut self,
        (connection, channel): (ConnectionId, u16),
        mut report: CheckReport,
    ) {
        self.check_under_way = false;
        self.next_check();
        if !self.answered(connection, channel) {
            return;
        }
        // The report must fit a frame; whoever sees so many findings needs no more of them.
        report.findings.truncate(FINDINGS_MAX);
        self.answer(connection, channel, &report);
    }
}

/// Bytes after which a page of the list of queues is full. One queue with all the groups that it
/// may have takes less than this again.
const LIST_BYTES: usize = limits::JSON_BYTES_MAX / 2;

/// Findings in the answer to a check.
const FINDINGS_MAX: usize = 200;
