//! TLS, with the real tools: a certificate that convinces, and such as do not.

use std::path::Path;
use std::process::Command;

use super::certificates::{Certificates, Pair};
use super::harness::{Done, Store, process};
use super::servers::{Guarded, Secured, free_port, skipped};

/// A tool with its arguments; `ca`: believed by way of the environment, as any program of the system does.
fn run(store: &Store, tool: &str, args: &[&str], ca: Option<&Path>) -> Done {
    let mut command = store.command(tool, args);
    command.env_remove("SSL_CERT_DIR").env_remove("SSL_CERT_FILE");
    if let Some(ca) = ca {
        command.env("SSL_CERT_FILE", ca);
    }
    process::run(command, b"")
}

/// A message goes there and comes back, whichever way the authority is named.
fn goes_there_and_back(url: &str, ca: &Path) {
    let store = Store::new();
    let with_ca = format!("{url}?ca={}", ca.display());
    run(&store, "mq-send", &["-m", "by the environment", url], Some(ca)).ok().quietly();
    run(&store, "mq-send", &["-m", "by the URL", &with_ca], None).ok().quietly();
    let got = run(&store, "mq-recv", &["-n2", "-w", "60s", &with_ca], None).ok();
    assert_eq!(got.text(), "by the environment\nby the URL\n");
}

/// Refused, at once and for this reason.
fn is_refused(url: &str, ca: Option<&Path>, why: &str, remedy: &str) {
    let done = run(&Store::new(), "mq-send", &["-m", "x", url], ca).exits(1).says(why).says(remedy);
    assert!(!done.stderr.contains("trying again"), "{}", done.stderr);
}

/// What each fault of a certificate says, where `server` starts a server with one.
fn each_fault_is_named<S>(server: impl Fn(&Pair) -> (S, String)) {
    let dir = tempfile::tempdir().expect("a directory");
    let made = match Certificates::new(dir.path()) {
        Ok(made) => made,
        Err(why) => return skipped(&why),
    };
    let (_good, url) = server(&made.good);
    is_refused(&url, None, "signed by nobody whom this machine believes", "?ca=FILE");
    is_refused(
        &url.replace("localhost", "127.0.0.1"),
        Some(&made.ca),
        "not for 127.0.0.1, but for localhost",
        "host in the URL",
    );
    let (_elsewhere, url) = server(&made.elsewhere);
    is_refused(
        &url,
        Some(&made.ca),
        "not for localhost, but for elsewhere.example",
        "host in the URL",
    );
    let (_expired, url) = server(&made.expired);
    is_refused(&url, Some(&made.ca), "its certificate has expired", "renewed");
}

/// Something that does TLS and then says nothing: no client gets as far with a certificate that it refuses.
fn mute_server(pair: &Pair) -> (Guarded, u16) {
    let port = free_port();
    let mut command = Command::new("openssl");
    // Its pages of itself are not asked for: it is only not to read its input, which has ended.
    command.args(["s_server", "-www", "-accept", &format!("127.0.0.1:{port}")]);
    command.arg("-cert").arg(&pair.cert).arg("-key").arg(&pair.key);
    let mut server = Guarded::start(command, Path::new("/dev/null"));
    server.await_port(port).expect("openssl listens");
    (server, port)
}

#[cfg(feature = "amqp")]
mod rabbitmq {
    use super::*;

    #[test]
    fn a_certificate_of_rabbitmq_convinces() {
        let Some(Secured { port, ca }) = crate::rabbitmq::secured() else { return };
        goes_there_and_back(&format!("amqps://localhost:{port}/%2f/tls"), &ca);
    }

    #[test]
    fn each_fault_of_a_certificate_is_named_of_rabbitmq() {
        each_fault_is_named(|pair| {
            let (server, port) = mute_server(pair);
            (server, format!("amqps://localhost:{port}/%2f/q"))
        });
    }
}

#[cfg(feature = "stomp")]
mod activemq {
    use super::*;

    #[test]
    fn a_certificate_of_activemq_convinces() {
        let Some(Secured { port, ca }) = crate::stomp::secured() else { return };
        goes_there_and_back(&format!("stomp+ssl://localhost:{port}/tls"), &ca);
    }

    #[test]
    fn each_fault_of_a_certificate_is_named_of_activemq() {
        each_fault_is_named(|pair| {
            let (server, port) = mute_server(pair);
            (server, format!("stomp+ssl://localhost:{port}/q"))
        });
    }
}

#[cfg(feature = "nats")]
mod nats {
    use super::*;
    use crate::servers::{Server, nats_with};

    fn server(pair: &Pair) -> Option<Server> {
        let (cert, key) = (pair.cert.display(), pair.key.display());
        let tls = format!("tls {{ cert_file: \"{cert}\", key_file: \"{key}\" }}");
        nats_with(&tls).inspect_err(|why| skipped(why)).ok()
    }

    #[test]
    fn a_certificate_of_nats_convinces() {
        let dir = tempfile::tempdir().expect("a directory");
        let made = match Certificates::new(dir.path()) {
            Ok(made) => made,
            Err(why) => return skipped(&why),
        };
        let Some(server) = server(&made.good) else { return };
        goes_there_and_back(&format!("nats+tls://localhost:{}/tls", server.port), &made.ca);
        // The server asks for it whatever the URL says.
        goes_there_and_back(&format!("nats://localhost:{}/tls", server.port), &made.ca);
    }

    #[test]
    fn each_fault_of_a_certificate_is_named_of_nats() {
        if crate::servers::program("nats-server").is_none() {
            return skipped("nats-server is not installed");
        }
        each_fault_is_named(|pair| {
            let server = server(pair).expect("it is installed");
            let url = format!("nats+tls://localhost:{}/q", server.port);
            (server, url)
        });
    }
}
