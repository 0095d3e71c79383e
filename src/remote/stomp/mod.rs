//! ActiveMQ, by STOMP 1.2.
//!
//! ```text
//! stomp://host/queue                the queue, made by its first use
//! stomp://host/VirtualTopic.NAME    a virtual topic: with -g GROUP, the queue
//!                                   Consumer.GROUP.VirtualTopic.NAME, which gets all that is sent once it
//!                                   is there
//! stomp://host/VirtualTopic.X.dead  a queue again: what groups of one gave up
//! ```
//!
//! The codec is our own (`frame`), about as long as what a crate for it would have to be told. Of the
//! crates there are, none has heart-beats and TLS by ring under a licence that everybody can take; and
//! AMQP 1.0 (fe2o3-amqp) needs a module of ActiveMQ that the packages of distributions leave out.
//!
//! Sending and receiving have a connection each.

mod consumer;
mod frame;
mod headers;
mod link;
mod publisher;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, watch};

use self::consumer::StompConsumer;
use self::link::{Frames, Login, Outlet};
use self::publisher::StompPublisher;
use super::address::{Address, Host};
use super::engine::{
    Abilities, Ability, ConsumeWish, Consumer as _, Engine, Holding, PublishWish, QueueFigures,
    Received,
};
use super::failure::Failure;
use super::place::Place;
use super::tls::TlsFiles;
use crate::units::DEFAULT_GROUP;

/// How queues that hand on to several groups are called there.
const VIRTUAL: &str = "VirtualTopic.";

/// How the names of queues of dead letters end.
const DEAD: &str = ".dead";

/// How many messages a purge takes at a time.
const PURGE: u32 = 1000;

/// An ActiveMQ broker.
pub struct Stomp {
    place: Place,
    hosts: Vec<Host>,
    port: u16,
    login: Login,
    patience: Duration,
    /// Why it takes nothing for now.
    holding: Arc<watch::Sender<Option<Failure>>>,
    /// The connection by which it was tried whether there can be one: the first who needs one has it.
    first: Mutex<Option<(Frames, Outlet)>>,
}

impl Stomp {
    /// A connection to one of the hosts.
    async fn open(&self) -> Result<(Frames, Outlet), Failure> {
        if let Some(first) = self.first.lock().await.take() {
            return Ok(first);
        }
        let each = self.patience / u32::try_from(self.hosts.len()).unwrap_or(u32::MAX);
        let mut last = None;
        for host in &self.hosts {
            match link::open(&self.place, host, self.port, &self.login, each).await {
                Ok(opened) => return Ok(opened),
                Err(failure) if failure.passes() => last = Some(failure),
                Err(failure) => return Err(failure),
            }
        }
        Err(last.expect("there is a host"))
    }

    async fn consume(&self, wish: &ConsumeWish, from: String) -> Result<StompConsumer, Failure> {
        StompConsumer::new(self.place.clone(), self.open().await?, from, wish).await
    }
}

/// A queue's name, if that is what it would be taken for: some characters make a destination of ActiveMQ
/// several queues, or another one.
fn check_name(queue: &str) -> Result<(), Failure> {
    let is_wildcard = |part: &str| part == "*" || part == ">";
    if queue.contains([',', '?']) || queue.split('.').any(is_wildcard) {
        let why = format!(
            "ActiveMQ has no queue {queue:?}: a name there has no wildcards, no commas and no ?"
        );
        return Err(Failure::unsupported(why));
    }
    Ok(())
}

/// Whether what is sent there goes to the queues of groups. What they gave up is not for groups again, and of a
/// topic without any it would be gone: it has a queue.
fn is_virtual(queue: &str) -> bool {
    queue.starts_with(VIRTUAL) && !queue.ends_with(DEAD)
}

fn destination(queue: &str, group: &str) -> Result<String, Failure> {
    check_name(queue)?;
    match (is_virtual(queue), group) {
        (true, group) if group.contains('.') => {
            let why = format!("with ActiveMQ a group has a name without dots, not {group}");
            Err(Failure::unsupported(why))
        }
        (true, group) => Ok(format!("/queue/Consumer.{group}.{queue}")),
        (false, DEFAULT_GROUP) => Ok(format!("/queue/{queue}")),
        (false, _) if queue.starts_with(VIRTUAL) => {
            let why = format!("ActiveMQ gives the queue of dead letters {queue} to one group");
            Err(Failure::unsupported(why))
        }
        (false, _) => {
            let why = format!("ActiveMQ gives a queue to one group, and {queue} is one");
            Err(Failure::unsupported(why).with_remedy(format!(
                "name it {VIRTUAL}{queue}, for senders and receivers: then each -g GROUP has a queue"
            )))
        }
    }
}

impl Engine for Stomp {
    const ABILITIES: Abilities = Abilities {
        name: "ActiveMQ",
        schemes: &["stomp", "stomp+ssl"],
        confirmed: "the broker's receipt for a transaction of persistent messages came",
        ordered: Ability::Yes,
        once: Ability::No(
            "ActiveMQ cannot tell a message that is sent again by STOMP from another, so one that was in \
             flight as a connection was lost may be stored twice",
        ),
        keys: Ability::Partly("kept in the header mq-key; they order nothing"),
        headers: Ability::Partly("one value for a name; unordered"),
        ids: Ability::Partly("kept in the header mq-id; the broker compares none"),
        ttl: Ability::Yes,
        delay: Ability::No(
            "ActiveMQ has delayed messages only where its scheduler is on; send with --delay to a queue \
             of mq itself, and forward from there: mq-recv -J QUEUE --batch 1000 -- mq-send -J URL",
        ),
        producers: Ability::No(
            "ActiveMQ does not know a sender again, so --producer would promise nothing; use NATS, or a \
             queue of mq itself",
        ),
        groups: Ability::Partly(
            "queues named VirtualTopic.NAME, from a group's first use on: what is sent to one without \
             groups is confirmed, and gone",
        ),
        from: Ability::Partly("newest, where a group is made"),
        end: Ability::Partly("when nothing has come for a second"),
        peek: Ability::Partly("the first few hundred messages, as many as the broker shows"),
        acks: Ability::Yes,
        delays_retries: false,
        purge: Ability::Partly("by receiving all that comes"),
        remove: Ability::No("ActiveMQ removes no queue by STOMP; use its console"),
        figures: Ability::No("ActiveMQ tells no figures by STOMP; use its console"),
    };
    type Publisher = StompPublisher;
    type Consumer = StompConsumer;

    async fn connect(address: &Address, patience: Duration) -> Result<Stomp, Failure> {
        let mut address = address.clone();
        let secure = address.scheme == "stomp+ssl";
        let port = if secure { 61_614 } else { 61_613 };
        let place = Place::new(Self::ABILITIES.name, address.hosts_with(port));
        if address.hosts.is_empty() || address.path.len() != 1 {
            return Err(Failure::unsupported("an address of ActiveMQ is stomp://HOST/QUEUE"));
        }
        let files = TlsFiles::take(&mut address)?;
        let vhost = address.take_option("vhost");
        place.refuse_other_options(&address, &["ca", "cert", "key", "vhost"])?;
        let login = Login {
            user: address.user.clone(),
            password: address.password.as_ref().map(|password| password.reveal().to_owned()),
            vhost,
            tls: secure.then_some(files),
        };
        let first = Mutex::new(None);
        let stomp = Stomp {
            place,
            hosts: address.hosts,
            port,
            login,
            patience,
            holding: Arc::default(),
            first,
        };
        let opened = stomp.open().await?;
        *stomp.first.lock().await = Some(opened);
        Ok(stomp)
    }

    async fn publisher(&self, wish: &PublishWish) -> Result<StompPublisher, Failure> {
        check_name(&wish.queue)?;
        let kind = if is_virtual(&wish.queue) { "topic" } else { "queue" };
        let to = format!("/{kind}/{}", wish.queue);
        let holding = Arc::clone(&self.holding);
        Ok(StompPublisher::new(self.place.clone(), self.open().await?, to, holding))
    }

    fn holding(&self) -> Option<Holding> {
        Some(self.holding.subscribe())
    }

    async fn consumer(&self, wish: &ConsumeWish) -> Result<StompConsumer, Failure> {
        self.place.only_newest(wish.from)?;
        let from = destination(&wish.queue, &wish.group)?;
        self.consume(wish, from).await
    }

    async fn figures(&self, _: &str) -> Result<Option<QueueFigures>, Failure> {
        Ok(Some(QueueFigures::default()))
    }

    async fn purge(&self, queue: &str) -> Result<Option<u64>, Failure> {
        let wish = ConsumeWish {
            queue: queue.to_owned(),
            group: DEFAULT_GROUP.to_owned(),
            from: None,
            until_end: true,
            peek: false,
            no_ack: true,
            prefetch: PURGE,
        };
        let mut consumer = self.consume(&wish, destination(queue, DEFAULT_GROUP)?).await?;
        let mut count = 0;
        while let Received::Messages(messages) = consumer.receive(PURGE as usize).await? {
            count += messages.len() as u64;
        }
        consumer.finish().await?;
        Ok(Some(count))
    }

    async fn remove(&self, _: &str) -> Result<(), Failure> {
        Err(Failure::unsupported("ActiveMQ removes no queue by STOMP")
            .with_remedy("use its console"))
    }
}
