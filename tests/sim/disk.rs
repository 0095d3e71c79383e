//! A simulated disk: page cache, durable media, directories, and everything that goes wrong
//! with them, decided by one seed.
//!
//! It is as hostile as any file system may be: at a crash each unsynced sector keeps any of the
//! contents it had since its last sync, each unsynced change of a directory happens or does not,
//! and a file's length is any that it had. A rename is atomic, and a sector where it is not told to
//! tear them. An error of a
//! writeback is told to each open handle once, after which the pages count as clean although
//! they were lost. Used by the tests of the log and by the simulator of the whole server.

#![allow(dead_code)] // Each test binary uses its part of this.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use mq::log::storage::{OpenDir, Space, Storage, StorageFile};
use mq::units::{Bytes, Position};

const SECTOR: usize = 512;

/// The size of a disk that never fills.
pub const ENDLESS: u64 = 1 << 40;

/// Calls that a full disk refuses.
const TAKES_SPACE: [&str; 5] = ["write_all_at", "allocate", "create", "create_dir", "rename"];

/// Whether what happens is told, as `MQ_SIM_TRACE` asks for.
pub fn is_tracing() -> bool {
    static TRACES: OnceLock<bool> = OnceLock::new();
    *TRACES.get_or_init(|| std::env::var_os("MQ_SIM_TRACE").is_some())
}

/// SplitMix64: small, and the same everywhere.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`, which is not 0.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// What a call does instead of succeeding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// An I/O error. A write leaves a part behind, a sync loses what it should have written.
    Eio,
    /// No space. A write leaves a part behind.
    Enospc,
    /// The process dies in the middle of the call: a write leaves a part behind.
    Kill,
}

#[derive(Clone, Debug, Default)]
struct FileNode {
    live: Vec<u8>,
    durable: Vec<u8>,
    /// The contents that each unsynced sector had since the last sync.
    unsynced: BTreeMap<usize, Vec<[u8; SECTOR]>>,
    /// The lengths that the file had since the last sync.
    lengths: Vec<usize>,
    allocated: u64,
    /// Errors of writebacks so far.
    errors: u64,
    handles: u64,
    links: u64,
    /// A file in memory with the same contents, once a descriptor was handed out.
    mirror: Option<Arc<File>>,
}

#[derive(Clone, Debug, Default)]
struct DirNode {
    live: BTreeMap<OsString, usize>,
    durable: BTreeMap<OsString, usize>,
    unsynced: Vec<DirChange>,
}

#[derive(Clone, Debug)]
enum DirChange {
    Add(OsString, usize),
    Remove(OsString, usize),
    Rename(OsString, OsString, usize),
}

#[derive(Clone, Debug)]
enum Node {
    File(FileNode),
    Dir(DirNode),
}

#[derive(Clone, Debug)]
struct State {
    nodes: Vec<Node>,
    random: Random,
    calls: u64,
    /// The call that goes wrong, and how.
    fault: Option<(u64, Fault)>,
    faulted: Option<&'static str>,
    /// Every call with this name goes wrong.
    broken: Option<(&'static str, Fault)>,
    killed: bool,
    /// Whether the last refused call is the one that the fault was meant for.
    fresh: bool,
    capacity: u64,
    cold_one_in: Option<u64>,
    /// Descriptors are handed out, but for one in so many.
    refused_one_in: Option<u64>,
    /// One in so many reads and writes is interrupted, and one does only a part of its work.
    disturbed_one_in: Option<u64>,
    /// A crash may leave a sector half old and half new.
    tears: bool,
    trace: u64,
    reads: u64,
    writes: u64,
}

/// The disk. Clones are the same disk; see [`SimDisk::fork`] for a copy.
#[derive(Clone, Debug)]
pub struct SimDisk(Arc<Mutex<State>>);

/// An open file.
#[derive(Debug)]
pub struct SimFile {
    disk: SimDisk,
    node: usize,
    seen_errors: Mutex<u64>,
}

fn error(kind: io::ErrorKind, what: &str) -> io::Error {
    io::Error::new(kind, what.to_owned())
}

fn eio() -> io::Error {
    error(io::ErrorKind::Other, "simulated I/O error")
}

fn enospc() -> io::Error {
    error(io::ErrorKind::StorageFull, "simulated full disk")
}

/// A directory change by itself, applied to whatever a crash left of the others.
fn apply(entries: &mut BTreeMap<OsString, usize>, change: &DirChange) {
    match change {
        DirChange::Add(name, node) => {
            entries.insert(name.clone(), *node);
        }
        DirChange::Remove(name, node) => {
            if entries.get(name) == Some(node) {
                entries.remove(name);
            }
        }
        DirChange::Rename(from, to, node) => {
            if entries.get(from) == Some(node) {
                entries.remove(from);
            }
            entries.insert(to.clone(), *node);
        }
    }
}

impl FileNode {
    fn used(&self) -> u64 {
        if self.links == 0 && self.handles == 0 {
            return 0;
        }
        self.allocated.max(self.live.len() as u64).next_multiple_of(4096)
    }

    fn write(&mut self, at: usize, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let end = at + bytes.len();
        if end > self.live.len() {
            self.live.resize(end, 0);
            self.lengths.push(end);
        }
        self.live[at..end].copy_from_slice(bytes);
        self.reflect(at, end);
        for sector in at / SECTOR..=(end - 1) / SECTOR {
            let content = self.sector(sector);
            self.unsynced.entry(sector).or_default().push(content);
        }
    }

    /// What was changed shows to those who have a descriptor.
    fn reflect(&self, from: usize, to: usize) {
        let Some(mirror) = &self.mirror else { return };
        mirror.set_len(self.live.len() as u64).expect("a file in memory");
        mirror.write_all_at(&self.live[from..to], from as u64).expect("a file in memory");
    }

    /// The file in memory.
    fn mirror(&mut self) -> &File {
        if self.mirror.is_none() {
            let memory = rustix::fs::memfd_create("segment", rustix::fs::MemfdFlags::CLOEXEC);
            self.mirror = Some(Arc::new(File::from(memory.expect("a file in memory"))));
            self.reflect(0, self.live.len());
        }
        self.mirror.as_ref().expect("it was just made")
    }

    fn sector(&self, sector: usize) -> [u8; SECTOR] {
        let mut content = [0u8; SECTOR];
        let from = (sector * SECTOR).min(self.live.len());
        let to = (from + SECTOR).min(self.live.len());
        content[..to - from].copy_from_slice(&self.live[from..to]);
        content
    }

    fn truncate(&mut self, length: usize) {
        self.allocated = length as u64;
        if length == self.live.len() {
            return;
        }
        self.live.resize(length, 0);
        self.reflect(length, length);
        self.lengths.push(length);
        if !length.is_multiple_of(SECTOR) {
            let sector = length / SECTOR;
            let content = self.sector(sector);
            self.unsynced.entry(sector).or_default().push(content);
        }
    }

    fn synced(&mut self) {
        // What was not written since is there already, but for lengths.
        if let Some(least) = self.lengths.iter().min() {
            self.durable.truncate(*least);
        }
        self.durable.resize(self.live.len(), 0);
        for sector in std::mem::take(&mut self.unsynced).into_keys() {
            let from = (sector * SECTOR).min(self.live.len());
            let to = (from + SECTOR).min(self.live.len());
            self.durable[from..to].copy_from_slice(&self.live[from..to]);
        }
        self.lengths.clear();
    }

    /// A writeback failed: the pages count as clean, what was in them never reaches the disk.
    fn lost(&mut self) {
        self.unsynced.clear();
        self.lengths.clear();
        self.errors += 1;
    }

    fn crash(&mut self, choose: &mut dyn FnMut(u64) -> u64, tears: bool) {
        let mut media = self.durable.clone();
        for (sector, contents) in std::mem::take(&mut self.unsynced) {
            let pick = choose(contents.len() as u64 + 1) as usize;
            if let Some(content) = contents.get(pick) {
                let from = sector * SECTOR;
                if media.len() < from + SECTOR {
                    media.resize(from + SECTOR, 0);
                }
                let torn = tears && choose(4) == 0;
                let new = if torn { choose(SECTOR as u64) as usize } else { SECTOR };
                media[from..from + new].copy_from_slice(&content[..new]);
            }
        }
        let lengths = std::mem::take(&mut self.lengths);
        let pick = choose(lengths.len() as u64 + 1) as usize;
        media.resize(lengths.get(pick).copied().unwrap_or(self.durable.len()), 0);
        self.allocated = media.len() as u64;
        self.durable.clone_from(&media);
        self.live = media;
        self.errors = 0;
        self.handles = 0;
        self.mirror = None;
    }
}

impl State {
    /// Counts a call and says what goes wrong with it.
    fn call(&mut self, name: &'static str, node: usize, a: u64, b: u64) -> Option<Fault> {
        self.fresh = !self.killed;
        if self.killed {
            return Some(Fault::Kill);
        }
        self.calls += 1;
        if is_tracing() {
            eprintln!("  disk: {name} of {node}: {a}, {b}");
        }
        for part in [self.calls, node as u64, a, b, name.len() as u64] {
            self.trace = (self.trace ^ part).wrapping_mul(0x0100_0000_01b3);
        }
        if let Some((_, fault)) = self.broken.filter(|(broken, _)| *broken == name) {
            self.faulted = Some(name);
            return Some(fault);
        }
        let (_, fault) = self.fault.filter(|(at, _)| *at == self.calls)?;
        if fault == Fault::Enospc && !TAKES_SPACE.contains(&name) {
            // The next call that takes space.
            self.fault = Some((self.calls + 1, fault));
            return None;
        }
        self.faulted = Some(name);
        if fault == Fault::Kill {
            self.killed = true;
        }
        Some(fault)
    }

    /// How many of so many bytes a read or a write gets through with one call.
    fn disturbed(&mut self, bytes: usize) -> io::Result<usize> {
        let Some(n) = self.disturbed_one_in else { return Ok(bytes) };
        if self.random.one_in(n) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let short = bytes > 1 && self.random.one_in(n);
        Ok(if short { 1 + self.random.below(bytes as u64 - 1) as usize } else { bytes })
    }

    fn refuse(fault: Fault) -> io::Error {
        match fault {
            Fault::Eio => eio(),
            Fault::Enospc => enospc(),
            Fault::Kill => error(io::ErrorKind::Other, "simulated kill"),
        }
    }

    fn dir(&mut self, node: usize) -> io::Result<&mut DirNode> {
        match &mut self.nodes[node] {
            Node::Dir(dir) => Ok(dir),
            Node::File(_) => Err(error(io::ErrorKind::NotADirectory, "not a directory")),
        }
    }

    fn file(&mut self, node: usize) -> &mut FileNode {
        match &mut self.nodes[node] {
            Node::File(file) => file,
            Node::Dir(_) => panic!("a directory is no file"),
        }
    }

    fn find(&mut self, path: &Path) -> io::Result<usize> {
        let mut at = 0;
        for part in path.iter() {
            let missing = || error(io::ErrorKind::NotFound, "no such file or directory");
            at = *self.dir(at)?.live.get(part).ok_or_else(missing)?;
        }
        Ok(at)
    }

    fn parent(&mut self, path: &Path) -> io::Result<(usize, OsString)> {
        let dir = self.find(path.parent().unwrap_or(Path::new("")))?;
        Ok((dir, path.file_name().expect("a path has a name").to_owned()))
    }

    fn change(&mut self, dir: usize, change: DirChange) {
        let dir = self.dir(dir).expect("a directory");
        apply(&mut dir.live, &change);
        dir.unsynced.push(change);
    }

    fn add(&mut self, path: &Path, node: Node) -> io::Result<usize> {
        let (dir, name) = self.parent(path)?;
        if self.dir(dir)?.live.contains_key(&name) {
            return Err(error(io::ErrorKind::AlreadyExists, "exists"));
        }
        self.nodes.push(node);
        let number = self.nodes.len() - 1;
        self.change(dir, DirChange::Add(name, number));
        Ok(number)
    }

    fn unlink(&mut self, node: usize) {
        if let Node::File(file) = &mut self.nodes[node] {
            file.links -= 1;
        }
    }

    fn used(&self) -> u64 {
        let files = self.nodes.iter().filter_map(|node| match node {
            Node::File(file) => Some(file.used()),
            Node::Dir(_) => None,
        });
        files.sum()
    }

    fn room(&self) -> u64 {
        if self.capacity == ENDLESS {
            return ENDLESS;
        }
        self.capacity.saturating_sub(self.used())
    }
}

impl SimDisk {
    /// An empty disk.
    pub fn new(seed: u64) -> SimDisk {
        SimDisk(Arc::new(Mutex::new(State {
            nodes: vec![Node::Dir(DirNode::default())],
            random: Random(seed),
            calls: 0,
            fault: None,
            faulted: None,
            broken: None,
            killed: false,
            fresh: false,
            capacity: ENDLESS,
            cold_one_in: None,
            refused_one_in: None,
            disturbed_one_in: None,
            tears: false,
            trace: 0xcbf2_9ce4_8422_2325,
            reads: 0,
            writes: 0,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// A copy that goes its own way.
    pub fn fork(&self) -> SimDisk {
        let mut state = self.state().clone();
        for node in &mut state.nodes {
            if let Node::File(file) = node {
                file.handles = 0;
                file.mirror = None;
            }
        }
        SimDisk(Arc::new(Mutex::new(state)))
    }

    /// Does something that no fault disturbs.
    pub fn undisturbed<T>(&self, act: impl FnOnce() -> T) -> T {
        let held = {
            let mut state = self.state();
            let held = (state.fault.take(), state.killed, state.calls, state.trace);
            state.killed = false;
            held
        };
        let result = act();
        let mut state = self.state();
        (state.fault, state.killed, state.calls, state.trace) = held;
        result
    }

    /// Sets the random numbers from here on.
    pub fn reseed(&self, seed: u64) {
        self.state().random = Random(seed);
    }

    /// Calls so far.
    pub fn calls(&self) -> u64 {
        self.state().calls
    }

    /// Reads and writes so far.
    pub fn traffic(&self) -> (u64, u64) {
        let state = self.state();
        (state.reads, state.writes)
    }

    /// A hash of all calls so far.
    pub fn trace(&self) -> u64 {
        self.state().trace
    }

    /// Makes the call that is `n` calls from now go wrong.
    pub fn fail_in(&self, n: u64, fault: Fault) {
        let mut state = self.state();
        state.fault = Some((state.calls + n, fault));
        state.faulted = None;
    }

    /// Nothing that was planted is to happen any more.
    pub fn forget_faults(&self) {
        let mut state = self.state();
        (state.fault, state.broken) = (None, None);
    }

    /// Makes every call of this name go wrong, or none any more.
    pub fn break_calls(&self, name: Option<(&'static str, Fault)>) {
        self.state().broken = name;
    }

    /// The name of the call that went wrong, if the fault happened.
    pub fn faulted(&self) -> Option<&'static str> {
        self.state().faulted
    }

    /// Whether the process was killed by a fault.
    pub fn is_killed(&self) -> bool {
        self.state().killed
    }

    /// The size of the disk, in bytes.
    pub fn set_capacity(&self, bytes: u64) {
        self.state().capacity = bytes;
    }

    /// See [`SimDisk::set_capacity`].
    pub fn capacity(&self) -> u64 {
        self.state().capacity
    }

    /// Bytes in use.
    pub fn used(&self) -> u64 {
        self.state().used()
    }

    /// Interrupts one in `n` reads and writes, and lets one in `n` do only a part of its work.
    pub fn disturb(&self, one_in: Option<u64>) {
        self.state().disturbed_one_in = one_in;
    }

    /// From now on a crash may leave a sector whose first bytes are new and whose last are old.
    pub fn tear_sectors(&self) {
        self.state().tears = true;
    }

    /// The file's pages and what is on the disk of them are given another content from `at` on,
    /// without anyone having written it.
    pub fn spoil(&self, path: &Path, at: usize, change: &dyn Fn(&mut [u8])) {
        let mut state = self.state();
        let node = state.find(path).expect("a file to spoil");
        let file = state.file(node);
        for media in [&mut file.live, &mut file.durable] {
            if at < media.len() {
                change(&mut media[at..]);
            }
        }
        file.reflect(0, file.live.len());
        let sector = at / SECTOR;
        if let Some(contents) = file.unsynced.get_mut(&sector) {
            contents.iter_mut().for_each(|content| change(&mut content[at % SECTOR..]));
        }
    }

    /// Whether a directory stands there.
    pub fn is_dir(&self, path: &Path) -> io::Result<bool> {
        let mut state = self.state();
        let node = state.find(path)?;
        Ok(matches!(state.nodes[node], Node::Dir(_)))
    }

    /// A number that the disk's seed gives.
    pub fn draw(&self) -> u64 {
        self.state().random.next()
    }

    /// The bytes of a file, as a process reads them.
    pub fn contents(&self, path: &Path) -> Vec<u8> {
        let mut state = self.state();
        let node = state.find(path).expect("a file to read");
        state.file(node).live.clone()
    }

    /// Says "cold" once in `n` questions.
    pub fn set_cold(&self, one_in: Option<u64>) {
        self.state().cold_one_in = one_in;
    }

    /// Hands out descriptors for reading, refusing one in so many.
    pub fn hand_out(&self, refused_one_in: Option<u64>) {
        self.state().refused_one_in = refused_one_in;
    }

    /// The process is gone; the page cache stays. Open handles must not be used any more.
    pub fn revive(&self) {
        let mut state = self.state();
        state.killed = false;
        state.fault = None;
        state.faulted = None;
        state.broken = None;
    }

    /// The machine is gone and comes up again: what was not synced is there or not, in any
    /// mixture.
    pub fn crash(&self) {
        let mut random = Random(self.state().random.next());
        self.crash_choosing(&mut |n| random.below(n));
    }

    /// The same, where each question (which of so many contents, which of so many lengths, whether
    /// a change of a directory is there: 0) is answered by `choose` with a number below what it is
    /// given. What is asked depends on what was done alone, not on the answers.
    pub fn crash_choosing(&self, choose: &mut dyn FnMut(u64) -> u64) {
        let mut state = self.state();
        let tears = state.tears;
        for node in &mut state.nodes {
            match node {
                Node::File(file) => file.crash(choose, tears),
                Node::Dir(dir) => {
                    for change in std::mem::take(&mut dir.unsynced) {
                        if choose(2) == 0 {
                            apply(&mut dir.durable, &change);
                        }
                    }
                    dir.live.clone_from(&dir.durable);
                }
            }
        }
        state.count_links();
        drop(state);
        self.revive();
    }

    /// All files below a directory, in order, with their lengths.
    pub fn files(&self) -> Vec<(PathBuf, usize)> {
        let mut state = self.state();
        let mut found = Vec::new();
        let mut dirs = vec![(PathBuf::new(), 0)];
        while let Some((path, dir)) = dirs.pop() {
            for (name, node) in state.dir(dir).unwrap().live.clone() {
                let path = path.join(name);
                match &state.nodes[node] {
                    Node::File(file) => found.push((path, file.live.len())),
                    Node::Dir(_) => dirs.push((path, node)),
                }
            }
        }
        found.sort();
        found
    }

    /// Changes a file as no program would: both what is cached and what is on the disk.
    pub fn tamper(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state();
        let node = state.find(path).unwrap();
        let file = state.file(node);
        change(&mut file.live);
        file.reflect(0, file.live.len());
        file.durable.clone_from(&file.live);
        file.unsynced.clear();
        file.lengths.clear();
    }

    fn handle(&self, state: &mut State, node: usize) -> SimFile {
        let file = state.file(node);
        file.handles += 1;
        SimFile { disk: self.clone(), node, seen_errors: Mutex::new(file.errors) }
    }
}

impl State {
    /// After a crash: what no directory names is gone.
    fn count_links(&mut self) {
        let mut links = vec![0u64; self.nodes.len()];
        for node in &self.nodes {
            if let Node::Dir(dir) = node {
                dir.live.values().for_each(|node| links[*node] += 1);
            }
        }
        for (node, links) in self.nodes.iter_mut().zip(links) {
            if let Node::File(file) = node {
                file.links = links;
                file.handles = 0;
            }
        }
    }
}

impl Storage for SimDisk {
    type File = SimFile;

    fn open(&self, path: &Path) -> io::Result<SimFile> {
        let mut state = self.state();
        if let Some(fault) = state.call("open", 0, 0, 0) {
            return Err(State::refuse(fault));
        }
        let node = state.find(path)?;
        Ok(self.handle(&mut state, node))
    }

    fn create(&self, path: &Path) -> io::Result<SimFile> {
        let mut state = self.state();
        if let Some(fault) = state.call("create", 0, 0, 0) {
            return Err(State::refuse(fault));
        }
        let node = Node::File(FileNode { links: 1, ..FileNode::default() });
        let node = state.add(path, node)?;
        Ok(self.handle(&mut state, node))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        if let Some(fault) = state.call("rename", 0, 0, 0) {
            return Err(State::refuse(fault));
        }
        let node = state.find(from)?;
        let replaced = state.find(to).ok();
        let (dir, from) = state.parent(from)?;
        let (to_dir, to) = state.parent(to)?;
        assert_eq!(dir, to_dir, "renames stay in their directory");
        if let Some(replaced) = replaced {
            state.unlink(replaced);
        }
        state.change(dir, DirChange::Rename(from, to, node));
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        if let Some(fault) = state.call("remove_file", 0, 0, 0) {
            return Err(State::refuse(fault));
        }
        let node = state.find(path)?;
        let (dir, name) = state.parent(path)?;
        state.unlink(node);
        state.change(dir, DirChange::Remove(name, node));
        Ok(())
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        if let Some(fault) = state.call("create_dir", 0, 0, 0) {
            return Err(State::refuse(fault));
        }
        state.add(path, Node::Dir(DirNode::default())).map(|_| ())
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        if let Some(fault) = state.call("remove_dir", 0, 0, 0) {
            return Err(State::refuse(fault));
        }
        let node = state.find(path)?;
        if !state.dir(node)?.live.is_empty() {
            return Err(error(io::ErrorKind::DirectoryNotEmpty, "not empty"));
        }
        let (dir, name) = state.parent(path)?;
        state.change(dir, DirChange::Remove(name, node));
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        let mut state = self.state();
        if let Some(fault) = state.call("list", 0, 0, 0) {
            return Err(State::refuse(fault));
        }
        let node = state.find(path)?;
        Ok(state.dir(node)?.live.keys().cloned().collect())
    }

    fn open_dir(&self, path: &Path) -> io::Result<OpenDir<'_>> {
        self.state().find(path)?;
        let path = path.to_owned();
        Ok(Box::new(move || self.sync_dir(&path)))
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        let node = state.find(path)?;
        if let Some(fault) = state.call("sync_dir", node, 0, 0) {
            // Unlike pages of files, changes of directories stay in the journal that could not
            // be written: a later sync tries them again.
            return Err(State::refuse(fault));
        }
        let dir = state.dir(node)?;
        for change in std::mem::take(&mut dir.unsynced) {
            apply(&mut dir.durable, &change);
        }
        Ok(())
    }

    fn space(&self) -> io::Result<Space> {
        let mut state = self.state();
        if let Some(fault) = state.call("space", 0, 0, 0) {
            return Err(State::refuse(fault));
        }
        Ok(Space { available: Bytes(state.room()), total: Bytes(state.capacity) })
    }

    fn let_go(&self, files: Vec<Arc<SimFile>>) {
        drop(files);
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        if let Ok(mut state) = self.disk.0.lock() {
            let file = state.file(self.node);
            file.handles = file.handles.saturating_sub(1);
        }
    }
}

impl StorageFile for SimFile {
    fn len(&self) -> io::Result<Bytes> {
        let mut state = self.disk.state();
        if let Some(fault) = state.call("len", self.node, 0, 0) {
            return Err(State::refuse(fault));
        }
        Ok(Bytes(state.file(self.node).live.len() as u64))
    }

    fn read_some_at(&self, buffer: &mut [u8], position: Position) -> io::Result<usize> {
        let mut state = self.disk.state();
        if let Some(fault) = state.call("read_at", self.node, position.0, buffer.len() as u64) {
            return Err(State::refuse(fault));
        }
        state.reads += 1;
        let asked = state.disturbed(buffer.len())?;
        let live = &state.file(self.node).live;
        let from = (position.0 as usize).min(live.len());
        let to = (from + asked).min(live.len());
        buffer[..to - from].copy_from_slice(&live[from..to]);
        Ok(to - from)
    }

    fn write_some_at(&self, parts: &[IoSlice<'_>], position: Position) -> io::Result<usize> {
        let mut state = self.disk.state();
        let mut bytes = Vec::with_capacity(parts.iter().map(|part| part.len()).sum());
        parts.iter().for_each(|part| bytes.extend_from_slice(part));
        let at = position.0 as usize;
        let fault = state.call("write_all_at", self.node, position.0, bytes.len() as u64);
        if let Some(fault) = fault {
            if state.fresh {
                // Sometimes nothing, sometimes a part, sometimes all of it is left behind.
                let left = state.random.below(bytes.len() as u64 + 1) as usize;
                state.file(self.node).write(at, &bytes[..left]);
            }
            return Err(State::refuse(fault));
        }
        state.writes += 1;
        let asked = state.disturbed(bytes.len())?;
        bytes.truncate(asked);
        let file = state.file(self.node);
        let held = file.used();
        let end = (at + bytes.len()) as u64;
        let needed = end.max(file.allocated).next_multiple_of(4096).saturating_sub(held);
        let room = state.room();
        if needed > room {
            // What fits is written, and the next call says why that was all.
            let fits = ((held + room) as usize).saturating_sub(at).min(bytes.len());
            if fits == 0 {
                return Err(enospc());
            }
            bytes.truncate(fits);
        }
        state.file(self.node).write(at, &bytes);
        Ok(bytes.len())
    }

    fn allocate(&self, position: Position, bytes: Bytes) -> io::Result<()> {
        let mut state = self.disk.state();
        if let Some(fault) = state.call("allocate", self.node, position.0, bytes.0) {
            return Err(State::refuse(fault));
        }
        let file = state.file(self.node);
        let held = file.used();
        let allocated = file.allocated.max(position.0 + bytes.0);
        let needed = allocated.next_multiple_of(4096).saturating_sub(held);
        if needed > state.room() {
            return Err(enospc());
        }
        state.file(self.node).allocated = allocated;
        Ok(())
    }

    fn truncate(&self, length: Bytes) -> io::Result<()> {
        let mut state = self.disk.state();
        if let Some(fault) = state.call("truncate", self.node, length.0, 0) {
            return Err(State::refuse(fault));
        }
        state.file(self.node).truncate(length.0 as usize);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        let fault = state.call("sync", self.node, 0, 0);
        let file = state.file(self.node);
        match fault {
            Some(Fault::Kill) => return Err(State::refuse(Fault::Kill)),
            Some(_) => file.lost(),
            None => file.synced_if_clean(),
        }
        let mut seen = self.seen_errors.lock().unwrap();
        let errors = state.file(self.node).errors;
        if *seen < errors {
            *seen = errors;
            return Err(eio());
        }
        Ok(())
    }

    fn is_cold(&self, _position: Position, _bytes: Bytes) -> bool {
        let mut state = self.disk.state();
        match state.cold_one_in {
            Some(n) => state.random.one_in(n),
            None => false,
        }
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn reader(&self) -> Option<OwnedFd> {
        let mut state = self.disk.state();
        let one_in = state.refused_one_in?;
        if state.random.one_in(one_in) {
            return None;
        }
        let reader = state.file(self.node).mirror().try_clone();
        Some(reader.expect("the test has descriptors").into())
    }
}

impl FileNode {
    /// Writes back what is dirty; what a failed writeback lost stays lost.
    fn synced_if_clean(&mut self) {
        if self.errors == 0 {
            return self.synced();
        }
        if let Some(length) = self.lengths.last() {
            self.durable.resize(*length, 0);
        }
        for (sector, contents) in std::mem::take(&mut self.unsynced) {
            let content = contents.last().expect("an unsynced sector has a content");
            let from = sector * SECTOR;
            if self.durable.len() < from + SECTOR {
                self.durable.resize(from + SECTOR, 0);
            }
            self.durable[from..from + SECTOR].copy_from_slice(content);
        }
        self.durable.resize(self.live.len(), 0);
        self.lengths.clear();
    }
}
