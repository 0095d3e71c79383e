//! Which file systems lie on other machines: their locks and syncs cannot be relied on.

use std::os::fd::OwnedFd;

/// The `statfs` magic of every FUSE file system.
const FUSE_MAGIC: u32 = 0x6573_5546;

/// FUSE file systems whose files lie on other machines.
const NETWORK_FUSE: &[&str] = &[
    "fuse.sshfs",
    "fuse.rclone",
    "fuse.s3fs",
    "fuse.glusterfs",
    "fuse.ceph",
    "fuse.ceph-fuse",
    "fuse.gcsfuse",
    "fuse.davfs2",
    "fuse.juicefs",
    "fuse.mfs",
];

/// The name of the network file system that `dir` lies on; `None` for a local one.
///
/// # Errors
/// What the system says.
pub(super) fn network_kind(dir: &OwnedFd) -> rustix::io::Result<Option<&'static str>> {
    let magic = rustix::fs::fstatfs(dir)?.f_type as u32;
    Ok(if magic == FUSE_MAGIC { fuse_kind(dir) } else { by_magic(magic) })
}

/// What serves a FUSE file system, if it is one of those that go over a network. Others are
/// local; what cannot be found out is taken for local.
fn fuse_kind(dir: &OwnedFd) -> Option<&'static str> {
    let device = rustix::fs::fstat(dir).ok()?.st_dev;
    let device = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    // See proc_pid_mountinfo(5): the third field is the device, the kind stands behind " - ".
    let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some(&device))?;
    let kind = line.split_once(" - ")?.1.split(' ').next()?;
    NETWORK_FUSE.iter().find(|name| **name == kind).copied()
}

/// The name of a network file system by its `statfs` magic (from `linux/magic.h` and statfs(2)).
fn by_magic(magic: u32) -> Option<&'static str> {
    Some(match magic {
        0x6969 => "NFS",
        0x517b => "SMB",
        0xff53_4d42 => "CIFS",
        0xfe53_4d42 => "SMB2",
        0x5346_414f | 0x6b41_4653 => "AFS",
        0x00c3_6400 => "Ceph",
        0x0102_1997 => "9p",
        0x7375_7245 => "Coda",
        0x564c => "NCP",
        0x0bd0_0bd0 => "Lustre",
        0x4750_4653 => "GPFS",
        0x0116_1970 => "GFS2",
        0x7461_636f => "OCFS2",
        0x2030_528e => "Panasas",
        0x786f_4256 => "VirtualBox shared folder",
        _ => return None,
    })
}
