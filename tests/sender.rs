//! Claims about the sender, held against a server that misbehaves.

mod fake;

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use fake::{FakeServer, Script};
use mq::client::cut::Cut;
use mq::client::given::Given;
use mq::client::intake::Intake;
use mq::client::packer::Packing;
use mq::client::rerun::Rerun;
use mq::client::send::{Host, Notice, Order, SendError, Sender};
use mq::client::source::Source;
use mq::client::tee::Tee;
use mq::client::{ClientError, Dialer};
use mq::limits;
use mq::units::{Micros, Name};
use mq::wire::ErrorCode;

/// A host without a terminal. A signal is a byte in its pipe.
struct Quiet {
    signals: UnixStream,
    notices: Vec<String>,
}

impl Quiet {
    fn new() -> (Quiet, UnixStream) {
        let (signals, sends) = UnixStream::pair().expect("a pair");
        signals.set_nonblocking(true).expect("set");
        (Quiet { signals, notices: Vec::new() }, sends)
    }
}

impl Host for Quiet {
    fn signals(&self) -> Option<BorrowedFd<'_>> {
        Some(self.signals.as_fd())
    }

    fn take_signal(&mut self) -> Option<i32> {
        let mut byte = [0u8; 1];
        matches!(self.signals.read(&mut byte), Ok(1)).then(|| i32::from(byte[0]))
    }

    fn confirmed(&mut self, _: u64, _: u64) {}

    fn notice(&mut self, notice: Notice<'_>) {
        self.notices.push(format!("{notice:?}"));
    }
}

struct Outcome {
    result: Result<(), SendError>,
    confirmed: u64,
    notices: Vec<String>,
}

/// A source that is a file with these bytes.
fn file(bytes: &[u8]) -> Source {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(bytes).expect("written");
    Source::open(file.path()).expect("opened")
}

/// A source that is a pipe; what is written into the other end is its input.
fn pipe() -> (Source, std::fs::File) {
    let (read, write) = rustix::pipe::pipe().expect("a pipe");
    let path = PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&read)));
    (Source::open(&path).expect("opened"), write.into())
}

fn order(source: Source) -> Order {
    Order {
        queue: Name::new("q").expect("a name"),
        intake: Intake::cutting(Cut::At(b'\n')),
        text: None,
        sources: vec![source],
        wait: Some(Micros::from_secs(5)),
        tee: None,
        producer: None,
        unless_pending: false,
    }
}

fn send_by(server: &FakeServer, order: Order, mut host: Quiet) -> Outcome {
    let dialer = Dialer::new(server.store.clone(), "test", false);
    let mut sender = Sender::new(dialer, order, &mut host).expect("an order");
    let result = sender.run();
    let confirmed = sender.confirmed();
    Outcome { result, confirmed, notices: host.notices }
}

fn send(server: &FakeServer, order: Order) -> Outcome {
    send_by(server, order, Quiet::new().0)
}

fn lines(count: usize) -> Vec<u8> {
    (1..=count).flat_map(|n| format!("{n}\n").into_bytes()).collect()
}

fn assert_lines(server: &FakeServer, count: usize) {
    server.with(|stored| {
        assert_eq!(stored.messages.len(), count);
        let right = |(n, body): (usize, &Vec<u8>)| body == (n + 1).to_string().as_bytes();
        assert!(stored.messages.iter().enumerate().all(right), "not the lines in order");
    });
}

#[test]
fn every_line_is_stored_once_and_confirmed() {
    let server = FakeServer::start([]);
    let outcome = send(&server, order(file(b"1\n2\n3")));
    outcome.result.expect("sent");
    assert_eq!(outcome.confirmed, 3);
    assert_lines(&server, 3);
}

#[test]
fn empty_input_makes_the_queue_and_succeeds() {
    let server = FakeServer::start([]);
    send(&server, order(file(b""))).result.expect("sent");
    assert_eq!(server.with(|stored| (stored.connections, stored.frames)), (1, 0));
}

#[test]
fn every_line_is_stored_once_wherever_the_connection_breaks() {
    let count = 500_000;
    let input = lines(count);
    for nth in 1..=4 {
        let before = Script { close_before: Some(nth), ..Script::default() };
        let after = Script { close_after: Some(nth), ..Script::default() };
        for scripts in [vec![before.clone()], vec![after.clone()], vec![before, after]] {
            let server = FakeServer::start(scripts.clone());
            let outcome = send(&server, order(file(&input)));
            outcome.result.expect("sent");
            assert_eq!(outcome.confirmed, count as u64);
            assert_lines(&server, count);
            assert_eq!(server.with(|stored| stored.connections), scripts.len() + 1);
        }
    }
}

#[test]
fn server_that_dies_while_it_is_reached_again_is_no_end() {
    // A sender once waited for ever after the second loss in a row.
    let dying = Script { close_at_open: true, ..Script::default() };
    let after = Script { close_after: Some(1), ..Script::default() };
    let server = FakeServer::start([dying.clone(), after, dying.clone(), dying]);
    send(&server, order(file(b"1\n2\n"))).result.expect("sent");
    assert_lines(&server, 2);
    assert_eq!(server.with(|stored| stored.connections), 5);
}

#[test]
fn large_message_is_stored_once_wherever_the_connection_breaks() {
    let body = vec![b'x'; 3 << 20];
    for nth in 1..=4 {
        for after in [true, false] {
            let mut script = Script::default();
            *(if after { &mut script.close_after } else { &mut script.close_before }) = Some(nth);
            let server = FakeServer::start([script]);
            let mut input = b"one\n".to_vec();
            input.extend_from_slice(&body);
            input.extend_from_slice(b"\nthree\n");
            send(&server, order(file(&input))).result.expect("sent");
            server.with(|stored| {
                let sizes: Vec<usize> = stored.messages.iter().map(Vec::len).collect();
                assert_eq!(sizes, [3, body.len(), 5]);
            });
        }
    }
}

#[test]
fn unconfirmed_bytes_are_bounded() {
    let server = FakeServer::start([Script { hold: true, ..Script::default() }]);
    let (source, mut write) = pipe();
    let line = [b'x'; 99];
    let total = 4 * limits::UNCONFIRMED_BYTES_MAX / 100;
    let (progress, written) = mpsc::channel();
    let writer = std::thread::spawn(move || {
        let mut block = line.to_vec();
        block.push(b'\n');
        let block = block.repeat(1000);
        for _ in 0..total / 1000 {
            write.write_all(&block).expect("written");
            let _ = progress.send(block.len());
        }
    });
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| send(&server, order(source)));
        // The writer stands still once the window and the pipe are full.
        let mut bytes = 0;
        while let Ok(more) = written.recv_timeout(Duration::from_millis(500)) {
            bytes += more;
        }
        server.confirm();
        let outcome = sending.join().expect("no panic");
        outcome.result.expect("sent");
        assert_eq!(outcome.confirmed as usize, total / 1000 * 1000);
        let slack = 4 * limits::SEND_BATCH_BYTES + (1 << 20);
        assert!(bytes <= limits::UNCONFIRMED_BYTES_MAX + slack, "{bytes} bytes went in");
        assert!(bytes >= limits::UNCONFIRMED_BYTES_MAX / 4, "only {bytes} bytes went in");
    });
    writer.join().expect("no panic");
}

#[test]
fn copy_is_what_was_stored_byte_for_byte() {
    let mut input = lines(50_000);
    input.extend_from_slice(&vec![b'y'; 2 << 20]);
    input.extend_from_slice(b"\nlast");
    let server = FakeServer::start([Script { close_after: Some(2), ..Script::default() }]);
    let (read, write) = rustix::pipe::pipe().expect("a pipe");
    let reader = std::thread::spawn(move || {
        let mut copy = Vec::new();
        std::fs::File::from(read).read_to_end(&mut copy).expect("read");
        copy
    });
    let tee = Some(Tee::new(write, Some(b'\n')));
    send(&server, Order { tee, ..order(file(&input)) }).result.expect("sent");
    input.push(b'\n');
    assert!(reader.join().expect("no panic") == input);
}

#[test]
fn copy_outlives_its_reader() {
    let server = FakeServer::start([]);
    let (read, write) = rustix::pipe::pipe().expect("a pipe");
    drop(read);
    let tee = Some(Tee::new(write, Some(b'\n')));
    send(&server, Order { tee, ..order(file(&lines(10_000))) }).result.expect("sent");
    assert_lines(&server, 10_000);
}

#[test]
fn copy_that_cannot_be_written_is_an_error_after_all_is_stored() {
    let server = FakeServer::start([]);
    let full: OwnedFd =
        std::fs::File::options().write(true).open("/dev/full").expect("opened").into();
    let tee = Some(Tee::new(full, Some(b'\n')));
    let outcome = send(&server, Order { tee, ..order(file(&lines(10))) });
    assert!(matches!(outcome.result, Err(SendError::Copy(_))));
    assert_eq!(outcome.confirmed, 10);
}

#[test]
fn removed_queue_is_an_error() {
    let scripts = [
        Script { close_after: Some(1), ..Script::default() },
        Script { refuse: Some(ErrorCode::Gone), ..Script::default() },
    ];
    let server = FakeServer::start(scripts);
    let outcome = send(&server, order(file(&lines(10))));
    let Err(SendError::Client(ClientError::Refused(fault))) = outcome.result else {
        panic!("{:?}", outcome.result);
    };
    assert_eq!(fault.code, ErrorCode::Gone);
    assert_eq!(outcome.confirmed, 0);
}

#[test]
fn full_disk_is_an_error_at_once_that_counts_exactly() {
    let input = lines(150_000);
    let server = FakeServer::start([Script { full_at: Some(3), hold: true, ..Script::default() }]);
    let outcome = send(&server, Order { wait: None, ..order(file(&input)) });
    assert!(matches!(&outcome.result, Err(SendError::Client(ClientError::Refused(fault)))
        if fault.code == ErrorCode::Full));
    let stored = server.with(|stored| stored.messages.len());
    assert!(stored > 0 && stored < 150_000);
    assert_eq!(outcome.confirmed, stored as u64);
}

#[test]
fn full_disk_is_waited_out_when_asked() {
    let input = lines(150_000);
    let full = Script { full_at: Some(2), ..Script::default() };
    let none = Script { full_at: Some(1), ..Script::default() };
    let server = FakeServer::start([full.clone(), none.clone(), none, full]);
    let outcome = send(&server, order(file(&input)));
    outcome.result.expect("sent");
    assert_lines(&server, 150_000);
    assert!(outcome.notices.iter().any(|notice| notice.starts_with("Full")));
}

#[test]
fn full_disk_is_not_waited_out_for_ever() {
    let full = Script { full_at: Some(1), ..Script::default() };
    let server = FakeServer::start(vec![full; 1000]);
    let wait = Some(Micros::from_millis(300));
    let began = Instant::now();
    let outcome = send(&server, Order { wait, ..order(file(&lines(10))) });
    assert!(matches!(outcome.result, Err(SendError::Client(ClientError::Refused(_)))));
    assert!(began.elapsed() >= Duration::from_millis(300));
    assert_eq!(outcome.confirmed, 0);
}

#[test]
fn room_in_a_queue_is_waited_for_and_then_all_is_stored_once() {
    let server = FakeServer::start([Script { room: Some(50_123), ..Script::default() }]);
    std::thread::scope(|scope| {
        let order = Order { wait: None, ..order(file(&lines(150_000))) };
        let sending = scope.spawn(|| send(&server, order));
        server.wait_for("what fits", |stored| stored.messages.len() == 50_123);
        server.confirm();
        let outcome = sending.join().expect("no panic");
        outcome.result.expect("sent");
        assert_eq!(outcome.notices.len(), 1, "said once: {:?}", outcome.notices);
        assert!(outcome.notices[0].starts_with("Full"));
    });
    assert_lines(&server, 150_000);
}

#[test]
fn room_in_a_queue_is_not_waited_for_longer_than_asked() {
    let full = Script { room: Some(50_123), ..Script::default() };
    let server = FakeServer::start(vec![full; 3]);
    let wait = Some(Micros::from_millis(300));
    let outcome = send(&server, Order { wait, ..order(file(&lines(150_000))) });
    assert!(matches!(&outcome.result, Err(SendError::Client(ClientError::Refused(fault)))
        if fault.code == ErrorCode::Full));
    assert_eq!(outcome.confirmed, 50_123);
    assert_lines(&server, 50_123);
}

/// A word of the server that comes together with its answer lay in the buffer until something else came: a
/// sender whose server had nothing more to say waited for room for ever, and said nothing of it.
#[test]
fn what_comes_together_with_the_answer_is_heard() {
    let full = Script { room: Some(0), held_at_once: true, ..Script::default() };
    let server = FakeServer::start(vec![full; 3]);
    let wait = Some(Micros::from_millis(300));
    let (sent, outcome) = mpsc::channel();
    std::thread::scope(|scope| {
        let server = &server;
        scope.spawn(move || sent.send(send(server, Order { wait, ..order(file(b"x\n")) })));
        let outcome = outcome.recv_timeout(Duration::from_secs(20));
        server.confirm();
        let outcome = outcome.expect("it gives up");
        assert!(matches!(&outcome.result, Err(SendError::Client(ClientError::Refused(fault)))
            if fault.code == ErrorCode::Full));
        assert_eq!((outcome.confirmed, outcome.notices.len()), (0, 1), "{:?}", outcome.notices);
    });
}

#[test]
fn a_batch_of_which_a_part_is_stored_is_sent_on_from_there() {
    for room in [1, 7, 19_999] {
        let held = Script { room: Some(room), close_when_held: true, ..Script::default() };
        let server = FakeServer::start([held]);
        let input = lines(20_000);
        let read = rustix::fs::memfd_create("copy", rustix::fs::MemfdFlags::CLOEXEC).expect("made");
        let mut copy: std::fs::File = read.try_clone().expect("cloned").into();
        let tee = Some(Tee::new(read, Some(b'\n')));
        send(&server, Order { tee, ..order(file(&input)) }).result.expect("sent");
        assert_lines(&server, 20_000);
        let mut copied = Vec::new();
        std::io::Seek::rewind(&mut copy).expect("sought");
        copy.read_to_end(&mut copied).expect("read");
        assert!(copied == input, "room {room}: {} bytes copied", copied.len());
    }
}

fn named(input: &[u8]) -> Order {
    Order {
        intake: Intake::packing(Packing {
            cut: Cut::At(b'\n'),
            envelopes: false,
            given: Given::default(),
            rerun: Some(Rerun::new()),
            copies: false,
        }),
        producer: Some("nightly".to_owned()),
        ..order(file(input))
    }
}

#[test]
fn a_rerun_under_the_same_name_stores_each_message_once() {
    let input = lines(100_000);
    // The first run breaks off with a part of a batch stored.
    let held = Script { room: Some(30_001), ..Script::default() };
    let server = FakeServer::start([held.clone(), held]);
    let wait = Some(Micros::from_millis(200));
    let outcome = send(&server, Order { wait, ..named(&input) });
    assert_eq!((outcome.result.is_err(), outcome.confirmed), (true, 30_001));
    let outcome = send(&server, named(&input));
    outcome.result.expect("sent");
    assert_eq!(outcome.confirmed, 100_000);
    assert_lines(&server, 100_000);
    // Once more, and grown.
    send(&server, named(&input)).result.expect("nothing to send");
    send(&server, named(&lines(100_010))).result.expect("sent");
    assert_lines(&server, 100_010);
}

#[test]
fn a_rerun_of_another_input_stores_nothing() {
    let server = FakeServer::start([]);
    send(&server, named(&lines(1000))).result.expect("sent");
    let mut other = lines(2000);
    other[100] ^= 1;
    for (input, said) in [(other, "not all the same"), (lines(999), "999 messages, and 1000")] {
        let outcome = send(&server, named(&input));
        let Err(error @ SendError::BadInput { .. }) = outcome.result else {
            panic!("{:?}", outcome.result)
        };
        assert!(error.to_string().contains(said), "{error}");
        assert_eq!(outcome.confirmed, 0);
    }
    assert_lines(&server, 1000);
}

#[test]
fn signal_ends_it_with_what_was_sent_confirmed() {
    let server = FakeServer::start([]);
    let (host, mut signals) = Quiet::new();
    let (source, mut write) = pipe();
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| send_by(&server, order(source), host));
        write.write_all(b"1\n2\nunfinis").expect("written");
        server.wait_for("the lines", |stored| stored.messages.len() == 2);
        signals.write_all(&[15]).expect("sent");
        let outcome = sending.join().expect("no panic");
        assert!(matches!(outcome.result, Err(SendError::Signal(15))));
        assert_eq!(outcome.confirmed, 2);
    });
    assert_lines(&server, 2);
}

#[test]
fn second_signal_ends_it_at_once() {
    let server = FakeServer::start([Script { hold: true, ..Script::default() }]);
    let (host, mut signals) = Quiet::new();
    let (source, mut write) = pipe();
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| send_by(&server, order(source), host));
        write.write_all(b"1\n").expect("written");
        server.wait_for("the line", |stored| stored.messages.len() == 1);
        signals.write_all(&[2, 2]).expect("sent");
        let outcome = sending.join().expect("no panic");
        assert!(matches!(outcome.result, Err(SendError::Signal(2))));
        assert_eq!(outcome.confirmed, 0);
    });
}

#[test]
fn too_large_message_is_refused_and_what_came_before_is_stored() {
    let mut input = b"1\n2\n".to_vec();
    input.resize(input.len() + limits::MESSAGE_BYTES_MAX + 1, b'x');
    let server = FakeServer::start([]);
    let outcome = send(&server, order(file(&input)));
    let Err(error @ SendError::BadInput { .. }) = outcome.result else {
        panic!("{:?}", outcome.result);
    };
    let text = error.to_string();
    assert!(text.contains("message 3") && text.contains("byte 4") && text.contains("64 MiB"));
    assert_eq!(outcome.confirmed, 2);
    assert_lines(&server, 2);
}

#[test]
fn each_file_ends_its_last_message() {
    let server = FakeServer::start([]);
    let sources = vec![file(b"1\n2"), file(b""), file(b"3\n"), file(b"4")];
    let outcome = send(&server, Order { sources, ..order(file(b"")) });
    outcome.result.expect("sent");
    assert_lines(&server, 4);
}

#[test]
fn nul_in_lines_is_told_once() {
    let server = FakeServer::start([]);
    let outcome = send(&server, order(file(b"a\0b\n\0\n")));
    outcome.result.expect("sent");
    assert_eq!(outcome.notices, ["NulBytes"]);
}

#[test]
fn server_that_was_stopped_is_waited_for() {
    let temp = tempfile::tempdir().expect("a temporary directory");
    let path = temp.path().join("store");
    let (source, mut write) = pipe();
    let first =
        FakeServer::start_in(&path, [Script { goodbye_after: Some(1), ..Script::default() }]);
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| send(&first, order(source)));
        write.write_all(b"1\n").expect("written");
        first.wait_for("the line", |stored| stored.messages.len() == 1);
        write.write_all(b"2\n").expect("written");
        first.wait_for("the line", |stored| stored.messages.len() == 2);
        drop(write);
        let outcome = sending.join().expect("no panic");
        outcome.result.expect("sent");
        assert_eq!(outcome.notices, ["Lost { orderly: true }", "Back"]);
    });
}

#[test]
fn idle_sender_needs_no_server_to_end() {
    let server = FakeServer::start([Script { goodbye_after: Some(1), ..Script::default() }]);
    let (source, mut write) = pipe();
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| send(&server, order(source)));
        write.write_all(b"1\n").expect("written");
        server.wait_for("the line", |stored| stored.messages.len() == 1);
        drop(write);
        sending.join().expect("no panic").result.expect("sent");
    });
    assert_eq!(server.with(|stored| stored.connections), 1);
}

#[test]
fn no_server_is_an_error_after_the_wait() {
    let temp = tempfile::tempdir().expect("a temporary directory");
    let dialer = Dialer::new(temp.path().join("store"), "test", false);
    let (mut host, _signals) = Quiet::new();
    let wait = Some(Micros::from_millis(100));
    let order = Order { wait, ..order(file(b"1\n")) };
    let mut sender = Sender::new(dialer, order, &mut host).expect("an order");
    let result = sender.run();
    assert!(matches!(result, Err(SendError::Client(ClientError::NoServer { .. }))), "{result:?}");
    assert!(!temp.path().join("store").exists());
}

#[test]
fn server_that_keeps_dying_is_given_up() {
    let dying = Script { close_before: Some(1), ..Script::default() };
    let server = FakeServer::start(vec![dying; 10_000]);
    let wait = Some(Micros::from_millis(300));
    let outcome = send(&server, Order { wait, ..order(file(b"1\n")) });
    assert!(matches!(outcome.result, Err(SendError::Away(_))), "{:?}", outcome.result);
    assert!(server.with(|stored| stored.connections) < 100);
}

#[test]
fn strange_servers_are_named() {
    let wait = Some(Micros::from_millis(200));
    let other = Script { version: Some(9), ..Script::default() };
    let outcome = send(&FakeServer::start([other]), order(file(b"1\n")));
    let error = outcome.result.expect_err("refused").to_string();
    let ours = format!("versions {} to {}", mq::wire::VERSION_OLDEST, mq::wire::VERSION);
    assert!(error.contains(&ours) && error.contains('9'), "{error}");

    let silent = Script { silent: true, ..Script::default() };
    let outcome = send(&FakeServer::start([silent]), Order { wait, ..order(file(b"1\n")) });
    assert!(matches!(outcome.result, Err(SendError::Client(ClientError::Silent { .. }))));

    let garbage = Script { garbage: Some(b"HTTP/1.1 400 Bad Request\r\n"), ..Script::default() };
    let outcome = send(&FakeServer::start([garbage]), order(file(b"1\n")));
    assert!(matches!(outcome.result, Err(SendError::Client(ClientError::Wire(_)))));
}
