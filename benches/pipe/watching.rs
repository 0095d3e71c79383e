//! What it costs to be watched: the live view of mq-stat at a refresh a second, and the server
//! that it asks, with 1,000 queues, idle and with a message a second in each.

use std::time::{Duration, Instant};

use mq::batch::Framing;
use mq::units::{Monotonic, ProducerId, Sequence};
use mq::wire::{Kind, OpenSend, PublishHead, Request};

use crate::harness::peer::Peer;
use crate::rig::Rig;
use crate::table::{Goal, Table};
use crate::terminal::Terminal;

const QUEUES: usize = 1000;

/// Queues that one connection sends to.
const CHANNELS: usize = 50;

const ROUNDS: u32 = 10;
const ROUND: Duration = Duration::from_secs(1);

/// Of one core, in percent.
const VIEW_GOAL: f64 = 5.0;
/// See [`VIEW_GOAL`].
const SERVER_GOAL: f64 = 1.0;

/// The view and the server, beside the server alone.
pub fn one_view(rig: &mut Rig, table: &mut Table) {
    table.heading(&format!("one live view of {QUEUES} queues, a refresh a second, of one core"));
    rig.restart_server();
    let names: Vec<String> = (0..QUEUES).map(|number| format!("watched-{number:03}")).collect();
    names.iter().for_each(|name| rig.declare(name, "never"));
    let mut load = Load::new(rig, &names);
    for is_busy in [false, true] {
        let what = if is_busy { "a message a second in each" } else { "idle" };
        let (alone, _) = measure(rig, &mut load, is_busy, None);
        let command = {
            let mut command = rig.tool("mq-stat", &[]);
            command.env("TERM", "xterm-256color").env("LC_ALL", "C.UTF-8");
            command
        };
        let mut terminal = Terminal::start(&command, 200, 60);
        terminal.await_words("TREND");
        let (watched, view) = measure(rig, &mut load, is_busy, Some(&mut terminal));
        drop(terminal);
        let goal = Goal::Is(view <= VIEW_GOAL, format!("at most {VIEW_GOAL} %"));
        table.row(&format!("mq-stat, {what}"), &format!("{view:.2} %"), "", goal);
        let more = (watched - alone).max(0.0);
        let goal = Goal::Is(more <= SERVER_GOAL, format!("at most {SERVER_GOAL} %"));
        let relation = format!("{watched:.2} % rather than {alone:.2} %");
        table.row(&format!("mq-serve, {what}"), &format!("{more:.2} %"), &relation, goal);
    }
    drop(load);
    names.iter().for_each(|name| rig.remove(name));
}

/// The part of a core that the server and the view use over some seconds, in percent.
fn measure(
    rig: &Rig,
    load: &mut Load,
    is_busy: bool,
    mut terminal: Option<&mut Terminal>,
) -> (f64, f64) {
    let view = |terminal: &Option<&mut Terminal>| {
        terminal.as_ref().map_or(0, |terminal| Rig::cpu_nanos(terminal.pid()))
    };
    let (server_before, view_before) = (rig.server_cpu_nanos(), view(&terminal));
    let began = Instant::now();
    for round in 1..=ROUNDS {
        if is_busy {
            load.send();
        }
        let until = began + ROUND * round;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            match &mut terminal {
                // A terminal takes what is written to it.
                Some(terminal) => drop(terminal.pump(left)),
                None => std::thread::sleep(left),
            }
        }
    }
    let percent = |nanos: u64| nanos as f64 / began.elapsed().as_nanos() as f64 * 100.0;
    (percent(rig.server_cpu_nanos() - server_before), percent(view(&terminal) - view_before))
}

/// Senders to all queues.
struct Load {
    peers: Vec<(Peer, u16)>,
    sent: u64,
}

impl Load {
    fn new(rig: &Rig, names: &[String]) -> Load {
        let open = |names: &[String]| {
            let mut peer = rig.connect();
            for (channel, name) in (1..).zip(names) {
                let queue = name.parse().expect("a name");
                let producer = ProducerId(u64::from(channel));
                let request = Request::OpenSend(OpenSend::new(queue, producer));
                peer.say(channel, &request).expect("the server listens");
                peer.frame_of(Kind::Sending);
            }
            (peer, names.len() as u16)
        };
        Load { peers: names.chunks(CHANNELS).map(open).collect(), sent: 0 }
    }

    /// A message into each.
    fn send(&mut self) {
        self.sent += 1;
        let head = PublishHead {
            sequence: Sequence(self.sent),
            count: 1,
            framing: Framing::Delimited(b'\n'),
            batch_flags: 0,
            read: Monotonic(0),
            more: false,
        };
        for (peer, channels) in &mut self.peers {
            for channel in 1..=*channels {
                let publish = Request::Publish(head, b"a message\n");
                peer.say(channel, &publish).expect("the server listens");
            }
        }
        for (peer, channels) in &mut self.peers {
            (0..*channels).for_each(|_| drop(peer.frame_of(Kind::Confirm)));
        }
    }
}
