//! The engines that are built in: which serves a URL, and the table of what each can do, which stands in
//! mq-remote(1) as it is printed here.

use std::fmt::Write as _;

use tokio::net::UnixStream;

use super::engine::{Abilities, Ability};
use super::failure::Failure;
use super::session::{self, Opening};
use crate::url::Url;

macro_rules! engines {
    ($($(#[$when:meta])* $engine:ty,)*) => {
        /// What the engines that are built in can do.
        #[must_use]
        pub fn abilities() -> Vec<Abilities> {
            let all: &[Abilities] = &[$($(#[$when])* <$engine as $crate::remote::engine::Engine>::ABILITIES,)*];
            all.to_vec()
        }

        /// Serves a client of the queue that `opening` names, until it hangs up.
        ///
        /// # Errors
        /// See [`session::serve`].
        pub async fn serve(stream: UnixStream, opening: Opening) -> Result<(), String> {
            let scheme = scheme_of(&opening.url);
            $($(#[$when])* if <$engine as $crate::remote::engine::Engine>::ABILITIES.schemes.contains(&scheme.as_str()) {
                return session::serve::<$engine>(stream, opening).await;
            })*
            session::refuse(stream, &unknown(&scheme)).await
        }
    };
}

// The order is that of the table.
engines! {
    #[cfg(feature = "amqp")]
    super::rabbitmq::RabbitMq,
    #[cfg(feature = "kafka")]
    super::kafka::Kafka,
    #[cfg(feature = "nats")]
    super::nats::Nats,
    #[cfg(feature = "stomp")]
    super::stomp::Stomp,
    #[cfg(feature = "zeromq")]
    super::zeromq::ZeroMq,
}

/// The schemes of all engines there are, with the features that bring them.
const FEATURES: [(&str, &str); 10] = [
    ("amqp", "amqp"),
    ("amqps", "amqp"),
    ("kafka", "kafka"),
    ("nats", "nats"),
    ("nats+tls", "nats"),
    ("tls", "nats"),
    ("stomp", "stomp"),
    ("stomp+ssl", "stomp"),
    ("zmq+tcp", "zeromq"),
    ("zmq+ipc", "zeromq"),
];

fn scheme_of(url: &Url) -> String {
    url.reveal().split("://").next().unwrap_or_default().to_ascii_lowercase()
}

/// No engine that is built in has this scheme.
fn unknown(scheme: &str) -> Failure {
    if let Some((_, feature)) = FEATURES.iter().find(|(known, _)| *known == scheme) {
        let message = format!("this mq-remote was built without the engine for {scheme}://");
        return Failure::unsupported(message).with_remedy(format!(
            "cargo install mq --features {feature}, or --features remote for all"
        ));
    }
    let all = abilities();
    let schemes = all.iter().flat_map(|engine| engine.schemes);
    let known: Vec<String> = schemes.map(|scheme| format!("{scheme}://")).collect();
    Failure::unsupported(format!("no engine has addresses that begin with {scheme}://"))
        .with_remedy(format!("one of {}", known.join(", ")))
}

/// What each engine can do, in lines of at most 80 columns.
#[must_use]
pub fn table() -> String {
    let all = abilities();
    if all.is_empty() {
        return "no engine is built in\n".to_owned();
    }
    all.iter().map(about).collect::<Vec<_>>().join("\n")
}

fn about(engine: &Abilities) -> String {
    let mut text = String::new();
    let schemes: Vec<String> = engine.schemes.iter().map(|scheme| format!("{scheme}://")).collect();
    writeln!(text, "{} ({})", engine.name, schemes.join(", ")).expect("a string takes all");
    push(&mut text, "confirmed", engine.confirmed);
    let rows = [
        ("order", engine.ordered),
        ("stored once", engine.once),
        ("acks", engine.acks),
        ("-k", engine.keys),
        ("-H", engine.headers),
        ("--id", engine.ids),
        ("--ttl", engine.ttl),
        ("--delay", engine.delay),
        ("--producer", engine.producers),
        ("-g", engine.groups),
        ("--from", engine.from),
        ("-e", engine.end),
        ("--peek", engine.peek),
        ("show, mq-stat", engine.figures),
        ("purge", engine.purge),
        ("rm", engine.remove),
    ];
    for (name, ability) in rows {
        match ability {
            Ability::Yes => push(&mut text, name, "yes"),
            Ability::Partly(how) => push(&mut text, name, how),
            Ability::No(why) => push(&mut text, name, &format!("no: {why}")),
        }
    }
    let retries = match engine.delays_retries {
        true => "made by the engine",
        false => "made by mq-remote, which keeps what failed",
    };
    push(&mut text, "back-off", retries);
    text
}

/// A name, and what is said of it, broken into lines.
fn push(text: &mut String, name: &str, said: &str) {
    const FROM: usize = 18;
    const TO: usize = 78;
    let mut line = format!("  {name:<width$}", width = FROM - 2);
    for word in said.split_whitespace() {
        let is_first = line.trim_end().len() < FROM && line.len() == FROM;
        if !is_first && line.chars().count() + 1 + word.chars().count() > TO {
            writeln!(text, "{}", line.trim_end()).expect("a string takes all");
            line = " ".repeat(FROM);
        } else if !is_first {
            line.push(' ');
        }
        line.push_str(word);
    }
    writeln!(text, "{}", line.trim_end()).expect("a string takes all");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::failure::Kind;

    #[test]
    fn what_is_said_of_an_engine_is_broken_into_lines() {
        let mut text = String::new();
        push(&mut text, "-k", &"word ".repeat(30));
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines.len() == 3 && lines.iter().all(|line| line.len() <= 78), "{text}");
        assert!(lines[0].starts_with("  -k              word word"), "{text}");
        assert!(lines[1].starts_with("                  word word"), "{text}");
    }

    #[test]
    fn a_scheme_that_nobody_has_is_refused_in_words() {
        let failure = unknown("gopher");
        assert_eq!(failure.kind, Kind::Unsupported);
        assert!(failure.message.contains("gopher://"), "{failure}");
    }

    #[test]
    fn every_scheme_has_its_feature() {
        for engine in abilities() {
            for scheme in engine.schemes {
                assert!(FEATURES.iter().any(|(known, _)| known == scheme), "{scheme}");
            }
        }
    }
}
