//! Sessions: windows that go on for as long as the next message comes within the gap.
//!
//! A message by itself is a session from its time to the gap behind it. Sessions of one key that
//! overlap are one; such as are closed are not reopened: a message that would have been in one
//! is late, or begins another.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::firsts::Firsts;
use super::members::Members;
use super::{Closed, Extent, Key, Message};
use crate::units::{Micros, WallTime};

/// An open session. Its start is where it is kept.
#[derive(Debug)]
struct Session {
    end: u64,
    members: Members,
    /// The watermark just before its oldest message was read.
    before: WallTime,
    /// The end under which it stands in the order; its true one may be later.
    listed: u64,
}

/// See the module's page.
#[derive(Debug)]
pub struct Sessions {
    gap: u64,
    /// By key and start; never empty for a key, and no two of one key overlap.
    open: HashMap<Key, BTreeMap<u64, Session>>,
    /// Each session once, by the end that it is listed under, its start and its key. A session
    /// that merely goes on is not listed anew until that end comes up.
    order: BTreeSet<(u64, u64, Key)>,
    firsts: Firsts,
    runs: usize,
}

impl Sessions {
    /// For sessions that end when nothing comes for so long.
    pub fn new(gap: Micros) -> Sessions {
        Sessions {
            gap: gap.0,
            open: HashMap::new(),
            order: BTreeSet::new(),
            firsts: Firsts::default(),
            runs: 0,
        }
    }

    /// The starts of a key's sessions that a message at `time` belongs to, the latest first.
    fn touched(&self, key: &Key, time: u64) -> Vec<u64> {
        let Some(sessions) = self.open.get(key) else { return Vec::new() };
        sessions
            .range(..time + self.gap)
            .rev()
            .take_while(|(_, session)| session.end > time)
            .map(|(start, _)| *start)
            .collect()
    }

    /// Takes a message, unless it is late.
    pub fn insert(&mut self, message: Message, time: WallTime, watermark: WallTime) -> bool {
        let time = time.0;
        let touched = self.touched(&message.key, time);
        if let [start] = touched[..]
            && start <= time
        {
            self.go_on(start, message, time);
            return true;
        }
        let mut end = time + self.gap;
        if touched.is_empty() && end <= watermark.0 {
            return false;
        }
        let mut start = time;
        let mut first = (message.offset, watermark);
        let mut members = Members::default();
        for at in touched {
            let session = self.take(&message.key, at);
            start = start.min(at);
            end = end.max(session.end);
            first = first.min((session.members.first(), session.before));
            members.merge(session.members);
        }
        members.push(message.offset, message.place);
        self.put(message.key, start, Session { end, members, before: first.1, listed: end });
        true
    }

    /// A session gets a message that does not change where it begins.
    fn go_on(&mut self, start: u64, message: Message, time: u64) {
        let sessions = self.open.get_mut(&message.key).expect("it has just been found");
        let session = sessions.get_mut(&start).expect("it has just been found");
        session.end = session.end.max(time + self.gap);
        let runs = session.members.runs().len();
        session.members.push(message.offset, message.place);
        self.runs += session.members.runs().len() - runs;
    }

    fn put(&mut self, key: Key, start: u64, session: Session) {
        self.firsts.insert(session.members.first(), session.before);
        self.runs += session.members.runs().len();
        self.order.insert((session.listed, start, key.clone()));
        self.open.entry(key).or_default().insert(start, session);
    }

    fn take(&mut self, key: &Key, start: u64) -> Session {
        let sessions = self.open.get_mut(key).expect("the key has a session");
        let session = sessions.remove(&start).expect("it is there");
        if sessions.is_empty() {
            self.open.remove(key);
        }
        self.order.remove(&(session.listed, start, key.clone()));
        self.firsts.remove(session.members.first());
        self.runs -= session.members.runs().len();
        session
    }

    /// Lists the sessions anew that have gone on, until the first is one with its true end.
    fn settle_front(&mut self) -> Option<&(u64, u64, Key)> {
        loop {
            let (listed, start, key) = self.order.first()?;
            let session = self.open.get_mut(key).and_then(|sessions| sessions.get_mut(start));
            let session = session.expect("what is listed is open");
            if session.end == *listed {
                break;
            }
            session.listed = session.end;
            let entry = (session.end, *start, key.clone());
            self.order.pop_first();
            self.order.insert(entry);
        }
        self.order.first()
    }

    /// The end of the session that is the next to be closed.
    pub fn next_closing(&mut self) -> Option<WallTime> {
        self.settle_front().map(|(end, ..)| WallTime(*end))
    }

    /// The end of the last session.
    pub fn last_closing(&self) -> Option<WallTime> {
        let ends = self.open.values().filter_map(|sessions| sessions.last_key_value());
        ends.map(|(_, session)| WallTime(session.end)).max()
    }

    /// The next session that is closed with this watermark.
    pub fn next_closed(&mut self, watermark: WallTime) -> Option<Closed> {
        let (end, start, key) = self.settle_front().filter(|(end, ..)| *end <= watermark.0)?;
        let (end, start, key) = (*end, *start, key.clone());
        let members = self.take(&key, start).members;
        let extent = Extent::Times { start: start as i64, end: end as i64 };
        Some(Closed { extent, key, members })
    }

    pub fn firsts(&self) -> &Firsts {
        &self.firsts
    }

    pub fn groups(&self) -> usize {
        self.order.len()
    }

    pub fn runs(&self) -> usize {
        self.runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Offset;

    fn insert(sessions: &mut Sessions, offset: u64, time: u64, watermark: u64) -> bool {
        let message = Message {
            offset: Offset(offset),
            time: None,
            key: Key::none(),
            place: offset..offset + 1,
        };
        sessions.insert(message, WallTime(time), WallTime(watermark))
    }

    #[test]
    fn a_message_between_two_sessions_makes_them_one() {
        let mut sessions = Sessions::new(Micros(10));
        for (offset, time) in [(1, 100), (2, 115), (3, 130)] {
            assert!(insert(&mut sessions, offset, time, 0));
        }
        assert_eq!(sessions.groups(), 3);
        assert!(insert(&mut sessions, 4, 107, 0));
        assert_eq!(sessions.groups(), 2);
        let closed = sessions.next_closed(WallTime(125)).expect("closed");
        assert_eq!(closed.extent, Extent::Times { start: 100, end: 125 });
        assert_eq!(closed.members.count(), 3);
        assert_eq!(sessions.firsts().floor(), Some((Offset(3), WallTime(0))));
        assert!(sessions.next_closed(WallTime(139)).is_none());
        assert!(sessions.next_closed(WallTime(140)).is_some());
        assert_eq!((sessions.groups(), sessions.runs(), sessions.firsts().floor()), (0, 0, None));
    }

    #[test]
    fn a_silence_as_long_as_the_gap_ends_a_session() {
        let mut sessions = Sessions::new(Micros(10));
        insert(&mut sessions, 1, 100, 0);
        insert(&mut sessions, 2, 110, 0);
        assert_eq!(sessions.groups(), 2);
    }

    #[test]
    fn a_message_whose_session_is_closed_is_late_unless_another_is_open() {
        let mut sessions = Sessions::new(Micros(10));
        assert!(!insert(&mut sessions, 1, 100, 110));
        assert!(insert(&mut sessions, 2, 101, 110));
        assert!(insert(&mut sessions, 3, 95, 110), "it joins the open one");
        assert_eq!(sessions.next_closing(), Some(WallTime(111)));
    }
}
