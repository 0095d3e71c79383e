//! Turns: who is called next, and everything else that the event loop is told.
//!
//! Nobody is woken in vain if it can be helped: consumers wait in their group's line, and one is
//! called only when [`Broker::next_output`] is asked and something is ready at that moment. So a
//! caller that serves each consumer before it asks for the next output wakes one of a thousand
//! for one message. No wake-up is lost: a consumer that has credit is in the line, or was called
//! and has not asked in vain since.

use super::line::Ticket;
use super::{Broker, ConsumerKey, GroupKey, Mode, Output, QueueKey};

/// Where a consumer stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// It has no credit, or has come to its end.
    Idle,
    /// In the line: of its group if it takes, of the outputs if it peeks (which is no
    /// competition).
    Waiting {
        ticket: Ticket,
        /// It has just had a turn, so it does not get another one before it is called.
        over: bool,
    },
    /// It has been told that it is its turn.
    Called,
    /// When it was its turn there was nothing for it, although something is ready for others: it
    /// has to wait for its turn to be exclusive, or has spent what is ready, or no lease is left.
    Parked { ticket: Ticket },
}

impl Turn {
    pub(super) fn is_over(self) -> bool {
        matches!(self, Turn::Waiting { over: true, .. })
    }
}

/// What [`Broker::next_output`] has to look at.
#[derive(Clone, Copy, Debug)]
pub(super) enum Work {
    /// Somebody waits in this group's line, and something can be offered.
    Group(GroupKey),
    /// This consumer peeks and has credit.
    Peek(ConsumerKey),
    /// This consumer has come to its end.
    End(ConsumerKey),
    /// This queue is quiet.
    Quiet(QueueKey),
    /// Messages of this group are dying.
    Dying(GroupKey),
    /// Somebody holds this group exclusively.
    Holder(GroupKey),
}

impl Broker {
    /// The next thing to do or to tell; to be asked until there is none. Best served one by one:
    /// after a consumer took the last ready message, nobody else is called.
    pub fn next_output(&mut self) -> Option<Output> {
        loop {
            match self.work.call()? {
                Work::Group(g) => {
                    self.group_mut(g).work = None;
                    if let Some(consumer) = self.call_next(g) {
                        return Some(Output::Ready { consumer });
                    }
                }
                Work::Peek(consumer) => {
                    self.consumer_mut(consumer).turn = Turn::Called;
                    return Some(Output::Ready { consumer });
                }
                Work::End(consumer) => {
                    self.consumer_mut(consumer).end_work = None;
                    return Some(Output::End { consumer });
                }
                Work::Quiet(queue) => {
                    self.queue_mut(queue).work = None;
                    return Some(Output::Quiet { queue });
                }
                Work::Dying(group) => {
                    self.group_mut(group).dying_work = None;
                    return Some(Output::Dying { group });
                }
                Work::Holder(group) => return Some(self.holder_told(group)),
            }
        }
    }

    /// Takes back what nobody has been told yet.
    pub(super) fn cancel(&mut self, work: Option<Ticket>) {
        if let Some(ticket) = work {
            self.work.leave(ticket);
        }
    }

    fn call_next(&mut self, g: GroupKey) -> Option<ConsumerKey> {
        // Others may have taken everything since the group got into the line.
        self.group(g).lowest(None)?;
        let c = self.next_in_line(g)?;
        self.group_mut(g).called += 1;
        self.consumer_mut(c).turn = Turn::Called;
        self.stir(g);
        Some(c)
    }

    /// The first in the line for which there is something; those before it are parked.
    fn next_in_line(&mut self, g: GroupKey) -> Option<ConsumerKey> {
        loop {
            let c = self.group_mut(g).line.call()?;
            if self.is_served(c, g) {
                return Some(c);
            }
            let ticket = self.group_mut(g).parked.join(c);
            self.consumer_mut(c).turn = Turn::Parked { ticket };
        }
    }

    /// Whether there is something for this consumer of a group that can offer something. Most
    /// are served by that alone: also those with an `until`, as what they wait for is the lowest,
    /// or they have ended.
    fn is_served(&self, c: ConsumerKey, g: GroupKey) -> bool {
        let (consumer, group) = (self.consumer(c), self.group(g));
        let plain =
            consumer.spent.is_empty() && !consumer.kind.leases && !group.exclusives.are_there();
        plain || self.first_for(c, consumer, group).is_some()
    }

    /// Something changed in the group: for those that were parked there may be something now.
    /// While there are exclusive consumers, only for the one that holds the group.
    pub(super) fn unpark(&mut self, g: GroupKey) {
        if self.group(g).parked.is_empty() {
            return;
        }
        if self.group(g).exclusives.are_there() {
            if let Some(holder) = self.group(g).exclusives.in_tenure()
                && let Turn::Parked { ticket } = self.consumer(holder).turn
            {
                self.group_mut(g).parked.leave(ticket);
                self.consumer_mut(holder).turn = Turn::Idle;
                self.join_line(holder);
            }
            return;
        }
        while let Some(c) = self.group_mut(g).parked.call() {
            self.consumer_mut(c).turn = Turn::Idle;
            self.join_line(c);
        }
    }

    /// Lets the group call a consumer, if one waits and something can be offered.
    pub(super) fn stir(&mut self, g: GroupKey) {
        let group = self.groups.at_mut(g.0);
        if group.work.is_none() && !group.line.is_empty() && group.lowest(None).is_some() {
            group.work = Some(self.work.join(Work::Group(g)));
        }
    }

    /// Puts a consumer that has credit in the line, unless it is there or has been called.
    pub(super) fn join_line(&mut self, c: ConsumerKey) {
        let consumer = self.consumer(c);
        if consumer.turn == Turn::Idle && consumer.remaining() > 0 && !consumer.ended {
            self.join_line_again(c, false);
        }
    }

    fn join_line_again(&mut self, c: ConsumerKey, over: bool) {
        let consumer = self.consumers.at_mut(c.0);
        match (consumer.kind.mode, consumer.group) {
            (Mode::Take, Some(g)) => {
                let ticket = self.groups.at_mut(g.0).line.join(c);
                consumer.turn = Turn::Waiting { ticket, over };
                self.stir(g);
            }
            _ => {
                let ticket = self.work.join(Work::Peek(c));
                consumer.turn = Turn::Waiting { ticket, over };
            }
        }
    }

    /// It is neither in the line nor called any more.
    pub(super) fn leave_turn(&mut self, c: ConsumerKey) {
        let consumer = self.consumers.at_mut(c.0);
        let turn = std::mem::replace(&mut consumer.turn, Turn::Idle);
        match (consumer.kind.mode, consumer.group) {
            (Mode::Take, Some(g)) => {
                let group = self.groups.at_mut(g.0);
                match turn {
                    Turn::Idle => {}
                    Turn::Waiting { ticket, .. } => group.line.leave(ticket),
                    Turn::Called => group.called -= 1,
                    Turn::Parked { ticket } => group.parked.leave(ticket),
                }
            }
            _ => {
                if let Turn::Waiting { ticket, .. } = turn {
                    self.work.leave(ticket);
                }
            }
        }
    }

    /// It was called and there was nothing for it.
    pub(super) fn miss_turn(&mut self, c: ConsumerKey) {
        if self.consumer(c).turn == Turn::Called {
            self.leave_turn(c);
            self.join_line(c);
        }
    }

    /// It took something. If nobody else of its group wants any, its turn goes on.
    pub(super) fn end_turn(&mut self, c: ConsumerKey) {
        let was_called = self.consumer(c).turn == Turn::Called;
        self.leave_turn(c);
        let consumer = self.consumers.at_mut(c.0);
        let group = self.groups.at_mut(consumer.group.expect("only who takes has turns").0);
        if consumer.remaining() == 0 {
            return;
        }
        let alone = group.line.is_empty() && group.called == 0;
        if alone && was_called {
            group.called = 1;
            consumer.turn = Turn::Called;
        } else {
            // One that asked before it was called has yet to be told.
            self.join_line_again(c, !alone);
        }
    }
}
