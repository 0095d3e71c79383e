//! The figures of queues, for whoever watches.
//!
//! Made when they are asked for: nothing here is kept up to date for a watcher, and no timer runs
//! for one. What is kept is when a queue last changed, in *ticks*, one for each first page that was
//! answered: so a watcher of many queues is told of those that changed, and the others cost it a
//! comparison.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::broker::{GroupKey, Mode};
use crate::limits;
use crate::log::storage::Storage;
use crate::units::{Bytes, Count, Name, Offset, OffsetRange, WallTime};
use crate::wire::stat::{
    ClientFigures, Figures, FiguresWanted, GroupFigures, QueueFigures, Role, ServerFigures,
};
use crate::wire::{ErrorCode, Fault, QueuePattern};

use super::counting::{latencies, slices};
use super::hosting::{Hosted, Place};
use super::session::{Channel, Session};
use super::{Engine, QueueNumber, fault};

/// Bytes after which a page is full. One queue with all that belongs to it takes less than this
/// again.
const PAGE_BYTES: usize = limits::JSON_BYTES_MAX / 2;

/// What watchers are told of the server itself.
pub(super) struct Watch {
    pub instance: u64,
    pub started: WallTime,
    /// Of what changes now.
    pub tick: u64,
    /// Grows when a queue comes or goes.
    pub set: u64,
}

/// What a channel has moved.
#[derive(Clone, Copy, Default)]
pub(super) struct Share {
    pub since: WallTime,
    pub messages: u64,
    pub bytes: u64,
}

impl Share {
    pub fn since(since: WallTime) -> Share {
        Share { since, ..Share::default() }
    }

    pub fn add(&mut self, messages: u64, bytes: u64) {
        self.messages += messages;
        self.bytes += bytes;
    }
}

/// The oldest message of a queue that a group has not settled, and when it was stored; found out
/// by reading, and so kept while it is the same.
#[derive(Clone, Copy)]
pub(super) struct Oldest {
    offset: Offset,
    time: WallTime,
}

impl<S: Storage> Engine<S> {
    /// Something of this queue that is told to watchers changed.
    pub(super) fn changed(&mut self, number: QueueNumber) {
        if let Some(hosted) = self.hosted.get_mut(&number) {
            hosted.changed = self.watch.tick;
        }
    }

    /// One page of figures.
    pub(super) fn figures(&mut self, wanted: &FiguresWanted) -> Result<Figures, Fault> {
        check(wanted)?;
        if wanted.after.is_none() {
            // What changes from here on is newer than this answer.
            self.watch.tick += 1;
        }
        let mut figures = Figures { server: self.server_figures(), ..Figures::default() };
        let mut clients = if wanted.detail { self.clients() } else { BTreeMap::new() };
        let mut bytes = 0;
        for name in self.names_wanted(wanted) {
            if bytes >= PAGE_BYTES {
                figures.next = figures.queues.last().map(|last| last.queue.clone());
                break;
            }
            let queue = match &self.places[&name] {
                Place::Live(number) => {
                    let number = *number;
                    let clients = clients.remove(&number).unwrap_or_default();
                    self.queue_figures(number, wanted, clients)
                }
                Place::Damaged(why) => QueueFigures {
                    queue: name,
                    trouble: Some(why.clone()),
                    ..QueueFigures::default()
                },
                Place::Making(_) | Place::Removing => continue,
            };
            bytes += serde_json::to_vec(&queue).expect("our own types serialize").len();
            figures.queues.push(queue);
        }
        Ok(figures)
    }

    /// The queues that are asked for, behind the page before.
    fn names_wanted(&self, wanted: &FiguresWanted) -> Vec<Name> {
        let start = wanted.after.clone().map_or(Bound::Unbounded, Bound::Excluded);
        let places = self.places.range((start, Bound::Unbounded));
        let named = |name: &Name| {
            wanted.queues.is_empty() || wanted.queues.iter().any(|pattern| pattern.matches(name))
        };
        let changed = |place: &Place| match (wanted.changed_since, place) {
            (Some(tick), Place::Live(number)) => {
                let changed = |number: &QueueNumber| self.hosted[number].changed >= tick;
                changed(number) || (wanted.detail && self.sources_of(*number).any(|n| changed(&n)))
            }
            _ => true,
        };
        let chosen = places.filter(|(name, place)| changed(place) && named(name));
        chosen.map(|(name, _)| name.clone()).collect()
    }

    /// The queues that the pipes into a queue read: what waits there is part of its figures.
    fn sources_of(&self, number: QueueNumber) -> impl Iterator<Item = QueueNumber> {
        let names = self.pipes_to(number).into_iter().filter_map(|pipe| Name::new(&pipe.src).ok());
        names.filter_map(|name| match self.places.get(&name) {
            Some(Place::Live(number)) => Some(*number),
            _ => None,
        })
    }

    fn server_figures(&self) -> ServerFigures {
        ServerFigures {
            instance: self.watch.instance,
            pid: self.info.pid,
            version: self.info.version.clone(),
            started: self.watch.started,
            now: self.clock.wall,
            tick: self.watch.tick,
            set: self.watch.set,
            queues: self.places.len() as u64,
            connections: self.sessions.len() as u64,
        }
    }

    fn queue_figures(
        &mut self,
        number: QueueNumber,
        wanted: &FiguresWanted,
        clients: Vec<ClientFigures>,
    ) -> QueueFigures {
        let (oldest, oldest_group) = self.oldest_figures(number);
        let hosted = &self.hosted[&number];
        let key = hosted.key;
        let groups: Vec<GroupKey> = self.broker.groups(key).map(|(group, _)| group).collect();
        let mut figures = QueueFigures {
            queue: hosted.name.clone(),
            id: hosted.log.id(),
            created: hosted.log.created(),
            trouble: hosted.trouble.as_deref().or(self.movers_trouble(number)).map(str::to_owned),
            delayed: hosted.delayed(),
            present: self.broker.counts_without_group(key),
            present_bytes: hosted.present_bytes(&self.broker),
            disk_bytes: hosted.bytes(),
            senders: hosted.senders,
            counted: hosted.counted(&self.broker),
            oldest,
            oldest_group,
            clients,
            settings: wanted.detail.then(|| hosted.log.settings().shown()),
            ..QueueFigures::default()
        };
        if groups.is_empty() {
            figures.ready = figures.present;
        }
        if let Some(meter) = &hosted.meter {
            let wall = self.clock.wall;
            figures.latency = latencies(meter, wanted.detail);
            figures.seconds = slices(meter.history.seconds(wall, wanted.seconds));
            figures.minutes = slices(meter.history.minutes(wall, wanted.minutes));
        }
        for group in &groups {
            let counts = self.broker.counts(*group);
            figures.ready.0 += counts.ready.0;
            figures.unacked.0 += counts.leased.0;
            figures.resting.0 += counts.resting.0;
            figures.dying.0 += counts.dying.0;
            figures.receivers += counts.consumers as u64;
            figures.stuck |= counts.stuck;
        }
        if wanted.detail {
            let groups = groups.iter().map(|group| self.group_figures(number, *group));
            figures.groups = groups.collect();
            figures.pipes = self.pipes_to(number);
        }
        figures
    }

    fn group_figures(&mut self, number: QueueNumber, group: GroupKey) -> GroupFigures {
        let counts = self.broker.counts(group);
        let hosted = self.hosted.get_mut(&number).expect("a live queue");
        let oldest = counts.oldest.and_then(|offset| hosted.log.time_of(offset));
        GroupFigures {
            group: self.broker.group_name(group).clone(),
            ready: counts.ready,
            unacked: counts.leased,
            resting: counts.resting,
            dying: counts.dying,
            receivers: counts.consumers as u64,
            oldest,
            stuck: counts.stuck,
            account: self.account(number, group),
        }
    }

    /// When the oldest message that some group has not settled was stored, and whose it is.
    fn oldest_figures(&mut self, number: QueueNumber) -> (Option<WallTime>, Option<Name>) {
        let hosted = self.hosted.get_mut(&number).expect("a live queue");
        let Some((offset, group)) = oldest_unsettled(&self.broker, hosted) else {
            return (None, None);
        };
        if hosted.oldest.is_none_or(|known| known.offset != offset) {
            hosted.oldest = hosted.log.time_of(offset).map(|time| Oldest { offset, time });
        }
        (hosted.oldest.map(|known| known.time), group)
    }

    /// Who sends and receives, by queue.
    fn clients(&self) -> BTreeMap<QueueNumber, Vec<ClientFigures>> {
        let mut clients: BTreeMap<QueueNumber, Vec<ClientFigures>> = BTreeMap::new();
        for session in self.sessions.values() {
            for channel in session.channels.values() {
                let (queue, client) = match channel {
                    Channel::Sending(sender) => {
                        (sender.queue, client_figures(session, Role::Sender, sender.share))
                    }
                    Channel::Receiving(receiver) => {
                        let takes = receiver.mode == Mode::Take;
                        let role = if takes { Role::Receiver } else { Role::Peeker };
                        let group = receiver.group.map(|g| self.broker.group_name(g).clone());
                        let unacked = Count(self.broker.held(receiver.consumer).span());
                        let client = client_figures(session, role, receiver.share);
                        (receiver.queue, ClientFigures { group, unacked, ..client })
                    }
                    _ => continue,
                };
                let clients = clients.entry(queue).or_default();
                if clients.len() < limits::CLIENTS_SHOWN_MAX {
                    clients.push(client);
                }
            }
        }
        clients
    }
}

/// What is asked for must make sense.
fn check(wanted: &FiguresWanted) -> Result<(), Fault> {
    if wanted.queues.len() > limits::PATTERNS_PER_RECEIVER_MAX {
        return Err(fault(ErrorCode::Usage, "too many names of queues in one request"));
    }
    match wanted.queues.iter().find(|pattern| !pattern.is_valid()) {
        Some(QueuePattern(bad)) => {
            Err(fault(ErrorCode::Usage, format!("{bad:?} is no name and no pattern of a queue")))
        }
        None => Ok(()),
    }
}

fn client_figures<S: Storage>(session: &Session<S>, role: Role, share: Share) -> ClientFigures {
    ClientFigures {
        role,
        pid: session.peer.pid,
        uid: session.peer.uid,
        tool: session.client.tool.clone(),
        command: session.client.command.clone(),
        group: None,
        since: share.since,
        messages: Count(share.messages),
        bytes: Bytes(share.bytes),
        unacked: Count(0),
    }
}

/// The oldest message that some group has not settled, and the group; without a group, the oldest
/// that is not gone.
fn oldest_unsettled<S: Storage>(
    broker: &crate::broker::Broker,
    hosted: &Hosted<S>,
) -> Option<(Offset, Option<Name>)> {
    let mut groups = broker.groups(hosted.key).peekable();
    if groups.peek().is_none() {
        let all = OffsetRange::new(hosted.log.start(), broker.visible_end(hosted.key));
        return Some((broker.oldest_in(hosted.key, all)?, None));
    }
    let oldest = groups.filter_map(|(key, name)| Some((broker.counts(key).oldest?, name)));
    oldest.min_by_key(|(offset, _)| *offset).map(|(offset, name)| (offset, Some(name.clone())))
}
