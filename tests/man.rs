//! The man pages say what the tools do: every flag of a tool's `--help` is on its page, every
//! page has its sections, mandoc has nothing to complain about, and the bytes shown in
//! mq-format(5) are those that the code writes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use mq::batch::Framing;
use mq::units::{Monotonic, Sequence};
use mq::wire::{ClientInfo, PublishHead, Request};

const TOOLS: &[(&str, &str)] = &[
    #[cfg(feature = "remote-core")]
    ("mq-remote", env!("CARGO_BIN_EXE_mq-remote")),
    ("mq-pipe", env!("CARGO_BIN_EXE_mq-pipe")),
    ("mq-serve", env!("CARGO_BIN_EXE_mq-serve")),
    ("mq-send", env!("CARGO_BIN_EXE_mq-send")),
    ("mq-recv", env!("CARGO_BIN_EXE_mq-recv")),
    ("mq-admin", env!("CARGO_BIN_EXE_mq-admin")),
    ("mq-stat", env!("CARGO_BIN_EXE_mq-stat")),
];

fn man(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("man").join(name)
}

fn page(name: &str) -> String {
    std::fs::read_to_string(man(name)).unwrap_or_else(|e| panic!("man/{name}: {e}"))
}

fn output(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().expect("the tool runs");
    assert!(output.status.success(), "{program} {args:?} ends with {}", output.status);
    String::from_utf8(output.stdout).expect("help is UTF-8")
}

/// The flags that a help text explains: those at the beginning of an indented line, as clap
/// writes them (`  -n, --count <N>  ...`).
fn flags_of_help(help: &str) -> BTreeSet<String> {
    let mut flags = BTreeSet::new();
    for line in help.lines().filter(|line| line.trim_start().starts_with('-')) {
        for word in line.split_whitespace() {
            let word = word.trim_end_matches([',', '.']);
            let Some(name) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else {
                // A value's placeholder may stand between two flags; text ends the list.
                if word.starts_with(['<', '[']) {
                    continue;
                }
                break;
            };
            let name: &str = name.split(['=', '[', '<']).next().unwrap_or(name);
            if !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
                flags.insert(name.to_owned());
            }
        }
    }
    flags
}

/// The flags that stand behind `Fl` in `.It` lines of a page.
fn flags_of_page(page: &str) -> BTreeSet<String> {
    let items = page.lines().filter(|line| line.starts_with(".It "));
    items
        .flat_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let flags: Vec<String> = words
                .windows(2)
                .filter(|pair| pair[0] == "Fl")
                .map(|pair| pair[1].trim_start_matches('-').to_owned())
                .collect();
            flags
        })
        .collect()
}

/// The verbs of a help text's list of commands.
fn verbs_of_help(help: &str) -> Vec<String> {
    help.lines()
        .skip_while(|line| !line.starts_with("Commands:"))
        .skip(1)
        .take_while(|line| line.starts_with("  "))
        .filter(|line| !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|verb| *verb != "help")
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_flag_of_a_tool_is_on_its_page_and_no_other() {
    for (tool, program) in TOOLS.iter().copied() {
        let page = page(&format!("{tool}.1"));
        let help = output(program, &["--help"]);
        let mut flags = flags_of_help(&help);
        for verb in verbs_of_help(&help) {
            let help = output(program, &[&verb, "--help"]);
            flags.extend(flags_of_help(&help));
            let below = verbs_of_help(&help);
            for part in &below {
                flags.extend(flags_of_help(&output(program, &[&verb, part, "--help"])));
            }
            let below = below.iter().map(|part| format!("{verb} {part}"));
            for verb in std::iter::once(verb.clone()).chain(below) {
                assert!(
                    page.lines().any(|line| line.starts_with(&format!(".It Cm {verb}"))),
                    "{tool}.1 has no item for the verb {verb}"
                );
            }
        }
        assert!(flags.contains("help"), "the help of {tool} is not read as it should be:\n{help}");
        let documented = flags_of_page(&page);
        let missing: Vec<_> = flags.difference(&documented).collect();
        assert!(missing.is_empty(), "{tool}.1 does not tell of {missing:?}");
        let invented: Vec<_> = documented.difference(&flags).collect();
        assert!(invented.is_empty(), "{tool}.1 tells of {invented:?}, which {tool} does not have");
    }
}

#[test]
fn short_help_fits_a_terminal() {
    // The verb with the most flags by far had 49 lines.
    let declare = TOOLS
        .iter()
        .find(|(tool, _)| *tool == "mq-admin")
        .map(|(tool, program)| (*tool, *program, &["declare", "-h"][..]));
    let tools = TOOLS.iter().map(|(tool, program)| (*tool, *program, &["-h"][..]));
    for (tool, program, args) in tools.chain(declare) {
        let help = output(program, args);
        let lines = help.lines().count();
        assert!(lines <= 24, "{tool} {args:?} has {lines} lines:\n{help}");
        for line in help.lines() {
            assert!(line.chars().count() <= 80, "{tool} -h has a line over 80 columns: {line}");
        }
    }
}

#[test]
fn every_page_has_its_sections() {
    for (tool, _) in TOOLS {
        let page = page(&format!("{tool}.1"));
        for section in [
            "NAME",
            "SYNOPSIS",
            "DESCRIPTION",
            "OPTIONS",
            "ENVIRONMENT",
            "FILES",
            "EXIT STATUS",
            "EXAMPLES",
            "SEE ALSO",
        ] {
            assert!(page.contains(&format!("\n.Sh {section}\n")), "{tool}.1 has no {section}");
        }
    }
    let overview = page("mq.7");
    for section in ["GUARANTEES", "SYNC POLICIES", "THE STORE", "EXIT STATUS", "ENVIRONMENT"] {
        assert!(overview.contains(&format!("\n.Sh {section}\n")), "mq.7 has no {section}");
    }
}

#[test]
fn mandoc_has_nothing_to_say() {
    let pages: Vec<PathBuf> = std::fs::read_dir(man(""))
        .expect("the pages are there")
        .map(|entry| entry.expect("readable").path())
        .collect();
    assert!(pages.len() >= 6, "pages are missing: {pages:?}");
    match Command::new("mandoc").args(["-T", "lint", "-W", "warning"]).args(&pages).output() {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stdout).into_owned()
                + &String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && said.is_empty(), "{said}");
        }
        Err(e) => {
            use std::io::Write;
            let _ = writeln!(std::io::stderr().lock(), "SKIPPED lint of man pages: mandoc: {e}");
        }
    }
}

/// What an engine can do stands on the page as the program prints it, when all engines are built in.
#[cfg(feature = "remote")]
#[test]
fn the_table_of_engines_is_that_of_the_program() {
    let page = page("mq-remote.1");
    let shown: String = page
        .lines()
        .skip_while(|line| !line.starts_with(".\\\" table:"))
        .skip(2)
        .take_while(|line| *line != ".Ed")
        .map(|line| format!("{}\n", line.trim_start_matches("\\&").replace("\\e", "\\")))
        .collect();
    let printed = output(env!("CARGO_BIN_EXE_mq-remote"), &["--table"]);
    assert_eq!(shown, printed, "put the output of mq-remote --table into man/mq-remote.1");
}

/// The bytes of the hex dump behind the comment `.\" hex NAME`.
fn shown_bytes(page: &str, name: &str) -> Vec<u8> {
    page.lines()
        .skip_while(|line| *line != format!(".\\\" hex {name}"))
        .skip(2)
        .take_while(|line| *line != ".Ed")
        .flat_map(|line| line[..48.min(line.len())].split_whitespace())
        .map(|byte| u8::from_str_radix(byte, 16).expect("two hexadecimal digits"))
        .collect()
}

#[test]
fn the_bytes_in_the_format_page_are_real() {
    let page = page("mq-format.5");
    let mut hello = Vec::new();
    let client =
        ClientInfo { tool: "demo".to_owned(), version: "1".to_owned(), ..ClientInfo::default() };
    Request::Hello { oldest: 3, newest: 3, client: Some(client) }.encode(0, &mut hello);
    assert_eq!(shown_bytes(&page, "HELLO"), hello);
    let mut publish = Vec::new();
    let head = PublishHead {
        sequence: Sequence(2),
        count: 2,
        framing: Framing::Delimited(b'\n'),
        batch_flags: 0,
        read: Monotonic(0),
        more: false,
    };
    Request::Publish(head, b"one\ntwo\n").encode(1, &mut publish);
    assert_eq!(shown_bytes(&page, "PUBLISH"), publish);
}

#[test]
fn the_limits_in_the_pages_are_real() {
    let page = page("mq-format.5");
    let grouped = |number: usize| {
        let digits = number.to_string();
        let mut out = String::new();
        for (at, digit) in digits.chars().enumerate() {
            if at > 0 && (digits.len() - at).is_multiple_of(3) {
                out.push(',');
            }
            out.push(digit);
        }
        out
    };
    for limit in [
        mq::limits::FRAME_BODY_BYTES_MAX,
        mq::limits::BATCH_PAYLOAD_BYTES_MAX,
        mq::limits::BATCH_MESSAGES_MAX as usize,
        mq::limits::RANGES_PER_FRAME_MAX,
    ] {
        assert!(page.contains(&grouped(limit)), "mq-format.5 does not tell the limit {limit}");
    }
}
