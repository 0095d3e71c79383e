//! Queues coming and going, and one turn of a queue: its jobs, what became visible, who is
//! confirmed.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::broker::{GroupKey, QueueKey};
use crate::log::storage::Storage;
use crate::log::{Boot, GroupFile, Log, LogError, Recovered};
use crate::settings::Settings;
use crate::stat::Meter;
use crate::units::{Bytes, Count, Ending, Moment, Monotonic, Name, Offset, OffsetRange, Sequence};
use crate::url::Url;
use crate::wire::{ErrorCode, Fault, Reply, Sending};

use super::commit::Committing;
use super::counting::Origin;
use super::declaring::SettingsWaiter;
use super::delaying::{Delay, open_delay};
use super::figures::Oldest;
use super::grace::Grace;
use super::groups::{GroupBooks, state_of};
use super::moving::Lane;
use super::named::Opened;
use super::room::{Occupied, Waiting};
use super::sending::Source;
use super::session::Channel;
use super::{ConnectionId, Engine, QueueNumber, Trouble, Work, fault, fault_with};

/// What stands behind a name.
pub(super) enum Place {
    /// A queue that is served.
    Live(QueueNumber),
    /// A queue that a helper thread is making, and the channels that wait for it.
    Making(Vec<(ConnectionId, u16)>),
    /// A queue that a helper thread is removing.
    Removing,
    /// A queue that cannot be opened: why.
    Damaged(String),
}

/// What is said to a sender once everything below an offset is visible.
pub(super) struct Awaiting {
    pub connection: ConnectionId,
    pub channel: u16,
    pub end: Offset,
    /// The log's written bytes behind what is waited for: a batch without messages moves no
    /// offset, and must be as visible as any other.
    pub mark: Bytes,
    pub say: Say,
}

/// See [`Awaiting`].
pub(super) enum Say {
    /// The append up to this sequence is stored; so many messages of the channel so far were there
    /// already.
    Confirm(Sequence, Count, Origin),
    /// A producer that comes back may count on what it stored before.
    Sending(Sending),
}

/// Who waits for a large message, or a commit, that is being copied into the log.
pub(super) enum ChainOwner {
    /// A channel that published it, with this sequence.
    Channel(ConnectionId, u16, Sequence),
    /// A channel that committed it, with this sequence.
    Commit(ConnectionId, u16, Sequence),
    /// A mover.
    Mover(Lane),
}

/// A queue that is served.
pub(super) struct Hosted<S: Storage> {
    pub name: Name,
    pub key: QueueKey,
    pub log: Log<S>,
    pub groups: BTreeMap<GroupKey, GroupFile>,
    pub books: GroupBooks,
    /// New groups whose journals would not survive a crash yet: nothing is delivered to them,
    /// so that a restarted server knows of all that was.
    pub new_groups: Vec<GroupFile>,
    /// Channels that wait for a journal to be installed: of a new group, or of one that is to be set
    /// elsewhere.
    pub group_waiters: Vec<(ConnectionId, u16)>,
    /// They are called on in the next turn.
    pub wakes_group_waiters: bool,
    /// In the order of their offsets.
    pub awaiting: VecDeque<Awaiting>,
    pub delay: Delay<S>,
    /// Senders whose next PUBLISH goes to the other log than the one before.
    pub switching: Vec<Source>,
    /// How far each group has been handed messages since its journal was last told.
    pub handed: BTreeMap<GroupKey, Offset>,
    /// Named producers that were opened and are not durable yet, in the order of their marks.
    pub opened: VecDeque<Opened>,
    /// Commits that are stored and not durable yet, in the order of their marks.
    pub committing: VecDeque<Committing>,
    /// Channels whose named producers wait for the log to be opened.
    pub openers: Vec<(ConnectionId, u16)>,
    /// Connections with a PUBLISH that waits for the log.
    pub parked: Vec<ConnectionId>,
    /// Those with one that waits for room.
    pub waiting: VecDeque<Waiting>,
    /// What was in the queue when that was last asked, if it has limits.
    pub occupied: Option<Occupied>,
    /// Grows whenever something was settled.
    pub settles: u64,
    /// When groups whose facts found no room are tried again.
    pub keep_at: Option<Monotonic>,
    /// What lies below was given up for its age, bytes or number.
    pub kept_from: Offset,
    /// Channels that wait for the queue to be quiet.
    pub quiet_waiters: Vec<(ConnectionId, u16)>,
    /// Channels that wait for cold bytes.
    pub cold_waiters: Vec<(ConnectionId, u16)>,
    pub cold_read_under_way: bool,
    /// Channels that wait for what is ready to be durable.
    pub durable_waiters: Vec<(ConnectionId, u16)>,
    /// Why it stands still.
    pub trouble: Option<String>,
    /// Who waits for the large message that is being copied into the log.
    pub chain: Option<ChainOwner>,
    /// Messages that are not visible yet and are for one group only, in the order of their offsets.
    pub only: VecDeque<(OffsetRange, Name)>,
    /// Channels that wait for changed settings to be recorded.
    pub settings_waiters: Vec<SettingsWaiter>,
    pub senders: u64,
    pub jobs_under_way: usize,
    /// Who asked for its removal; it goes when no job is under way.
    pub removing: Option<(ConnectionId, u16)>,
    /// What receivers do not get yet, after a restart.
    pub grace: Grace,
    pub deadline: Option<Monotonic>,
    /// It stands in the engine's list of queues whose turn it is.
    pub touched: bool,
    /// The tick in which something of it last changed, for watchers.
    pub changed: u64,
    /// Its oldest message, as a watcher was last told.
    pub oldest: Option<Oldest>,
    /// What is measured of it, if it moves messages.
    pub meter: Option<Box<Meter<GroupKey>>>,
    /// Of the bytes that were stored, those that the meter knows of.
    pub bytes_counted: Bytes,
}

impl<S: Storage> Engine<S> {
    pub(super) fn host_all(
        &mut self,
        boot: Boot,
        report: &mut dyn FnMut(&Name, Option<&LogError>),
    ) -> Result<(), LogError> {
        if !boot.clean {
            crate::log::settle_queues(&*self.storage)?;
        }
        crate::log::sweep_removed(&*self.storage)?;
        for name in crate::log::list_queues(&*self.storage)? {
            match self.open_log(&name, boot) {
                Ok((log, recovered, delay)) => {
                    report(&name, None);
                    let number = self.host(&name, log, recovered);
                    self.hosted.get_mut(&number).expect("it was just hosted").delay = delay;
                    if boot.same_boot {
                        self.begin_grace(number);
                    }
                }
                Err(error) => {
                    report(&name, Some(&error));
                    self.places.insert(name, Place::Damaged(error.to_string()));
                }
            }
        }
        Ok(())
    }

    /// Opens a queue's log, and what waits beside it.
    fn open_log(&self, name: &Name, boot: Boot) -> Result<(Log<S>, Recovered, Delay<S>), LogError> {
        let options = &self.log_options;
        let (mut log, recovered) = Log::open(Arc::clone(&self.storage), name, boot, options)?;
        let delay = open_delay(&self.storage, &mut log, boot, options)?;
        Ok((log, recovered, delay))
    }

    /// Takes an opened log into service.
    pub(super) fn host(&mut self, name: &Name, log: Log<S>, recovered: Recovered) -> QueueNumber {
        let number = QueueNumber(self.next_queue);
        self.next_queue += 1;
        let key =
            self.broker.add_queue(recovered.start, recovered.end, &recovered.gaps, &recovered.gone);
        let settings = log.settings();
        let limit = settings.delivery_limit();
        self.broker.set_delivery_limit(key, limit);
        self.broker.set_retention(key, settings.retain);
        let mut groups = BTreeMap::new();
        let mut books = GroupBooks::default();
        let mut accounts = Vec::new();
        for (group, position) in recovered.groups {
            let (counter, account) = (position.lease_counter, position.account);
            let state = state_of(position, self.clock, log.newest_time(), limit);
            let file = log.find_group(&group).expect("a recovered group has a journal");
            // No two journals are of one name.
            let Ok(group) = self.broker.restore_group(key, &group, state) else { continue };
            groups.insert(group, file);
            books.lease_counters.insert(group, counter);
            accounts.push((group, account));
        }
        let bytes_counted = log.counted().stored_bytes;
        let hosted = Hosted {
            name: name.clone(),
            key,
            log,
            groups,
            books,
            new_groups: Vec::new(),
            group_waiters: Vec::new(),
            wakes_group_waiters: false,
            awaiting: VecDeque::new(),
            delay: Delay::None,
            switching: Vec::new(),
            handed: BTreeMap::new(),
            opened: VecDeque::new(),
            committing: VecDeque::new(),
            openers: Vec::new(),
            parked: Vec::new(),
            waiting: VecDeque::new(),
            occupied: None,
            settles: 0,
            keep_at: None,
            kept_from: recovered.start,
            quiet_waiters: Vec::new(),
            cold_waiters: Vec::new(),
            durable_waiters: Vec::new(),
            cold_read_under_way: false,
            trouble: None,
            chain: None,
            only: VecDeque::new(),
            settings_waiters: Vec::new(),
            senders: 0,
            jobs_under_way: 0,
            removing: None,
            grace: Grace::default(),
            deadline: None,
            touched: false,
            changed: self.watch.tick,
            oldest: None,
            meter: None,
            bytes_counted,
        };
        self.watch.set += 1;
        self.hosted.insert(number, hosted);
        self.by_key.insert(key, number);
        self.places.insert(name.clone(), Place::Live(number));
        self.restore_accounts(number, accounts);
        self.obey_settings(number);
        self.drop_gone_segments(number, None);
        self.touch(number);
        number
    }

    /// Finds a queue by name, for a request that makes sense only where its messages are.
    pub(super) fn find_here(&self, name: &Name) -> Result<QueueNumber, Fault> {
        let number = self.find(name)?;
        match self.lives_elsewhere(number) {
            Some(fault) => Err(fault),
            None => Ok(number),
        }
    }

    /// That a queue lives elsewhere, if it does, or is about to.
    pub(super) fn lives_elsewhere(&self, number: QueueNumber) -> Option<Fault> {
        let hosted = &self.hosted[&number];
        hosted.log.wanted_settings().at.as_ref().map(|url| elsewhere(&hosted.name, url))
    }

    /// Finds a queue by name, for a request that does not make it.
    pub(super) fn find(&self, name: &Name) -> Result<QueueNumber, Fault> {
        match self.places.get(name) {
            Some(Place::Live(number)) => Ok(*number),
            Some(Place::Damaged(why)) => Err(damaged(name, why)),
            Some(Place::Removing) => Err(being_removed(name)),
            Some(Place::Making(_)) | None => Err(fault_with(
                ErrorCode::NotFound,
                format!("there is no queue {name}"),
                "list the queues with `mq-admin ls`; sending to a queue makes it",
            )),
        }
    }

    /// Starts to make a queue; `channel` is told when it stands.
    pub(super) fn make(
        &mut self,
        name: &Name,
        settings: Settings,
        waiting: (ConnectionId, u16),
        moment: Moment,
    ) -> Result<(), Trouble> {
        self.make_for(name, settings, vec![waiting], moment).map_err(Trouble::Channel)
    }

    /// As [`make`](Engine::make), for all of these, or nobody who waits on a channel.
    pub(super) fn make_for(
        &mut self,
        name: &Name,
        settings: Settings,
        waiting: Vec<(ConnectionId, u16)>,
        moment: Moment,
    ) -> Result<(), Fault> {
        if self.places.len() >= crate::limits::QUEUES_MAX {
            return Err(fault_with(
                ErrorCode::Busy,
                format!("the store holds its limit of {} queues", crate::limits::QUEUES_MAX),
                "remove some with `mq-admin rm QUEUE`",
            ));
        }
        self.places.insert(name.clone(), Place::Making(waiting));
        let id = (self.new_queue_id)();
        self.jobs.push(Work::make(
            Arc::clone(&self.storage),
            name.clone(),
            id,
            settings,
            self.log_options.clone(),
            moment.wall,
        ));
        Ok(())
    }

    /// A helper thread has made a queue, or could not.
    pub(super) fn made(
        &mut self,
        name: &Name,
        result: Result<(Log<S>, Recovered), LogError>,
        moment: Moment,
    ) {
        let Some(Place::Making(waiting)) = self.places.remove(name) else {
            unreachable!("only a queue that is being made is made");
        };
        let number = match result {
            Ok((log, recovered)) => {
                self.wake_movers_to(name);
                self.host(name, log, recovered)
            }
            Err(error) => {
                self.heed_sync(&error);
                let fault = log_fault(&format!("cannot make queue {name}"), &error);
                self.rest_movers_to(name, &fault.message, moment);
                for (connection, channel) in waiting {
                    self.fail_channel(connection, channel, fault.clone());
                }
                return;
            }
        };
        let receivers = self.awaited.remove(name).unwrap_or_default();
        for (connection, channel) in waiting.into_iter().chain(receivers) {
            self.reopen(connection, channel, moment);
        }
        self.invite(number);
    }

    /// After a sync that failed nothing is confirmed any more.
    pub(super) fn heed_sync(&mut self, error: &LogError) {
        if error.is_of_sync() {
            self.failed.get_or_insert_with(|| error.to_string());
        }
    }

    /// Goes on with a channel that waited for its queue.
    pub(super) fn reopen(&mut self, connection: ConnectionId, channel: u16, moment: Moment) {
        let Some(session) = self.sessions.get_mut(&connection) else { return };
        let waiting = session.channels.remove(&channel);
        session.reopening = Some(channel);
        let result = match waiting {
            Some(Channel::OpeningSend(open)) => self.open_send(connection, channel, open, moment),
            Some(Channel::OpeningReceive(opening)) => {
                self.open_receive_again(connection, channel, opening)
            }
            Some(Channel::Requeuing(wanted)) => self.requeue(connection, channel, *wanted),
            Some(Channel::Purging(queue)) => self.purge(connection, channel, &queue),
            Some(Channel::AskingGroup(admin)) => self.group_request(connection, channel, *admin),
            Some(several @ Channel::Several(_)) => {
                session.channels.insert(channel, several);
                self.join_again(connection, channel);
                Ok(())
            }
            Some(Channel::Declaring(declare)) => {
                let (name, wanted, change) = *declare;
                self.declare(connection, channel, &name, wanted, change, moment)
            }
            Some(other) => {
                session.channels.insert(channel, other);
                Ok(())
            }
            None => Ok(()),
        };
        if let Some(session) = self.sessions.get_mut(&connection) {
            session.reopening = None;
        }
        match result {
            Ok(()) => {}
            Err(Trouble::Channel(fault)) => self.fail_channel(connection, channel, fault),
            Err(Trouble::Connection(fault)) => self.end_connection(connection, fault),
        }
    }

    /// What a queue does in a turn: new visibility, confirmations, jobs, its next deadline.
    pub(super) fn turn_queue(&mut self, number: QueueNumber, moment: Moment) {
        let Some(hosted) = self.hosted.get_mut(&number) else { return };
        hosted.touched = false;
        if hosted.removing.is_some() {
            self.remove_when_idle(number);
            return;
        }
        if std::mem::take(&mut hosted.wakes_group_waiters) {
            self.wake_group_waiters(number, moment);
        }
        self.take_due(number, moment);
        let hosted = self.hosted.get_mut(&number).expect("a queue in its turn");
        let visible = hosted.log.visible_end();
        let known = self.broker.visible_end(hosted.key);
        if visible > known {
            self.extend(number, known, visible);
        }
        let origins = self.confirm(number, visible);
        self.count_visible(number, OffsetRange::new(known, visible.max(known)), &origins, moment);
        self.count_ready(number);
        self.switch_senders(number);
        self.end_grace(number, moment);
        self.say_opened(number);
        self.say_committed(number);
        self.keep_to_limits(number);
        let retention_due = self.retain(number, moment);
        let keep_at = self.keep_groups(number, moment);
        let Some(hosted) = self.hosted.get_mut(&number) else { return };
        let key = hosted.key;
        if !hosted.quiet_waiters.is_empty()
            && hosted.awaiting.is_empty()
            && self.broker.is_quiet(key)
        {
            self.quiet(key);
        }
        let Some(hosted) = self.hosted.get_mut(&number) else { return };
        if let Some(why) = hosted.log.failed() {
            self.failed.get_or_insert_with(|| format!("queue {}: {why}", hosted.name));
        }
        while let Some(job) = hosted.log.next_job(moment.now) {
            hosted.jobs_under_way += 1;
            self.jobs.push(Work::log(number, job));
        }
        if let Delay::Open(waiting) = &mut hosted.delay {
            while let Some(job) = waiting.delays.next_job(moment.now) {
                hosted.jobs_under_way += 1;
                self.jobs.push(Work::log(number, job));
            }
            if let Some(why) = waiting.delays.log_ref().failed() {
                let name = &hosted.name;
                self.failed.get_or_insert_with(|| format!("queue {name}: {why}"));
            }
        }
        let delayed = hosted.next_deadline(moment, self.stopping);
        let own = [delayed, hosted.grace.deadline(), retention_due, keep_at];
        let deadline = own.into_iter().flatten().min();
        if deadline != hosted.deadline {
            if let Some(old) = hosted.deadline {
                self.deadlines.remove(&(old, number));
            }
            if let Some(new) = deadline {
                self.deadlines.insert((new, number));
            }
            hosted.deadline = deadline;
        }
    }

    /// Messages became visible; some are for one group only.
    fn extend(&mut self, number: QueueNumber, known: Offset, visible: Offset) {
        let hosted = self.hosted.get_mut(&number).expect("a queue in its turn");
        let key = hosted.key;
        let mut settled = Vec::new();
        let mut at = known;
        while hosted.only.front().is_some_and(|(range, _)| range.start < visible) {
            let (range, group) = hosted.only.pop_front().expect("there is a first");
            self.broker.extend(key, OffsetRange::new(at, range.start));
            match self.broker.find_group(key, &group) {
                Some(only) => settled.extend(self.broker.extend_for(key, range, only)),
                // The group was removed meanwhile: nobody is to have them.
                None => {
                    self.broker.extend(key, range);
                    let groups: Vec<GroupKey> = self.broker.groups(key).map(|(g, _)| g).collect();
                    let each = |g| (g, self.broker.expire(g, &[range], Ending::Others));
                    settled.extend(groups.into_iter().map(each));
                }
            }
            at = range.end;
        }
        self.broker.extend(key, OffsetRange::new(at, visible));
        for (group, ranges) in settled {
            self.settle(number, group, &ranges, Ending::Others);
        }
    }

    /// Nothing is ready or leased any more.
    pub(super) fn quiet(&mut self, key: QueueKey) {
        let Some(number) = self.by_key.get(&key) else { return };
        let Some(hosted) = self.hosted.get_mut(number) else { return };
        for (connection, channel) in std::mem::take(&mut hosted.quiet_waiters) {
            if self.answered(connection, channel) {
                self.reply(connection, channel, &Reply::Reply(b"null"));
            }
        }
    }

    /// A queue stands still from now on: its receivers and senders are told why.
    pub(super) fn stand_still(&mut self, number: QueueNumber, why: String) {
        let Some(hosted) = self.hosted.get_mut(&number) else { return };
        let fault = damaged(&hosted.name, &why);
        hosted.trouble = Some(why);
        let waiting = std::mem::take(&mut hosted.waiting);
        for Waiting { connection, .. } in waiting {
            if let Some(session) = self.sessions.get_mut(&connection) {
                session.unpark();
                self.dirty.push(connection);
            }
        }
        self.fail_channels_of(number, &fault);
    }

    /// Every channel on this queue fails with this word.
    pub(super) fn fail_channels_of(&mut self, number: QueueNumber, fault: &Fault) {
        let mut there = Vec::new();
        for (connection, session) in &self.sessions {
            for (id, channel) in &session.channels {
                let on = match channel {
                    Channel::Sending(sender) => sender.queue == number,
                    Channel::Receiving(receiver) => receiver.queue == number,
                    _ => false,
                };
                if on {
                    there.push((*connection, *id));
                }
            }
        }
        there.sort_unstable();
        for (connection, channel) in there {
            self.fail_channel(connection, channel, fault.clone());
        }
    }

    /// A removal goes on once no job of the queue is under way.
    pub(super) fn remove_when_idle(&mut self, number: QueueNumber) {
        let hosted = &self.hosted[&number];
        if hosted.jobs_under_way > 0 {
            return;
        }
        let groups: Vec<GroupKey> = hosted.groups.keys().copied().collect();
        self.forget_movers(number, &groups);
        let mut hosted = self.hosted.remove(&number).expect("it is there");
        if let Some(deadline) = hosted.deadline {
            self.deadlines.remove(&(deadline, number));
        }
        let gone = fault(ErrorCode::Gone, format!("queue {} was removed", hosted.name));
        let waiting = hosted.waiting.iter().map(|waiting| waiting.connection);
        for connection in hosted.parked.into_iter().chain(waiting) {
            if let Some(session) = self.sessions.get_mut(&connection) {
                session.unpark();
                self.dirty.push(connection);
            }
        }
        let settings = hosted.settings_waiters.iter().map(|w| (w.connection, w.channel));
        let others = hosted.group_waiters.into_iter().chain(hosted.openers);
        for (connection, channel) in others.chain(settings).chain(hosted.books.take_waiters()) {
            // A receiver of several queues does without this one.
            if !self.several.contains(&(connection, channel)) {
                self.fail_channel(connection, channel, gone.clone());
            }
        }
        self.forget_joining(number);
        for consumer in self.broker.remove_queue(hosted.key) {
            self.consumers.remove(&consumer);
        }
        self.by_key.remove(&hosted.key);
        if hosted.meter.is_some() {
            self.meter_gone();
        }
        self.watch.set += 1;
        self.places.insert(hosted.name.clone(), Place::Removing);
        let waiting = hosted.removing.expect("it is being removed");
        let id = hosted.log.id();
        self.jobs.push(Work::remove(Arc::clone(&self.storage), hosted.name, id, waiting));
    }

    /// A helper thread has removed a queue, or could not.
    pub(super) fn removed(
        &mut self,
        name: &Name,
        (connection, channel): (ConnectionId, u16),
        result: Result<(), LogError>,
    ) {
        self.places.remove(name);
        self.watch.set += 1;
        match result {
            Ok(()) => {
                if self.answered(connection, channel) {
                    self.reply(connection, channel, &Reply::Reply(b"null"));
                }
            }
            Err(error) => {
                self.heed_sync(&error);
                let why = error.to_string();
                let fault = log_fault(&format!("cannot remove queue {name}"), &error);
                self.places.insert(name.clone(), Place::Damaged(why));
                self.fail_channel(connection, channel, fault);
            }
        }
    }

    /// Whether any queue is served.
    #[must_use]
    pub fn has_queues(&self) -> bool {
        !self.hosted.is_empty()
    }

    /// Whether any queue stands still because it could not be opened.
    #[must_use]
    pub fn has_damaged(&self) -> bool {
        self.places.values().any(|place| matches!(place, Place::Damaged(_)))
    }
}

pub(super) fn damaged(name: &Name, why: &str) -> Fault {
    fault_with(
        ErrorCode::Corrupt,
        format!("queue {name} stands still: {why}"),
        format!("nothing was deleted; see `mq-admin check {name}`"),
    )
}

/// Clients of this version go there by themselves; others print it.
pub(super) fn elsewhere(name: &Name, url: &Url) -> Fault {
    let fault = fault_with(
        ErrorCode::Elsewhere,
        format!("queue {name} lives at {url}"),
        "mq-send, mq-recv, mq-pipe and mq-admin show, purge go there by themselves; or the engine's own tools",
    );
    Fault { url: Some(url.clone()), ..fault }
}

pub(super) fn being_removed(name: &Name) -> Fault {
    fault(ErrorCode::Gone, format!("queue {name} is being removed"))
}

/// A fault for an error of a log.
pub(super) fn log_fault(doing: &str, error: &LogError) -> Fault {
    let code = match error {
        LogError::Corrupt(_) | LogError::Metadata { .. } => ErrorCode::Corrupt,
        LogError::Io { source, .. } if is_full(source) => ErrorCode::Full,
        // Files are closed again.
        _ if error.is_for_want_of_descriptors() => ErrorCode::Busy,
        _ => ErrorCode::Disk,
    };
    fault(code, format!("{doing}: {error}"))
}

fn is_full(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded)
}
