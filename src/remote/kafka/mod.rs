//! Kafka, and what speaks its protocol (librdkafka, by the rdkafka crate).
//!
//! ```text
//! kafka://b1,b2:9093/topic   all hosts are only where to begin: the cluster names its brokers
//! -g GROUP                   the consumer group GROUP; without it, `mq-TOPIC`, as a group of Kafka is one
//!                            of the whole cluster
//! ```
//!
//! A topic that is not there is made, with the cluster's own number of partitions and replicas unless the
//! URL says others. A group is there once it has committed a position; so making one commits where it is
//! to begin.
//!
//! librdkafka goes on by itself when a broker goes and another takes over, and sends again what was not
//! acknowledged, as the brokers know the records of an idempotent producer again. Only when no broker is
//! left, or when it gives up (`publisher::DELIVERY`), does the session begin anew.

mod consumer;
mod failure;
mod partitions;
mod publisher;
mod records;
mod transactions;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::config::FromClientConfigAndContext as _;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use self::consumer::KafkaConsumer;
use self::failure::{Ears, Says};
use self::publisher::{KafkaPublisher, Producing};
use self::transactions::Transactions;
use super::address::Address;
use super::engine::{Abilities, Ability, ConsumeWish, Engine, PublishWish, QueueFigures};
use super::failure::{Failure, Kind};
use super::place::{Place, look_up, of_io};
use crate::settings::Start;
use crate::units::DEFAULT_GROUP;

/// The largest message, with what stands beside it: that of mq itself.
const MESSAGE_MAX_BYTES: &str = "68157440";

/// How long an answer is waited for.
const ANSWER: Duration = Duration::from_secs(20);

impl ConsumerContext for Ears {}

/// A client of librdkafka that asks.
type Asking = Arc<BaseConsumer<Ears>>;

/// A Kafka cluster.
pub struct Kafka {
    config: ClientConfig,
    asking: Asking,
    says: Says,
    partitions: i32,
    replication: i32,
}

/// Runs what waits within librdkafka where that holds up nobody.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("it does not panic, and is not cancelled")
}

fn number_option(address: &mut Address, name: &str) -> Result<i32, Failure> {
    let Some(text) = address.take_option(name) else { return Ok(-1) };
    let number = text.parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| {
        Failure::unsupported(format!("?{name}= is a number above 0 with Kafka, not {text}"))
    })
}

/// The name that a group has in the cluster.
fn group_id(group: &str, topic: &str) -> String {
    if group == DEFAULT_GROUP { format!("mq-{topic}") } else { group.to_owned() }
}

/// All partitions of a topic, and what stands for each.
struct Ends {
    low: HashMap<i32, i64>,
    high: HashMap<i32, i64>,
}

impl Kafka {
    /// How many partitions a topic has; 0: there is none.
    async fn count_partitions(&self, topic: &str) -> Result<i32, Failure> {
        let (asking, name) = (Arc::clone(&self.asking), topic.to_owned());
        let found = blocking(move || {
            asking.fetch_metadata(Some(&name), ANSWER).map(|metadata| {
                let topic = metadata.topics().iter().find(|topic| topic.name() == name);
                topic.map(|topic| {
                    (topic.partitions().len(), topic.error().map(RDKafkaErrorCode::from))
                })
            })
        });
        let doing = format!("ask about topic {topic}");
        match found.await.map_err(|error| self.says.failed(&doing, &error))? {
            None
            | Some((
                _,
                Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic),
            )) => Ok(0),
            Some((_, Some(code))) => Err(self.says.refused(&doing, code)),
            Some((count, None)) => Ok(i32::try_from(count).expect("Kafka's own count")),
        }
    }

    fn admin(&self) -> Result<AdminClient<Ears>, Failure> {
        let made = AdminClient::from_config_and_context(&self.config, Ears::new(self.says.clone()));
        made.map_err(|error| self.says.failed("make a client", &error))
    }

    /// Makes a topic where there is none; the number of its partitions.
    async fn make_topic(&self, topic: &str) -> Result<i32, Failure> {
        let count = self.count_partitions(topic).await?;
        if count > 0 {
            return Ok(count);
        }
        // Many clusters make topics when somebody asks for them, and some only then.
        if (self.partitions, self.replication) == (-1, -1) {
            self.have_topic_made(topic).await?;
            let count = self.count_partitions(topic).await.unwrap_or(0);
            if count > 0 {
                return Ok(count);
            }
        }
        let new = NewTopic::new(topic, self.partitions, TopicReplication::Fixed(self.replication));
        let options =
            AdminOptions::new().operation_timeout(Some(ANSWER)).request_timeout(Some(ANSWER));
        let made = self.admin()?.create_topics([&new], &options).await;
        let doing = format!("make topic {topic}");
        match made.map_err(|error| self.says.failed(&doing, &error))?.into_iter().next() {
            Some(Err((_, code))) if code != RDKafkaErrorCode::TopicAlreadyExists => {
                Err(self.says.refused(&doing, code))
            }
            _ => self.await_topic(topic).await,
        }
    }

    async fn have_topic_made(&self, topic: &str) -> Result<(), Failure> {
        let mut config = self.config.clone();
        config.set("allow.auto.create.topics", "true");
        let ears = Ears::new(self.says.clone());
        let asking: Result<BaseConsumer<Ears>, _> =
            BaseConsumer::from_config_and_context(&config, ears);
        let doing = format!("make topic {topic}");
        let asking = asking.map_err(|error| self.says.failed(&doing, &error))?;
        let name = topic.to_owned();
        let asked = blocking(move || asking.fetch_metadata(Some(&name), ANSWER).map(|_| ())).await;
        asked.map_err(|error| self.says.failed(&doing, &error))
    }

    /// A new topic is there when its partitions have leaders.
    async fn await_topic(&self, topic: &str) -> Result<i32, Failure> {
        let until = tokio::time::Instant::now() + ANSWER;
        loop {
            match self.count_partitions(topic).await {
                Ok(0) => (),
                Ok(count) => return Ok(count),
                Err(failure) if failure.kind == Kind::Busy => (),
                Err(failure) => return Err(failure),
            }
            if tokio::time::Instant::now() > until {
                return Err(self.says.place.silent(&format!("making topic {topic}"), ANSWER));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn ends(&self, topic: &str, count: i32) -> Result<Ends, Failure> {
        let (asking, name) = (Arc::clone(&self.asking), topic.to_owned());
        let found = blocking(move || {
            let mut ends = Ends { low: HashMap::new(), high: HashMap::new() };
            for partition in 0..count {
                let (low, high) = asking.fetch_watermarks(&name, partition, ANSWER)?;
                ends.low.insert(partition, low);
                ends.high.insert(partition, high);
            }
            Ok::<_, KafkaError>(ends)
        });
        found.await.map_err(|error| self.says.failed(&format!("ask about topic {topic}"), &error))
    }

    fn with_group(&self, group: &str) -> ClientConfig {
        let mut config = self.config.clone();
        config.set("group.id", group).set("enable.auto.commit", "false");
        config
    }

    fn asking_as(&self, group: &str) -> Result<Asking, Failure> {
        let ears = Ears::new(self.says.clone());
        let asking = BaseConsumer::from_config_and_context(&self.with_group(group), ears);
        asking
            .map(Arc::new)
            .map_err(|error| self.says.failed(&format!("open group {group}"), &error))
    }

    /// What a group has committed: a partition without a place is not in it.
    async fn committed(
        &self,
        asking: &Asking,
        topic: &str,
        count: i32,
    ) -> Result<HashMap<i32, i64>, Failure> {
        let (asking, name) = (Arc::clone(asking), topic.to_owned());
        let found = blocking(move || {
            let mut list = TopicPartitionList::new();
            list.add_partition_range(&name, 0, count - 1);
            asking.committed_offsets(list, ANSWER)
        });
        let found = found.await;
        let found = found.map_err(|error| self.says.failed("ask where a group is", &error))?;
        let each = found.elements().into_iter().filter_map(|element| match element.offset() {
            Offset::Offset(offset) => Some((element.partition(), offset)),
            _ => None,
        });
        Ok(each.collect())
    }

    /// Where a new group begins, in each partition.
    async fn begin(
        &self,
        asking: &Asking,
        topic: &str,
        from: &Start,
        ends: &Ends,
    ) -> Result<HashMap<i32, i64>, Failure> {
        let each = |place: &dyn Fn(i64, i64) -> i64| {
            let each = ends.high.iter();
            each.map(|(&p, &high)| (p, place(ends.low[&p], high))).collect::<HashMap<_, _>>()
        };
        let far = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        Ok(match from {
            Start::Oldest => each(&|low, _| low),
            Start::Newest => each(&|_, high| high),
            Start::Offset(offset) => each(&|low, high| far(offset.0).clamp(low, high)),
            Start::Last(count) => each(&|low, high| high.saturating_sub(far(count.0)).max(low)),
            Start::Time(time) => {
                let mut list = TopicPartitionList::new();
                for partition in ends.high.keys() {
                    let time = Offset::Offset(far(time.0.div_ceil(1000)));
                    let added = list.add_partition_offset(topic, *partition, time);
                    added.map_err(|error| self.says.failed("ask for a time", &error))?;
                }
                let asking = Arc::clone(asking);
                let found = blocking(move || asking.offsets_for_times(list, ANSWER)).await;
                let found = found.map_err(|error| self.says.failed("ask for a time", &error))?;
                let mut all = each(&|_, high| high);
                for element in found.elements() {
                    if let Offset::Offset(offset) = element.offset() {
                        all.insert(element.partition(), offset);
                    }
                }
                all
            }
        })
    }

    /// Makes a group by committing where it begins, if it has no place yet.
    async fn make_group(&self, wish: &ConsumeWish, count: i32, ends: &Ends) -> Result<(), Failure> {
        let topic = &wish.queue;
        let group = group_id(&wish.group, topic);
        let asking = self.asking_as(&group)?;
        if !self.committed(&asking, topic, count).await?.is_empty() {
            return Ok(());
        }
        let from = match &wish.from {
            Some(from) => *from,
            None if wish.group == DEFAULT_GROUP => Start::Oldest,
            None => {
                let why = format!("topic {topic} has no group {group} at {}", self.says.place);
                return Err(Failure::new(Kind::Missing, why)
                    .with_remedy("make the group with --from oldest or --from newest"));
            }
        };
        let begin = self.begin(&asking, topic, &from, ends).await?;
        let list = self.list(topic, &begin)?;
        let committed = blocking(move || asking.commit(&list, CommitMode::Sync)).await;
        match committed {
            Ok(()) => Ok(()),
            // Others are in it, and have not committed anything yet: so it is there.
            Err(error) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::UnknownMemberId) => {
                Ok(())
            }
            Err(error) => Err(self.says.failed(&format!("make group {group}"), &error)),
        }
    }

    fn list(&self, topic: &str, places: &HashMap<i32, i64>) -> Result<TopicPartitionList, Failure> {
        let mut list = TopicPartitionList::new();
        for (&partition, &offset) in places {
            let added = list.add_partition_offset(topic, partition, Offset::Offset(offset));
            added.map_err(|error| self.says.failed("name a place", &error))?;
        }
        Ok(list)
    }

    async fn existing(&self, topic: &str) -> Result<i32, Failure> {
        match self.count_partitions(topic).await? {
            0 => {
                let why = format!("{} has no topic {topic}", self.says.place);
                Err(Failure::new(Kind::Missing, why))
            }
            count => Ok(count),
        }
    }
}

impl Engine for Kafka {
    const ABILITIES: Abilities = Abilities {
        name: "Kafka",
        schemes: &["kafka"],
        confirmed: "all in-sync replicas have it (acks=all, an idempotent producer)",
        ordered: Ability::Partly("within a partition; messages of one key are in one"),
        once: Ability::Partly("while the sender lives and some broker answers within 30 s"),
        keys: Ability::Yes,
        headers: Ability::Yes,
        ids: Ability::Partly("kept in the header mq-id; nobody compares them"),
        ttl: Ability::No(
            "Kafka keeps messages by the topic's retention, so --ttl would promise nothing",
        ),
        delay: Ability::No(
            "Kafka has no delayed messages; send with --delay to a queue of mq itself, and forward \
             from there: mq-recv -J QUEUE --batch 1000 -- mq-send -J URL",
        ),
        producers: Ability::Partly(
            "by transactions, each of which holds messages and how far their sender has come; known \
             for as long as the cluster keeps a group's offsets, a week as a rule",
        ),
        groups: Ability::Partly("each partition goes to one receiver of a group at a time"),
        from: Ability::Yes,
        end: Ability::Partly("of all partitions that the group gives to this receiver"),
        peek: Ability::Yes,
        acks: Ability::Partly("up to the first message that is not acked, in each partition"),
        delays_retries: false,
        purge: Ability::Yes,
        remove: Ability::Yes,
        figures: Ability::Partly(
            "what is ready, marks of transactions included, and the end of a topic with one partition",
        ),
    };
    type Publisher = KafkaPublisher;
    type Consumer = KafkaConsumer;

    async fn connect(address: &Address, patience: Duration) -> Result<Kafka, Failure> {
        let mut address = address.clone();
        let hosts = address.hosts_with(9092);
        let says = Says {
            place: Place::new(Self::ABILITIES.name, hosts.clone()),
            user: address.user.clone(),
        };
        if address.hosts.is_empty() || address.path.len() != 1 {
            return Err(Failure::unsupported(
                "an address of Kafka is kafka://HOST[,HOST...]/TOPIC",
            ));
        }
        let partitions = number_option(&mut address, "partitions")?;
        let replication = number_option(&mut address, "replication")?;
        says.place.refuse_other_options(&address, &["partitions", "replication"])?;
        reach_one(&says, &address, patience).await?;
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &hosts)
            .set("client.id", "mq-remote")
            .set("socket.keepalive.enable", "true")
            .set("socket.timeout.ms", "20000")
            .set("receive.message.max.bytes", "100000000")
            .set("reconnect.backoff.max.ms", "1000")
            .set("log_level", "0");
        if let Some(user) = &address.user {
            let password = address.password.as_ref().map_or("", |password| password.reveal());
            config
                .set("security.protocol", "SASL_PLAINTEXT")
                .set("sasl.mechanisms", "PLAIN")
                .set("sasl.username", user)
                .set("sasl.password", password);
        }
        let ears = Ears::new(says.clone());
        let asking: BaseConsumer<Ears> =
            BaseConsumer::from_config_and_context(&config, ears.clone())
                .map_err(|error| says.failed("make a client", &error))?;
        let asking = Arc::new(asking);
        let (client, topic) = (Arc::clone(&asking), address.path[0].clone());
        let answer = blocking(move || {
            let answer = client.fetch_metadata(Some(&topic), patience);
            // What it has to tell beside that comes only to who asks for it.
            let _ = client.poll(Duration::ZERO);
            answer.map(|_| ())
        });
        if let Err(error) = answer.await {
            let told = ears.told().filter(|failure| !failure.passes());
            return Err(told.unwrap_or_else(|| says.failed("connect", &error)));
        }
        Ok(Kafka { config, asking, says, partitions, replication })
    }

    async fn publisher(&self, wish: &PublishWish) -> Result<KafkaPublisher, Failure> {
        let topic = &wish.queue;
        self.make_topic(topic).await?;
        if !wish.named {
            let producing = Producing::new(&self.config, self.says.clone(), topic)?;
            return Ok(KafkaPublisher::nameless(producing));
        }
        let id = transactions::id_of(topic, wish.sender);
        let mut config = self.config.clone();
        config
            .set("transactional.id", &id)
            .set("transaction.timeout.ms", transactions::OPEN.as_millis().to_string());
        let producing = Producing::new(&config, self.says.clone(), topic)?;
        let transactions = Transactions::open(producing, self.asking_as(&id)?).await?;
        Ok(KafkaPublisher::named(transactions))
    }

    async fn consumer(&self, wish: &ConsumeWish) -> Result<KafkaConsumer, Failure> {
        let topic = &wish.queue;
        let group = group_id(&wish.group, topic);
        let config = self.with_group(&group);
        let count = match wish.peek || (wish.group != DEFAULT_GROUP && wish.from.is_none()) {
            true => self.existing(topic).await?,
            false => self.make_topic(topic).await?,
        };
        let ends = self.ends(topic, count).await?;
        if wish.peek {
            let asking = self.asking_as(&group)?;
            let mut from = ends.low.clone();
            from.extend(self.committed(&asking, topic, count).await?);
            let from = self.list(topic, &from)?;
            let says = self.says.clone();
            return KafkaConsumer::new(&config, says, wish, Some(ends.high), Some(&from));
        }
        self.make_group(wish, count, &ends).await?;
        let ends = wish.until_end.then_some(ends.high);
        KafkaConsumer::new(&config, self.says.clone(), wish, ends, None)
    }

    async fn figures(&self, queue: &str) -> Result<Option<QueueFigures>, Failure> {
        let count = self.count_partitions(queue).await?;
        if count == 0 {
            return Ok(None);
        }
        let ends = self.ends(queue, count).await?;
        let asking = self.asking_as(&group_id(DEFAULT_GROUP, queue))?;
        let committed = self.committed(&asking, queue, count).await?;
        let ready = ends.high.iter().map(|(partition, high)| {
            let low = ends.low[partition];
            high - committed.get(partition).copied().unwrap_or(low).max(low)
        });
        let ready = ready.sum::<i64>();
        Ok(Some(QueueFigures {
            ready: u64::try_from(ready).ok(),
            end: ends.high.get(&0).filter(|_| count == 1).and_then(|end| u64::try_from(*end).ok()),
            ..QueueFigures::default()
        }))
    }

    async fn purge(&self, queue: &str) -> Result<Option<u64>, Failure> {
        let count = self.existing(queue).await?;
        let ends = self.ends(queue, count).await?;
        let list = self.list(queue, &ends.high)?;
        let options = AdminOptions::new().request_timeout(Some(ANSWER));
        let purged = self.admin()?.delete_records(&list, &options).await;
        purged.map_err(|error| self.says.failed(&format!("purge topic {queue}"), &error))?;
        let gone =
            ends.high.iter().map(|(partition, high)| high - ends.low[partition]).sum::<i64>();
        Ok(u64::try_from(gone).ok())
    }

    async fn remove(&self, queue: &str) -> Result<(), Failure> {
        self.existing(queue).await?;
        let options = AdminOptions::new().request_timeout(Some(ANSWER));
        let removed = self.admin()?.delete_topics(&[queue], &options).await;
        let doing = format!("remove topic {queue}");
        let results = removed.map_err(|error| self.says.failed(&doing, &error))?;
        match results.into_iter().next() {
            Some(Err((_, code))) => Err(self.says.refused(&doing, code)),
            _ => Ok(()),
        }
    }
}

/// Finds out that one of the hosts is known and takes connections: librdkafka itself only tries again
/// and again, in silence.
async fn reach_one(says: &Says, address: &Address, patience: Duration) -> Result<(), Failure> {
    let mut last = None;
    for host in &address.hosts {
        let found = match look_up(&says.place, host, 9092, patience).await {
            Ok(found) => found,
            Err(failure) => {
                last = Some(failure);
                continue;
            }
        };
        let connecting = tokio::net::TcpStream::connect(&found[..]);
        match tokio::time::timeout(patience, connecting).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) => last = Some(of_io(&says.place, &error, false)),
            Err(_) => last = Some(says.place.silent("connecting", patience)),
        }
    }
    Err(last.expect("there is a host"))
}
