//! CONFIRM: senders learn that what they sent is stored.
//!
//! Called in each turn of a queue, once the broker knows what is visible.

use crate::log::storage::Storage;
use crate::units::{Count, Offset, Sequence};
use crate::wire::Reply;

use super::counting::Origin;
use super::hosting::{Awaiting, Say};
use super::session::Channel;
use super::{ConnectionId, Engine, QueueNumber};

/// Confirmations of one channel that go out as one.
struct Run {
    connection: ConnectionId,
    channel: u16,
    sequence: Sequence,
    there: Count,
    end: Offset,
    appends: usize,
}

impl<S: Storage> Engine<S> {
    /// Confirms what lies below `visible`; one frame for each run of one channel. Returns where the
    /// messages come from that were stored, and where they end.
    pub(super) fn confirm(
        &mut self,
        number: QueueNumber,
        visible: Offset,
    ) -> Vec<(Offset, Origin)> {
        let hosted = self.hosted.get_mut(&number).expect("a queue in its turn");
        let mut run: Option<Run> = None;
        let mut said = Vec::new();
        let mut opened = Vec::new();
        let mut origins = Vec::new();
        while let Some(next) = hosted.next_confirmed(visible) {
            let Awaiting { connection, channel, end, say, .. } = next;
            if let Say::Confirm(_, _, origin) = &say
                && origin.messages > 0
            {
                origins.push((end, *origin));
            }
            match (&mut run, say) {
                (Some(run), Say::Confirm(sequence, there, _))
                    if (run.connection, run.channel) == (connection, channel) =>
                {
                    (run.sequence, run.there, run.end) = (sequence, there, end);
                    run.appends += 1;
                }
                (_, Say::Confirm(sequence, there, _)) => {
                    let next = Run { connection, channel, sequence, there, end, appends: 1 };
                    said.extend(run.replace(next));
                }
                (_, Say::Sending(sending)) => opened.push((connection, channel, sending)),
            }
        }
        said.extend(run);
        for (connection, channel, sending) in opened {
            // It is the first thing that is said on the channel: nothing was published on it yet.
            self.reply(connection, channel, &Reply::Sending(sending));
        }
        for run in said {
            if self.is_sending(run.connection, run.channel) {
                let confirm = Reply::Confirm(run.sequence, run.end, run.there);
                self.reply(run.connection, run.channel, &confirm);
                self.confirmed(run.connection, run.channel, run.appends);
            }
        }
        origins
    }

    /// Whether whoever published on this channel is still there to be told.
    pub(super) fn is_sending(&self, connection: ConnectionId, channel: u16) -> bool {
        let session = self.sessions.get(&connection);
        let channel = session.and_then(|session| session.channels.get(&channel));
        matches!(channel, Some(Channel::Sending(_)))
    }

    /// A channel that is closing or was refused and has nothing unconfirmed any more ends.
    pub(super) fn confirmed(&mut self, connection: ConnectionId, channel: u16, appends: usize) {
        let Some(session) = self.sessions.get_mut(&connection) else { return };
        let Some(Channel::Sending(sender)) = session.channels.get_mut(&channel) else { return };
        sender.unconfirmed -= appends;
        if sender.unconfirmed == 0 {
            self.settle_sender(connection, channel);
        }
    }
}
