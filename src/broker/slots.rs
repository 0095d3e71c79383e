//! A table of things with small keys: the broker's queues, groups and consumers.
//!
//! A key is a slot and a generation. A slot is used again, a key never is, so a key that was kept
//! too long is found out instead of meaning something else. Used by the broker only.

/// The key of one thing: where it is, and how often something else was there before.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub(super) struct Key {
    slot: u32,
    generation: u32,
}

impl Key {
    /// Not above any other key: where a search in an ordered set of keys begins.
    pub(super) const LOWEST: Key = Key { slot: 0, generation: 0 };
}

/// The table.
#[derive(Clone, Debug)]
pub(super) struct Slots<T> {
    /// What the things are called in a panic.
    noun: &'static str,
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

#[derive(Clone, Debug)]
struct Slot<T> {
    generation: u32,
    thing: Option<T>,
}

impl<T> Slots<T> {
    pub(super) fn new(noun: &'static str) -> Slots<T> {
        Slots { noun, slots: Vec::new(), free: Vec::new() }
    }

    pub(super) fn insert(&mut self, thing: T) -> Key {
        if let Some(slot) = self.free.pop() {
            let place = &mut self.slots[slot as usize];
            place.thing = Some(thing);
            return Key { slot, generation: place.generation };
        }
        let slot = u32::try_from(self.slots.len()).expect("fewer than 2^32 slots");
        self.slots.push(Slot { generation: 0, thing: Some(thing) });
        Key { slot, generation: 0 }
    }

    /// Panics when the key is stale, as do [`Slots::at`] and [`Slots::at_mut`]: its holder was
    /// told of the removal, or did it.
    pub(super) fn remove(&mut self, key: Key) -> T {
        let noun = self.noun;
        let place =
            self.slots.get_mut(key.slot as usize).filter(|p| p.generation == key.generation);
        let thing = place.and_then(|place| {
            // A slot whose generations are used up is never free again.
            if let Some(next) = place.generation.checked_add(1) {
                place.generation = next;
                self.free.push(key.slot);
            }
            place.thing.take()
        });
        thing.unwrap_or_else(|| stale(noun, key))
    }

    pub(super) fn contains(&self, key: Key) -> bool {
        self.iter().any(|(known, _)| known == key)
    }

    pub(super) fn at(&self, key: Key) -> &T {
        let place = self.slots.get(key.slot as usize).filter(|p| p.generation == key.generation);
        place.and_then(|place| place.thing.as_ref()).unwrap_or_else(|| stale(self.noun, key))
    }

    pub(super) fn at_mut(&mut self, key: Key) -> &mut T {
        let noun = self.noun;
        let place =
            self.slots.get_mut(key.slot as usize).filter(|p| p.generation == key.generation);
        place.and_then(|place| place.thing.as_mut()).unwrap_or_else(|| stale(noun, key))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        self.slots.iter().zip(0u32..).filter_map(|(place, slot)| {
            let key = Key { slot, generation: place.generation };
            place.thing.as_ref().map(|thing| (key, thing))
        })
    }
}

fn stale(noun: &str, key: Key) -> ! {
    panic!("{noun} {}/{} is no longer there", key.slot, key.generation)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_never_means_something_else() {
        let mut slots = Slots::new("thing");
        let first = slots.insert("first");
        assert_eq!(slots.remove(first), "first");
        let second = slots.insert("second");
        assert_ne!(first, second);
        assert_eq!(slots.slots.len(), 1, "the slot is used again");
        assert_eq!(*slots.at(second), "second");
        assert!(slots.iter().eq([(second, &"second")]));
    }

    #[test]
    #[should_panic(expected = "thing 0/0 is no longer there")]
    fn a_stale_key_is_found_out() {
        let mut slots = Slots::new("thing");
        let first = slots.insert(());
        slots.remove(first);
        slots.insert(());
        slots.at(first);
    }
}
