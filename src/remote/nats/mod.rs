//! NATS with JetStream (the async-nats crate).
//!
//! ```text
//! nats://host/subject            the stream that holds the subject; made when there is none
//! -g GROUP                       the durable pull consumer of that group and subject on that stream
//! ```
//!
//! A stream that a sender or a receiver without a group makes has the retention of a work queue: a
//! message is gone once it is acked, as with mq itself, and there can be one group only, `default`.
//! A stream that is made for a group (`-g G --from oldest`, before anything is sent) keeps what is
//! sent, for all groups that come, until the limits that somebody sets for it; interest retention,
//! which would throw away what is sent while there is no group, is to be asked for (`?retention=`). NATS
//! cannot turn a work queue into another kind.
//!
//! A message is named to the stream by sender and number, or by its own id (see `headers`), so that it is
//! stored once when it is sent again within the stream's window (two minutes, unless somebody set another).
//!
//! async-nats would reconnect by itself, and silently send again what it had in hand; here the first
//! word that a connection is lost ends everything that hangs on it.

mod consumer;
mod failure;
mod groups;
mod headers;
mod peek;
mod publisher;

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::stream::{Config as StreamConfig, RetentionPolicy, Stream};
use async_nats::jetstream::{self, Context};
use async_nats::{Client, ConnectOptions, Event};
use futures_util::{StreamExt as _, TryStreamExt as _};
use tokio::sync::watch;
use xxhash_rust::xxh3::xxh3_64;

use self::consumer::NatsConsumer;
use self::failure::{Says, Who};
use self::headers::Naming;
use self::peek::Peek;
use self::publisher::NatsPublisher;
use super::address::{Address, Secret};
use super::engine::{
    Abilities, Ability, ConsumeWish, Consumer, Engine, PublishWish, QueueFigures, Received,
    Settlement,
};
use super::failure::{Failure, Kind};
use super::place::{Place, look_up};
use super::tls::TlsFiles;
use crate::units::DEFAULT_GROUP;

/// How long a receiver has for a message before the server gives it to another. While one is held
/// here, the server is told so again and again; so it is the time after which what a receiver that
/// vanished had comes again.
const ACK_WAIT: Duration = Duration::from_secs(15);

/// How often the server is asked for a sign of life.
const PING: Duration = Duration::from_secs(10);

/// How long an answer of JetStream is waited for.
const ANSWER: Duration = Duration::from_secs(20);

/// What the client may have in hand for the server: it holds back beyond it.
const IN_HAND: usize = 4096;

/// How many messages of a subscription may wait here: more than are ever asked for or unconfirmed.
const WAITING: usize = 1 << 17;

/// Whether the connection is lost. It never comes back.
pub(super) type Lost = watch::Receiver<bool>;

/// A connection to NATS.
pub struct Nats {
    client: Client,
    jetstream: Context,
    says: Says,
    lost: Lost,
    wanted: Wanted,
}

/// What the URL says of streams.
#[derive(Clone, Debug)]
struct Wanted {
    stream: Option<String>,
    retention: Option<RetentionPolicy>,
    replicas: usize,
}

impl Wanted {
    fn take(address: &mut Address) -> Result<Wanted, Failure> {
        let retention = match address.take_option("retention").as_deref() {
            None => None,
            Some("limits") => Some(RetentionPolicy::Limits),
            Some("interest") => Some(RetentionPolicy::Interest),
            Some("workqueue") => Some(RetentionPolicy::WorkQueue),
            Some(other) => {
                let why =
                    format!("?retention= is limits, interest or workqueue with NATS, not {other}");
                return Err(Failure::unsupported(why));
            }
        };
        let replicas = match address.take_option("replicas") {
            None => 1,
            Some(text) => {
                text.parse().ok().filter(|count| (1..=5).contains(count)).ok_or_else(|| {
                    Failure::unsupported("?replicas= is a number from 1 to 5 with NATS")
                })?
            }
        };
        Ok(Wanted { stream: address.take_option("stream"), retention, replicas })
    }
}

/// The options of a connection. Whether it is lost is told through the channel.
fn options_of(
    address: &mut Address,
    place: &Place,
    lost: watch::Sender<bool>,
) -> Result<ConnectOptions, Failure> {
    let files = TlsFiles::take(address)?;
    let lost = Arc::new(lost);
    let mut options = ConnectOptions::new()
        .name("mq-remote")
        .ping_interval(PING)
        .request_timeout(Some(ANSWER))
        .client_capacity(IN_HAND)
        .subscription_capacity(WAITING)
        .max_reconnects(address.hosts.len())
        .event_callback(move |event| {
            let lost = Arc::clone(&lost);
            async move {
                if matches!(event, Event::Disconnected | Event::Closed) {
                    lost.send_replace(true);
                }
            }
        });
    let is_tls = matches!(&*address.scheme, "nats+tls" | "tls");
    options = options.require_tls(is_tls);
    // Whatever the scheme is, a server may ask for TLS; without files the client believes the system's.
    if is_tls || files.any() {
        options = options.tls_client_config(files.client_config(place)?);
    }
    Ok(options)
}

/// Who we are: a user with a password, whoever has a token, as one without a password is, or what a file of
/// credentials says.
async fn identify(
    address: &mut Address,
    place: &Place,
    options: ConnectOptions,
) -> Result<(ConnectOptions, Who), Failure> {
    let user = address.user.take();
    let password = address.password.take().filter(|password| !password.reveal().is_empty());
    let (creds, file) = (address.take_option("creds"), address.take_option("token-file"));
    if file.is_some() && (user.is_some() || creds.is_some()) {
        let why = "?token-file= is for an address without a user and without ?creds=";
        return Err(Failure::unsupported(why));
    }
    if let Some(file) = creds {
        let read = options.credentials_file(&file).await;
        let read =
            read.map_err(|error| place.other(&format!("read the credentials file {file}"), error));
        return Ok((read?, Who::Nobody));
    }
    let token = file.map(|file| Secret::of_file(&file, "token")).transpose()?;
    Ok(match (user, password, token) {
        (Some(user), Some(password), _) => {
            let options = options.user_and_password(user.clone(), password.reveal().to_owned());
            (options, Who::User(user))
        }
        (Some(token), None, _) => (options.token(token), Who::Token),
        (None, _, Some(token)) => (options.token(token.reveal().to_owned()), Who::Token),
        (None, _, None) => (options, Who::Nobody),
    })
}

/// The name of the stream that is made for a subject.
fn stream_name(subject: &str) -> String {
    subject.replace(['.', '*', '>', '/', '\\', ' ', '\t'], "_")
}

/// A queue here is one subject: a wildcard would be several, to be purged too.
fn check_name(subject: &str) -> Result<(), Failure> {
    let is_odd = |c: char| matches!(c, '*' | '>') || c.is_whitespace() || c.is_control();
    if subject.contains(is_odd) || subject.split('.').any(str::is_empty) {
        let why = format!(
            "NATS has no subject {subject:?}: a queue there is one without wildcards, blanks and empty parts"
        );
        return Err(Failure::unsupported(why));
    }
    Ok(())
}

impl Nats {
    /// The stream that holds a subject.
    async fn find_stream(&self, subject: &str) -> Result<Option<Stream>, Failure> {
        check_name(subject)?;
        let doing = format!("look for the stream of {subject}");
        let name = match &self.wanted.stream {
            Some(name) => name.clone(),
            None => {
                use async_nats::jetstream::context::GetStreamByNameErrorKind as Kind;
                match self.jetstream.stream_by_subject(subject).await {
                    Ok(name) => name,
                    Err(error) if matches!(error.kind(), Kind::NotFound) => return Ok(None),
                    Err(error) => return Err(self.says.failed(&doing, &error)),
                }
            }
        };
        match self.jetstream.get_stream(&name).await {
            Ok(stream) => Ok(Some(stream)),
            Err(error) if failure::is_missing(&error) => Ok(None),
            Err(error) => Err(self.says.failed(&doing, &error)),
        }
    }

    async fn stream(&self, subject: &str, retention: RetentionPolicy) -> Result<Stream, Failure> {
        if let Some(stream) = self.find_stream(subject).await? {
            return Ok(stream);
        }
        let name = self.wanted.stream.clone().unwrap_or_else(|| stream_name(subject));
        let config = StreamConfig {
            name,
            subjects: vec![subject.to_owned()],
            retention: self.wanted.retention.unwrap_or(retention),
            num_replicas: self.wanted.replicas,
            ..StreamConfig::default()
        };
        let doing = format!("make a stream for {subject}");
        let make = async |config: StreamConfig| {
            let made = self.jetstream.get_or_create_stream(config).await;
            made.map_err(|error| self.says.failed(&doing, &error))
        };
        let made = make(config.clone()).await?;
        if made.cached_info().config.subjects == config.subjects {
            return Ok(made);
        }
        // One of that name is there and is another's, as a.b and a_b would have the same.
        let name = format!("{}-{:08x}", config.name, xxh3_64(subject.as_bytes()) >> 32);
        make(StreamConfig { name, ..config }).await
    }

    async fn info(&self, stream: &Stream) -> Result<async_nats::jetstream::stream::Info, Failure> {
        let info = stream.get_info().await;
        info.map_err(|error| self.says.failed("ask about a stream", &error))
    }
}

/// Receives, or only looks.
pub enum Receiver {
    /// Takes messages, by a durable consumer.
    Taking(Box<NatsConsumer>),
    /// Reads the stream.
    Looking(Box<Peek>),
}

impl Consumer for Receiver {
    async fn receive(&mut self, limit: usize) -> Result<Received, Failure> {
        match self {
            Receiver::Taking(consumer) => consumer.receive(limit).await,
            Receiver::Looking(peek) => peek.receive(limit).await,
        }
    }

    async fn settle(
        &mut self,
        numbers: &[std::ops::Range<u64>],
        settlement: Settlement,
    ) -> Result<(), Failure> {
        match self {
            Receiver::Taking(consumer) => consumer.settle(numbers, settlement).await,
            Receiver::Looking(_) => Ok(()),
        }
    }

    async fn allow(&mut self, prefetch: u32) -> Result<(), Failure> {
        if let Receiver::Taking(consumer) = self {
            consumer.allow(prefetch);
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), Failure> {
        match self {
            Receiver::Taking(consumer) => consumer.flush().await,
            Receiver::Looking(_) => Ok(()),
        }
    }

    async fn finish(self) -> Result<(), Failure> {
        match self {
            Receiver::Taking(consumer) => consumer.finish().await,
            Receiver::Looking(_) => Ok(()),
        }
    }
}

impl Engine for Nats {
    const ABILITIES: Abilities = Abilities {
        name: "NATS",
        schemes: &["nats", "nats+tls", "tls"],
        confirmed: "JetStream acknowledged that the stream has stored it",
        ordered: Ability::Yes,
        once: Ability::Partly("within the stream's window for duplicates, two minutes as a rule"),
        keys: Ability::Partly("kept in the header mq-key; they order nothing"),
        headers: Ability::Partly("of names and values on one line; unordered"),
        ids: Ability::Partly(
            "an id is stored once in its queue within the stream's window for duplicates, but for \
             dead letters and what was one",
        ),
        ttl: Ability::No(
            "NATS keeps messages by the stream's limits, so --ttl would promise nothing; set the \
             stream's max-age instead",
        ),
        delay: Ability::No(
            "NATS has no delayed messages; send with --delay to a queue of mq itself, and forward \
             from there: mq-recv -J QUEUE --batch 1000 -- mq-send -J URL",
        ),
        producers: Ability::Partly(
            "the same message at the same place of the input is stored once within the window for \
             duplicates; another input is not refused, but stored",
        ),
        groups: Ability::Partly("durable consumers; on a work queue only one"),
        from: Ability::Yes,
        end: Ability::Yes,
        peek: Ability::Yes,
        acks: Ability::Yes,
        delays_retries: true,
        purge: Ability::Yes,
        remove: Ability::Partly("a stream that has this subject alone"),
        figures: Ability::Yes,
    };
    type Publisher = NatsPublisher;
    type Consumer = Receiver;

    async fn connect(address: &Address, patience: Duration) -> Result<Nats, Failure> {
        let hosts = address.hosts_with(4222);
        let place = Place::new(Self::ABILITIES.name, hosts.clone());
        let mut address = address.clone();
        if address.hosts.is_empty() || address.path.len() != 1 {
            return Err(Failure::unsupported(
                "an address of NATS is nats://HOST[,HOST...]/SUBJECT",
            ));
        }
        let (sender, lost) = watch::channel(false);
        let wanted = Wanted::take(&mut address)?;
        let options = options_of(&mut address, &place, sender)?;
        let (options, who) = identify(&mut address, &place, options).await?;
        place.refuse_other_options(
            &address,
            &["ca", "cert", "creds", "key", "replicas", "retention", "stream", "token-file"],
        )?;
        let says = Says { place, who };
        let mut unknown = None;
        let mut known = Vec::new();
        for host in &address.hosts {
            match look_up(&says.place, host, 4222, patience).await {
                Ok(_) => known.push(host.clone()),
                Err(failure) => unknown = Some(failure),
            }
        }
        if known.is_empty() {
            return Err(unknown.expect("no host is known"));
        }
        address.hosts = known;
        let servers: Vec<String> =
            address.hosts_with(4222).split(',').map(|at| format!("nats://{at}")).collect();
        let options = options.connection_timeout(patience);
        let client = match tokio::time::timeout(patience, options.connect(servers)).await {
            Err(_) => return Err(says.place.silent("connecting", patience)),
            Ok(Err(error)) => return Err(says.connecting(&error)),
            Ok(Ok(client)) => client,
        };
        let jetstream = jetstream::new(client.clone());
        let answer = client.request("$JS.API.INFO", Default::default()).await;
        let answer = answer.map_err(|error| says.failed("ask for JetStream", &error))?;
        failure::answered(&says, "ask for JetStream", &answer)?;
        Ok(Nats { client, jetstream, says, lost, wanted })
    }

    async fn publisher(&self, wish: &PublishWish) -> Result<NatsPublisher, Failure> {
        let stream = self.stream(&wish.queue, RetentionPolicy::WorkQueue).await?;
        let naming = Naming {
            sender: wish.sender,
            is_named: wish.named,
            subject: wish.queue.clone(),
            is_alone: groups::is_alone(&stream.cached_info().config, &wish.queue),
        };
        NatsPublisher::new(self.client.clone(), self.says.clone(), self.lost.clone(), naming).await
    }

    async fn consumer(&self, wish: &ConsumeWish) -> Result<Receiver, Failure> {
        if wish.peek {
            let stream = self.find_stream(&wish.queue).await?;
            let stream = stream.ok_or_else(|| self.missing(&wish.queue))?;
            let info = self.info(&stream).await?;
            let peek = Peek::new(stream, &info.state, self.says.clone(), wish.queue.clone());
            return Ok(Receiver::Looking(Box::new(peek)));
        }
        let retention = match wish.group.as_str() {
            DEFAULT_GROUP => RetentionPolicy::WorkQueue,
            _ => RetentionPolicy::Limits,
        };
        let may_make = wish.group == DEFAULT_GROUP || wish.from.is_some();
        let stream = match self.find_stream(&wish.queue).await? {
            Some(stream) => stream,
            None if may_make => self.stream(&wish.queue, retention).await?,
            None => return Err(self.missing(&wish.queue)),
        };
        let group = self.group(wish, &stream).await?;
        let last = self.info(&stream).await?.state.last_sequence;
        let taking = NatsConsumer::new(
            self.client.clone(),
            group,
            self.says.clone(),
            self.lost.clone(),
            wish,
            last,
        );
        Ok(Receiver::Taking(Box::new(taking.await?)))
    }

    async fn figures(&self, queue: &str) -> Result<Option<QueueFigures>, Failure> {
        let Some(stream) = self.find_stream(queue).await? else { return Ok(None) };
        let doing = "ask about a stream";
        let told = stream.info_with_subjects(queue).await;
        let mut told = told.map_err(|error| self.says.failed(doing, &error))?;
        let info = told.info.clone();
        let mut messages = 0;
        while let Some((_, count)) =
            told.try_next().await.map_err(|error| self.says.failed(doing, &error))?
        {
            messages += count as u64;
        }
        let is_alone = groups::is_alone(&info.config, queue);
        let mut figures = QueueFigures {
            bytes: Some(info.state.bytes).filter(|_| is_alone),
            end: Some(info.state.last_sequence),
            unacked: Some(0),
            ..QueueFigures::default()
        };
        let mut all = stream.consumers();
        while let Some(group) = all.next().await {
            let group =
                group.map_err(|error| self.says.failed("list the groups of a stream", &error))?;
            if !groups::takes(&group.config, &info.config, queue) {
                continue;
            }
            let ready = group.num_pending + group.num_redelivered as u64;
            let name = groups::group_of(&group, queue);
            if name == DEFAULT_GROUP {
                figures.ready = Some(ready);
            }
            figures.unacked = figures.unacked.map(|all| all + group.num_ack_pending as u64);
            figures.groups.push((name, Some(ready)));
        }
        // Of those who do not name a group, all is still to come.
        figures.ready = figures.ready.or(Some(messages));
        Ok(Some(figures))
    }

    async fn purge(&self, queue: &str) -> Result<Option<u64>, Failure> {
        let stream = self.find_stream(queue).await?.ok_or_else(|| self.missing(queue))?;
        let purged = stream.purge().filter(queue).await;
        let purged = purged.map_err(|error| self.says.failed(&format!("purge {queue}"), &error))?;
        Ok(Some(purged.purged))
    }

    async fn remove(&self, queue: &str) -> Result<(), Failure> {
        let stream = self.find_stream(queue).await?.ok_or_else(|| self.missing(queue))?;
        let config = &stream.cached_info().config;
        if config.subjects != [queue] {
            let why = format!(
                "stream {} at {} holds {}, not {queue} alone",
                config.name,
                self.says.place,
                config.subjects.join(", ")
            );
            return Err(Failure::unsupported(why)
                .with_remedy("purge the queue, or remove the stream with nats(1)"));
        }
        let removed = self.jetstream.delete_stream(&config.name).await;
        removed.map(|_| ()).map_err(|error| self.says.failed(&format!("remove {queue}"), &error))
    }
}

impl Nats {
    fn missing(&self, queue: &str) -> Failure {
        Failure::new(Kind::Missing, format!("{} has no stream that holds {queue}", self.says.place))
            .with_remedy("a stream is made by the first mq-send to it, or by nats(1)")
    }
}
