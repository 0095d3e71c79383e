//! The live view between the server and the terminal.
//!
//! Three threads say what happens: one reads keys, one waits for signals, one
//! [asks](crate::asker) the server. Here it all comes together, one thing after another, and each
//! change leads to one frame.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crossterm::event::{Event as Input, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use mq::cli::{Failure, FullScreen, Outcome, Status};
use mq::client::dispositions::is_ignored;
use mq::client::place::Peer;
use mq::client::users::user_name;
use mq::client::{ClientError, Dialer};
use mq::view::canvas::Painter;
use mq::view::glyphs::Glyphs;
use mq::view::live::{Action, Heard, Key, Screen, Setting};
use rustix::process::Signal;
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGTERM, SIGTSTP};

use crate::TOOL;
use crate::args::Args;
use crate::asker::{Asker, Wish};

/// How long a signal that ends the view waits for a terminal that takes nothing.
const END_PATIENCE: Duration = Duration::from_secs(2);

/// What happens.
pub enum Event {
    Heard(Box<Heard>),
    Missed(String),
    Failed(Failure),
    Key(Key),
    Resized,
    Signal(i32),
    /// The keyboard is gone.
    Deaf(std::io::Error),
}

/// Shows the view until its user, or a signal, ends it.
pub fn run(args: &Args) -> Outcome {
    let peer = args.peer()?;
    let setting = Setting {
        store: match &peer {
            Peer::Store(store) => store.display().to_string(),
            Peer::Engine(url) => url.to_string(),
        },
        step: args.step(),
        glyphs: Glyphs::of_environment(),
        sort: args.sort.unwrap_or_default(),
        user: user_name,
    };
    let (events, happens) = channel();
    let (wishes, wished) = channel();
    watch_signals(events.clone())?;
    let terminal = FullScreen::take().map_err(no_terminal)?;
    let asker = Asker::new(
        Dialer::to(peer, TOOL, false).quiet(true),
        args.patterns(),
        args.step().to_duration(),
    );
    let heard = events.clone();
    let asking = spawn("ask", move || asker.run(&wished, &heard))?;
    spawn("keys", move || read_keys(&events))?;
    let view = View {
        screen: Screen::new(setting),
        painter: Painter::new(has_colour(args)),
        terminal,
        wishes,
        wish: Wish::default(),
        asking: Some(asking),
    };
    view.run(&happens)
}

fn has_colour(args: &Args) -> bool {
    args.shared.color.for_stdout()
}

fn no_terminal(error: std::io::Error) -> Failure {
    Failure::new(Status::Failure, format!("cannot take the terminal over: {error}"))
        .with_remedy("mq-stat -b, which prints lines")
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, Failure> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map_err(|error| ClientError::io("start a thread")(error).into())
}

struct View {
    screen: Screen,
    painter: Painter,
    terminal: FullScreen,
    wishes: Sender<Wish>,
    wish: Wish,
    /// The thread that asks, until it has ended.
    asking: Option<JoinHandle<()>>,
}

impl View {
    fn run(mut self, happens: &Receiver<Event>) -> Outcome {
        self.draw()?;
        // The thread of the signals keeps its end of the channel for as long as we run.
        while let Ok(event) = happens.recv() {
            let mut next = Some(event);
            while let Some(event) = next {
                if let Some(outcome) = self.take(event) {
                    return outcome;
                }
                // All that has happened already goes into one frame.
                next = happens.try_recv().ok();
            }
            self.wish()?;
            self.draw()?;
        }
        Ok(Status::Done)
    }

    /// Takes what happened; how the view ends, if it does.
    fn take(&mut self, event: Event) -> Option<Outcome> {
        match event {
            Event::Heard(heard) => self.screen.hear(*heard),
            Event::Missed(why) => self.screen.miss(&why),
            Event::Failed(failure) => return Some(Err(failure)),
            Event::Resized => {}
            Event::Deaf(error) => {
                let message = format!("cannot read from the terminal: {error}");
                return Some(Err(Failure::new(Status::Failure, message)));
            }
            Event::Signal(SIGTSTP) => return self.suspend().err().map(Err),
            // We may have been stopped without being asked, and others have used the terminal.
            Event::Signal(SIGCONT) => {
                self.terminal.pause();
                return self.take_again().err().map(Err);
            }
            Event::Signal(signal) => return Some(Ok(Status::Signal(signal))),
            Event::Key(key) => match self.screen.press(key) {
                Action::Draw | Action::Ask => {}
                Action::Quit => return Some(Ok(Status::Done)),
                Action::Interrupt => return Some(Ok(Status::Signal(SIGINT))),
                Action::Repaint => self.painter.forget(),
                Action::Suspend => suspend_all(),
            },
        }
        None
    }

    /// Tells the asking thread what is wanted now. When that has panicked, so do we.
    fn wish(&mut self) -> Result<(), Failure> {
        let wish = Wish { open: self.screen.open().cloned(), is_paused: self.screen.is_paused() };
        if wish != self.wish {
            self.wish = wish;
            let _ = self.wishes.send(self.wish.clone());
        }
        if let Some(asking) = self.asking.take_if(|asking| asking.is_finished())
            && let Err(panic) = asking.join()
        {
            std::panic::resume_unwind(panic);
        }
        Ok(())
    }

    fn draw(&mut self) -> Result<(), Failure> {
        let (width, height) = self.terminal.size();
        let frame = self.painter.paint(self.screen.draw(width, height));
        self.terminal.write(&frame).map_err(|error| {
            Failure::new(Status::Failure, format!("cannot write to the terminal: {error}"))
        })
    }

    /// Stops, with the terminal as it was, until somebody continues us.
    fn suspend(&mut self) -> Result<(), Failure> {
        self.terminal.pause();
        let _ = signal_hook::low_level::emulate_default_handler(SIGTSTP);
        self.take_again()
    }

    fn take_again(&mut self) -> Result<(), Failure> {
        self.terminal.take_again().map_err(no_terminal)?;
        self.painter.forget();
        Ok(())
    }
}

/// As Ctrl-Z does it where keys are not raw: for all that runs in the foreground with us. Without
/// a shell that could continue us, nothing happens.
fn suspend_all() {
    let is_leader = rustix::process::getsid(None) == Ok(rustix::process::getpid());
    if !is_leader {
        let _ = rustix::process::kill_current_process_group(Signal::TSTP);
    }
}

/// Waits for signals, on a thread. One that ends the view ends the process even if the terminal
/// takes nothing any more.
fn watch_signals(events: Sender<Event>) -> Result<(), Failure> {
    let watched = [SIGINT, SIGTERM, SIGHUP, SIGTSTP, SIGCONT];
    let watched = watched.into_iter().filter(|signal| !is_ignored(*signal));
    let mut signals = signal_hook::iterator::Signals::new(watched)
        .map_err(ClientError::io("watch for signals"))?;
    spawn("signals", move || {
        for signal in signals.forever() {
            let is_end = !matches!(signal, SIGTSTP | SIGCONT);
            if events.send(Event::Signal(signal)).is_err() {
                return;
            }
            if is_end {
                std::thread::sleep(END_PATIENCE);
                let _ = crossterm::terminal::disable_raw_mode();
                let _ = signal_hook::low_level::emulate_default_handler(signal);
            }
        }
    })?;
    Ok(())
}

fn read_keys(events: &Sender<Event>) {
    loop {
        let event = match crossterm::event::read() {
            Ok(Input::Key(key)) if key.kind != KeyEventKind::Release => match of_key(key) {
                Some(key) => Event::Key(key),
                None => continue,
            },
            Ok(Input::Resize(..)) => Event::Resized,
            Ok(_) => continue,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => Event::Deaf(error),
        };
        let is_last = matches!(event, Event::Deaf(_));
        if events.send(event).is_err() || is_last {
            return;
        }
    }
}

fn of_key(key: KeyEvent) -> Option<Key> {
    Some(match key.code {
        KeyCode::Char(c) if key.modifiers.contains(KeyModifiers::CONTROL) => {
            Key::Control(c.to_ascii_lowercase())
        }
        KeyCode::Char(c) => Key::Char(c),
        KeyCode::Enter => Key::Enter,
        KeyCode::Esc => Key::Escape,
        KeyCode::Backspace => Key::Backspace,
        KeyCode::Up => Key::Up,
        KeyCode::Down => Key::Down,
        KeyCode::Left => Key::Left,
        KeyCode::Right => Key::Right,
        KeyCode::PageUp => Key::PageUp,
        KeyCode::PageDown => Key::PageDown,
        KeyCode::Home => Key::Home,
        KeyCode::End => Key::End,
        _ => return None,
    })
}
