//! Dead letters: what dies in a group goes into its dead-letter queue.

use std::ops::ControlFlow;

use crate::broker::GroupKey;
use crate::limits;
use crate::log::storage::Storage;
use crate::settings::Settings;
use crate::units::{DEFAULT_GROUP, Moment, Name, Offset, OffsetRange, Sequence};
use crate::wire::Nack;

use super::large::Change;
use super::letter::Death;
use super::parcel::{Packed, Parcel};
use super::waybill::{Mover, Purpose};
use super::{Cargo, Engine, Hitch, Lane, Large, Look, QueueNumber, only_at, record_of};
use crate::server::engine::hosting::Place;

/// What is said of a message of which nothing else is known.
const DELIVERY_LIMIT: &str = "delivery limit";

/// What a queue of dead letters is called unless the queue's settings say it. Of a name that would
/// be too long the end gives way to a hash of all of it, which is the same every time.
fn dead_letter_name(queue: &str, group: &str) -> String {
    const END: &str = ".dead";
    let stem = match group {
        DEFAULT_GROUP => queue.to_owned(),
        group => format!("{queue}.{group}"),
    };
    if stem.len() + END.len() <= limits::NAME_BYTES_MAX {
        return stem + END;
    }
    let hash = format!("-{:016x}", xxhash_rust::xxh3::xxh3_64(stem.as_bytes()));
    let kept = limits::NAME_BYTES_MAX - END.len() - hash.len();
    format!("{}{hash}{END}", &stem[..kept])
}

impl<S: Storage> Engine<S> {
    /// A try of these failed: why, in case it was the last.
    pub(in crate::server::engine) fn note_failure(
        &mut self,
        group: GroupKey,
        ranges: &[OffsetRange],
        nack: &Nack,
        moment: Moment,
    ) {
        self.movers.failures.note(group, ranges, moment.wall, &nack.reason, &nack.stderr);
    }

    /// These are settled: why they failed is of no interest any more.
    pub(in crate::server::engine) fn forget_failures(
        &mut self,
        group: GroupKey,
        ranges: &[OffsetRange],
    ) {
        self.movers.failures.forget(group, ranges);
    }

    /// Messages that nobody is to have any more, and that the queue keeps as dead letters: those
    /// that expired, or were dropped to make room.
    pub(in crate::server::engine) fn condemn(
        &mut self,
        group: GroupKey,
        ranges: &[OffsetRange],
        reason: &str,
        moment: Moment,
    ) {
        self.movers.failures.note(group, ranges, moment.wall, reason, "");
        self.broker.kill(group, ranges);
    }

    /// How many dead letters of this group there were, ever, in the queue where they go now.
    pub(in crate::server::engine) fn dead_of(
        &self,
        number: QueueNumber,
        group: GroupKey,
    ) -> Sequence {
        let mover = Mover {
            source: self.hosted[&number].log.id(),
            group: self.broker.group_name(group).clone(),
            purpose: Purpose::Dead,
        };
        let dest = self.dead_letter_queue(number, group).ok();
        let dest = dest.and_then(|name| match self.places.get(&name) {
            Some(Place::Live(dest)) => self.hosted.get(dest),
            _ => None,
        });
        let last = dest.and_then(|hosted| hosted.log.producers_known().last(mover.producer()));
        last.map_or(Sequence(0), |(_, sequence)| sequence)
    }

    /// Where the dead letters of a group go.
    fn dead_letter_queue(&self, number: QueueNumber, group: GroupKey) -> Result<Name, String> {
        let hosted = &self.hosted[&number];
        if let Some(name) = &hosted.log.settings().dead_letter {
            return Ok(name.clone());
        }
        let group = self.broker.group_name(group);
        let text = dead_letter_name(hosted.name.as_str(), group.as_str());
        Name::new(&text).map_err(|error| {
            format!(
                "the queue for dead letters of group {group} has no name: {error}; \
                 choose one with mq-admin declare --change --dead-letter"
            )
        })
    }

    /// The queue of this name, which is made if it is not there.
    fn dead_letter_place(
        &mut self,
        lane: Lane,
        name: Name,
        moment: Moment,
    ) -> Result<QueueNumber, Hitch<S>> {
        let settings = Settings { delivery_limit: Some(0), ..Settings::default() };
        self.destination(lane, &name, Some(settings), moment).map_err(|hitch| match hitch {
            Hitch::Rest(why) => Hitch::Rest(format!("dead letters wait: {why}")),
            other => other,
        })
    }

    /// A queue that messages are moved to; made with `settings` when it is not there and they are
    /// given.
    pub(super) fn destination(
        &mut self,
        lane: Lane,
        name: &Name,
        settings: Option<Settings>,
        moment: Moment,
    ) -> Result<QueueNumber, Hitch<S>> {
        match (self.places.get(name), settings) {
            (Some(Place::Live(dest)), _) => {
                let hosted = &self.hosted[dest];
                match &hosted.trouble {
                    _ if hosted.removing.is_some() => {
                        Err(Hitch::Rest(format!("queue {name} is being removed")))
                    }
                    Some(why) => Err(Hitch::Rest(format!("queue {name} stands still: {why}"))),
                    None => match self.lives_elsewhere(*dest) {
                        Some(fault) => Err(Hitch::Rest(fault.message)),
                        None => Ok(*dest),
                    },
                }
            }
            (Some(Place::Damaged(why)), _) => {
                Err(Hitch::Rest(format!("queue {name} stands still: {why}")))
            }
            (Some(Place::Removing), _) => {
                Err(Hitch::Rest(format!("queue {name} is being removed")))
            }
            (Some(Place::Making(_)), _) => {
                self.movers.making.entry(name.clone()).or_default().insert(lane);
                Err(Hitch::Wait)
            }
            (None, Some(settings)) => {
                self.make_for(name, settings, Vec::new(), moment)
                    .map_err(|fault| Hitch::Rest(fault.message))?;
                self.movers.making.entry(name.clone()).or_default().insert(lane);
                Err(Hitch::Wait)
            }
            (None, None) => Err(Hitch::Rest(format!("there is no queue {name}"))),
        }
    }

    /// Gathers what is dying in a group, as much as goes into one append.
    pub(super) fn look_for_dead(
        &mut self,
        lane: Lane,
        number: QueueNumber,
        group: GroupKey,
        moment: Moment,
    ) -> Result<Look<S>, Hitch<S>> {
        if self.hosted[&number].trouble.is_some() {
            return Err(Hitch::Over);
        }
        if self.broker.dying(group).is_empty() {
            return Ok(Look::End);
        }
        let name = self.dead_letter_queue(number, group).map_err(Hitch::Rest)?;
        let dest = self.dead_letter_place(lane, name, moment)?;
        let log = &mut self.hosted.get_mut(&number).expect("its source").log;
        if self.broker.dying(group).last().is_some_and(|last| last.end > log.durable_end()) {
            // What a power loss could take, so that its sender sends it again, must not be in two
            // places then.
            log.want_durable();
            return Err(Hitch::WaitFor(number));
        }
        let mut parcel = Parcel::default();
        let mut at = Offset(0);
        loop {
            let rest = OffsetRange::new(at, Offset(u64::MAX));
            let Some(range) = self.broker.dying(group).first_in(rest) else { break };
            let mut too_large = None;
            let mut full = false;
            let deaths = Deaths { engine_queue: self.hosted[&number].name.clone(), group, moment };
            let (broker, failures) = (&self.broker, &self.movers.failures);
            let mut facts = Vec::new();
            // What is known of each has to be at hand while the log is being read.
            let known = |offset| deaths.of(broker, failures, offset);
            let wanted = OffsetRange::new(range.start, range.end);
            let end = wanted.end.0.min(wanted.start.0 + MESSAGES_PER_LOOK);
            facts.extend((wanted.start.0..end).map(|offset| known(Offset(offset))));
            let wanted = OffsetRange::new(wanted.start, Offset(end));
            at = wanted.start;
            let chain = {
                let (parcel, at) = (&mut parcel, &mut at);
                let (full, too_large) = (&mut full, &mut too_large);
                self.read_source(number, wanted, &mut |offset, attributes, body| {
                    let death = &facts[(offset.0 - wanted.start.0) as usize];
                    let letter = super::letter::attributes_of_letter(attributes, death);
                    match parcel.push(offset, &letter, body) {
                        Packed::In => {
                            *at = Offset(offset.0 + 1);
                            ControlFlow::Continue(())
                        }
                        Packed::Full => {
                            *full = true;
                            ControlFlow::Break(())
                        }
                        Packed::TooLarge => {
                            *too_large = Some((offset, record_of(&letter, body)));
                            ControlFlow::Break(())
                        }
                    }
                })
            };
            let chain = match chain {
                Ok(chain) => chain,
                // What is in hand goes first; the rest is read meanwhile, or the next time.
                Err(Hitch::Cold(_)) if parcel.count > 0 => break,
                Err(hitch) => return Err(hitch),
            };
            if let Some((offset, record)) = too_large {
                let large = Large { dest, range: only_at(offset), only: None };
                return Ok(Look::Large(large, Cargo::Record(record)));
            }
            if let Some(found) = chain {
                if parcel.count > 0 {
                    break;
                }
                let change = Change::Bury(facts.swap_remove(0));
                let large = Large { dest, range: found.range, only: None };
                let cargo = Cargo::Chain(Box::new(found), Box::new(change));
                return Ok(Look::Large(large, cargo));
            }
            if full {
                break;
            }
        }
        Ok(Look::Parcel(parcel, dest, None))
    }
}

/// Messages that are looked at before the next question to the broker.
const MESSAGES_PER_LOOK: u64 = 1024;

/// What is known of the deaths in a group.
struct Deaths {
    engine_queue: Name,
    group: GroupKey,
    moment: Moment,
}

impl Deaths {
    fn of(
        &self,
        broker: &crate::broker::Broker,
        failures: &super::failures::Failures,
        offset: Offset,
    ) -> Death {
        let failure = failures.of(self.group, offset);
        let why = failure.map(|failure| failure.why.as_ref().clone()).unwrap_or_default();
        let reason = if why.reason.is_empty() { DELIVERY_LIMIT.to_owned() } else { why.reason };
        Death {
            queue: self.engine_queue.clone(),
            group: broker.group_name(self.group).clone(),
            offset,
            attempts: broker.attempts(self.group, offset),
            reason,
            stderr: why.stderr,
            first: failure.map(|failure| failure.first),
            last: failure.map_or(self.moment.wall, |failure| failure.last),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_queue_has_a_name_for_its_dead_letters() {
        assert_eq!(dead_letter_name("q", "default"), "q.dead");
        assert_eq!(dead_letter_name("q", "g"), "q.g.dead");
        let long = "x".repeat(195);
        assert_eq!(dead_letter_name(&long, "default"), format!("{long}.dead"));
        let mut seen = std::collections::BTreeSet::new();
        for n in 196..=200 {
            for group in ["default", "g", &"g".repeat(200)] {
                let name = dead_letter_name(&"x".repeat(n), group);
                assert!(Name::new(&name).is_ok() && name.ends_with(".dead"), "{name}");
                assert_eq!(name, dead_letter_name(&"x".repeat(n), group));
                assert!(seen.insert(name));
            }
        }
    }
}
