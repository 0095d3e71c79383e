//! A directory tree: copied, synced, removed.
//!
//! A copy shares the blocks of its files with the original where the file system can do that
//! (reflinks), and is a true copy elsewhere; holes stay holes. It is never a hard link: what is
//! written into the copy must not show in the original.
//!
//! ```text
//! regular files    contents, permissions, time of change; hard links become files of their own
//! directories      permissions; their contents
//! symbolic links   as they are; never followed
//! anything else    left out: a socket or a FIFO means nothing without its process
//! ```

use std::io;
use std::path::{Path, PathBuf};

use super::StateError;
use super::files::{Files, Kind};
use crate::limits;

/// Directories in each other.
const DEPTH_MAX: usize = 64;

/// What there is in a tree, each directory before its contents.
fn entries<F: Files>(files: &F, root: &Path) -> Result<Vec<(PathBuf, Kind)>, StateError> {
    let kind = files.kind(root).map_err(StateError::io("look at", root))?;
    let mut found = vec![(PathBuf::new(), kind)];
    let mut at = 0;
    while at < found.len() {
        let (inside, kind) = found[at].clone();
        at += 1;
        if kind != Kind::Directory {
            continue;
        }
        if inside.components().count() >= DEPTH_MAX {
            return Err(StateError::TooDeep { path: root.join(inside) });
        }
        let path = root.join(&inside);
        for (name, kind) in files.list(&path).map_err(StateError::io("read", &path))? {
            if found.len() > limits::STATE_ENTRIES_MAX {
                return Err(StateError::TooMany { path: root.to_owned() });
            }
            found.push((inside.join(name), kind));
        }
    }
    Ok(found)
}

/// Copies a tree to a place where nothing is.
pub(super) fn copy<F: Files>(files: &F, from: &Path, to: &Path) -> Result<(), StateError> {
    let entries = entries(files, from)?;
    for (inside, kind) in &entries {
        let (from, to) = (from.join(inside), to.join(inside));
        match kind {
            Kind::Directory => files.make_dir(&to, false).map_err(StateError::io("make", &to))?,
            Kind::File => files.copy_file(&from, &to).map_err(StateError::io("copy", &from))?,
            Kind::Link => files.copy_link(&from, &to).map_err(StateError::io("copy", &from))?,
            Kind::Other => {}
        }
    }
    // From the innermost on, as nothing can be made in one that must not be written to.
    for (inside, _) in entries.iter().rev().filter(|(_, kind)| *kind == Kind::Directory) {
        let (from, to) = (from.join(inside), to.join(inside));
        files.copy_mode(&from, &to).map_err(StateError::io("set the mode of", &to))?;
    }
    Ok(())
}

/// Syncs all that is in a tree, and its own directory.
pub(super) fn sync<F: Files>(files: &F, root: &Path) -> Result<(), StateError> {
    for (inside, kind) in entries(files, root)?.iter().rev() {
        if matches!(kind, Kind::Directory | Kind::File) {
            sync_one(files, &root.join(inside))?;
        }
    }
    Ok(())
}

/// Syncs a file, or the entries of a directory.
pub(super) fn sync_one<F: Files>(files: &F, path: &Path) -> Result<(), StateError> {
    files.sync(path).map_err(StateError::io("sync", path))
}

/// Removes a tree, whatever its permissions.
pub(super) fn remove<F: Files>(files: &F, root: &Path) -> Result<(), StateError> {
    match files.remove_all(root) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => return other.map_err(StateError::io("remove", root)),
    }
    open_up(files, root, 0)?;
    files.remove_all(root).map_err(StateError::io("remove", root))
}

/// Lets the owner into all directories of a tree.
fn open_up<F: Files>(files: &F, dir: &Path, depth: usize) -> Result<(), StateError> {
    files.open_up(dir).map_err(StateError::io("open", dir))?;
    if depth > DEPTH_MAX {
        return Err(StateError::TooDeep { path: dir.to_owned() });
    }
    for (name, kind) in files.list(dir).map_err(StateError::io("read", dir))? {
        if kind == Kind::Directory {
            open_up(files, &dir.join(name), depth + 1)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File, Permissions};
    use std::io::Write;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::os::unix::net::UnixListener;
    use std::time::{Duration, SystemTime};

    use super::super::files::{MODE, System};
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).expect("it is there").permissions().mode() & MODE
    }

    #[test]
    fn a_copy_is_the_same_and_shares_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("sub/empty")).expect("made");
        fs::write(from.join("sub/file"), "content").expect("written");
        fs::write(from.join("script"), "#!/bin/sh\n").expect("written");
        fs::set_permissions(from.join("script"), Permissions::from_mode(0o4755)).expect("set");
        let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        File::options()
            .append(true)
            .open(from.join("sub/file"))
            .expect("it is there")
            .set_modified(old)
            .expect("set");
        fs::hard_link(from.join("sub/file"), from.join("linked")).expect("linked");
        symlink("/nowhere/at/all", from.join("dangling")).expect("linked");
        symlink("sub", from.join("link")).expect("linked");
        let _socket = UnixListener::bind(from.join("socket")).expect("bound");
        rustix::fs::mkfifoat(rustix::fs::CWD, from.join("fifo"), 0o600.into()).expect("made");
        fs::set_permissions(from.join("sub"), Permissions::from_mode(0o555)).expect("set");

        copy(&System, &from, &to).expect("copied");
        sync(&System, &to).expect("synced");
        let read = |name: &str| fs::read_to_string(to.join(name)).expect(name);
        assert_eq!((read("sub/file"), read("linked")), ("content".into(), "content".into()));
        assert_eq!(
            fs::metadata(to.join("sub/file")).expect("there").modified().expect("a time"),
            old
        );
        assert_eq!(mode(&to.join("script")), 0o4755);
        assert_eq!(mode(&to.join("sub")), 0o555);
        assert_eq!(
            fs::read_link(to.join("dangling")).expect("a link"),
            Path::new("/nowhere/at/all")
        );
        assert!(fs::symlink_metadata(to.join("link")).expect("there").is_symlink());
        assert!(to.join("sub/empty").is_dir());
        assert!(!to.join("socket").exists() && !to.join("fifo").exists());

        File::options()
            .write(true)
            .open(to.join("linked"))
            .expect("it can be written")
            .write_all(b"CHANGED")
            .expect("written");
        assert_eq!(fs::read_to_string(from.join("linked")).expect("there"), "content");
        assert_eq!(read("sub/file"), "content", "a hard link is a file of its own");
        remove(&System, &to).expect("removed, though a directory in it is read-only");
        assert!(!to.exists());
        remove(&System, &to).expect("removing nothing is no error");
        remove(&System, &from).expect("removed");
    }

    #[test]
    fn a_tree_without_end_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut deep = dir.path().join("from");
        (0..DEPTH_MAX + 2).for_each(|_| deep.push("d"));
        fs::create_dir_all(&deep).expect("made");
        let error =
            copy(&System, &dir.path().join("from"), &dir.path().join("to")).expect_err("too deep");
        assert!(matches!(error, StateError::TooDeep { .. }), "{error}");
    }
}
