//! Groups: which durable pull consumer is that of which group of which queue, and how one is made.
//!
//! Consumers belong to a stream, which may hold other queues too, so a name alone does not say whose a
//! consumer is: what it takes has to be the queue, no more and no less.
//!
//! | the stream holds | group `g.h` of queue `a.b` | group `g` |
//! |---|---|---|
//! | this queue alone | `g,h@a,b` | `g` |
//! | others too | `g,h@a,b` | `g@a,b` |
//!
//! Earlier versions named it after the group alone, with `_` for a dot, as whoever makes one by hand may: such
//! a one is the group's where it takes what it should.

use async_nats::jetstream::consumer::{AckPolicy, Config, Consumer, Info, PullConsumer};
use async_nats::jetstream::consumer::{DeliverPolicy, FromConsumer as _, pull};
use async_nats::jetstream::stream::{Config as StreamConfig, Stream};

use super::{ACK_WAIT, Nats, failure, stream_name};
use crate::remote::engine::ConsumeWish;
use crate::remote::failure::{Failure, Kind};
use crate::settings::Start;
use crate::units::DEFAULT_GROUP;

/// What the description of a consumer of ours begins with.
const OURS: &str = "mq: group ";

/// The name of a consumer for this group of this queue that no other has.
fn name_of(group: &str, queue: &str) -> String {
    let mut name = String::with_capacity(group.len() + queue.len() + 1);
    push_part(&mut name, group);
    name.push('@');
    push_part(&mut name, queue);
    name
}

/// A comma stands for a dot, which no name has; what would be mistaken for one of ours is written by its number.
fn push_part(out: &mut String, part: &str) {
    for c in part.chars() {
        match c {
            '.' => out.push(','),
            ',' | '@' | '%' | '/' | '\\' => out.push_str(&format!("%{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
}

fn description_of(group: &str, queue: &str) -> String {
    format!("{OURS}{group} of {queue}")
}

/// Whether a stream holds this queue and nothing else.
pub(super) fn is_alone(stream: &StreamConfig, queue: &str) -> bool {
    stream.subjects == [queue] && stream.mirror.is_none() && stream.sources.is_none()
}

/// The subjects that a consumer takes; none: all of its stream.
fn filters(config: &Config) -> Vec<&str> {
    let one = Some(config.filter_subject.as_str()).filter(|one| !one.is_empty());
    one.into_iter().chain(config.filter_subjects.iter().map(String::as_str)).collect()
}

/// Whether it takes this queue and nothing else.
pub(super) fn takes(config: &Config, stream: &StreamConfig, queue: &str) -> bool {
    let filters = filters(config);
    match filters.is_empty() {
        true => is_alone(stream, queue),
        false => filters.iter().all(|filter| *filter == queue),
    }
}

/// What the group of a consumer that takes this queue is called.
pub(super) fn group_of(info: &Info, queue: &str) -> String {
    let said = info.config.description.as_deref().and_then(|said| said.strip_prefix(OURS));
    let said = said.and_then(|said| said.strip_suffix(queue)?.strip_suffix(" of "));
    said.unwrap_or(&info.name).to_owned()
}

/// Whether a consumer is that of this group: one of ours says whose it is.
fn is_of(info: &Info, stream: &StreamConfig, wish: &ConsumeWish) -> bool {
    let said = info.config.description.as_deref().filter(|said| said.starts_with(OURS));
    takes(&info.config, stream, &wish.queue)
        && said.is_none_or(|said| said == description_of(&wish.group, &wish.queue))
}

/// Why messages would be lost by this consumer, or cannot be had from it.
fn unfit(config: &Config) -> Option<&'static str> {
    match config.ack_policy {
        _ if config.deliver_subject.is_some() => Some("is one that messages are pushed to"),
        AckPolicy::All => {
            Some("acks all that is below what it acks, so what is not done would be lost")
        }
        AckPolicy::None => Some("acks nothing, so what is not done would be lost"),
        _ if config.headers_only => Some("has headers only, and no bodies"),
        _ => None,
    }
}

/// What somebody else's consumer of the group's name takes.
fn taken_by(info: &Info) -> String {
    let filters = filters(&info.config);
    let what = match filters.is_empty() {
        true => "all of it".to_owned(),
        false => filters.join(", "),
    };
    format!("; consumer {} of stream {} takes {what}", info.name, info.stream_name)
}

impl Nats {
    /// Where a new group begins.
    fn policy(&self, from: &Start, last: u64) -> Result<DeliverPolicy, Failure> {
        Ok(match from {
            Start::Oldest => DeliverPolicy::All,
            Start::Newest => DeliverPolicy::New,
            Start::Offset(offset) => {
                DeliverPolicy::ByStartSequence { start_sequence: offset.0.max(1) }
            }
            Start::Last(count) => {
                let start_sequence = (last + 1).saturating_sub(count.0).max(1);
                DeliverPolicy::ByStartSequence { start_sequence }
            }
            Start::Time(time) => {
                let nanos = i128::from(time.0) * 1000;
                let start_time = async_nats::datetime::from_nanos(nanos)
                    .map_err(|error| Failure::unsupported(format!("--from: {error}")))?;
                DeliverPolicy::ByStartTime { start_time }
            }
        })
    }

    /// What is known of a consumer; `None`: there is none of this name.
    async fn consumer_info(
        &self,
        stream: &Stream,
        name: &str,
        doing: &str,
    ) -> Result<Option<Info>, Failure> {
        match stream.consumer_info(name).await {
            Ok(info) => Ok(Some(info)),
            Err(error) if failure::is_no_consumer(&error.to_string()) => Ok(None),
            Err(error) => Err(self.says.failed(doing, &error)),
        }
    }

    /// A consumer that is there, unless messages would be lost by it.
    fn opened(&self, info: Info) -> Result<PullConsumer, Failure> {
        let named = format!("consumer {} of stream {}", info.name, info.stream_name);
        if let Some(why) = unfit(&info.config) {
            let why = format!("{named} at {} {why}", self.says.place);
            return Err(Failure::unsupported(why).with_remedy(
                "make another group, with -g and --from, or that consumer anew: a pull consumer with \
                 explicit acks",
            ));
        }
        let config = pull::Config::try_from_consumer_config(info.config.clone())
            .map_err(|error| self.says.place.other(&format!("use {named}"), error))?;
        Ok(Consumer::new(config, info, self.jetstream.clone()))
    }

    /// The durable consumer of a group, made where that is called for.
    pub(super) async fn group(
        &self,
        wish: &ConsumeWish,
        stream: &Stream,
    ) -> Result<PullConsumer, Failure> {
        let doing = format!("open group {} of {}", wish.group, wish.queue);
        let held = &stream.cached_info().config;
        let (plain, own) = (stream_name(&wish.group), name_of(&wish.group, &wish.queue));
        let mut others = String::new();
        for name in [&plain, &own] {
            match self.consumer_info(stream, name, &doing).await? {
                Some(info) if is_of(&info, held, wish) => return self.opened(info),
                Some(info) => others = taken_by(&info),
                None => (),
            }
        }
        let is_default = wish.group == DEFAULT_GROUP;
        let from = match &wish.from {
            Some(from) => *from,
            None if is_default => Start::Oldest,
            None => {
                let why = format!(
                    "{} has no group {} at {}{others}",
                    wish.queue, wish.group, self.says.place
                );
                return Err(Failure::new(Kind::Missing, why)
                    .with_remedy("make the group with --from oldest or --from newest"));
            }
        };
        let is_plain = is_alone(held, &wish.queue) && plain == wish.group && others.is_empty();
        let name = if is_plain { plain } else { own };
        let last = self.info(stream).await?.state.last_sequence;
        let config = pull::Config {
            durable_name: Some(name.clone()),
            description: Some(description_of(&wish.group, &wish.queue)),
            deliver_policy: self.policy(&from, last)?,
            ack_policy: AckPolicy::Explicit,
            ack_wait: ACK_WAIT,
            max_ack_pending: -1,
            filter_subject: wish.queue.clone(),
            ..pull::Config::default()
        };
        let made = stream.get_or_create_consumer(&name, config).await;
        let made = made.map_err(|error| {
            let text = error.to_string();
            if !failure::is_second_of_work_queue(&text) {
                return self.says.refused(&doing, &text);
            }
            let why = format!(
                "stream {} at {} is a work queue, whose messages go to one group only, and it has \
                 one{others}",
                held.name, self.says.place
            );
            Failure::unsupported(why).with_remedy(
                "for several groups, make the first one before anything is sent: mq-recv -g G --from \
                 oldest; or make the stream with ?retention=limits",
            )
        })?;
        // Somebody may have made it meanwhile.
        match made.cached_info() {
            info if is_of(info, held, wish) => self.opened(info.clone()),
            info => {
                let why = format!("cannot {doing} at {}{}", self.says.place, taken_by(info));
                Err(Failure::unsupported(why).with_remedy("another group with -g"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_groups_have_one_name() {
        let names =
            [("a.b", "c"), ("a,b", "c"), ("a", "b@c"), ("a@b", "c"), ("a%2cb", "c"), ("a_b", "c")];
        let all: std::collections::BTreeSet<String> =
            names.iter().map(|(group, queue)| name_of(group, queue)).collect();
        assert_eq!(all.len(), names.len(), "{all:?}");
        assert_eq!(name_of("default", "jobs.x"), "default@jobs,x");
    }

    #[test]
    fn what_a_consumer_takes_is_its_queue_and_no_more() {
        let alone = StreamConfig { subjects: vec!["a".into()], ..StreamConfig::default() };
        let shared = StreamConfig { subjects: vec![">".into()], ..StreamConfig::default() };
        let filtered = |filter: &str| Config { filter_subject: filter.into(), ..Config::default() };
        assert!(takes(&filtered("a"), &shared, "a") && takes(&filtered(""), &alone, "a"));
        assert!(!takes(&filtered(""), &shared, "a") && !takes(&filtered("b"), &shared, "a"));
        assert!(!takes(&filtered(">"), &shared, "a"));
        let several = |filters: &[&str]| Config {
            filter_subjects: filters.iter().map(|filter| (*filter).to_owned()).collect(),
            ..Config::default()
        };
        assert!(
            takes(&several(&["a"]), &shared, "a") && !takes(&several(&["a", "b"]), &shared, "a")
        );
    }
}
