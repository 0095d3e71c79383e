//! G16 and stores that must not be used: each is refused with a remedy, and not touched.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::harness::{Running, Store, eventually, is_root, peer::Peer, process, skip, tool};
use crate::seq;

/// Sets the permission bits of a file.
pub fn set_mode(path: &Path, mode: u32) -> std::io::Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

fn made(store: &Store) {
    store.send("q", b"a\n");
    store.run("mq-admin", &["stop"], b"").ok();
}

#[test]
fn a_store_is_made_for_its_owner_alone() {
    let store = Store::new();
    store.sh("umask 000; mq-send q -m x").ok();
    for (name, mode) in [("", 0o700), ("queues", 0o700), ("queues/q", 0o700)] {
        let metadata = std::fs::metadata(store.path().join(name)).expect("it is there");
        assert_eq!(metadata.permissions().mode() & 0o7777, mode, "{name}");
    }
    let mut files = vec![store.path().to_owned()];
    while let Some(path) = files.pop() {
        let metadata = std::fs::symlink_metadata(&path).expect("it is there");
        assert_eq!(metadata.permissions().mode() & 0o077, 0, "{} is open", path.display());
        if metadata.is_dir() {
            files.extend(std::fs::read_dir(&path).expect("ours").map(|e| e.expect("ours").path()));
        }
    }
}

/// Once, the server of a store that was renamed went on by its path: at its end it overwrote files of the
/// new store there, which was damaged then, and `rm` removed a queue of the wrong one.
#[test]
fn a_server_stays_with_its_store_when_that_is_renamed() {
    let store = Store::new();
    store.send("q", b"old\n");
    let aside = store.beside("aside");
    std::fs::rename(store.path(), &aside).expect("ours");
    store.send("q", b"new\n");
    let aside = aside.to_str().expect("UTF-8");
    store.run("mq-send", &["--dir", aside, "made", "-m", "x"], b"").ok();
    let removed = store.run("mq-recv", &["--dir", aside, "-e", "q"], b"").ok();
    assert_eq!(removed.stdout, b"old\n");
    store.run("mq-admin", &["--dir", aside, "rm", "q"], b"").ok();
    std::fs::remove_file(store.beside("aside/sock")).expect("ours");
    eventually("it listens again where it is", || {
        store.beside("aside/sock").exists().then_some(())
    });
    store.run("mq-admin", &["--dir", aside, "stop"], b"").ok();
    // The new one was not touched, as its next server finds.
    store.kill_server();
    store.run("mq-admin", &["check"], b"").ok();
    assert_eq!(store.receive("q"), b"new\n");
    assert!(!store.path().join("queues/made").exists());
    let kept = store.run("mq-recv", &["--dir", aside, "-e", "made"], b"").ok();
    assert_eq!(kept.stdout, b"x\n");
    store.run("mq-admin", &["--dir", aside, "stop"], b"").ok();
}

/// A umask that takes something from the owner too left a store that nobody could use, and with it
/// directories above it that may be anybody's.
#[test]
fn a_store_is_made_usable_whatever_the_umask() {
    for umask in ["277", "777"] {
        let store = Store::new().named("some/where/store");
        store.sh(&format!("umask {umask}; mq-send q -m x")).ok();
        for (name, wanted) in [
            ("some", 0o700),
            ("some/where", 0o700),
            ("some/where/store", 0o700),
            ("some/where/store/queues", 0o700),
            ("some/where/store/lock", 0o600),
            ("some/where/store/server.log", 0o600),
            ("some/where/store/version", 0o600),
        ] {
            let mode = std::fs::metadata(store.beside(name)).expect("it is there").permissions();
            assert_eq!(mode.mode() & 0o7777, wanted, "{name} under umask {umask}");
        }
        store.run("mq-admin", &["stop"], b"").ok();
        assert_eq!(store.receive("q"), b"x\n");
    }
}

/// What was in the way was told as if it were the store, or not at all.
#[test]
fn what_is_in_the_way_of_a_store_is_named() {
    let store = Store::new();
    store.sh("touch file; ln -s nowhere dangling; ln -s circle circle").ok();
    let refused = |dir: &str, whys: &[&str]| {
        let done = store.run("mq-send", &["--dir", dir, "-m", "x", "q"], b"").exits(1);
        let done = done.says("try: another directory");
        for why in whys {
            assert!(done.stderr.contains(why), "{dir}: {}", done.stderr);
        }
    };
    refused("file", &["/file as the store: it is not a directory"]);
    refused("dangling", &["a symbolic link that leads to no directory", "No such file"]);
    refused("circle", &["a symbolic link that leads to no directory", "symbolic links"]);
    for below in ["file/x", "file/x/y"] {
        refused(below, &["no store at", "/file is not a directory"]);
    }
    refused("dangling/x", &["no store at", "/dangling is not a directory"]);
    let done = store.run("mq-admin", &["--dir", "file/x", "ls"], b"").exits(1);
    done.says("/file is not a directory");
    // Where nobody can make anything, not even root.
    refused("/proc/store", &["cannot make the store /proc/store"]);
}

/// Who made a store may have been killed before the names that lead to it were durable: the next server
/// makes sure of them, as all that it confirms hangs on them.
#[test]
fn a_start_after_a_kill_makes_the_way_to_the_store_durable() {
    let store = Store::new().named("some/where/store");
    if store.sh("strace -o /dev/null true").code != 0 {
        return skip("a_start_after_a_kill_makes_the_way...", "needs strace");
    }
    store.send("q", b"x\n");
    let traced = |store: &Store| {
        let script = "exec strace -f -y -qq -o trace -e trace=fsync mq-serve";
        let mut server = Running::start(store.shell(script));
        eventually("the server answers", || {
            assert!(!server.has_ended(), "{}", server.stderr());
            Peer::connect(store).ok()
        });
        store.run("mq-admin", &["stop"], b"").ok();
        server.await_end();
        std::fs::read_to_string(store.beside("trace")).expect("strace wrote it")
    };
    store.kill_server();
    let trace = traced(&store);
    for above in ["some/where", "some", ""] {
        let named = store.beside(above);
        let named = format!("<{}>", named.display().to_string().trim_end_matches('/'));
        assert!(trace.contains(&named), "{named} in {trace}");
    }
    assert!(!traced(&store).contains("/some>"), "after an end in order that is not needed");
}

#[test]
fn a_store_open_to_others_is_refused_with_the_remedy() {
    for mode in [0o755, 0o770, 0o701] {
        let store = Store::new();
        made(&store);
        set_mode(store.path(), mode).expect("ours");
        for args in [&["mq-send", "q", "-m", "x"][..], &["mq-recv", "-e", "q"], &["mq-serve"]] {
            let done = store.run(args[0], &args[1..], b"");
            assert_ne!(done.code, 0);
            done.says("chmod 700");
        }
        assert!(store.server().is_none());
        set_mode(store.path(), 0o700).expect("ours");
        assert_eq!(store.receive("q"), b"a\n", "nothing was touched");
    }
}

/// Another user's store, and another user's attempt on ours: both need root to be made.
#[test]
fn other_users_are_kept_out() {
    const NAME: &str = "other_users_are_kept_out";
    if !is_root() {
        return skip(NAME, "needs root to become another user");
    }
    let store = Store::new();
    made(&store);
    let nobody = Nobody::new(&store);
    if !nobody.can_run() {
        return skip(NAME, "setpriv cannot become user 65534 here");
    }
    // Nobody cannot even look into a directory of mode 0700.
    let done = nobody.run("mq-send", "q -m x");
    assert_ne!(done.code, 0);
    assert!(!done.stderr.is_empty());
    // Root would be let in by the kernel, and must refuse by itself.
    rustix::fs::chown(
        store.path(),
        Some(rustix::fs::Uid::from_raw(65534)),
        Some(rustix::fs::Gid::from_raw(65534)),
    )
    .expect("root may");
    let done = store.run("mq-send", &["q", "-m", "x"], b"");
    assert_ne!(done.code, 0);
    done.says("65534");
    assert!(store.server().is_none());
}

/// The socket's own check: someone who reaches it all the same is hung up on.
#[test]
fn a_connection_of_another_user_is_refused() {
    const NAME: &str = "a_connection_of_another_user_is_refused";
    if !is_root() {
        return skip(NAME, "needs root to become another user");
    }
    let store = Store::new();
    let _server = store.serve();
    let nobody = Nobody::new(&store);
    if !nobody.can_run() || store.sh("command -v perl").code != 0 {
        return skip(NAME, "needs setpriv and perl");
    }
    // The doors are opened behind the server's back.
    set_mode(store.path(), 0o777).expect("ours");
    set_mode(&store.path().join("sock"), 0o777).expect("ours");
    let script = "use Socket; socket(my $s, AF_UNIX, SOCK_STREAM, 0) or die; \
        connect($s, pack_sockaddr_un(\"$ARGV[0]/sock\")) or die \"connect: $!\"; \
        local $SIG{PIPE} = 'IGNORE'; local $SIG{ALRM} = sub { die 'not hung up on' }; alarm 20; \
        syswrite($s, 'x' x 8); my $heard = ''; \
        while (sysread($s, my $more, 4096)) { $heard .= $more } \
        die $heard if $heard =~ /mq wire/; print \"refused\\n\";";
    let mut command =
        store.shell("exec setpriv --reuid 65534 --clear-groups perl -e \"$0\" \"$MQ_DIR\"");
    command.arg(script);
    let done = process::run(command, b"").ok();
    assert_eq!(done.text(), "refused\n");
    set_mode(store.path(), 0o700).expect("ours");
}

/// A user that has nothing to do with the store, and the tools.
pub struct Nobody<'a> {
    store: &'a Store,
}

impl Nobody<'_> {
    /// Another user needs the tools where it can reach them.
    pub fn new(store: &Store) -> Nobody<'_> {
        let bin = store.beside("bin");
        std::fs::create_dir(&bin).expect("room");
        for name in ["mq-send", "mq-recv", "mq-serve", "mq-admin"] {
            std::fs::copy(tool(name), bin.join(name)).expect("room");
        }
        set_mode(&bin, 0o755).expect("ours");
        set_mode(bin.parent().expect("a parent"), 0o755).expect("ours");
        Nobody { store }
    }

    /// Whether we can become that user.
    pub fn can_run(&self) -> bool {
        self.run("mq-send", "--version").code == 0
    }

    /// Runs a tool as that user, in a group of its own.
    pub fn run(&self, tool: &str, args: &str) -> process::Done {
        self.store.sh(&format!("setpriv --reuid 65534 --clear-groups bin/{tool} {args}"))
    }
}

/// Needs another user than root, who may write everywhere.
#[test]
fn a_store_that_cannot_be_written_is_refused() {
    const NAME: &str = "a_store_that_cannot_be_written_is_refused";
    let store = Store::new();
    let nobody = Nobody::new(&store);
    if !is_root() || !nobody.can_run() {
        return skip(NAME, "needs root and setpriv to become another user");
    }
    std::fs::create_dir(store.path()).expect("room");
    set_mode(store.path(), 0o500).expect("ours");
    rustix::fs::chown(store.path(), Some(rustix::fs::Uid::from_raw(65534)), None).expect("root");
    let done = nobody.run("mq-send", "q -m x");
    assert_ne!(done.code, 0);
    done.says("writ");
    assert_eq!(std::fs::read_dir(store.path()).expect("root may").count(), 0);
}

/// A backup on a read-only file system once could not be checked.
#[test]
fn a_copy_that_cannot_be_written_is_checked() {
    const NAME: &str = "a_copy_that_cannot_be_written_is_checked";
    let store = Store::new();
    let nobody = Nobody::new(&store);
    if !is_root() || !nobody.can_run() {
        return skip(NAME, "needs root and setpriv to become another user");
    }
    store.send("q", b"the only line\n");
    store.run("mq-admin", &["stop"], b"").ok();
    store.sh("cp -r \"$MQ_DIR\" copy && chmod -R a-w,a+rX copy").ok();
    nobody.run("mq-admin", "--dir copy check").exits(1).says("check --offline");
    let done = nobody.run("mq-admin", "--dir copy check --offline").ok();
    assert!(done.stderr.contains("1 messages"), "{}", done.stderr);
    // What is wrong with a copy is found there as well.
    store.sh("cd copy/queues/q && sed -i 's/^\\(.*\\)only/\\1ONLY/' *.seg && chmod a+r *.seg").ok();
    nobody.run("mq-admin", "--dir copy check --offline").exits(1).says("findings");
}

#[test]
fn a_store_of_a_newer_version_is_refused_and_not_touched() {
    let store = Store::new();
    made(&store);
    let version = store.path().join("version");
    let ours = std::fs::read(&version).expect("a store names its version");
    std::fs::write(&version, "999\n").expect("ours");
    for args in [&["mq-send", "q", "-m", "x"][..], &["mq-recv", "-e", "q"], &["mq-serve"]] {
        let done = store.run(args[0], &args[1..], b"");
        assert_ne!(done.code, 0);
        done.says("999");
    }
    assert_eq!(std::fs::read(&version).expect("ours"), b"999\n");
    std::fs::write(&version, ours).expect("ours");
    assert_eq!(store.receive("q"), b"a\n");
}

#[test]
fn a_store_that_is_a_file_is_refused() {
    let store = Store::new();
    std::fs::write(store.path(), "a file").expect("room");
    let done = store.run("mq-send", &["q", "-m", "x"], b"");
    assert_ne!(done.code, 0);
    done.says("directory");
    assert_eq!(std::fs::read(store.path()).expect("ours"), b"a file");
}

/// A sender that was connected got its lines confirmed into files that were gone.
#[test]
fn a_store_that_is_deleted_under_its_server_takes_nothing_more() {
    let store = Store::new();
    let mut server = store.serve();
    let mut sender = store.spawn("mq-send", &["-T", "-w", "1s", "q"]);
    sender.write(b"before\n");
    assert_eq!(sender.line().as_deref(), Some("before"));
    std::fs::rename(store.path().join("queues"), store.beside("queues")).expect("ours");
    assert_ne!(server.await_end(), 0);
    server.await_stderr("the files of the store were deleted");
    std::fs::rename(store.beside("queues"), store.path().join("queues")).expect("ours");
    sender.write(b"after\n");
    sender.finish().ok();
    assert_eq!(store.receive("q"), b"before\nafter\n");
}

/// Any private directory used to become a store without a word, a home directory as well.
#[test]
fn a_directory_that_holds_other_things_does_not_become_a_store() {
    let store = Store::new();
    std::fs::create_dir(store.path()).expect("room");
    set_mode(store.path(), 0o700).expect("ours");
    std::fs::write(store.path().join("letter.txt"), "dear").expect("room");
    for args in [&["mq-send", "q", "-m", "x"][..], &["mq-recv", "-e", "q"], &["mq-serve"]] {
        let done = store.run(args[0], &args[1..], b"");
        assert_ne!(done.code, 0);
        done.says("letter.txt").says("not a store").says("a directory of its own");
    }
    assert_eq!(std::fs::read_dir(store.path()).expect("ours").count(), 1, "nothing was touched");
    std::fs::remove_file(store.path().join("letter.txt")).expect("ours");
    made(&store);
    // What is put into a store later does no harm.
    std::fs::write(store.path().join("letter.txt"), "dear").expect("room");
    assert_eq!(store.receive("q"), b"a\n");
}

#[test]
fn a_path_longer_than_a_socket_address_works() {
    let long = ["a-rather-long-name-of-a-directory"; 8].join("/");
    let store = Store::new().named(&long);
    assert!(store.path().as_os_str().len() > 200);
    store.sh("seq 1 5 | mq-send q && mq-recv -e q").ok().quietly();
    store.run("mq-admin", &["ls"], b"").ok();
    store.kill_server();
    store.send("q", b"again\n");
    assert_eq!(store.receive("q"), b"again\n");
}

#[test]
fn a_relative_path_and_a_path_with_spaces_work() {
    let store = Store::new().named("with space/and\nnewline");
    store.send("q", b"a\n");
    assert_eq!(store.receive("q"), b"a\n");
    let store = Store::new();
    store.sh("unset MQ_DIR; mq-send --dir store q -m x && cd / && mq-recv --dir \"$OLDPWD/store\" -e q").ok();
}

#[test]
fn our_own_symbolic_link_is_followed() {
    let store = Store::new();
    made(&store);
    let link = store.beside("link");
    std::os::unix::fs::symlink(store.path(), &link).expect("room");
    let done = store.sh("mq-send --dir link q -m b && mq-recv -e q").ok();
    assert_eq!(done.text(), "a\nb\n");
}

#[test]
fn the_default_store_lies_below_the_home_directory() {
    let store = Store::new().named(".local/state/mq");
    store.sh("unset MQ_DIR; mq-send q -m x").ok();
    assert_eq!(store.receive("q"), b"x\n", "HOME decides");
    // An empty MQ_DIR is none.
    store.sh("MQ_DIR= mq-send q -m y").ok();
    assert_eq!(store.receive("q"), b"y\n");
    // Nor does anything else in the environment decide.
    store.sh("unset MQ_DIR; XDG_STATE_HOME=$HOME/x XDG_RUNTIME_DIR=$HOME/y mq-send q -m z").ok();
    assert_eq!(store.receive("q"), b"z\n");
}

/// G11 as it shows from outside.
/// A user that no database knows once ended the tools by a segmentation fault: a program that is
/// linked statically must not ask the C library for users.
#[test]
fn a_user_without_a_home_is_told_to_name_the_store() {
    const NAME: &str = "a_user_without_a_home_is_told_to_name_the_store";
    let store = Store::new();
    let nobody = Nobody::new(&store);
    if !is_root() || !nobody.can_run() {
        return skip(NAME, "needs root and setpriv to become another user");
    }
    let run = |environment: &str, arguments: &str| {
        let user = "setpriv --reuid 54321 --clear-groups env -i";
        store.sh(&format!("{user} {environment} \"$PWD\"/bin/{arguments}"))
    };
    run("", "mq-send q -m x").exits(1).says("user 54321 has no home directory").says("--dir DIR");
    // A database that only getent can ask, and a home that is not there.
    let getent = "#!/bin/sh\necho \"me:x:$2:$2::/nonexistent:/bin/sh\"\n";
    std::fs::write(store.beside("bin/getent"), getent).expect("room for a script");
    store.sh("chmod +x bin/getent").ok();
    let asked = run("PATH=\"$PWD\"/bin:/usr/bin:/bin", "mq-send q -m x").exits(1);
    asked.says("/nonexistent/.local/state/mq");
}

#[test]
fn a_flipped_bit_stops_that_queue_and_no_other() {
    let store = Store::new();
    store.send("bad", &seq(1, 1000));
    store.send("good", &seq(1, 1000));
    store.run("mq-admin", &["stop"], b"").ok();
    let segment = std::fs::read_dir(store.path().join("queues/bad"))
        .expect("a queue is a directory")
        .map(|entry| entry.expect("ours").path())
        .find(|path| path.extension().is_some_and(|e| e == "seg"))
        .expect("a segment");
    let mut bytes = std::fs::read(&segment).expect("ours");
    let at = bytes.windows(4).position(|w| w == b"500\n").expect("the line is there");
    bytes[at] ^= 1;
    std::fs::write(&segment, &bytes).expect("ours");

    let done = store.run("mq-recv", &["-e", "bad"], b"");
    assert_ne!(done.code, 0, "damage is not the end of a queue");
    assert!(!done.stderr.is_empty());
    assert!(!done.stdout.windows(4).any(|w| w == b"400\n"), "nothing of the damaged batch comes");
    assert_eq!(store.receive("good"), seq(1, 1000));
    let done = store.run("mq-admin", &["check"], b"").exits(1);
    let report = done.text().to_owned() + &done.stderr;
    assert!(report.contains("bad") && report.contains(".seg"), "{report}");
    assert_eq!(std::fs::read(&segment).expect("ours"), bytes, "nothing was deleted or mended");
}

#[test]
fn a_queue_that_stands_still_lets_the_server_sleep_when_a_delayed_message_is_due() {
    let store = Store::new();
    store.send("bad", &seq(1, 1000));
    store.run("mq-send", &["--delay", "3s", "bad", "-m", "later"], b"").ok();
    store.run("mq-admin", &["stop"], b"").ok();
    let segment = std::fs::read_dir(store.path().join("queues/bad"))
        .expect("a queue is a directory")
        .map(|entry| entry.expect("ours").path())
        .find(|path| path.extension().is_some_and(|e| e == "seg"))
        .expect("a segment");
    let mut bytes = std::fs::read(&segment).expect("ours");
    let at = bytes.windows(4).position(|w| w == b"500\n").expect("the line is there");
    bytes[at] ^= 1;
    std::fs::write(&segment, &bytes).expect("ours");
    let server = store.serve();
    let done = store.run("mq-recv", &["-e", "bad"], b"");
    assert_ne!(done.code, 0);
    std::thread::sleep(std::time::Duration::from_secs(3));
    let before = cpu_ticks(server.pid().as_raw_nonzero().get());
    std::thread::sleep(std::time::Duration::from_secs(1));
    let spent = cpu_ticks(server.pid().as_raw_nonzero().get()) - before;
    assert!(spent < 20, "{spent} ticks of the processor in a second");
}

/// Hundredths of a second of the processor that a process has used.
fn cpu_ticks(pid: i32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let (_, behind) = stat.rsplit_once(')').expect("its name in brackets");
    behind.split_whitespace().skip(11).take(2).map(|n| n.parse::<u64>().expect("a number")).sum()
}
