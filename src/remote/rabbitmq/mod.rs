//! RabbitMQ, by AMQP 0-9-1 (the lapin crate).
//!
//! ```text
//! amqp://host/vhost/queue    the durable queue `queue`, made when it is not there; what is there is
//!                            used as it is
//! -g GROUP                   the durable queue `queue.GROUP`, bound to the fanout exchange `queue`
//! ```
//!
//! A sender publishes to the exchange `queue` if there is one, and else to the queue by the default
//! exchange. The first group makes the exchange and binds the queue to it, if that is there, so that
//! its receivers go on seeing everything. A sender that was connected before goes on with the queue
//! alone: it looks only when it connects.
//!
//! Everything is published as persistent and mandatory, and waited for by publisher confirms. Each
//! publisher and each consumer has a channel of its own on one connection, so a consumer's message
//! number is its delivery tag less one.

mod consumer;
mod failure;
mod properties;
mod publisher;

use std::time::Duration;

use futures_util::StreamExt as _;
use lapin::options::{
    ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
    QueuePurgeOptions,
};
use lapin::tcp::{OwnedIdentity, OwnedTLSConfig};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::uri::{
    AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo, SASLMechanism,
};
use lapin::{Channel, Connection, ConnectionProperties, Event, ExchangeKind, Queue};
use tokio::sync::watch;

use self::consumer::RabbitConsumer;
use self::failure::Says;
use self::publisher::RabbitPublisher;
use super::address::{Address, Host};
use super::engine::{Abilities, Ability, ConsumeWish, Engine, Holding, PublishWish, QueueFigures};
use super::failure::{Failure, Kind};
use super::place::{Place, look_up};
use super::tls::TlsFiles;
use crate::units::DEFAULT_GROUP;

/// Both sides say something at least so often, in seconds, or the connection counts as lost after
/// twice that.
const HEARTBEAT_S: u16 = 20;

/// A connection to RabbitMQ.
pub struct RabbitMq {
    connection: Connection,
    holding: Holding,
    says: Says,
    /// `?type=`: the `x-queue-type` of queues that are made.
    queue_type: Option<String>,
}

/// What the URL says, checked.
struct Wanted {
    hosts: Vec<Host>,
    uri: AMQPUri,
    tls: OwnedTLSConfig,
    queue_type: Option<String>,
    user: String,
}

impl Wanted {
    fn of(address: &Address) -> Result<Wanted, Failure> {
        let place = Place::new(RabbitMq::ABILITIES.name, address.hosts_with(5672));
        let mut address = address.clone();
        let secure = address.scheme == "amqps";
        let files = TlsFiles::take(&mut address)?;
        let queue_type = address.take_option("type");
        place.refuse_other_options(&address, &["ca", "cert", "key", "type"])?;
        let refuse = |why: &str| Err(Failure::unsupported(why));
        if address.hosts.is_empty() {
            return refuse("an address of RabbitMQ names a host: amqp://HOST/VHOST/QUEUE");
        }
        let vhost = match &*address.path {
            [_queue] => "/".to_owned(),
            [vhost, _queue] => vhost.clone(),
            _ => {
                return refuse(
                    "an address of RabbitMQ is amqp://HOST/VHOST/QUEUE, or amqp://HOST/QUEUE for the \
                     virtual host /, which is written %2f",
                );
            }
        };
        // A certificate of ours says who we are, unless a user does.
        let external = files.identity.is_some() && address.user.is_none();
        let user = address.user.clone().unwrap_or_else(|| "guest".to_owned());
        let password = match (&address.password, &address.user) {
            (Some(password), _) => password.reveal().to_owned(),
            // What every client of RabbitMQ takes without either.
            (None, None) => "guest".to_owned(),
            (None, Some(_)) => String::new(),
        };
        let mechanism = if external { SASLMechanism::External } else { SASLMechanism::Plain };
        let uri = AMQPUri {
            scheme: if secure { AMQPScheme::AMQPS } else { AMQPScheme::AMQP },
            authority: AMQPAuthority {
                userinfo: AMQPUserInfo { username: user.clone(), password },
                host: String::new(),
                port: if secure { 5671 } else { 5672 },
            },
            vhost,
            query: AMQPQueryString {
                heartbeat: Some(HEARTBEAT_S),
                auth_mechanism: Some(mechanism),
                ..AMQPQueryString::default()
            },
        };
        let identity = files.identity.map(|identity| OwnedIdentity::PKCS8 {
            pem: identity.cert.into_bytes(),
            key: identity.key.into_bytes(),
        });
        let tls = OwnedTLSConfig { identity, cert_chain: files.ca };
        Ok(Wanted { hosts: address.hosts, uri, tls, queue_type, user })
    }

    /// Connects to one of the hosts.
    async fn open(&self, host: &Host, wait: Duration) -> Result<(Connection, Says), Failure> {
        let mut uri = self.uri.clone();
        uri.authority.host = host.name.clone();
        uri.authority.port = host.port.unwrap_or(uri.authority.port);
        let at = format!("{}:{}", host.name, uri.authority.port);
        let place = Place::new(RabbitMq::ABILITIES.name, at);
        look_up(&place, host, uri.authority.port, wait).await?;
        let says = Says {
            place,
            user: self.user.clone(),
            vhost: uri.vhost.clone(),
            tls: uri.scheme == AMQPScheme::AMQPS,
        };
        let properties = ConnectionProperties::default().with_connection_name("mq-remote".into());
        let runtime = lapin::runtime::default_runtime()
            .map_err(|error| says.place.other("start a connection", error))?;
        use lapin::Connect as _;
        let connecting = uri.connect_with_config(properties, self.tls.clone(), runtime);
        match tokio::time::timeout(wait, connecting).await {
            Err(_) => Err(says.place.silent("connecting", wait)),
            Ok(Err(error)) => Err(says.connecting(&error)),
            Ok(Ok(connection)) => Ok((connection, says)),
        }
    }
}

/// Hears when the broker takes nothing more, as it does when its disk or its memory runs short, and when it
/// does again.
fn listen(connection: &Connection, place: Place) -> Holding {
    let (sender, holding) = watch::channel(None);
    let mut events = connection.events_listener();
    // Ends with the connection, or when nobody is left to hear.
    tokio::spawn(async move {
        while let Some(event) = events.next().await {
            let why = match event {
                Event::ConnectionBlocked(reason) => {
                    let why = format!("{place} takes nothing for now: {reason}");
                    Some(Failure::new(Kind::Busy, why))
                }
                Event::ConnectionUnblocked => None,
                _ => continue,
            };
            if sender.send(why).is_err() {
                return;
            }
        }
    });
    holding
}

impl RabbitMq {
    async fn channel(&self) -> Result<Channel, Failure> {
        let opened = self.connection.create_channel().await;
        opened.map_err(|error| self.says.failed("open a channel", &error))
    }

    /// Looks for a queue on a channel of its own, as a refusal ends the channel.
    async fn find_queue(&self, name: &str) -> Result<Option<Queue>, Failure> {
        let channel = self.channel().await?;
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let found = channel.queue_declare(short(name)?, options, FieldTable::default()).await;
        match found {
            Ok(queue) => Ok(Some(queue)),
            Err(error) if failure::is_not_found(&error) => Ok(None),
            Err(error) => Err(self.says.failed(&format!("look for queue {name}"), &error)),
        }
    }

    async fn has_exchange(&self, name: &str) -> Result<bool, Failure> {
        let channel = self.channel().await?;
        let options = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
        let found = channel
            .exchange_declare(short(name)?, ExchangeKind::Fanout, options, FieldTable::default())
            .await;
        match found {
            Ok(()) => Ok(true),
            Err(error) if failure::is_not_found(&error) => Ok(false),
            Err(error) => Err(self.says.failed(&format!("look for exchange {name}"), &error)),
        }
    }

    /// Makes a durable queue where there is none; one that is there is taken as it is, whoever made it
    /// and however.
    async fn make_queue(&self, name: &str) -> Result<(), Failure> {
        if self.find_queue(name).await?.is_some() {
            return Ok(());
        }
        let channel = self.channel().await?;
        let mut arguments = FieldTable::default();
        if let Some(queue_type) = &self.queue_type {
            let value = AMQPValue::LongString(queue_type.as_str().into());
            arguments.insert("x-queue-type".into(), value);
        }
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let made = channel.queue_declare(short(name)?, options, arguments).await;
        made.map(|_| ()).map_err(|error| self.says.failed(&format!("make queue {name}"), &error))
    }

    async fn bind(&self, queue: &str, exchange: &str) -> Result<(), Failure> {
        let channel = self.channel().await?;
        let bound = channel
            .queue_bind(
                short(queue)?,
                short(exchange)?,
                ShortString::default(),
                QueueBindOptions::default(),
                FieldTable::default(),
            )
            .await;
        bound.map_err(|error| {
            self.says.failed(&format!("bind queue {queue} to exchange {exchange}"), &error)
        })
    }

    /// Makes what a new group of a queue needs: the exchange, to which the queue is bound too.
    async fn make_group(&self, queue: &str, group_queue: &str) -> Result<(), Failure> {
        let channel = self.channel().await?;
        let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let kind = ExchangeKind::Fanout;
        let made = channel.exchange_declare(short(queue)?, kind, options, FieldTable::default());
        made.await.map_err(|error| self.says.failed(&format!("make exchange {queue}"), &error))?;
        if self.find_queue(queue).await?.is_some() {
            self.bind(queue, queue).await?;
        }
        self.make_queue(group_queue).await?;
        self.bind(group_queue, queue).await
    }

    /// The queue that a group reads, made where that is called for.
    async fn queue_of_group(&self, wish: &ConsumeWish) -> Result<String, Failure> {
        let queue = &wish.queue;
        self.says.place.only_newest(wish.from)?;
        if wish.group == DEFAULT_GROUP {
            if wish.from.is_some() {
                let why = "--from makes a group, and needs -g GROUP with RabbitMQ";
                return Err(Failure::unsupported(why));
            }
            if wish.peek {
                return self.found(queue).await;
            }
            self.make_queue(queue).await?;
            // With an exchange there, senders use it: the queue has to hear of it.
            if self.has_exchange(queue).await? {
                self.bind(queue, queue).await?;
            }
            return Ok(queue.clone());
        }
        let group_queue = format!("{queue}.{}", wish.group);
        if self.find_queue(&group_queue).await?.is_none() {
            if wish.from.is_none() || wish.peek {
                let why = format!(
                    "queue {queue} has no group {} at {} (there is no queue {group_queue})",
                    wish.group, self.says.place
                );
                return Err(Failure::new(Kind::Missing, why)
                    .with_remedy("make the group with --from newest"));
            }
            self.make_group(queue, &group_queue).await?;
        }
        Ok(group_queue)
    }

    async fn found(&self, queue: &str) -> Result<String, Failure> {
        match self.find_queue(queue).await? {
            Some(_) => Ok(queue.to_owned()),
            None => Err(self.missing(queue)),
        }
    }

    fn missing(&self, queue: &str) -> Failure {
        Failure::new(
            Kind::Missing,
            format!("{} has no queue {queue} in virtual host {}", self.says.place, self.says.vhost),
        )
    }
}

/// A name as AMQP has it.
fn short(name: &str) -> Result<ShortString, Failure> {
    ShortString::try_new(name).map_err(|_| {
        let why = format!("RabbitMQ has names and ids of at most 255 bytes, not {}", name.len());
        Failure::new(Kind::BadInput, why)
    })
}

impl Engine for RabbitMq {
    const ABILITIES: Abilities = Abilities {
        name: "RabbitMQ",
        schemes: &["amqp", "amqps"],
        confirmed: "the broker confirmed a persistent message on a durable queue",
        ordered: Ability::Yes,
        once: Ability::No(
            "RabbitMQ cannot tell a message that is sent again from another, so one that was in flight as a \
             connection was lost, or as a full queue refused one before it, may be stored twice",
        ),
        keys: Ability::Partly("kept in the header mq-key; they order nothing"),
        headers: Ability::Partly("in the order of their names"),
        ids: Ability::Partly("the message_id, at most 255 bytes; the broker compares none"),
        ttl: Ability::Yes,
        delay: Ability::No(
            "RabbitMQ has no delayed messages; send with --delay to a queue of mq itself, and forward \
             from there: mq-recv -J QUEUE --batch 1000 -- mq-send -J URL",
        ),
        producers: Ability::No(
            "RabbitMQ does not know a sender again, so --producer would promise nothing; use NATS, or a \
             queue of mq itself",
        ),
        groups: Ability::Partly("a queue for each group, from its making on"),
        from: Ability::Partly("newest, to make a group"),
        end: Ability::Yes,
        peek: Ability::Partly("what was looked at is marked as redelivered"),
        acks: Ability::Yes,
        delays_retries: false,
        purge: Ability::Yes,
        remove: Ability::Yes,
        figures: Ability::Partly("ready and receivers"),
    };
    type Publisher = RabbitPublisher;
    type Consumer = RabbitConsumer;

    async fn connect(address: &Address, patience: Duration) -> Result<RabbitMq, Failure> {
        let wanted = Wanted::of(address)?;
        let each = patience / u32::try_from(wanted.hosts.len()).unwrap_or(u32::MAX);
        let mut last = None;
        for host in &wanted.hosts {
            match wanted.open(host, each).await {
                Ok((connection, says)) => {
                    let queue_type = wanted.queue_type.clone();
                    let holding = listen(&connection, says.place.clone());
                    return Ok(RabbitMq { connection, holding, says, queue_type });
                }
                Err(failure) if failure.passes() => last = Some(failure),
                Err(failure) => return Err(failure),
            }
        }
        Err(last.expect("there is a host"))
    }

    async fn publisher(&self, wish: &PublishWish) -> Result<RabbitPublisher, Failure> {
        let by_exchange = self.has_exchange(&wish.queue).await?;
        if !by_exchange {
            self.make_queue(&wish.queue).await?;
        }
        let exchange = if by_exchange { wish.queue.as_str() } else { "" };
        let (exchange, key) = (short(exchange)?, short(&wish.queue)?);
        RabbitPublisher::new(self.channel().await?, self.says.clone(), exchange, key).await
    }

    fn holding(&self) -> Option<Holding> {
        Some(self.holding.clone())
    }

    async fn consumer(&self, wish: &ConsumeWish) -> Result<RabbitConsumer, Failure> {
        let queue = self.queue_of_group(wish).await?;
        RabbitConsumer::new(self.channel().await?, self.says.clone(), short(&queue)?, wish).await
    }

    async fn figures(&self, queue: &str) -> Result<Option<QueueFigures>, Failure> {
        Ok(self.find_queue(queue).await?.map(|queue| QueueFigures {
            ready: Some(queue.message_count().into()),
            receivers: Some(queue.consumer_count().into()),
            ..QueueFigures::default()
        }))
    }

    async fn purge(&self, queue: &str) -> Result<Option<u64>, Failure> {
        let purged =
            self.channel().await?.queue_purge(short(queue)?, QueuePurgeOptions::default()).await;
        match purged {
            Ok(count) => Ok(Some(count.into())),
            Err(error) if failure::is_not_found(&error) => Err(self.missing(queue)),
            Err(error) => Err(self.says.failed(&format!("purge queue {queue}"), &error)),
        }
    }

    async fn remove(&self, queue: &str) -> Result<(), Failure> {
        self.found(queue).await?;
        let options = QueueDeleteOptions::default();
        let removed = self.channel().await?.queue_delete(short(queue)?, options).await;
        removed
            .map(|_| ())
            .map_err(|error| self.says.failed(&format!("remove queue {queue}"), &error))
    }
}
