//! The administrative requests that make sense for one queue at an engine; the others are refused.

use std::time::{SystemTime, UNIX_EPOCH};

use super::{Session, Stop, or_gone};
use crate::remote::engine::{Ability, Engine, QueueFigures};
use crate::remote::failure::{Failure, Kind};
use crate::settings::Settings;
use crate::units::{Bytes, Count, Name, Offset, WallTime};
use crate::wire::stat::{self, Figures, ServerFigures};
use crate::wire::{Admin, GroupInfo, QueueInfo, Reply, StoreInfo};

/// The wall clock.
pub(super) fn now() -> WallTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    WallTime(since.as_micros() as u64)
}

impl<E: Engine> Session<E> {
    /// Answers a request.
    ///
    /// # Errors
    /// Why the connection ends.
    pub(super) async fn administer(&mut self, channel: u16, request: Admin) -> Result<(), Stop> {
        match self.answer(request).await? {
            Ok(json) => {
                self.link.went_well();
                self.out.push(channel, &Reply::Reply(&json));
            }
            Err(failure) => self.out.push(channel, &Reply::Error(super::fault(&failure))),
        }
        Ok(())
    }

    async fn answer(&mut self, request: Admin) -> Result<Result<Vec<u8>, Failure>, Stop> {
        let queue = match self.queue() {
            Ok(queue) => queue,
            Err(failure) => return Ok(Err(failure)),
        };
        let abilities = E::ABILITIES;
        let ability = match &request {
            Admin::Show { .. } | Admin::List { .. } | Admin::Figures(_) => abilities.figures,
            Admin::Purge { .. } => abilities.purge,
            Admin::Remove { .. } => abilities.remove,
            _ => Ability::Yes,
        };
        if let Ability::No(why) = ability {
            // An engine that is away could not do it either.
            return Ok(Err(Failure::unsupported(why)));
        }
        Ok(match request {
            Admin::Show { .. } => self.figures(&queue).await?.and_then(|figures| match figures {
                Some(figures) => Ok(json(&self.info(&figures))),
                None => Err(self.no_queue(&queue)),
            }),
            Admin::List { .. } => self.figures(&queue).await?.map(|figures| {
                let queues = figures.iter().map(|figures| self.info(figures)).collect();
                json(&StoreInfo { queues, more: false })
            }),
            Admin::Figures(_) => {
                self.figures(&queue).await?.map(|figures| json(&self.page(figures.as_ref())))
            }
            Admin::Purge { .. } => {
                let purge = self.link.attempt(async |engine| engine.purge(&queue).await);
                or_gone(purge, &self.frames).await?.map(|count| json(&count.map(Count)))
            }
            Admin::Remove { .. } => {
                let remove = self.link.attempt(async |engine| engine.remove(&queue).await);
                or_gone(remove, &self.frames).await?.map(|()| json(&()))
            }
            _ => Err(Failure::unsupported(format!(
                "mq-admin can show, purge and remove a queue at {}, no more",
                E::ABILITIES.name
            ))
            .with_remedy("the engine's own tools")),
        })
    }

    async fn figures(
        &mut self,
        queue: &str,
    ) -> Result<Result<Option<QueueFigures>, Failure>, Stop> {
        let ask = self.link.attempt(async |engine| engine.figures(queue).await);
        or_gone(ask, &self.frames).await
    }

    fn no_queue(&self, queue: &str) -> Failure {
        Failure::new(Kind::Missing, format!("{} has no queue {queue}", E::ABILITIES.name))
            .with_remedy("a look at its name; it is made when something is sent to it")
    }

    /// What the queue is called where only a name fits, as a client calls it too.
    fn name(&self) -> Name {
        self.url.name()
    }

    fn info(&self, figures: &QueueFigures) -> QueueInfo {
        let group = |(name, ready): &(String, Option<u64>)| GroupInfo {
            group: Name::new(name).unwrap_or_default(),
            ready: Count(ready.unwrap_or(0)),
            unknown: unknown([("ready", *ready)]).chain(GROUP_UNKNOWN.map(str::to_owned)).collect(),
            ..GroupInfo::default()
        };
        QueueInfo {
            queue: self.name(),
            settings: Settings { at: Some(self.url.without_password()), ..Settings::default() },
            ready: Count(figures.ready.unwrap_or(0)),
            unacked: Count(figures.unacked.unwrap_or(0)),
            end: Offset(figures.end.unwrap_or(0)),
            bytes: figures.bytes.unwrap_or(0),
            receivers: figures.receivers.unwrap_or(0),
            groups: figures.groups.iter().map(group).collect(),
            unknown: unknown([
                ("ready", figures.ready),
                ("unacked", figures.unacked),
                ("end", figures.end),
                ("bytes", figures.bytes),
                ("receivers", figures.receivers),
            ])
            .chain(QUEUE_UNKNOWN.map(str::to_owned))
            .collect(),
            ..QueueInfo::default()
        }
    }

    fn page(&self, figures: Option<&QueueFigures>) -> Figures {
        let server = ServerFigures {
            instance: u64::from(std::process::id()),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            now: now(),
            // Whoever asks is told everything each time.
            set: now().0,
            queues: u64::from(figures.is_some()),
            connections: 1,
            ..ServerFigures::default()
        };
        let queue = |figures: &QueueFigures| stat::QueueFigures {
            queue: self.name(),
            ready: Count(figures.ready.unwrap_or(0)),
            unacked: Count(figures.unacked.unwrap_or(0)),
            disk_bytes: Bytes(figures.bytes.unwrap_or(0)),
            receivers: figures.receivers.unwrap_or(0),
            settings: Some(Settings {
                at: Some(self.url.without_password()),
                ..Settings::default()
            }),
            unknown: unknown([
                ("ready", figures.ready),
                ("unacked", figures.unacked),
                ("disk_bytes", figures.bytes),
                ("receivers", figures.receivers),
            ])
            .chain(FIGURES_UNKNOWN.map(str::to_owned))
            .collect(),
            ..stat::QueueFigures::default()
        };
        Figures { server, queues: figures.map(queue).into_iter().collect(), next: None }
    }
}

/// What no engine tells of a queue, by the names of the fields.
const QUEUE_UNKNOWN: [&str; 6] = ["id", "created", "segments", "senders", "counted", "sync"];

/// What no engine tells of a queue in figures.
const FIGURES_UNKNOWN: [&str; 10] = [
    "resting",
    "dying",
    "delayed",
    "present",
    "present_bytes",
    "senders",
    "counted",
    "latency",
    stat::unknown::RATES,
    stat::unknown::AGE,
];

/// The same of a group.
const GROUP_UNKNOWN: [&str; 4] = ["unacked", "receivers", "settled_ranges", "account"];

fn unknown<const N: usize>(fields: [(&str, Option<u64>); N]) -> impl Iterator<Item = String> {
    fields.into_iter().filter(|(_, value)| value.is_none()).map(|(name, _)| name.to_owned())
}

fn json<T: serde::Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("our own types serialize")
}
