//! The figures of mq at engines: beside the best client that Rust has for each, in one run, on the same
//! server and with the same settings.
//!
//! ```text
//! cargo bench --features remote --bench remote
//! cargo bench --features remote --bench remote -- --lines 50000 --pairs 3 --only rabbitmq,nats
//! ```
//!
//! For each engine whose server is installed: a program within this process sends messages of 100 bytes
//! that it has in memory, as the client's documentation recommends for throughput, and receives them;
//! beside it, `mq-send URL < FILE` and `mq-recv -n N URL > FILE` as a shell would run them, with the start
//! of their processes. Everything is confirmed and acked. How to read the table: `benches/README.md`.

// One harness for tests and benches; each needs a part of it.
#[allow(dead_code)]
#[path = "../../tests/remote/certificates.rs"]
mod certificates;
#[allow(dead_code)]
#[path = "../../tests/harness/mod.rs"]
mod harness;
#[allow(dead_code)]
#[path = "../../tests/remote/servers.rs"]
mod servers;
#[allow(dead_code)]
#[path = "../pipe/table.rs"]
mod table;

mod beside;
mod options;

#[cfg(feature = "stomp")]
mod activemq;
#[cfg(feature = "kafka")]
mod kafka;
#[cfg(feature = "nats")]
mod nats;
#[cfg(feature = "amqp")]
mod rabbitmq;
#[cfg(feature = "zeromq")]
mod zeromq;

use options::Options;
use table::Table;

fn main() {
    let options = match Options::from_args(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(text) => {
            eprintln!("remote: {text}");
            std::process::exit(2);
        }
    };
    let rig = beside::Rig::new(&options);
    rig.describe();
    let mut table = Table::new();
    #[cfg(feature = "amqp")]
    rig.measure::<rabbitmq::Lapin>(&options, &mut table);
    #[cfg(feature = "nats")]
    rig.measure::<nats::AsyncNats>(&options, &mut table);
    #[cfg(feature = "stomp")]
    rig.measure::<activemq::Plain>(&options, &mut table);
    #[cfg(feature = "kafka")]
    rig.measure::<kafka::RdKafka>(&options, &mut table);
    #[cfg(feature = "zeromq")]
    rig.measure::<zeromq::ZeroMq>(&options, &mut table);
    table.summary();
}
