//! Groups made, removed and set to another place on request; and where that is.

use crate::broker::{GroupKey, GroupState, Refusal};
use crate::log::storage::Storage;
use crate::log::{GroupFile, Sought};
use crate::settings::Start;
use crate::units::{Name, Offset, OffsetRange};
use crate::wire::{Admin, ErrorCode, Fault, GroupInfo, Reply};

use super::groups::{journal_clock, position_of, whole};
use super::hosting::log_fault;
use super::session::Channel;
use super::{ConnectionId, Engine, QueueNumber, Trouble, Work, fault, fault_with};

impl<S: Storage> Engine<S> {
    /// The offset of a place in a queue. None while the disk is asked: then `waiter` is called on
    /// again.
    pub(super) fn beginning(
        &mut self,
        number: QueueNumber,
        start: Start,
        waiter: (ConnectionId, u16),
    ) -> Result<Option<Offset>, Fault> {
        let hosted = self.hosted.get_mut(&number).expect("a live queue");
        let end = self.broker.visible_end(hosted.key);
        let offset = match start {
            Start::Oldest => Offset(0),
            Start::Newest => end,
            Start::Offset(offset) => offset,
            Start::Last(count) => hosted.log.offset_before_end(count),
            Start::Time(wall) => match hosted.log.offset_at_time(wall) {
                Ok(Sought::At(offset)) => offset,
                Ok(Sought::Cold { read }) => {
                    hosted.books.seekers.push(waiter);
                    hosted.jobs_under_way += 1;
                    self.jobs.push(Work::seek(number, *read));
                    return Ok(None);
                }
                Err(error) => {
                    let doing = format!("cannot find a time in queue {}", hosted.name);
                    return Err(log_fault(&doing, &error));
                }
            },
        };
        Ok(Some(offset.min(end)))
    }

    /// What a place was looked for in has been read.
    pub(super) fn sought(&mut self, number: QueueNumber) {
        let Some(hosted) = self.hosted.get_mut(&number) else { return };
        for (connection, channel) in std::mem::take(&mut hosted.books.seekers) {
            self.reopen(connection, channel, self.clock);
        }
    }

    /// A group that begins at `start`, with what is not gone.
    pub(super) fn state_from(&self, number: QueueNumber, start: Offset) -> GroupState {
        let mut settled = self.broker.gone(self.hosted[&number].key);
        settled.cover(OffsetRange::new(Offset(0), start));
        let settled: Vec<OffsetRange> = settled.iter().collect();
        GroupState { settled, handed: start, ..GroupState::default() }
    }

    pub(super) fn group_request(
        &mut self,
        connection: ConnectionId,
        channel: u16,
        admin: Admin,
    ) -> Result<(), Trouble> {
        let waiter = (connection, channel);
        let done = match &admin {
            Admin::AddGroup { queue, group, from } => {
                self.add_group(queue, group, *from, waiter)?
            }
            Admin::RemoveGroup { queue, group } => self.remove_group(queue, group, waiter)?,
            Admin::SeekGroup { queue, group, to } => self.seek_group(queue, group, *to, waiter)?,
            _ => unreachable!("only requests about groups come here"),
        };
        let state = if done { Channel::Admin } else { Channel::AskingGroup(Box::new(admin)) };
        self.hold(connection, channel, state);
        Ok(())
    }

    /// False when it has to be asked for again later.
    fn add_group(
        &mut self,
        queue: &Name,
        group: &Name,
        from: Start,
        waiter: (ConnectionId, u16),
    ) -> Result<bool, Fault> {
        let number = self.find_here(queue)?;
        if self.broker.find_group(self.hosted[&number].key, group).is_some() {
            return Err(fault_with(
                ErrorCode::Different,
                format!("queue {queue} has a group {group} already"),
                format!("set it to another place with `mq-admin group seek {queue} {group}`"),
            ));
        }
        let Some(start) = self.beginning(number, from, waiter)? else { return Ok(false) };
        let state = self.state_from(number, start);
        let made = self.make_group(number, group, Some(state))?;
        let hosted = self.hosted.get_mut(&number).expect("a live queue");
        hosted.books.made.push((hosted.groups[&made], made, waiter));
        Ok(true)
    }

    fn remove_group(
        &mut self,
        queue: &Name,
        name: &Name,
        waiter: (ConnectionId, u16),
    ) -> Result<bool, Fault> {
        let number = self.find_here(queue)?;
        let group = self.group_named(number, name)?;
        if self.waits_for_group(number, group, waiter)
            || self.waits_for_movers(number, group, waiter)
        {
            return Ok(false);
        }
        let gone = fault(ErrorCode::NotFound, format!("group {name} of queue {queue} was removed"));
        self.withdraw_waybills(number, group, self.clock);
        let books = &self.hosted[&number].books;
        let account = whole(&self.broker, books, group, self.clock).account;
        for consumer in self.broker.remove_group(group) {
            if let Some((connection, channel)) = self.consumers.remove(&consumer) {
                self.fail_channel(connection, channel, gone.clone());
            }
        }
        self.forget_failures(group, &[OffsetRange::new(Offset(0), Offset(u64::MAX))]);
        self.count_group_moved(number, group);
        let hosted = self.hosted.get_mut(&number).expect("a live queue");
        let file = hosted.groups.remove(&group).expect("it has a journal");
        hosted.handed.remove(&group);
        hosted.books.lease_counters.remove(&group);
        hosted.books.ledgers.remove(&group);
        hosted.books.passed.remove(&group);
        for (_, _, (connection, channel)) in
            hosted.books.made.extract_if(.., |(_, made, _)| *made == group).collect::<Vec<_>>()
        {
            self.fail_channel(connection, channel, gone.clone());
        }
        let hosted = self.hosted.get_mut(&number).expect("a live queue");
        hosted.log.remove_group(file, account);
        hosted.books.removals.push((name.clone(), waiter));
        // They wait for a journal that is written no more.
        hosted.wakes_group_waiters = true;
        self.drop_gone_segments(number, None);
        self.roll_if_gone(number);
        self.touch(number);
        Ok(true)
    }

    fn seek_group(
        &mut self,
        queue: &Name,
        name: &Name,
        to: Start,
        waiter: (ConnectionId, u16),
    ) -> Result<bool, Fault> {
        let number = self.find_here(queue)?;
        let group = self.group_named(number, name)?;
        if self.waits_to_reset(number, group, waiter)
            || self.waits_for_movers(number, group, waiter)
        {
            return Ok(false);
        }
        let Some(start) = self.beginning(number, to, waiter)? else { return Ok(false) };
        let handed = self.broker.counts(group).handed;
        let state = GroupState { handed, ..self.state_from(number, start) };
        let after = self.broker.group_after_reset(group, state.clone());
        let (after, unsettled) = after.map_err(|refusal| match refusal {
            Refusal::HasReceivers { .. } => fault_with(
                ErrorCode::Busy,
                format!("group {name} of queue {queue} has receivers"),
                "stop them first: they hold messages from where the group is now",
            ),
            other => fault(ErrorCode::Usage, other.to_string()),
        })?;
        let clock = self.clock;
        let hosted = self.hosted.get_mut(&number).expect("a live queue");
        let mut ledger = hosted.books.ledgers.get(&group).copied().unwrap_or_default();
        // The account begins anew; the group is the same.
        ledger.start.base = hosted.account_start_with(&self.broker, unsettled, clock.wall).base;
        ledger.before += self.broker.tally(group);
        let counter = hosted.books.lease_counters.get(&group).copied().unwrap_or(0);
        let position = position_of(after, counter, ledger, journal_clock(clock, &hosted.log));
        let file = hosted.groups[&group];
        // The journal first: when it has no room, the group stays where it is.
        hosted.log.reset_group(file, &position).map_err(|error| {
            log_fault(&format!("cannot set group {name} of queue {queue} to another place"), &error)
        })?;
        hosted.books.ledgers.insert(group, ledger);
        self.withdraw_waybills(number, group, clock);
        let reset = self.broker.reset_group(group, state);
        assert!(reset.is_ok(), "it was allowed a moment ago");
        self.forget_failures(group, &[OffsetRange::new(Offset(0), Offset(u64::MAX))]);
        self.count_group_moved(number, group);
        let hosted = self.hosted.get_mut(&number).expect("a live queue");
        hosted.books.made.push((file, group, waiter));
        self.drop_gone_segments(number, None);
        self.roll_if_gone(number);
        self.touch(number);
        Ok(true)
    }

    fn group_named(&self, number: QueueNumber, name: &Name) -> Result<GroupKey, Fault> {
        let hosted = &self.hosted[&number];
        self.broker.find_group(hosted.key, name).ok_or_else(|| {
            fault_with(
                ErrorCode::NotFound,
                format!("queue {} has no group {name}", hosted.name),
                format!("list them with `mq-admin group ls {}`", hosted.name),
            )
        })
    }

    /// The journals of these groups stand as they were last written: who asked for that place is told,
    /// unless another one is on its way.
    pub(super) fn groups_stand(&mut self, number: QueueNumber, standing: &[GroupFile]) {
        let Some(hosted) = self.hosted.get_mut(&number) else { return };
        let (log, made) = (&hosted.log, &mut hosted.books.made);
        let stands = |file: &GroupFile| standing.contains(file) && log.may_reset(*file);
        for (_, group, (connection, channel)) in
            made.extract_if(.., |(file, ..)| stands(file)).collect::<Vec<_>>()
        {
            if self.answered(connection, channel) {
                let books = &mut self.hosted.get_mut(&number).expect("a live queue").books;
                let passed = books.passed.remove(&group).unwrap_or_default();
                let info = GroupInfo { passed, ..self.group_info(number, group) };
                self.answer(connection, channel, &info);
            }
        }
    }

    /// The journals of these groups are gone.
    pub(super) fn groups_removed(&mut self, number: QueueNumber, removed: &[Name]) {
        let Some(hosted) = self.hosted.get_mut(&number) else { return };
        let removals = &mut hosted.books.removals;
        for (_, (connection, channel)) in
            removals.extract_if(.., |(name, _)| removed.contains(name)).collect::<Vec<_>>()
        {
            if self.answered(connection, channel) {
                self.reply(connection, channel, &Reply::Reply(b"null"));
            }
        }
    }
}
