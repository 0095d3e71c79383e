//! Looks at a stream: reads its messages one by one, by their places, and changes nothing.

use async_nats::jetstream::stream::{RawMessageErrorKind, State, Stream};

use super::consumer::incoming;
use super::failure::Says;
use super::headers;
use crate::remote::engine::Received;
use crate::remote::failure::Failure;

/// How many are read for one call: each takes a round trip.
const TOGETHER: usize = 128;

/// Reads what was in a stream as it began.
pub struct Peek {
    stream: Stream,
    says: Says,
    subject: String,
    next: u64,
    last: u64,
}

impl Peek {
    pub(super) fn new(stream: Stream, state: &State, says: Says, subject: String) -> Peek {
        Peek { stream, says, subject, next: state.first_sequence, last: state.last_sequence }
    }

    pub(super) async fn receive(&mut self, limit: usize) -> Result<Received, Failure> {
        let mut messages = Vec::new();
        let mut next = self.next;
        while messages.len() < limit.min(TOGETHER) && next <= self.last {
            let asked = self
                .stream
                .raw_message_builder()
                .sequence(next)
                .next_by_subject(self.subject.as_str())
                .send()
                .await;
            let message = match asked {
                Ok(message) if message.sequence <= self.last => message,
                Ok(_) => break,
                // There is none at this place or behind it.
                Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => break,
                Err(error) => return Err(self.says.failed("look at a stream", &error)),
            };
            next = message.sequence + 1;
            let facts = headers::facts(Some(&message.headers));
            let micros = message.time.unix_timestamp_nanos() / 1000;
            let at = format!("{}:{}", self.stream.cached_info().config.name, message.sequence);
            messages.push(incoming(message.payload, facts, u64::try_from(micros).ok(), at, 0));
        }
        if messages.is_empty() {
            self.next = self.last + 1;
            return Ok(Received::End);
        }
        self.next = next;
        Ok(Received::Messages(messages))
    }
}
