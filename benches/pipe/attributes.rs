//! Messages with attributes: envelopes in and out at once (`-J` both ways), and from queue to
//! queue.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;

use crate::rig::{Pipeline, Rig, cat, seconds};
use crate::table::{Goal, Table, median, rate};

/// Envelopes a second, from one end to the other.
const GOAL: f64 = 500_000.0;

/// An envelope is about twice as long as a line of the other sections, and some of its cost is
/// that of starting processes.
const SHARE_OF_LINES: u64 = 5;

/// `cat FILE | mq-send -J q` while `mq-recv -J -n N q | cat`, then `mq-recv -J -e q | mq-send -J
/// r`.
pub fn both_ways(rig: &mut Rig, table: &mut Table) {
    let messages = (rig.lines / SHARE_OF_LINES).max(1000);
    let input = envelopes(rig, messages);
    let count = messages.to_string();
    table.heading("messages with key, headers and times, -J both ways");
    for policy in ["never", "always"] {
        rig.declare("attributes", policy);
        rig.declare("onwards", policy);
        let (mut through, mut hops) = (Vec::new(), Vec::new());
        for _ in 0..rig.pairs {
            rig.settle_disk();
            through.push(seconds(|| {
                let receive = ["-J", "-n", &count, "attributes"];
                let receive = Pipeline::start([rig.tool("mq-recv", &receive), cat(None)]);
                let send = rig.tool("mq-send", &["-J", "attributes"]);
                Pipeline::start([cat(Some(&input)), send]).wait();
                receive.wait();
            }));
            rig.assert_settled("attributes");
            let fill = rig.tool("mq-send", &["-J", "attributes"]);
            Pipeline::start([cat(Some(&input)), fill]).wait();
            rig.settle_disk();
            hops.push(seconds(|| {
                let receive = rig.tool("mq-recv", &["-J", "-e", "attributes"]);
                Pipeline::start([receive, rig.tool("mq-send", &["-J", "onwards"])]).wait();
            }));
            rig.assert_settled("attributes");
        }
        for (what, samples) in [("in and out at once", through), ("from queue to queue", hops)] {
            let taken = median(&mut samples.clone());
            let goal =
                Goal::Is(messages as f64 / taken >= GOAL, "at least 500,000 a second".to_owned());
            table.row(&format!("{what}, {policy}"), &rate(messages, taken), "", goal);
        }
        rig.remove("attributes");
        rig.remove("onwards");
    }
    std::fs::remove_file(input).expect("it was just made");
}

/// A file of envelopes as an application writes them: a log line, a key, two headers, a time.
fn envelopes(rig: &Rig, messages: u64) -> PathBuf {
    let path = rig.beside("envelopes");
    let mut out = BufWriter::with_capacity(1 << 20, File::create(&path).expect("room for input"));
    for number in 0..messages {
        let (second, micros) = (number / 1000 % 60, number % 1000 * 1000);
        writeln!(
            out,
            "{{\"event_time\":\"2026-01-31T12:00:{second:02}.{micros:06}Z\",\
             \"key\":\"customer-{:05}\",\
             \"headers\":{{\"host\":\"web-1\",\"trace\":\"{number:032x}\"}},\
             \"data\":\"GET /orders/{number} HTTP/1.1 200 \\\"Mozilla/5.0 (X11; Linux)\\\"\"}}",
            number % 50_000,
        )
        .expect("room for input");
    }
    out.into_inner().expect("room for input").sync_all().expect("room for input");
    path
}
