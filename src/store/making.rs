//! Making the store directory, and what is missing above it, so that its owner can use it.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use super::error::MAKING;
use super::{StoreError, sync_entry};

/// Makes the directory and what is missing above it, and makes each new entry durable.
pub(super) fn make(path: &Path) -> Result<(), StoreError> {
    let error = |source| StoreError::Io { doing: MAKING, path: path.to_path_buf(), source };
    if path.symlink_metadata().is_ok() {
        return Ok(());
    }
    if let Some(blocked) = what_is_in_the_way(path) {
        return Err(blocked);
    }
    let mut missing: Vec<&Path> =
        path.ancestors().skip(1).take_while(|above| !above.exists()).collect();
    for above in missing.iter().rev() {
        make_directory(above, 0o777).map_err(error)?;
    }
    make_directory(path, 0o700).map_err(error)?;
    missing.insert(0, path);
    missing.into_iter().try_for_each(sync_entry)
}

/// What stands where a directory above `path` would have to be, if anything does.
pub(super) fn what_is_in_the_way(path: &Path) -> Option<StoreError> {
    let nearest = path.ancestors().skip(1).find(|above| above.symlink_metadata().is_ok())?;
    // One that cannot be looked at because of what is above it is not in the way itself.
    let is_in_the_way = match nearest.metadata() {
        Ok(found) => !found.is_dir(),
        Err(_) => nearest.is_symlink(),
    };
    is_in_the_way
        .then(|| StoreError::InTheWay { path: path.to_path_buf(), above: nearest.to_path_buf() })
}

/// Makes one directory, that its owner can use whatever the umask.
fn make_directory(path: &Path, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    match std::fs::DirBuilder::new().mode(mode).create(path) {
        Ok(()) => {}
        // Another process was faster; the store is checked like any other.
        Err(other) if other.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        Err(other) => return Err(other),
    }
    // It may be so closed that it cannot even be opened to have that changed.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::open(path, flags, Mode::empty())?;
    let missing = missing_for_owner(&dir, Mode::RWXU)?;
    if let Some(mode) = missing {
        rustix::fs::chmod(format!("/proc/self/fd/{}", dir.as_raw_fd()), mode)?;
    }
    Ok(())
}

/// A file that was just made can be opened again by its owner, whatever the umask.
pub(super) fn for_its_owner(file: OwnedFd) -> rustix::io::Result<OwnedFd> {
    if let Some(mode) = missing_for_owner(&file, Mode::RUSR | Mode::WUSR)? {
        rustix::fs::fchmod(&file, mode)?;
    }
    Ok(file)
}

/// The mode that a file of ours lacks something to, with it.
fn missing_for_owner(file: &OwnedFd, wanted: Mode) -> rustix::io::Result<Option<Mode>> {
    let stat = rustix::fs::fstat(file)?;
    let mode = Mode::from_raw_mode(stat.st_mode);
    let is_ours = stat.st_uid == rustix::process::geteuid().as_raw();
    Ok((is_ours && !mode.contains(wanted)).then_some(mode | wanted))
}
