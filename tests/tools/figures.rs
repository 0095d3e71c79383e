//! What the server tells those who watch: gauges, who is there, what changed.

use crate::harness::{Store, eventually, peer::Peer};

use mq::units::Name;
use mq::wire::stat::{Figures, FiguresWanted, QueueFigures, Role};
use mq::wire::{Admin, Kind, QueuePattern, Request};

/// Whoever watches.
pub struct Watcher(Peer);

impl Watcher {
    #[track_caller]
    pub fn of(store: &Store) -> Watcher {
        Watcher(Peer::connect(store).expect("a server answers"))
    }

    #[track_caller]
    fn request(&mut self, admin: Admin) -> Vec<u8> {
        self.0.say(1, &Request::Admin(admin)).expect("the server listens");
        self.0.frame_of(Kind::Reply).body
    }

    #[track_caller]
    pub fn ask(&mut self, wanted: FiguresWanted) -> Figures {
        serde_json::from_slice(&self.request(Admin::Figures(wanted))).expect("figures")
    }

    /// All that there is to know of one queue.
    #[track_caller]
    pub fn queue(&mut self, name: &str) -> QueueFigures {
        let queues = vec![QueuePattern(name.to_owned())];
        let wanted =
            FiguresWanted { queues, detail: true, seconds: 9, minutes: 9, ..<_>::default() };
        self.ask(wanted).queues.pop().unwrap_or_else(|| panic!("there is no queue {name}"))
    }
}

#[test]
fn gauges_tell_what_is_there_and_who() {
    let store = Store::new();
    store.send("q", b"a\nb\nc\n");
    let mut watcher = Watcher::of(&store);
    let before = watcher.queue("q");
    assert_eq!((before.ready.0, before.present.0, before.groups.len()), (3, 3, 0));
    assert!(before.oldest.is_some() && before.settings.is_some() && before.present_bytes.0 > 6);
    let receiver = store.spawn("mq-recv", &["-n", "2", "q", "--", "sleep", "5"]);
    let held = eventually("a receiver holds messages", || {
        Some(watcher.queue("q")).filter(|queue| queue.unacked.0 > 0)
    });
    assert_eq!((held.ready.0 + held.unacked.0, held.receivers, held.groups.len()), (3, 1, 1));
    assert_eq!(held.groups[0].unsettled().0, 3);
    let [client] = held.clients.as_slice() else { panic!("one client: {:?}", held.clients) };
    assert_eq!(client.role, Role::Receiver);
    assert_eq!(client.pid, receiver.pid().as_raw_nonzero().get() as u32);
    assert_eq!(client.uid, Some(rustix::process::geteuid().as_raw()));
    assert_eq!((client.tool.as_str(), client.command.as_str()), ("mq-recv", "sleep"));
    assert_eq!(client.messages, held.unacked);
    assert_eq!(client.unacked, held.unacked);
}

#[test]
fn only_what_changed_is_told_again() {
    let store = Store::new();
    for queue in ["a", "b", "c"] {
        store.send(queue, b"x\n");
    }
    let mut watcher = Watcher::of(&store);
    let changed_since = |figures: &Figures| FiguresWanted {
        changed_since: Some(figures.server.tick),
        ..FiguresWanted::default()
    };
    let mut known = watcher.ask(FiguresWanted::default());
    assert_eq!(known.queues.len(), 3);
    // Until what goes on by itself, such as the mark of an idle queue, has come to its end.
    let next = eventually("only one queue changes", || {
        store.send("b", b"y\n");
        let next = watcher.ask(changed_since(&known));
        let names: Vec<&str> = next.queues.iter().map(|queue| queue.queue.as_str()).collect();
        assert!(names.contains(&"b") && next.server.set == known.server.set, "{names:?}");
        let only = names == ["b"];
        known = next.clone();
        only.then_some(next)
    });
    store.send("d", b"z\n");
    let after = watcher.ask(changed_since(&next));
    assert!(after.server.set > next.server.set, "a queue came");
    assert_eq!(after.server.instance, known.server.instance);
}

#[test]
fn pages_hold_all_queues() {
    let store = Store::new();
    store.send("q0", b"x\n");
    let mut watcher = Watcher::of(&store);
    let names: Vec<String> = (0..450).map(|n| format!("{}{n:03}", "a".repeat(190))).collect();
    for name in &names {
        let queue = Name::new(name).expect("a name");
        let wanted = mq::settings::Wanted::default();
        watcher.request(Admin::Declare { queue, wanted, change: false });
    }
    let mut found = Vec::new();
    let (mut after, mut pages) = (None, 0);
    loop {
        let page = watcher.ask(FiguresWanted { after, detail: true, ..FiguresWanted::default() });
        found.extend(page.queues.into_iter().map(|queue| queue.queue.as_str().to_owned()));
        pages += 1;
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(found.len(), names.len() + 1);
    assert!(found.is_sorted() && pages > 1, "{pages} pages");
}
