//! The figures of mq on this machine, in one run: beside `cat | cat` and `dd`, with the goals.
//!
//! ```text
//! cargo bench --bench pipe                                    everything, 10 million lines
//! cargo bench --bench pipe -- --lines 1000000 --only together,line
//! cargo bench --bench pipe -- --only before --before DIR      beside the tools in DIR
//! ```
//!
//! Runs the real tools, as a shell would, against a store of its own on the disk of the target
//! directory; never in-process, never on a store of the user. The server is stopped at the end,
//! also when a section panics. How to read the table: `benches/README.md`.

mod attributes;
mod before;
mod commands;
mod flatness;
mod footprint;
mod latency;
mod options;
mod pipes;
mod rig;
mod table;
mod throughput;
mod watching;

// One harness for tests and bench; the bench needs a part of it.
#[allow(dead_code)]
#[path = "../../tests/harness/mod.rs"]
mod harness;

#[allow(dead_code)]
#[path = "../../tests/tools/terminal.rs"]
mod terminal;

use options::{Options, Section};
use rig::Rig;
use table::Table;

fn main() {
    let options = match Options::from_args(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(text) => {
            eprintln!("pipe: {text}");
            std::process::exit(2);
        }
    };
    let mut table = Table::new();
    let mut rig = Rig::new(&options);
    rig.describe();
    for (section, run) in [
        (Section::Together, throughput::together as fn(&mut Rig, &mut Table)),
        (Section::Alone, throughput::alone),
        (Section::Line, latency::line_by_line),
        (Section::OneShot, latency::one_shot),
        (Section::Memory, footprint::memory_and_restart),
        (Section::Flat, flatness::cost_per_message),
        (Section::Before, before::beside_another_build),
        (Section::Commands, commands::one_each),
        (Section::Pipe, pipes::through_filters),
        (Section::Attributes, attributes::both_ways),
        (Section::Watching, watching::one_view),
    ] {
        if options.runs(section) {
            run(&mut rig, &mut table);
        }
    }
    table.summary();
}
