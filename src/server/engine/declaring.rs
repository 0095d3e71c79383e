//! DECLARE: a queue is made, or its settings are compared, or changed.
//!
//! A change is answered when it is recorded. Called by `admin`.

use crate::limits;
use crate::log::storage::Storage;
use crate::settings::{IdWindow, Retention, Settings, Wanted};
use crate::units::{Moment, Name, OffsetRange};
use crate::url::Url;
use crate::wire::{ErrorCode, Fault};

use super::hosting::{Place, being_removed, damaged, elsewhere};
use super::session::Channel;
use super::{ConnectionId, Engine, QueueNumber, Trouble, fault, fault_with};

/// A channel that waits until a change of settings is recorded.
pub(super) struct SettingsWaiter {
    pub connection: ConnectionId,
    pub channel: u16,
    /// Which change, as the log counts them.
    pub change: u64,
}

impl<S: Storage> Engine<S> {
    pub(super) fn declare(
        &mut self,
        connection: ConnectionId,
        channel: u16,
        name: &Name,
        wanted: Wanted,
        change: bool,
        moment: Moment,
    ) -> Result<(), Trouble> {
        match self.places.get_mut(name) {
            Some(Place::Live(number)) => {
                let number = *number;
                self.compare(connection, channel, number, &wanted, change)
            }
            Some(Place::Making(waiting)) => {
                waiting.push((connection, channel));
                self.hold_declaration(connection, channel, name, wanted, change);
                Ok(())
            }
            Some(Place::Damaged(why)) => Err(damaged(name, why).into()),
            Some(Place::Removing) => Err(being_removed(name).into()),
            None => {
                let settings = settled(&wanted, &Settings::default());
                check(name, &settings)?;
                self.hold_declaration(connection, channel, name, wanted, change);
                self.make(name, settings, (connection, channel), moment).inspect_err(|_| {
                    if let Some(session) = self.sessions.get_mut(&connection) {
                        session.channels.remove(&channel);
                    }
                })
            }
        }
    }

    fn hold_declaration(
        &mut self,
        connection: ConnectionId,
        channel: u16,
        name: &Name,
        wanted: Wanted,
        change: bool,
    ) {
        let declaring = Channel::Declaring(Box::new((name.clone(), wanted, change)));
        self.hold(connection, channel, declaring);
    }

    /// The queue is there: it has the settings, or gets them.
    fn compare(
        &mut self,
        connection: ConnectionId,
        channel: u16,
        number: QueueNumber,
        wanted: &Wanted,
        change: bool,
    ) -> Result<(), Trouble> {
        let hosted = self.hosted.get_mut(&number).expect("a live queue");
        // What is being recorded counts: a change must not take back another.
        let now = hosted.log.wanted_settings().clone();
        let settings = settled(wanted, &now);
        check(&hosted.name, &settings)?;
        if settings == now {
            let pending = hosted.log.pending_change();
            return match pending {
                None => {
                    let info = self.info_of(number);
                    self.answer(connection, channel, &info);
                    Ok(())
                }
                Some(change) => {
                    self.wait_for_settings(connection, channel, number, change);
                    Ok(())
                }
            };
        }
        if !change {
            return Err(fault_with(
                ErrorCode::Different,
                format!("queue {} exists {}", hosted.name, differences(&now, &settings)),
                "add --change to change them",
            )
            .into());
        }
        let begins_keys = settings.unique_keys.is_some() && now.unique_keys.is_none();
        let moves = settings.at.is_some() && now.at.is_none();
        let all = OffsetRange::new(hosted.log.start(), hosted.log.written_end());
        let is_empty = all.end == self.broker.visible_end(hosted.key)
            && (all.is_empty() || self.broker.is_gone(hosted.key, all));
        if moves && (!is_empty || hosted.delayed().0 > 0) {
            return Err(fault_with(
                ErrorCode::Usage,
                format!("queue {} holds messages, which would be out of reach", hosted.name),
                format!(
                    "mq-recv -e -J --batch 1000 {} -- mq-send -J URL, which moves them, and the same again",
                    hosted.name
                ),
            )
            .into());
        }
        if begins_keys && !is_empty {
            return Err(fault_with(
                ErrorCode::Usage,
                format!("queue {} holds messages, whose keys are not known", hosted.name),
                "--unique-keys can be given to a queue when it is made, or is empty",
            )
            .into());
        }
        let change = hosted.log.change_settings(&settings);
        if let (true, Some(url)) = (moves, &settings.at) {
            // At once: nothing more is to come in here.
            let gone = elsewhere(&hosted.name, url);
            self.fail_channels_of(number, &gone);
        }
        self.wait_for_settings(connection, channel, number, change);
        Ok(())
    }

    fn wait_for_settings(
        &mut self,
        connection: ConnectionId,
        channel: u16,
        number: QueueNumber,
        change: u64,
    ) {
        let hosted = self.hosted.get_mut(&number).expect("a live queue");
        hosted.settings_waiters.push(SettingsWaiter { connection, channel, change });
        self.hold(connection, channel, Channel::Admin);
        self.touch(number);
    }

    /// Changed settings are recorded: they are obeyed, and whoever asked for them is told.
    pub(super) fn settings_changed(&mut self, number: QueueNumber) {
        self.obey_settings(number);
        let Some(hosted) = self.hosted.get_mut(&number) else { return };
        hosted.settings_of_delay_changed();
        let recorded = hosted.log.recorded_change();
        let waiters = &mut hosted.settings_waiters;
        let done: Vec<SettingsWaiter> =
            waiters.extract_if(.., |waiter| waiter.change <= recorded).collect();
        for waiter in done {
            if self.answered(waiter.connection, waiter.channel) {
                let info = self.info_of(number);
                self.answer(waiter.connection, waiter.channel, &info);
            }
        }
    }

    /// The broker learns what it has to know of the recorded settings.
    pub(super) fn obey_settings(&mut self, number: QueueNumber) {
        let Some(hosted) = self.hosted.get_mut(&number) else { return };
        let (key, settings) = (hosted.key, hosted.log.settings());
        let limit = settings.delivery_limit();
        let is_new = limit != self.broker.delivery_limit(key);
        self.broker.set_retention(key, settings.retain);
        self.broker.set_delivery_limit(key, limit);
        hosted.occupied = None;
        if is_new {
            self.tell_delivery_limit(number);
        }
        self.touch(number);
    }
}

/// The settings that are wanted. A limit of 0 is none.
fn settled(wanted: &Wanted, now: &Settings) -> Settings {
    let mut settings = wanted.applied_to(now);
    let none = [&mut settings.max_messages, &mut settings.max_bytes, &mut settings.unique_keys];
    for limit in none {
        limit.take_if(|limit| *limit == 0);
    }
    settings.max_age.take_if(|age| age.0 == 0);
    settings
}

/// Settings that contradict each other, or are out of bounds.
fn check(name: &Name, settings: &Settings) -> Result<(), Fault> {
    let refused = |why: String| Err(fault(ErrorCode::Usage, format!("queue {name}: {why}")));
    if settings.max_age.is_some() && settings.retain == Retention::Acked {
        return refused("--max-age needs --retain log".to_owned());
    }
    if settings.unique_keys.is_some() && settings.retain == Retention::Log {
        return refused("--unique-keys needs --retain acked".to_owned());
    }
    if settings.unique_keys.is_some_and(|keys| keys > limits::UNIQUE_KEYS_MAX) {
        return refused(format!("a queue knows at most {} keys", limits::UNIQUE_KEYS_MAX));
    }
    if matches!(settings.unique_ids, Some(IdWindow::Count(ids)) if ids > limits::UNIQUE_IDS_MAX) {
        return refused(format!("a queue remembers at most {} ids", limits::UNIQUE_IDS_MAX));
    }
    if settings.dead_letter.as_ref() == Some(name) {
        return refused("it cannot be its own dead-letter queue".to_owned());
    }
    Ok(())
}

/// What differs, in the words of the command line: `with --sync always, not never`.
fn differences(now: &Settings, wanted: &Settings) -> String {
    let Settings {
        sync,
        retain,
        max_age,
        max_bytes,
        max_messages,
        overflow,
        delivery_limit: _,
        dead_letter,
        unique_ids,
        unique_keys,
        at,
    } = wanted;
    let mut found = Vec::new();
    let mut differ = |flag: &str, now: Option<String>, wanted: Option<String>| {
        if now != wanted {
            found.push(match (now, wanted) {
                (Some(now), Some(wanted)) => format!("with {flag} {now}, not {wanted}"),
                (Some(now), None) => format!("with {flag} {now}, not without"),
                (None, wanted) => {
                    format!("without {flag}, not with {}", wanted.unwrap_or_default())
                }
            });
        }
    };
    let text = |value: &dyn std::fmt::Display| Some(value.to_string());
    let number = |value: Option<u64>| value.map(|value| value.to_string());
    let age = |value: Option<crate::units::Micros>| value.map(|v| IdWindow::Time(v).to_string());
    let limit = |settings: &Settings| text(&settings.delivery_limit().unwrap_or(0));
    differ("--sync", text(&now.sync), text(sync));
    differ("--retain", text(&now.retain), text(retain));
    differ("--max-age", age(now.max_age), age(*max_age));
    differ("--max-bytes", number(now.max_bytes), number(*max_bytes));
    differ("--max-messages", number(now.max_messages), number(*max_messages));
    differ("--overflow", text(&now.overflow), text(overflow));
    differ("--delivery-limit", limit(now), limit(wanted));
    let named = |name: &Option<Name>| name.as_ref().map(Name::to_string);
    differ("--dead-letter", named(&now.dead_letter), named(dead_letter));
    let ids = |window: Option<IdWindow>| window.map(|window| window.to_string());
    differ("--unique-ids", ids(now.unique_ids), ids(*unique_ids));
    differ("--unique-keys", number(now.unique_keys), number(*unique_keys));
    let url = |at: &Option<Url>| at.as_ref().map(Url::to_string);
    differ("--at", url(&now.at), url(at));
    found.join(", and ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{Micros, SyncPolicy};

    #[test]
    fn differences_are_said_in_the_words_of_the_command_line() {
        let now = Settings { max_messages: Some(5), ..Settings::default() };
        let wanted = Settings {
            sync: SyncPolicy::Never,
            max_age: Some(Micros::from_secs(60)),
            delivery_limit: Some(3),
            ..Settings::default()
        };
        assert_eq!(
            differences(&now, &wanted),
            "with --sync always, not never, and without --max-age, not with 60s, \
             and with --max-messages 5, not without, and with --delivery-limit 20, not 3"
        );
    }

    #[test]
    fn settings_that_contradict_each_other_are_refused() {
        let name = Name::new("q").unwrap();
        let plain = Settings::default();
        for bad in [
            Settings { max_age: Some(Micros(1)), ..plain.clone() },
            Settings { unique_keys: Some(1), retain: Retention::Log, ..plain.clone() },
            Settings { unique_keys: Some(u64::MAX), ..plain.clone() },
            Settings { unique_ids: Some(IdWindow::Count(u64::MAX)), ..plain.clone() },
            Settings { dead_letter: Some(name.clone()), ..plain.clone() },
        ] {
            assert!(check(&name, &bad).is_err(), "{bad:?}");
        }
        assert!(check(&name, &plain).is_ok());
        let wanted = Wanted { max_messages: Some(0), ..Wanted::default() };
        let now = Settings { max_messages: Some(7), ..plain.clone() };
        assert_eq!(settled(&wanted, &now), plain);
    }
}
