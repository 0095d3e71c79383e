//! The tools in a directory of their own, so that it is for a test to say what stands in for `mq-remote`.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use super::process::{self, Done, Running};
use super::{Store, tool};

/// See the module's page.
pub struct Bench {
    dir: tempfile::TempDir,
    pub store: Store,
}

impl Bench {
    /// Without `mq-remote`, or with a shell script in its place.
    pub fn new(helper: Option<&str>) -> Bench {
        // On the file system of the tools, so that links will do.
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        for name in ["mq-send", "mq-recv", "mq-admin", "mq-stat", "mq-serve", "mq-pipe"] {
            std::fs::hard_link(tool(name), dir.path().join(name)).expect("a link");
        }
        let bench = Bench { dir, store: Store::new() };
        if let Some(script) = helper {
            let helper = bench.file("mq-remote");
            std::fs::write(&helper, format!("#!/bin/sh\n{script}\n")).expect("written");
            std::fs::set_permissions(&helper, PermissionsExt::from_mode(0o755)).expect("runnable");
        }
        bench
    }

    /// A tool with its arguments, from this directory, and with no other in its path.
    pub fn command(&self, name: &str, args: &[&str]) -> Command {
        let mut own = Command::new(self.file(name));
        own.args(args);
        self.environment(&mut own, "/usr/bin:/bin".to_owned());
        own
    }

    /// A line of shell with these tools in its path.
    pub fn shell(&self, script: &str) -> Command {
        let mut own = Command::new("bash");
        own.args(["-o", "pipefail", "-c", script]);
        self.environment(&mut own, format!("{}:/usr/bin:/bin", self.dir.path().display()));
        own
    }

    /// That of the store, but for the path.
    fn environment(&self, own: &mut Command, path: String) {
        let of_store = self.store.command::<&str>("mq-send", &[]);
        for (key, value) in of_store.get_envs() {
            match value {
                Some(value) => own.env(key, value),
                None => own.env_remove(key),
            };
        }
        own.env("PATH", path).current_dir(of_store.get_current_dir().expect("set"));
    }

    /// Runs a tool to its end.
    #[track_caller]
    pub fn run(&self, name: &str, args: &[&str]) -> Done {
        process::run(self.command(name, args), b"")
    }

    /// Runs a tool to its end with `input` on its stdin.
    #[track_caller]
    pub fn feed(&self, name: &str, args: &[&str], input: &[u8]) -> Done {
        process::run(self.command(name, args), input)
    }

    /// Runs a line of shell to its end.
    #[track_caller]
    pub fn sh(&self, script: &str) -> Done {
        process::run(self.shell(script), b"")
    }

    /// Starts a tool with pipes on all three of its descriptors.
    #[track_caller]
    pub fn spawn(&self, name: &str, args: &[&str]) -> Running {
        Running::start(self.command(name, args))
    }

    /// A file in the directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}
