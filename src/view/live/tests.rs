//! Frames of a fixed model, beside those in `frames/`; and what keys do to them.
//!
//! `MQ_FRAMES=write cargo test --lib frames` writes the files anew, to be looked at.

use super::*;
use crate::settings::Settings;
use crate::units::{Bytes, Count, Offset, QueueId};
use crate::wire::stat::{
    Account, ClientFigures, Counted, GroupFigures, Histogram, Latencies, Role, Slice,
};
use crate::wire::{PipeFigures, PipeInfo};

const SECOND: u64 = 1_000_000;
const START: u64 = 1_800_000_000 * SECOND;

fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

fn histogram(buckets: &[(u64, u64)]) -> Option<Histogram> {
    let buckets: Vec<(Micros, u64)> = buckets.iter().map(|(b, n)| (Micros(*b), *n)).collect();
    Some(Histogram {
        count: buckets.iter().map(|(_, n)| n).sum(),
        sum: Micros(buckets.iter().map(|(b, n)| b.0 * n).sum()),
        max: buckets.last().map_or(Micros(0), |(b, _)| *b),
        buckets,
    })
}

/// A queue `second` seconds after the start: so many messages a second in and out, and so many
/// ready at first.
fn flowing(queue: &str, second: u64, stored: u64, delivered: u64, ready: u64) -> QueueFigures {
    let left = (ready + stored * second).saturating_sub(delivered * second);
    QueueFigures {
        queue: name(queue),
        id: QueueId::from_bytes([queue.len() as u8; 16]),
        created: WallTime(START - 86_400 * SECOND),
        ready: Count(left),
        present: Count(left),
        present_bytes: Bytes(left * 100),
        unacked: Count(delivered / 10),
        senders: u64::from(stored > 0),
        receivers: u64::from(delivered > 0),
        oldest: (left > 0).then_some(WallTime(START + second * SECOND - 3 * SECOND)),
        oldest_group: (left > 0).then(Name::default),
        counted: Counted {
            announced: Count(ready + stored * second + stored / 1000),
            stored: Count(ready + stored * second),
            stored_bytes: Bytes((ready + stored * second) * 100),
            delivered: Count(delivered * second),
            delivered_bytes: Bytes(delivered * second * 100),
            acked: Count(delivered * second),
            ..Counted::default()
        },
        latency: Latencies {
            produce: histogram(&[(191, delivered * second), (271, second)]),
            queue: histogram(&[(543, delivered * second), (12_287, second)]),
            consume: histogram(&[(1_087, delivered * second), (45_055, second)]),
            whole: histogram(&[(1_855, delivered * second), (57_343, second)]),
        },
        ..QueueFigures::default()
    }
}

/// All queues, so many seconds after the start.
fn queues(second: u64) -> Vec<QueueFigures> {
    let mut growing = flowing("jobs", second, 12_000, 9_000, 40_000);
    growing.counted.retried = Count(second * 3);
    growing.counted.dead = Count(second / 5);
    let mut ageing = flowing("photos", 0, 0, 0, 812);
    ageing.oldest = Some(WallTime(START - 7_200 * SECOND));
    let stuck = QueueFigures {
        trouble: Some("segment 7 is damaged at 4096\x1b[2J: bad checksum".to_owned()),
        ..flowing("billing", 0, 0, 0, 5)
    };
    let mut sorted = vec![
        stuck,
        flowing("audit", second, 150, 150, 0),
        flowing("idle", 0, 0, 0, 0),
        growing,
        flowing("mail", second, 200, 900, 60_000),
        ageing,
        flowing("web.access-log.frankfurt-1", second, 48_000, 48_000, 120),
    ];
    sorted.sort_by(|a, b| a.queue.cmp(&b.queue));
    sorted
}

fn heard(second: u64, queues: Vec<QueueFigures>) -> Heard {
    Heard {
        server: ServerFigures {
            instance: 1,
            pid: 4711,
            version: "0.1.0".to_owned(),
            started: WallTime(START - 3 * 3_600 * SECOND),
            now: WallTime(START + second * SECOND),
            tick: second,
            ..ServerFigures::default()
        },
        queues,
        is_whole: true,
        is_early: false,
        detail: None,
    }
}

fn screen(glyphs: Glyphs) -> Screen {
    Screen::new(Setting {
        store: "/home/ada/.local/state/mq".to_owned(),
        step: Micros(SECOND),
        glyphs,
        sort: Column::default(),
        user: |uid| format!("user{uid}"),
    })
}

/// One that has watched for 25 seconds.
fn watched(glyphs: Glyphs) -> Screen {
    let mut screen = screen(glyphs);
    let mut first = queues(0);
    for figures in first.iter_mut().filter(|figures| figures.queue.as_str() == "mail") {
        figures.seconds = (1..30)
            .map(|back| Slice {
                at: WallTime(START - (30 - back) * SECOND),
                stored: Count(100 * back),
                stored_bytes: Bytes(10_000 * back),
                ready: Count(30_000 + 1_000 * back),
                ..Slice::default()
            })
            .collect();
    }
    screen.hear(heard(0, first));
    for second in 1..=25 {
        screen.hear(heard(second, queues(second)));
    }
    screen
}

/// The page of `jobs`.
fn page(glyphs: Glyphs) -> Screen {
    let mut screen = watched(glyphs);
    while screen.open().map(Name::as_str) != Some("jobs") {
        let key = if screen.open().is_none() { Key::Enter } else { Key::Right };
        screen.press(key);
    }
    let client = ClientFigures {
        role: Role::Sender,
        pid: 812,
        uid: Some(1000),
        tool: "mq-send".to_owned(),
        since: WallTime(START - 60 * SECOND),
        ..ClientFigures::default()
    };
    for second in 26..=27 {
        let all = queues(second);
        let mut jobs = all.iter().find(|q| q.queue.as_str() == "jobs").expect("jobs").clone();
        jobs.settings = Some(Settings::default());
        jobs.disk_bytes = Bytes(64 << 20);
        jobs.clients = vec![
            ClientFigures { messages: jobs.counted.stored, ..client.clone() },
            ClientFigures {
                role: Role::Receiver,
                pid: 90_210,
                uid: Some(0),
                tool: "mq-recv".to_owned(),
                command: "./work\x1b]0;owned\x07".to_owned(),
                group: Some(name("audit")),
                messages: jobs.counted.delivered,
                unacked: Count(900),
                ..client.clone()
            },
        ];
        let account = Account {
            stored: jobs.counted.stored,
            acked: jobs.counted.acked,
            dead: jobs.counted.dead,
            ..Account::default()
        };
        jobs.groups = vec![
            GroupFigures {
                group: name("audit"),
                ready: Count(jobs.ready.0 - 900 - jobs.counted.dead.0),
                unacked: Count(900),
                receivers: 1,
                oldest: jobs.oldest,
                account,
                ..GroupFigures::default()
            },
            GroupFigures {
                group: Name::default(),
                account: Account { acked: Count(account.stored.0 - account.dead.0), ..account },
                ..GroupFigures::default()
            },
        ];
        jobs.pipes = vec![PipeInfo {
            name: "raw.jobs.0123456789ab\x1b[2J".to_owned(),
            src: "raw".to_owned(),
            next: Offset(10_000 * second),
            late: false,
            lag: Some(Count(1_234)),
            figures: PipeFigures {
                batches: 20 * second,
                read: 10_000 * second,
                written: 9_500 * second,
                retries: 3,
                filter_us: Micros(450_000 * second),
                open_windows: 2,
                ..PipeFigures::default()
            },
        }];
        screen.hear(Heard { detail: Some(jobs), ..heard(second, all) });
    }
    screen
}

#[track_caller]
fn is_frame(file: &str, screen: &mut Screen, width: usize, height: usize) {
    let drawn = screen.draw(width, height);
    assert!(drawn.text().chars().all(|c| c == '\n' || !c.is_control()), "{file}");
    let path = format!("{}/src/view/live/frames/{file}.txt", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("MQ_FRAMES").is_some_and(|what| what == "write") {
        std::fs::write(&path, drawn.text()).expect("written");
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(drawn.text() == expected, "{file} is not as in its file, but\n{}", drawn.text());
}

#[test]
fn frames_are_as_in_their_files() {
    for (glyphs, kind) in [(Glyphs::UTF8, "utf8"), (Glyphs::ASCII, "ascii")] {
        for (width, height) in [(80, 24), (200, 60)] {
            let size = format!("{width}x{height}-{kind}");
            is_frame(&format!("table-{size}"), &mut watched(glyphs), width, height);
            is_frame(&format!("page-{size}"), &mut page(glyphs), width, height);
        }
    }
    let mut empty = screen(Glyphs::UTF8);
    empty.miss("no mq-serve runs on the store /home/ada/.local/state/mq");
    is_frame("no-server", &mut empty, 80, 24);
    empty.hear(heard(0, Vec::new()));
    is_frame("no-queue", &mut empty, 80, 24);
    let mut help = watched(Glyphs::UTF8);
    help.press(Key::Char('?'));
    is_frame("help", &mut help, 80, 60);
    assert!(Glyphs::ASCII.is_utf8 || watched(Glyphs::ASCII).draw(80, 24).text().is_ascii());
    assert!(page(Glyphs::ASCII).draw(200, 60).text().is_ascii());
}

/// The names in the table, from the top.
fn names(screen: &mut Screen) -> Vec<String> {
    let text = screen.draw(200, 60).text();
    let rows = text.lines().skip_while(|line| !line.contains("QUEUE")).skip(1);
    rows.filter_map(|line| line.get(2..).or(Some(line)))
        .filter_map(|line| line.split_whitespace().find(|word| word.len() > 1))
        .map(str::to_owned)
        .take(7)
        .collect()
}

#[test]
fn marked_queues_come_first_and_keys_sort_otherwise() {
    let mut screen = watched(Glyphs::ASCII);
    let first = names(&mut screen);
    assert_eq!(first[..3], ["billing", "photos", "jobs"], "{first:?}");
    assert_eq!(first[3], "audit", "then by name");
    screen.press(Key::Char('s'));
    assert_eq!(names(&mut screen)[0], "audit", "by name");
    screen.press(Key::Char('s'));
    assert_eq!(names(&mut screen)[0], "jobs", "by ready");
    screen.press(Key::Char('i'));
    assert_eq!(names(&mut screen)[6], "jobs", "inverted");
}

#[test]
fn trends_are_told() {
    let screen = watched(Glyphs::UTF8);
    let trend = |queue: &str| screen.model.row(&name(queue)).expect("a row").trend;
    assert_eq!(trend("jobs"), Trend::Growing);
    assert_eq!(trend("photos"), Trend::Ageing);
    assert_eq!(trend("billing"), Trend::Stuck);
    assert_eq!(trend("idle"), Trend::Steady);
    assert_eq!(trend("audit"), Trend::Steady);
    // 60,000 at first, 700 less each second, after 25 of them.
    let Trend::Draining(eta) = trend("mail") else { panic!("{:?}", trend("mail")) };
    let expected = (60_000.0 - 25.0 * 700.0) / 700.0;
    assert!((eta.0 as f64 / 1e6 - expected).abs() < 1.0, "{eta} beside {expected}");
}

use crate::view::track::Trend;

#[test]
fn the_cursor_stays_on_its_queue_and_enter_opens_it() {
    let mut screen = watched(Glyphs::UTF8);
    screen.draw(80, 24);
    screen.press(Key::Down);
    screen.press(Key::Down);
    assert_eq!(screen.selected, Some(name("photos")));
    screen.press(Key::Char('s'));
    assert_eq!(screen.selected, Some(name("photos")), "wherever it is now");
    assert_eq!(screen.press(Key::Enter), Action::Ask);
    assert_eq!(screen.open(), Some(&name("photos")));
    assert_eq!(screen.press(Key::Escape), Action::Ask);
    assert_eq!(screen.open(), None);
    screen.press(Key::End);
    screen.draw(80, 12);
    assert!(screen.top > 0, "the cursor is on a line that is shown");
}

/// Enter asks at once. Rates over the moment since the last look were nothing, or anything, and what
/// only the page tells was said to be of the whole window.
#[test]
fn a_look_between_two_steps_changes_no_rate_and_the_page_says_since_when_it_knows() {
    let mut screen = watched(Glyphs::ASCII);
    screen.press(Key::Enter);
    let open = screen.open().expect("it is open").clone();
    let rates = |screen: &Screen| screen.model.totals().rates;
    let before = rates(&screen);
    assert!(before.stored > 50_000.0, "{before:?}");
    let look = |screen: &mut Screen, micros: u64, second: u64| {
        let all = queues(second);
        let detail = all.iter().find(|figures| figures.queue == open).cloned();
        let is_early = !micros.is_multiple_of(SECOND);
        let mut heard = Heard { detail, is_early, ..heard(second, all) };
        heard.server.now = WallTime(START + micros);
        screen.hear(heard);
        screen.draw(120, 40).text()
    };
    let text = look(&mut screen, 25 * SECOND + SECOND / 20, 25);
    assert_eq!(rates(&screen), before);
    assert!(text.contains("since opened, 0s"), "{text}");
    let text = look(&mut screen, 26 * SECOND, 26);
    assert_eq!(rates(&screen), before);
    assert!(text.contains("since opened, 0s") && text.contains("last 26s"), "{text}");
    for second in 27..=90 {
        look(&mut screen, second * SECOND, second);
    }
    let text = look(&mut screen, 91 * SECOND, 91);
    assert!(!text.contains("since opened") && text.contains("last minute"), "{text}");
}

/// Bytes were painted over messages.
#[test]
fn a_narrow_view_leaves_out_what_has_no_room() {
    let text = watched(Glyphs::ASCII).draw(40, 20).text();
    let line = text.lines().find(|line| line.contains("throughput")).expect("the line");
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(words, ["throughput", "in", "60.4k/s", "out", "58.0k/s"]);
    let text = watched(Glyphs::ASCII).draw(55, 20).text();
    let line = text.lines().find(|line| line.contains("throughput")).expect("the line");
    assert_eq!(line.matches("B/s").count(), 2, "{line}");
}

#[test]
fn a_filter_is_typed_and_cleared() {
    let mut screen = watched(Glyphs::ASCII);
    for key in [Key::Char('/'), Key::Char('q'), Key::Backspace, Key::Char('A'), Key::Char('u')] {
        assert_eq!(screen.press(key), Action::Draw, "q is a letter here");
    }
    assert_eq!(names(&mut screen)[..1], ["audit"]);
    assert_eq!(screen.shown().len(), 1);
    screen.press(Key::Enter);
    assert_eq!(screen.press(Key::Char('q')), Action::Quit);
    screen.press(Key::Escape);
    assert_eq!(screen.shown().len(), 7);
}

#[test]
fn the_window_is_what_came_since_it_was_reset() {
    let mut screen = watched(Glyphs::UTF8);
    let dead = |screen: &Screen| screen.model.row(&name("jobs")).expect("a row").counted.dead.0;
    assert_eq!(dead(&screen), 5, "the last minute");
    screen.press(Key::Char('z'));
    assert_eq!((screen.model.span(), dead(&screen)), (Span::Reset, 0));
    screen.hear(heard(30, queues(30)));
    assert_eq!(dead(&screen), 1);
    screen.press(Key::Char('w'));
    assert_eq!((screen.model.span(), dead(&screen)), (Span::All, 6));
    // A minute later, the beginning has left the window.
    screen.press(Key::Char('w'));
    for second in 31..=100 {
        screen.hear(heard(second, queues(second)));
    }
    assert!((12..=13).contains(&dead(&screen)), "{}", dead(&screen));
    let whole = screen.model.row(&name("jobs")).and_then(|row| row.latency).expect("acks");
    assert!((9_000 * 60..=9_001 * 66).contains(&whole.count), "{}", whole.count);
}

#[test]
fn a_new_server_counts_latencies_anew_and_is_told_of() {
    let mut screen = watched(Glyphs::ASCII);
    let other = |second: u64| {
        let mut other = heard(second, queues(second));
        other.server.instance = 2;
        other.server.pid = 4712;
        for figures in &mut other.queues {
            figures.latency = Latencies { whole: histogram(&[(99, 7)]), ..Latencies::default() };
        }
        other
    };
    screen.miss("the connection to the server was lost");
    let gone = screen.draw(80, 24).text();
    assert!(gone.contains("was lost; these figures are the last"), "{gone}");
    screen.hear(other(28));
    let text = screen.draw(80, 24).text();
    assert!(text.contains("started anew: process 4712 in the place of 4711"), "{text}");
    let latency = screen.model.row(&name("jobs")).and_then(|row| row.latency).expect("some");
    assert_eq!((latency.count, latency.max), (7, Micros(99)));
    screen.hear(other(60));
    assert!(!screen.draw(80, 24).text().contains("anew"), "a notice goes");
}

#[test]
fn nothing_changes_while_it_is_paused() {
    let mut screen = watched(Glyphs::ASCII);
    assert_eq!(screen.press(Key::Char('p')), Action::Ask);
    assert!(screen.is_paused());
    let before = screen.draw(80, 24).text();
    assert!(before.contains("paused"), "{before}");
    screen.hear(heard(50, queues(50)));
    assert_eq!(screen.draw(80, 24).text(), before);
    screen.press(Key::Char('p'));
    screen.hear(heard(51, queues(51)));
    assert_ne!(screen.draw(80, 24).text(), before);
}

#[test]
fn queues_come_and_go() {
    let mut screen = watched(Glyphs::UTF8);
    let mut fewer = queues(26);
    fewer.retain(|figures| figures.queue.as_str() != "mail");
    fewer.push(flowing("zeta", 1, 500, 0, 0));
    screen.hear(heard(26, fewer));
    assert!(screen.model.row(&name("mail")).is_none());
    let zeta = screen.model.row(&name("zeta")).expect("a row");
    assert_eq!(zeta.rates.stored, 500.0, "all that is in a new queue came in this step");
    // Made anew under its old name: nothing of the old one is in its figures.
    let mut again = queues(27);
    for figures in again.iter_mut().filter(|figures| figures.queue.as_str() == "jobs") {
        *figures =
            QueueFigures { id: QueueId::from_bytes([9; 16]), ..flowing("jobs", 1, 10, 0, 0) };
    }
    screen.hear(heard(27, again));
    let jobs = screen.model.row(&name("jobs")).expect("a row");
    assert_eq!((jobs.rates.stored, jobs.counted.stored.0), (10.0, 10));
}

#[test]
fn every_size_and_every_key_can_be_drawn() {
    let keys = [
        Key::Enter,
        Key::Escape,
        Key::Backspace,
        Key::Up,
        Key::Down,
        Key::Left,
        Key::Right,
        Key::PageUp,
        Key::PageDown,
        Key::Home,
        Key::End,
        Key::Control('u'),
        Key::Char('x'),
        Key::Char('/'),
        Key::Char('i'),
        Key::Char('w'),
        Key::Char('z'),
        Key::Char('?'),
    ];
    for mut screen in [watched(Glyphs::UTF8), page(Glyphs::ASCII), screen(Glyphs::UTF8)] {
        for size in 0..130 {
            for (width, height) in [(size, size / 3), (size, 60), (200, size / 2)] {
                screen.press(keys[(width * 7 + height) % keys.len()]);
                let canvas = screen.draw(width, height);
                assert_eq!((canvas.width(), canvas.height()), (width, height));
            }
        }
    }
}
