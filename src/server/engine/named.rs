//! Producers with a name: opened by an append that raises their epoch, and told so when that is
//! durable; so an older instance is fenced off for good.
//!
//! Called by `sending` for OPEN_SEND with `named`, and in each turn of a queue.

use crate::log::AppendError;
use crate::log::storage::Storage;
use crate::units::{Bytes, Moment};
use crate::wire::{ErrorCode, OpenSend, Reply, Sending};

use super::sending::Source;
use super::session::Channel;
use super::{ConnectionId, Engine, QueueNumber, Trouble, fault};

/// What is said to the sender of a named producer once it holds for good.
pub(super) struct Opened {
    pub connection: ConnectionId,
    pub channel: u16,
    /// When the log is durable so far.
    pub mark: Bytes,
    /// The same for the log of delayed messages, if the producer stored any last.
    pub mark_of_delayed: Option<Bytes>,
    pub sending: Sending,
}

impl<S: Storage> Engine<S> {
    pub(super) fn attach_named(
        &mut self,
        connection: ConnectionId,
        channel: u16,
        number: QueueNumber,
        open: &OpenSend,
        moment: Moment,
    ) -> Result<(), Trouble> {
        let hosted = self.hosted.get_mut(&number).expect("a live queue");
        let opened = match hosted.log.open_producer(moment.now, moment.wall, open.producer) {
            Ok(opened) => opened,
            Err(AppendError::NotYet) => {
                hosted.openers.push((connection, channel));
                let session = self.sessions.get_mut(&connection).expect("a connected client");
                session.channels.insert(channel, Channel::OpeningSend(open.clone()));
                self.touch(number);
                return Ok(());
            }
            Err(error) => return Err(self.append_failed(number, &error).into()),
        };
        let connected = hosted.log.producers().connected(open.producer, opened.epoch, moment.wall);
        assert!(connected.is_ok(), "a producer that was just opened is known");
        let delayed = hosted.last_delayed(open.producer).map(|(_, sequence)| sequence);
        let delayed = delayed.filter(|sequence| *sequence > opened.sequence);
        let mut sending = Sending {
            queue_id: hosted.log.id(),
            last: opened.sequence,
            epoch: opened.epoch,
            opened: moment.wall,
            annex: opened.annex,
        };
        let mut mark_of_delayed = None;
        if let Some(last) = delayed {
            let log = hosted.log_of(true);
            sending.last = last;
            sending.annex = log.producers().annex(open.producer).map(<[u8]>::to_vec);
            log.want_durable();
            mark_of_delayed = Some(log.written_bytes());
        }
        let mark = opened.mark;
        hosted.opened.push_back(Opened { connection, channel, mark, mark_of_delayed, sending });
        self.fence_off((connection, channel), number, open);
        self.start_sending(connection, channel, number, open, opened.epoch);
        let source = Source { connection, channel, number };
        self.sender(source).expect("it sends").delayed = delayed.is_some();
        self.touch(number);
        Ok(())
    }

    /// Older instances of a producer that is opened anew are told at once: one that has nothing to
    /// send would not notice for long, and hold what the new one waits for.
    fn fence_off(&mut self, opener: (ConnectionId, u16), number: QueueNumber, open: &OpenSend) {
        let mut older = Vec::new();
        for (connection, session) in &self.sessions {
            for (id, channel) in &session.channels {
                if let Channel::Sending(sender) = channel
                    && (sender.queue, sender.producer) == (number, open.producer)
                    && (*connection, *id) != opener
                {
                    older.push((*connection, *id));
                }
            }
        }
        let name = &self.hosted[&number].name;
        let text = format!("a newer connection of the same producer sends to {name} now");
        let fenced = fault(ErrorCode::Fenced, text);
        for (connection, channel) in older {
            self.fail_channel(connection, channel, fenced.clone());
        }
    }

    /// Tells the senders whose producers are open for good.
    pub(super) fn say_opened(&mut self, number: QueueNumber) {
        loop {
            let hosted = self.hosted.get_mut(&number).expect("a queue in its turn");
            let durable = hosted.log.durable_bytes();
            let Some(first) = hosted.opened.front() else { return };
            let (mark, mark_of_delayed) = (first.mark, first.mark_of_delayed);
            let waits = |mark: Bytes| hosted.log_of(true).durable_bytes() < mark;
            if mark > durable || mark_of_delayed.is_some_and(waits) {
                return;
            }
            let opened = hosted.opened.pop_front().expect("there is a first");
            if self.is_sending(opened.connection, opened.channel) {
                self.reply(opened.connection, opened.channel, &Reply::Sending(opened.sending));
            }
        }
    }

    /// The log has moved on: producers that could not be opened are tried again.
    pub(super) fn open_again(&mut self, number: QueueNumber, moment: Moment) {
        let Some(hosted) = self.hosted.get_mut(&number) else { return };
        for (connection, channel) in std::mem::take(&mut hosted.openers) {
            self.reopen(connection, channel, moment);
        }
    }
}
