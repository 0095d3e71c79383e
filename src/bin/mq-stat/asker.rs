//! Asks the server for the live view, on a thread of its own: however long a server takes to
//! answer, or to come back, keys are answered at once.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use mq::cli::Failure;
use mq::client::figures::{Follower, figures};
use mq::client::wait::Patience;
use mq::client::{ClientError, Connection, Dialer};
use mq::limits;
use mq::units::Name;
use mq::view::live::Heard;
use mq::wire::QueuePattern;
use mq::wire::stat::{FiguresWanted, QueueFigures};

use crate::live::Event;

/// A server that does not answer within this time is said not to.
const ANSWER: Duration = Duration::from_secs(3);

/// How soon a server that is gone is looked for again.
const AGAIN: Duration = Duration::from_millis(200);

/// What the view wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// Everything about this queue too.
    pub open: Option<Name>,
    /// Nothing at all, for now.
    pub is_paused: bool,
}

/// The thread's state.
pub struct Asker {
    dialer: Dialer,
    connection: Option<Connection>,
    follower: Follower,
    step: Duration,
    wish: Wish,
    /// Whether the last time failed.
    has_failed: bool,
}

impl Asker {
    pub fn new(dialer: Dialer, queues: Vec<QueuePattern>, step: Duration) -> Asker {
        // The seconds that a sparkline can show.
        let most = u64::from(limits::HISTORY_SECONDS);
        let seconds = (step.as_secs_f64() * limits::VIEW_STEPS as f64).ceil() as u64;
        let seconds = seconds.clamp(2, most) as u32;
        Asker {
            dialer,
            connection: None,
            follower: Follower::new(queues, false, seconds),
            step,
            wish: Wish::default(),
            has_failed: false,
        }
    }

    /// Asks once a step, and at once when the wish changes; ends when the view has.
    pub fn run(mut self, wishes: &Receiver<Wish>, events: &Sender<Event>) {
        let mut next = Instant::now();
        let mut is_early = false;
        loop {
            if !self.wish.is_paused && Instant::now() >= next {
                let said = self.ask(std::mem::take(&mut is_early));
                self.has_failed = matches!(said, Event::Missed(_));
                if events.send(said).is_err() {
                    return;
                }
                let pause = if self.has_failed { self.step.min(AGAIN) } else { self.step };
                // What was missed is not made up for.
                next = (next + pause).max(Instant::now());
            }
            let wait = if self.wish.is_paused {
                Duration::MAX
            } else {
                next.saturating_duration_since(Instant::now())
            };
            match wishes.recv_timeout(wait) {
                Ok(wish) => {
                    let goes_on = self.wish.is_paused && !wish.is_paused;
                    if goes_on {
                        // The history tells what happened meanwhile.
                        self.follower.forget();
                    }
                    is_early = !goes_on && Instant::now() < next;
                    (self.wish, next) = (wish, Instant::now());
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn ask(&mut self, is_early: bool) -> Event {
        match self.try_ask() {
            Ok(heard) => Event::Heard(Box::new(Heard { is_early, ..heard })),
            Err(error) => {
                self.connection = None;
                match error {
                    ClientError::NoServer { .. }
                    | ClientError::Silent { .. }
                    | ClientError::HelperGone { .. }
                    | ClientError::HelperSilent { .. }
                    | ClientError::Lost
                    | ClientError::Io { .. } => Event::Missed(error.to_string()),
                    error if error.is_lost() => Event::Missed(error.to_string()),
                    error => Event::Failed(Failure::from(error).while_doing("asking for figures")),
                }
            }
        }
    }

    fn try_ask(&mut self) -> Result<Heard, ClientError> {
        let patience = Patience::lasting(ANSWER, None);
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => none.insert(self.dialer.reach(patience)?),
        };
        let news = self.follower.ask(connection, patience)?;
        let detail = match &self.wish.open {
            Some(queue) => detail(connection, queue, patience)?,
            None => None,
        };
        let (server, queues, is_whole) = (news.server, news.queues, news.is_whole);
        Ok(Heard { server, queues, is_whole, is_early: false, detail })
    }
}

/// Everything about one queue, if it is there.
fn detail(
    connection: &mut Connection,
    queue: &Name,
    patience: Patience<'_>,
) -> Result<Option<QueueFigures>, ClientError> {
    let wanted = FiguresWanted {
        queues: vec![QueuePattern(queue.to_string())],
        detail: true,
        ..FiguresWanted::default()
    };
    let (_, queues) = figures(connection, &wanted, patience)?;
    Ok(queues.into_iter().find(|figures| figures.queue == *queue))
}
