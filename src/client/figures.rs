//! Asks a server for its figures: all pages of them, and after the first time only what has
//! changed.
//!
//! Starts no server, keeps no figures; `mq-stat` does.

use super::admin::call;
use super::wait::Patience;
use super::{ClientError, Connection};
use crate::limits;
use crate::wire::stat::{Figures, FiguresWanted, QueueFigures, ServerFigures};
use crate::wire::{Admin, QueuePattern};

/// Every page of what is wanted, as one. The server is as it was at the first page.
///
/// # Errors
/// See [`call`].
pub fn figures(
    connection: &mut Connection,
    wanted: &FiguresWanted,
    patience: Patience<'_>,
) -> Result<(ServerFigures, Vec<QueueFigures>), ClientError> {
    let mut after = None;
    let mut server = None;
    let mut queues = Vec::new();
    loop {
        let wanted = FiguresWanted { after: after.take(), ..wanted.clone() };
        let page: Figures = call(connection, Admin::Figures(wanted), patience)?;
        let server = server.get_or_insert(page.server);
        queues.extend(page.queues);
        let (Some(next), true) = (page.next, queues.len() < limits::QUEUES_MAX) else {
            return Ok((server.clone(), queues));
        };
        after = Some(next);
    }
}

/// What a server said to a [`Follower`].
#[derive(Clone, Debug, Default)]
pub struct News {
    /// The server.
    pub server: ServerFigures,
    /// The queues that changed since the last time, or all.
    pub queues: Vec<QueueFigures>,
    /// Whether they are all.
    pub is_whole: bool,
}

/// Follows the figures of some queues.
#[derive(Debug)]
pub struct Follower {
    queues: Vec<QueuePattern>,
    detail: bool,
    /// Seconds of history, wanted with all queues.
    seconds: u32,
    last: Option<ServerFigures>,
}

impl Follower {
    /// Of these queues, or with none of all. With `detail`, everything about them; with all queues
    /// also so many `seconds` of their history.
    #[must_use]
    pub fn new(queues: Vec<QueuePattern>, detail: bool, seconds: u32) -> Follower {
        Follower { queues, detail, seconds, last: None }
    }

    /// What came before is of no use any more: the next answer is to tell all.
    pub fn forget(&mut self) {
        self.last = None;
    }

    /// Asks: what has changed, as long as the same server has the same queues, else all.
    ///
    /// # Errors
    /// See [`call`].
    pub fn ask(
        &mut self,
        connection: &mut Connection,
        patience: Patience<'_>,
    ) -> Result<News, ClientError> {
        let wanted = FiguresWanted {
            queues: self.queues.clone(),
            detail: self.detail,
            ..FiguresWanted::default()
        };
        if let Some(last) = self.last.take() {
            let wanted = FiguresWanted { changed_since: Some(last.tick), ..wanted.clone() };
            let (server, queues) = figures(connection, &wanted, patience)?;
            if (server.instance, server.set) == (last.instance, last.set) {
                self.last = Some(server.clone());
                return Ok(News { server, queues, is_whole: false });
            }
        }
        let wanted = FiguresWanted { seconds: self.seconds, ..wanted };
        let (server, queues) = figures(connection, &wanted, patience)?;
        self.last = Some(server.clone());
        Ok(News { server, queues, is_whole: true })
    }
}
