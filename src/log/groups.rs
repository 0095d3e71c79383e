//! The groups of a log: making and removing them, and what is noted to their journals.
//!
//! Plain writes; jobs install and sync. Called by the server for each settlement.

use super::error::LogError;
use super::journal::{GroupMark, Journal};
use super::log::{GroupFile, Log};
use super::position::{GroupAccount, GroupFact, GroupPosition};
use super::snapshot::Leaving;
use super::storage::Storage;
use crate::units::{Ending, Name, Offset, OffsetRange, Tally};

impl<S: Storage> Log<S> {
    /// Makes the journal of a group that has settled nothing yet.
    ///
    /// # Errors
    /// See [`add_group_at`](Log::add_group_at).
    pub fn add_group(&mut self, name: &Name) -> Result<GroupFile, LogError> {
        self.add_group_at(name, &GroupPosition::default())
    }

    /// Makes the journal of a group that begins at `position`. It can be used at once; it is
    /// durable when [`Progress::groups`](super::Progress::groups) names it.
    ///
    /// # Errors
    /// [`LogError::Exists`]; what the system says.
    pub fn add_group_at(
        &mut self,
        name: &Name,
        position: &GroupPosition,
    ) -> Result<GroupFile, LogError> {
        let leaves = |leaving: &Leaving| leaving.name == *name;
        if self.find_group(name).is_some() || self.chores.leaving.iter().any(leaves) {
            return Err(LogError::Exists(name.clone()));
        }
        let (id, spare) = (self.id(), &mut self.chores.spare);
        let journal = Journal::create(&*self.storage, spare, &self.dir, id, name, position)?;
        let group = GroupFile(self.next_group);
        self.next_group += 1;
        self.journals.insert(group, journal);
        Ok(group)
    }

    /// The group of this name.
    #[must_use]
    pub fn find_group(&self, name: &Name) -> Option<GroupFile> {
        self.journals.iter().find(|(_, journal)| journal.name == *name).map(|(group, _)| *group)
    }

    /// Removes a group, of which the queue keeps how its messages ended. It is gone for good when
    /// [`Progress::removed_groups`](super::Progress::removed_groups) names it.
    pub fn remove_group(&mut self, group: GroupFile, account: GroupAccount) {
        let journal = self.journals.remove(&group).expect("the group exists");
        let mut tally = account.tally;
        tally += account.before;
        let born = account.start.unwrap_or_default().born;
        let leaving = Leaving { name: journal.name, born, tally };
        // A snapshot that knows of it comes first: then it is counted once, whatever happens.
        self.chores.leaving.push(leaving);
    }

    /// How messages ended in groups that are gone, or on their way.
    #[must_use]
    pub fn ended_before(&self) -> Tally {
        let mut tally = self.counters.ended;
        self.chores.leaving.iter().for_each(|leaving| tally += leaving.tally);
        tally
    }

    /// A group settled `ranges` in this way, and messages below `handed` were handed to it. `compact` gives
    /// the whole state, these ranges included; it is asked when the journal is to be written
    /// anew.
    ///
    /// # Errors
    /// What the system says. A full disk is no error: acks then wait for room.
    pub fn settled(
        &mut self,
        group: GroupFile,
        ranges: &[OffsetRange],
        ending: Ending,
        handed: Offset,
        compact: impl FnOnce() -> GroupPosition,
    ) -> Result<(), LogError> {
        self.journal(group).note(ranges, ending, handed)?;
        self.compact_group(group, compact)
    }

    /// Messages below `up_to` were handed to the group: after a restart they are redeliveries.
    ///
    /// # Errors
    /// What the system says.
    pub fn handed(&mut self, group: GroupFile, up_to: Offset) -> Result<(), LogError> {
        self.journal(group).note(&[], Ending::Acked, up_to)
    }

    /// Something became true of a group. `compact` gives the whole state, these facts included;
    /// it is asked when the journal is to be written anew.
    ///
    /// # Errors
    /// As for [`settled`](Log::settled).
    pub fn note_group(
        &mut self,
        group: GroupFile,
        facts: &[GroupFact],
        compact: impl FnOnce() -> GroupPosition,
    ) -> Result<(), LogError> {
        self.journal(group).note_facts(facts)?;
        self.compact_group(group, compact)
    }

    fn compact_group(
        &mut self,
        group: GroupFile,
        compact: impl FnOnce() -> GroupPosition,
    ) -> Result<(), LogError> {
        let journal = self.journals.get_mut(&group).expect("the group exists");
        if journal.wants_compaction() {
            journal.compact(&*self.storage, &mut self.chores.spare, &compact())?;
        }
        Ok(())
    }

    /// Groups of which facts did not find room on the disk: their whole state is asked for with
    /// [`keep_group`](Log::keep_group), as often as once in
    /// [`limits::CHORE_RETRY`](crate::limits::CHORE_RETRY), until it does.
    #[must_use]
    pub fn incomplete_groups(&self) -> Vec<GroupFile> {
        let wanting = self
            .journals
            .iter()
            .filter(|(_, journal)| !journal.is_complete() && journal.wants_compaction());
        wanting.map(|(group, _)| *group).collect()
    }

    /// Writes the whole state of a group anew, for [`incomplete_groups`](Log::incomplete_groups).
    ///
    /// # Errors
    /// What the system says. A full disk is no error: the group stays incomplete.
    pub fn keep_group(&mut self, group: GroupFile, state: &GroupPosition) -> Result<(), LogError> {
        self.compact_group(group, || state.clone())
    }

    /// Asks that everything noted to the group so far becomes durable soon: something else
    /// waits for it. It is when [`group_durable`](Log::group_durable) has reached what this
    /// returns; [`Progress::groups_durable`](super::Progress::groups_durable) says when to look.
    pub fn want_group_durable(&mut self, group: GroupFile) -> GroupMark {
        self.journal(group).want_durable()
    }

    /// Up to where what was noted to the group is durable.
    #[must_use]
    pub fn group_durable(&self, group: GroupFile) -> GroupMark {
        self.journals.get(&group).expect("the group exists").durable()
    }

    /// Whether a group can be [set elsewhere](Log::reset_group) now: no file of its journal waits
    /// for its installation. [`Progress::groups`](super::Progress::groups) says when to ask again.
    #[must_use]
    pub fn may_reset(&self, group: GroupFile) -> bool {
        self.journals.get(&group).expect("the group exists").may_rewrite()
    }

    /// From now on the group is where `position` says, whatever was noted before. It is so
    /// durably when [`Progress::groups`](super::Progress::groups) names it; a crash
    /// before that may leave it where it was. Segments that only the old place needed go after
    /// that, never before.
    ///
    /// For a group of which [`may_reset`](Log::may_reset) says so.
    ///
    /// # Errors
    /// What the system says; then nothing has changed.
    pub fn reset_group(
        &mut self,
        group: GroupFile,
        position: &GroupPosition,
    ) -> Result<(), LogError> {
        let journal = self.journals.get_mut(&group).expect("the group exists");
        journal.reset(&*self.storage, &mut self.chores.spare, position)
    }

    fn journal(&mut self, group: GroupFile) -> &mut Journal<S> {
        self.journals.get_mut(&group).expect("the group exists")
    }
}
