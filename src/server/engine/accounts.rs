//! The account of each group: every message that was stored for it ended in one way, or is there.
//!
//! Two sides that know nothing of each other. What was stored is counted by the log, from its
//! batches; how messages ended is counted by the broker, and kept by the group's journal with the very
//! records that settle them. So both are exact after any end of a server, and
//! [`Engine::check_accounts`] can compare them.

use crate::broker::{Broker, GroupKey};
use crate::log::storage::Storage;
use crate::log::{AccountStart, GroupAccount, GroupFact};
use crate::units::{Count, Ending, Name, Tally, WallTime};
use crate::wire::stat::{Account, Counted};

use super::groups::Ledger;
use super::hosting::Hosted;
use super::{Engine, QueueNumber};

impl<S: Storage> Hosted<S> {
    /// Messages that were stored and have been visible, over the life of the queue.
    fn stored(&self, broker: &Broker) -> Count {
        self.log.stored_below(broker.visible_end(self.key))
    }

    /// The account of a group that begins now: what it has not settled is all of it.
    pub fn account_start(&self, broker: &Broker, group: GroupKey, wall: WallTime) -> AccountStart {
        self.account_start_with(broker, broker.counts(group).unsettled(), wall)
    }

    /// The account of a group that begins now with so many messages that it has not settled.
    pub fn account_start_with(
        &self,
        broker: &Broker,
        unsettled: Count,
        wall: WallTime,
    ) -> AccountStart {
        let base = Count(self.stored(broker).0 - unsettled.0);
        AccountStart { born: wall, base }
    }

    fn account(&self, broker: &Broker, group: GroupKey) -> Account {
        let tally = broker.tally(group);
        let base = self.books.ledgers.get(&group).map_or(0, |ledger| ledger.start.base.0);
        let others = tally.of(Ending::Others).0;
        Account {
            stored: Count(self.stored(broker).0.saturating_sub(base + others)),
            acked: tally.of(Ending::Acked),
            dead: tally.of(Ending::Dead),
            expired: tally.of(Ending::Expired),
            dropped: tally.of(Ending::Dropped),
            purged: tally.of(Ending::Purged),
            lost: tally.of(Ending::Lost),
        }
    }

    /// How messages ended, over the life of the queue, in all its groups. One whose journal is being
    /// made may be gone with a `kill -9`, and what ended in it: it counts when it has one.
    fn ended(&self, broker: &Broker) -> Tally {
        let mut ended = self.log.ended_before();
        let has_journal = |group: &GroupKey| {
            self.groups.get(group).is_some_and(|file| !self.new_groups.contains(file))
        };
        for (group, _) in broker.groups(self.key).filter(|(group, _)| has_journal(group)) {
            ended += broker.tally(group);
            ended += self.books.ledgers.get(&group).copied().unwrap_or_default().before;
        }
        ended
    }

    /// The counters over the life of the queue.
    pub fn counted(&self, broker: &Broker) -> Counted {
        let (ended, kept) = (self.ended(broker), self.log.counted());
        let delayed_purged = self.delayed_purged();
        let waiting = self.delayed().0 + delayed_purged.0;
        let sent = kept.stored.0 + waiting;
        // They were stored before they entered the queue.
        let entering = self.entering(broker.visible_end(self.key));
        Counted {
            announced: Count(sent + kept.there.0 + kept.refused.0),
            stored: Count(self.stored(broker).0 + waiting + entering.0),
            stored_bytes: kept.stored_bytes,
            there_already: kept.there,
            refused: kept.refused,
            delivered: kept.delivered,
            delivered_bytes: kept.delivered_bytes,
            redelivered: kept.redelivered,
            acked: ended.of(Ending::Acked),
            retried: kept.retried,
            dead: ended.of(Ending::Dead),
            expired: ended.of(Ending::Expired),
            dropped: ended.of(Ending::Dropped),
            purged: Count(ended.of(Ending::Purged).0 + delayed_purged.0),
            lost: kept.lost,
        }
    }
}

impl<S: Storage> Engine<S> {
    /// What the journals of a queue's groups kept. One from before there were accounts begins now.
    pub(super) fn restore_accounts(
        &mut self,
        number: QueueNumber,
        accounts: Vec<(GroupKey, GroupAccount)>,
    ) {
        for (group, account) in accounts {
            let hosted = self.hosted.get_mut(&number).expect("it was just hosted");
            let now = hosted.account_start(&self.broker, group, self.clock.wall);
            let (start, before) = (account.start.unwrap_or(now), account.before);
            hosted.books.ledgers.insert(group, Ledger { start, before });
            if account.start.is_none() {
                self.note(number, group, &[GroupFact::Account(start)]);
            }
        }
    }

    /// The account of a group.
    pub(super) fn account(&self, number: QueueNumber, group: GroupKey) -> Account {
        self.hosted[&number].account(&self.broker, group)
    }

    /// Every group's account, with its queue, its name, and how many messages are there for it.
    pub fn accounts(&self) -> impl Iterator<Item = (&Name, &Name, Account, Count)> {
        self.hosted.values().flat_map(|hosted| {
            self.broker.groups(hosted.key).map(|(group, name)| {
                let there = self.broker.counts(group).unsettled();
                (&hosted.name, name, hosted.account(&self.broker, group), there)
            })
        })
    }

    /// Whether in every group each message that was stored has ended in one way, or is there: by
    /// adding up, from two sides.
    ///
    /// # Errors
    /// Where it does not add up.
    pub fn check_accounts(&self) -> Result<(), String> {
        for (queue, group, account, there) in self.accounts() {
            if account.stored.0 != account.settled().0 + there.0 {
                return Err(format!(
                    "group {group} of {queue}: {account:?}, {} are there",
                    there.0
                ));
            }
        }
        Ok(())
    }
}
