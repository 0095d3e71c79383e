//! What a watcher of the server's figures may rely on: no counter goes back but by a fall that may
//! take it back.

use std::collections::BTreeMap;

use mq::units::Name;
use mq::wire::Admin;
use mq::wire::stat::{Figures, FiguresWanted};

use crate::world::{Fall, World};

/// The counters of a queue by name.
type Counters = serde_json::Map<String, serde_json::Value>;

/// Those that a fall may take something back of.
const INEXACT: [&str; 7] = [
    "announced",
    "there_already",
    "refused",
    "delivered",
    "delivered_bytes",
    "redelivered",
    "retried",
];

/// How messages ended in the groups of a queue.
const ENDED: [&str; 5] = ["acked", "dead", "expired", "dropped", "purged"];

/// What each queue had counted when it was looked at last.
#[derive(Default)]
pub struct Watch(BTreeMap<Name, Counters>);

impl Watch {
    /// No counter ever goes back while a server lives, and no more than was announced is stored,
    /// there or refused.
    pub fn look(&mut self, world: &mut World) {
        let Some(body) = world.ask(Admin::Figures(FiguresWanted::default())) else { return };
        let figures: Figures = serde_json::from_slice(&body).expect("figures");
        for queue in figures.queues {
            if world.spoilt.contains(&queue.queue) || queue.trouble.is_some() {
                // A log that cannot be read is not counted while its queue stands still.
                continue;
            }
            let of = queue.counted;
            let fates = of.stored.0 + of.there_already.0 + of.refused.0;
            assert!(fates <= of.announced.0 && of.lost <= of.stored, "{}: {of:?}", queue.queue);
            let Ok(serde_json::Value::Object(now)) = serde_json::to_value(of) else {
                panic!("counters are an object")
            };
            let before = self.0.insert(queue.queue.clone(), now.clone()).unwrap_or_default();
            for (name, before) in &before {
                let count = |value: Option<&serde_json::Value>| {
                    value.and_then(serde_json::Value::as_u64).unwrap_or(0)
                };
                let (before, now) = (count(Some(before)), count(now.get(name)));
                assert!(before <= now, "{name} of {} goes from {before} to {now}", queue.queue);
            }
        }
    }

    /// What a fall may take back; all but counts of what nobody writes down where there is room.
    /// `sought` is a queue of which groups are set elsewhere: a seek that was under way is undone by
    /// a kill, and with it what was settled since: those messages had ended before it, and are
    /// counted as they ended then.
    pub fn forget(&mut self, how: Fall, in_order: bool, was_tight: bool, sought: Option<&Name>) {
        if how == Fall::Power {
            self.0.clear();
        }
        let forgets = |name: &str| {
            !in_order && (INEXACT.contains(&name) || (was_tight && ENDED.contains(&name)))
        };
        for counters in self.0.values_mut() {
            counters.retain(|name, _| !forgets(name));
        }
        if let Some(counters) = sought.and_then(|queue| self.0.get_mut(queue)) {
            counters.retain(|name, _| !ENDED.contains(&name.as_str()));
        }
    }
}
