//! A small file system in memory with a store on it, which only root can make.

use std::path::{Path, PathBuf};

use super::{Store, process};

/// A file system of a few megabytes with a store on it.
pub struct SmallDisk {
    /// The store.
    pub store: Store,
    at: PathBuf,
}

impl SmallDisk {
    /// One of this size; `None` where that is not allowed.
    pub fn mount(mebibytes: u32) -> Option<SmallDisk> {
        let store = Store::new().named("disk/store");
        let at = store.beside("disk");
        std::fs::create_dir(&at).expect("room");
        let script = format!("mount -t tmpfs -o size={mebibytes}m,mode=700 mq-test disk");
        (store.sh(&script).code == 0).then_some(SmallDisk { store, at })
    }

    /// Takes all the room there is.
    pub fn fill(&self) -> PathBuf {
        let path = self.at.join("filler");
        let mut command = self.store.shell("head -c 1G /dev/zero >> \"$0\"");
        command.arg(&path);
        assert_ne!(process::run(command, b"").code, 0, "the disk is full now");
        path
    }

    /// Bytes that are free.
    pub fn free(&self) -> u64 {
        free_of(&self.at)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        self.store.end_servers();
        self.store.sh("umount -l disk");
    }
}

fn free_of(path: &Path) -> u64 {
    let stat = rustix::fs::statvfs(path).expect("mounted");
    stat.f_bavail * stat.f_frsize
}
