//! What every section stands on: the input file, the store, its server, pipelines of processes.
//!
//! The server runs in the foreground as a child, so that its number is known and it ends with
//! the bench. Called by all sections.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use mq::wire::{Admin, Kind, QueueInfo, Request};
use rustix::process::{Pid, Signal};

use crate::harness::peer::Peer;
use crate::harness::{Running, Store};
use crate::options::Options;

/// Bytes of a line, the newline included.
pub const LINE_BYTES: u64 = 100;

/// The bench's surroundings.
pub struct Rig {
    /// Lines in [`Rig::input`].
    pub lines: u64,
    /// How often a throughput is measured.
    pub pairs: usize,
    /// The input of the throughput sections.
    pub input: PathBuf,
    /// The tools of another build, to measure beside.
    pub before: Option<PathBuf>,
    store: Store,
    server: Option<Running>,
}

impl Rig {
    /// Makes the input, a store beside it, and starts the server.
    pub fn new(options: &Options) -> Rig {
        let store = Store::below(&options.dir);
        let input = store.beside("input");
        write_lines(&input, options.lines);
        let mut rig = Rig {
            lines: options.lines,
            pairs: options.pairs,
            input,
            before: options.before.clone(),
            store,
            server: None,
        };
        rig.start_server();
        rig
    }

    /// Says on what the figures were measured.
    pub fn describe(&self) {
        let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpu
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
            .map_or("unknown processor", |(_, model)| model.trim());
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        println!(
            "mq {} · {cores} × {model} · Linux {} · {} lines of {LINE_BYTES} bytes · {} pairs",
            env!("CARGO_PKG_VERSION"),
            kernel.trim(),
            self.lines,
            self.pairs
        );
    }

    /// A file of `lines` lines beside the store.
    pub fn file_of(&self, name: &str, lines: u64) -> PathBuf {
        let path = self.store.beside(name);
        write_lines(&path, lines);
        path
    }

    /// A path beside the store.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.store.beside(name)
    }

    /// A tool against the bench's store.
    pub fn tool(&self, name: &str, args: &[&str]) -> Command {
        self.store.command(name, args)
    }

    /// A tool with pipes on its descriptors.
    pub fn spawn(&self, name: &str, args: &[&str]) -> Running {
        self.store.spawn(name, args)
    }

    /// A bare connection.
    pub fn connect(&self) -> Peer {
        Peer::connect(&self.store).expect("the server answers")
    }

    /// Starts the server; returns after how many seconds it answered with the facts of `queue`
    /// (or, without one, with a welcome).
    pub fn start_server_for(&mut self, queue: Option<&str>) -> f64 {
        let start = Instant::now();
        let mut server = self.store.spawn("mq-serve", &[] as &[&str]);
        loop {
            if let Ok(mut peer) = Peer::connect(&self.store) {
                if let Some(queue) = queue {
                    ask(&mut peer, Admin::Show { queue: queue.parse().expect("a name") });
                }
                break;
            }
            assert!(!server.has_ended(), "mq-serve ended: {}", server.stderr());
            std::thread::sleep(std::time::Duration::from_micros(500));
        }
        self.server = Some(server);
        start.elapsed().as_secs_f64()
    }

    fn start_server(&mut self) {
        self.start_server_for(None);
    }

    /// Ends the server in an orderly way and starts a fresh one.
    pub fn restart_server(&mut self) {
        let server = self.server.take().expect("a server is running");
        server.signal(Signal::TERM);
        server.finish().ok();
        self.start_server();
    }

    /// Ends the server as a crash does.
    pub fn kill_server(&mut self) {
        let mut server = self.server.take().expect("a server is running");
        server.signal(Signal::KILL);
        server.await_end();
    }

    fn server(&self) -> &Running {
        self.server.as_ref().expect("a server is running")
    }

    /// The most memory that the server has held so far, in bytes (VmHWM).
    pub fn server_memory_peak(&self) -> u64 {
        let status = format!("/proc/{}/status", self.server().pid().as_raw_nonzero());
        let status = std::fs::read_to_string(status).expect("the server is running");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = peak.and_then(|text| text.trim().strip_suffix(" kB")).expect("VmHWM in kB");
        kib.trim().parse::<u64>().expect("a number") * 1024
    }

    /// The processor time that the server has used so far, all threads, in nanoseconds.
    pub fn server_cpu_nanos(&self) -> u64 {
        Rig::cpu_nanos(self.server().pid())
    }

    /// The same of any process.
    pub fn cpu_nanos(pid: Pid) -> u64 {
        let tasks = format!("/proc/{}/task", pid.as_raw_nonzero());
        let tasks = std::fs::read_dir(tasks).expect("the process is running");
        tasks
            .filter_map(|task| {
                let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
                text.split_whitespace().next()?.parse::<u64>().ok()
            })
            .sum()
    }

    /// Makes a queue with this sync policy.
    pub fn declare(&self, queue: &str, policy: &str) {
        let request = Admin::Declare {
            queue: queue.parse().expect("a queue name"),
            wanted: mq::settings::Wanted {
                sync: Some(policy.parse().expect("a sync policy")),
                ..Default::default()
            },
            change: false,
        };
        ask(&mut self.connect(), request);
    }

    /// Removes a queue with all that is in it.
    pub fn remove(&self, queue: &str) {
        ask(&mut self.connect(), Admin::Remove { queue: queue.parse().expect("a queue name") });
    }

    /// The facts of a queue, by way of `mq-admin show -J`.
    pub fn show(&self, queue: &str) -> QueueInfo {
        let info = self.store.show(queue).unwrap_or_else(|| panic!("there is no queue {queue}"));
        serde_json::from_value(info).expect("what mq-admin shows is a QueueInfo")
    }

    /// Panics unless everything in the queue has been taken and settled: a throughput of lines
    /// that are still under way would be no throughput.
    pub fn assert_settled(&self, queue: &str) {
        let info = self.show(queue);
        let settled = info.groups.iter().all(|g| g.oldest.is_none_or(|o| o == info.end));
        assert!(
            info.ready.0 == 0 && info.unacked.0 == 0 && settled,
            "{queue} is not empty and settled: {info:?}"
        );
    }

    /// What was written by earlier measurements must not be written back during the next one.
    pub fn settle_disk(&self) {
        rustix::fs::sync();
    }
}

/// An administrative request, until it is answered.
fn ask(peer: &mut Peer, request: Admin) {
    peer.say(1, &Request::Admin(request)).expect("the server listens");
    peer.frame_of(Kind::Reply);
}

fn write_lines(path: &Path, lines: u64) {
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path).expect("room for input"));
    let mut line = [b'.'; LINE_BYTES as usize];
    line[LINE_BYTES as usize - 1] = b'\n';
    for number in 1..=lines {
        write!(&mut line[..13], "{number:012} ").expect("fits");
        out.write_all(&line).expect("room for input");
    }
    out.into_inner().expect("room for input").sync_all().expect("room for input");
}

/// Processes joined by pipes, the last one's stdout going nowhere.
pub struct Pipeline(Vec<Child>);

impl Pipeline {
    /// Starts all of them.
    pub fn start(commands: impl IntoIterator<Item = Command>) -> Pipeline {
        let mut children: Vec<Child> = Vec::new();
        let mut commands = commands.into_iter().peekable();
        while let Some(mut command) = commands.next() {
            if let Some(stdout) = children.last_mut().and_then(|before| before.stdout.take()) {
                command.stdin(stdout);
            } else {
                command.stdin(Stdio::null());
            }
            let last = commands.peek().is_none();
            command.stdout(if last { Stdio::null() } else { Stdio::piped() });
            let child = command.spawn().unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"));
            children.push(child);
        }
        Pipeline(children)
    }

    /// Waits for all of them, each of which must succeed.
    pub fn wait(mut self) {
        for child in &mut self.0 {
            let status = child.wait().expect("own child");
            assert!(status.success(), "a process of the pipeline ended with {status}");
        }
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        for child in &mut self.0 {
            if matches!(child.try_wait(), Ok(None)) {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

/// `cat FILE`, or `cat` of its stdin.
pub fn cat(file: Option<&Path>) -> Command {
    let mut command = Command::new("cat");
    command.args(file);
    command
}

/// How many seconds `work` takes.
pub fn seconds(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}
