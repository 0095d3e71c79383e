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

use std::fs::{self, File, FileType, OpenOptions, Permissions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, ioctl_ficlone};
use rustix::io::Errno;

use super::StateError;
use crate::limits;

/// The bits of a mode that are kept.
const MODE: u32 = 0o7777;

/// Directories in each other.
const DEPTH_MAX: usize = 64;

/// What there is in a tree, each directory before its contents.
fn entries(root: &Path) -> Result<Vec<(PathBuf, FileType)>, StateError> {
    let kind = fs::symlink_metadata(root).map_err(StateError::io("look at", root))?.file_type();
    let mut found = vec![(PathBuf::new(), kind)];
    let mut at = 0;
    while at < found.len() {
        let (inside, kind) = found[at].clone();
        at += 1;
        if !kind.is_dir() {
            continue;
        }
        if inside.components().count() >= DEPTH_MAX {
            return Err(StateError::TooDeep { path: root.join(inside) });
        }
        let path = root.join(&inside);
        for entry in fs::read_dir(&path).map_err(StateError::io("read", &path))? {
            let entry = entry.map_err(StateError::io("read", &path))?;
            let kind = entry.file_type().map_err(StateError::io("look at", &entry.path()))?;
            if found.len() > limits::STATE_ENTRIES_MAX {
                return Err(StateError::TooMany { path: root.to_owned() });
            }
            found.push((inside.join(entry.file_name()), kind));
        }
    }
    Ok(found)
}

/// Copies a tree to a place where nothing is.
pub(super) fn copy(from: &Path, to: &Path) -> Result<(), StateError> {
    let entries = entries(from)?;
    for (inside, kind) in &entries {
        let (from, to) = (from.join(inside), to.join(inside));
        if kind.is_dir() {
            fs::create_dir(&to).map_err(StateError::io("make", &to))?;
        } else if kind.is_file() {
            copy_file(&from, &to).map_err(StateError::io("copy", &from))?;
        } else if kind.is_symlink() {
            let target = fs::read_link(&from).map_err(StateError::io("read", &from))?;
            std::os::unix::fs::symlink(target, &to).map_err(StateError::io("make", &to))?;
        } else {
            debug_assert!(
                kind.is_fifo()
                    || kind.is_socket()
                    || kind.is_block_device()
                    || kind.is_char_device()
            );
        }
    }
    // From the innermost on, as nothing can be made in one that must not be written to.
    for (inside, _) in entries.iter().rev().filter(|(_, kind)| kind.is_dir()) {
        let (from, to) = (from.join(inside), to.join(inside));
        let mode = fs::symlink_metadata(&from).map_err(StateError::io("look at", &from))?;
        let mode = Permissions::from_mode(mode.permissions().mode() & MODE);
        fs::set_permissions(&to, mode).map_err(StateError::io("set the mode of", &to))?;
    }
    Ok(())
}

fn copy_file(from: &Path, to: &Path) -> io::Result<()> {
    let no_follow = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
    let source = OpenOptions::new().read(true).custom_flags(no_follow).open(from)?;
    let target = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
    if ioctl_ficlone(&target, &source).is_err() {
        copy_data(&source, &target)?;
    }
    let metadata = source.metadata()?;
    if let Ok(changed) = metadata.modified() {
        target.set_modified(changed)?;
    }
    target.set_permissions(Permissions::from_mode(metadata.permissions().mode() & MODE))
}

/// Copies what is not a hole.
fn copy_data(mut source: &File, mut target: &File) -> io::Result<()> {
    let length = source.metadata()?.len();
    target.set_len(length)?;
    let mut at = 0;
    while at < length {
        let (start, end) = match next_data(source, at) {
            Ok(Some((start, end))) => (start, end.min(length)),
            Ok(None) => return Ok(()),
            // Of a file system that does not know holes.
            Err(_) => (at, length),
        };
        source.seek(SeekFrom::Start(start))?;
        target.seek(SeekFrom::Start(start))?;
        let copied = io::copy(&mut source.take(end - start), &mut target)?;
        if copied < end - start {
            return Err(io::Error::other("it became shorter while it was copied"));
        }
        at = end;
    }
    Ok(())
}

/// The next data of a file at `at` or behind, if there is any.
fn next_data(file: &File, at: u64) -> Result<Option<(u64, u64)>, Errno> {
    match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(at)) {
        Ok(start) => {
            rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(start)).map(|end| Some((start, end)))
        }
        Err(Errno::NXIO) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Syncs all that is in a tree, and its own directory.
pub(super) fn sync(root: &Path) -> Result<(), StateError> {
    for (inside, kind) in entries(root)?.iter().rev() {
        if kind.is_dir() || kind.is_file() {
            sync_one(&root.join(inside))?;
        }
    }
    Ok(())
}

/// Syncs a file, or the entries of a directory.
pub(super) fn sync_one(path: &Path) -> Result<(), StateError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(StateError::io("sync", path))
}

/// Removes a tree, whatever its permissions.
pub(super) fn remove(root: &Path) -> Result<(), StateError> {
    match fs::remove_dir_all(root) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => return other.map_err(StateError::io("remove", root)),
    }
    open_up(root, 0)?;
    fs::remove_dir_all(root).map_err(StateError::io("remove", root))
}

/// Lets the owner into all directories of a tree.
fn open_up(dir: &Path, depth: usize) -> Result<(), StateError> {
    fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(StateError::io("open", dir))?;
    if depth > DEPTH_MAX {
        return Err(StateError::TooDeep { path: dir.to_owned() });
    }
    for entry in fs::read_dir(dir).map_err(StateError::io("read", dir))? {
        let entry = entry.map_err(StateError::io("read", dir))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            open_up(&entry.path(), depth + 1)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::{FileExt, MetadataExt, symlink};
    use std::os::unix::net::UnixListener;
    use std::time::{Duration, SystemTime};

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

        copy(&from, &to).expect("copied");
        sync(&to).expect("synced");
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
        remove(&to).expect("removed, though a directory in it is read-only");
        assert!(!to.exists());
        remove(&to).expect("removing nothing is no error");
        remove(&from).expect("removed");
    }

    #[test]
    fn holes_stay_holes() {
        let dir = tempfile::tempdir().expect("a directory");
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir(&from).expect("made");
        let sparse = File::create(from.join("sparse")).expect("made");
        sparse.set_len(1 << 30).expect("set");
        sparse.write_all_at(b"middle", 1 << 29).expect("written");
        fs::create_dir(&to).expect("made");
        let copy = File::create(to.join("copy")).expect("made");
        copy_data(&File::open(from.join("sparse")).expect("there"), &copy).expect("copied");
        let metadata = copy.metadata().expect("there");
        assert_eq!(metadata.len(), 1 << 30);
        assert!(metadata.blocks() < 1 << 12, "{} blocks", metadata.blocks());
        let mut middle = [0; 6];
        File::open(to.join("copy")).expect("there").read_exact_at(&mut middle, 1 << 29).expect("6");
        assert_eq!(&middle, b"middle");
    }

    #[test]
    fn a_tree_without_end_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut deep = dir.path().join("from");
        (0..DEPTH_MAX + 2).for_each(|_| deep.push("d"));
        fs::create_dir_all(&deep).expect("made");
        let error = copy(&dir.path().join("from"), &dir.path().join("to")).expect_err("too deep");
        assert!(matches!(error, StateError::TooDeep { .. }), "{error}");
    }
}
