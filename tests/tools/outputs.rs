//! What a receiver says about where its bytes go.

use crate::harness::Store;
use crate::seq;

/// The warning once came for every delivery that held such a message.
#[test]
fn a_body_with_the_delimiter_is_written_as_it_is_with_one_warning() {
    let store = Store::new();
    let done = store.sh("mq-send -m $'a\nb' q; mq-send -m $'c\nd' q; mq-recv -e q").ok();
    assert_eq!(done.text(), "a\nb\nc\nd\n");
    assert_eq!(done.stderr.matches("holds the delimiter").count(), 1, "{}", done.stderr);
    assert!(done.stderr.contains("try: -0"), "{}", done.stderr);
}

/// The signal that comes with a limit on the size of files must not end a receiver before it has
/// cut the file back.
#[test]
fn a_file_at_its_limit_is_cut_back_and_told() {
    let store = Store::new();
    store.send("q", &seq(1, 100_000));
    store.sh("ulimit -f 64; mq-recv -e q > file").exits(75).says("cut back").says("File too large");
    store.sh("mq-recv -e q >> file; cmp file <(seq 1 100000)").ok();
}

#[test]
fn a_null_device_is_asked_for_and_a_socket_is_an_outlet() {
    let store = Store::new();
    store.send("q", &seq(1, 3));
    store.sh("mq-recv -e -n1 q > /dev/null").ok();
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().expect("a pair");
    let mut receiver = store.command("mq-recv", &["-e", "q"]);
    receiver.stdout(std::os::fd::OwnedFd::from(theirs));
    let status = receiver.status().expect("it runs");
    drop(receiver);
    assert!(status.success());
    assert_eq!(std::io::read_to_string(ours).expect("text"), "2\n3\n");
    assert_eq!(store.number("q", "ready"), 0);
}

/// Each of these once exited 0, as a closed descriptor looks like an empty one from inside.
#[test]
fn closed_descriptors_are_errors_where_they_are_needed() {
    let store = Store::new();
    store.send("q", &seq(1, 3));
    store.sh("mq-send q <&-").exits(1).says("cannot read stdin: it is closed");
    store.sh("mq-send q - <&-").exits(1).says("closed");
    store.sh("echo x | mq-send -T q >&-").exits(1).says("cannot copy to stdout: it is closed");
    store.sh("mq-admin ls >&-").exits(1).says("cannot write to stdout: it is closed");
    store.sh("mq-admin show -J q >&-").exits(1).says("closed");
    store.sh("mq-recv -e q >&-").exits(1).says("closed");
    store.sh("mq-admin ack - <&-").exits(1).says("cannot read stdin: it is closed");
    assert_eq!(store.number("q", "ready"), 3, "nothing was stored and nothing taken");
    // Where nothing is read or printed they are not missed.
    store.sh("mq-send q -m x <&- >&-").ok();
    store.sh("mq-send q < /dev/null > /dev/null && mq-admin ls > /dev/null").ok();
    store.sh("mq-admin purge q <&- >&-").ok();
}

/// Once, `mq-stat --prometheus -o /dev/stdout` put a file in the place of that link, and of a device.
#[test]
fn figures_are_written_into_what_is_no_file() {
    let store = Store::new();
    store.send("q", b"x\n");
    let link =
        "ln -s /proc/self/fd/1 out; mq-stat --prometheus -o out | grep -q ready; test -L out";
    store.sh(link).ok();
    store.sh("mkfifo p; mq-stat --prometheus -o p & grep -q ready p && test -p p; wait").ok();
    store
        .sh("touch there; ln -s there link; mq-stat --prometheus -o link; test -L link; grep -q ready there")
        .ok();
    store.sh("mkdir d; mq-stat --prometheus -o d").exits(1).says("directory");
}

/// What a killed receiver had written of a message once became one with the next message.
#[test]
fn what_is_appended_to_half_a_message_begins_anew() {
    let store = Store::new();
    store.send("q", &seq(1, 4));
    store.sh("printf '1\\n2\\nhal' > file; mq-recv -e -n2 q >> file").ok().says("ends within");
    store.sh("mq-recv -e -n1 q >> file").ok().quietly();
    store.sh("cmp file <(printf '1\\n2\\nhal\\n1\\n2\\n3\\n')").ok();
    // With nothing to write there is nothing to mend, and what is no line is nobody's business.
    store.sh("printf 'hal' > file; mq-recv -e none >> file; test \"$(cat file)\" = hal").ok();
    store.sh("printf 'hal' > file; mq-recv -e --raw q >> file; test \"$(cat file)\" = hal4").ok();
}

/// It was 75 of mq-recv and mq-pipe, and 1 of the others.
#[test]
fn a_full_device_is_for_now_with_every_tool() {
    let store = Store::new();
    store.send("q", &seq(1, 3));
    for command in [
        "mq-recv -e q",
        "mq-pipe -e q - -- cat",
        "mq-admin ls",
        "mq-admin show -J q",
        "mq-stat -b -n1 -i 100ms",
        "mq-stat --prometheus",
        "mq-stat --prometheus -o /dev/full",
        "mq-send -T q -m x",
    ] {
        store.sh(&format!("{command} > /dev/full")).exits(75).says("No space left on device");
    }
}

/// The page said that none is counted into a pipe.
#[test]
fn attempts_are_counted_into_a_pipe_and_not_by_looking() {
    let store = Store::new();
    store.send("q", b"x\n");
    let attempt = |args: &[&str]| {
        store.run("mq-recv", &[args, &["-n1", "-F", "%a", "q"]].concat(), b"").ok().stdout
    };
    assert_eq!(attempt(&["--peek"]), b"0");
    assert_eq!(attempt(&[]), b"1");
}
