//! Turns of exclusive receivers: each has a number, its epoch, which is durable before anyone is
//! told of it. So whoever sees a higher one knows that its own turn is over.

use crate::broker::ConsumerKey;
use crate::log::storage::Storage;
use crate::log::{GroupFact, GroupFile, GroupMark};
use crate::wire::{Receiving, Reply};

use super::session::{Channel, Receiver};
use super::{Engine, QueueNumber};

/// A turn that begins when its epoch is durable.
pub(super) struct Turn {
    file: GroupFile,
    mark: GroupMark,
    consumer: ConsumerKey,
    epoch: u64,
}

impl<S: Storage> Engine<S> {
    /// An exclusive receiver was announced: the same is said again when it is its turn.
    pub(super) fn await_turn(&mut self, receiver: Receiver, receiving: Receiving) {
        let hosted = self.hosted.get_mut(&receiver.queue).expect("a receiver's queue");
        hosted.books.awaiting_turn.insert(receiver.consumer, receiving);
    }

    /// It is this consumer's turn to hold its group.
    pub(super) fn holder(&mut self, consumer: ConsumerKey, epoch: u64) {
        let key = self.broker.queue_of(consumer);
        let (Some(&number), Some(group)) = (self.by_key.get(&key), self.broker.group_of(consumer))
        else {
            return;
        };
        self.note(number, group, &[GroupFact::Epoch(epoch)]);
        let hosted = self.hosted.get_mut(&number).expect("a receiver's queue");
        let file = hosted.groups[&group];
        let mark = hosted.log.want_group_durable(file);
        hosted.books.turns.push(Turn { file, mark, consumer, epoch });
        self.touch(number);
    }

    /// More of some journals is durable: turns begin.
    pub(super) fn begin_turns(&mut self, number: QueueNumber) {
        let Some(hosted) = self.hosted.get_mut(&number) else { return };
        let (log, groups) = (&hosted.log, &hosted.groups);
        let durable = |turn: &mut Turn| {
            let is_there = groups.values().any(|file| *file == turn.file);
            !is_there || log.group_durable(turn.file) >= turn.mark
        };
        let begun: Vec<Turn> = hosted.books.turns.extract_if(.., durable).collect();
        for Turn { consumer, epoch, .. } in begun {
            let Some(&(connection, channel)) = self.consumers.get(&consumer) else { continue };
            let hosted = self.hosted.get_mut(&number).expect("it is there");
            let Some(receiving) = hosted.books.awaiting_turn.remove(&consumer) else { continue };
            if let Some(session) = self.sessions.get_mut(&connection)
                && let Some(Channel::Receiving(receiver)) = session.channels.get_mut(&channel)
            {
                receiver.epoch = Some(epoch);
            }
            let receiving = Receiving { epoch: Some(epoch), held: false, ..receiving };
            self.reply(connection, channel, &Reply::Receiving(receiving));
            self.broker.begin_tenure(consumer);
        }
    }

    /// The delivery limit of a queue has changed: receivers that try are told.
    pub(super) fn tell_delivery_limit(&mut self, number: QueueNumber) {
        let id = self.hosted[&number].log.id();
        let mut told = Vec::new();
        for (connection, session) in &self.sessions {
            for (channel, state) in &session.channels {
                if let Channel::Receiving(receiver) = state
                    && receiver.queue == number
                    && receiver.how.tries
                {
                    told.push((*connection, *channel, *receiver));
                }
            }
        }
        for (connection, channel, receiver) in told {
            let receiving = Receiving {
                queue_id: Some(id),
                queue: receiver.main.map(|_| self.hosted[&number].name.clone()),
                epoch: receiver.epoch,
                delivery_limit: self.delivery_limit_for(receiver),
                ..Receiving::default()
            };
            self.reply(connection, channel, &Reply::Receiving(receiving));
        }
    }
}
