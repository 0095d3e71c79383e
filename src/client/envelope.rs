//! A message with everything that is known about it, and its envelope: that as one line of JSON.
//!
//! [`Writer`] makes the line that `mq-recv -J` prints, [`Reader`] takes the line that `mq-send -J`
//! is given; what one writes the other reads, to the microsecond. Neither does I/O. The
//! [format](super::format) and the [packer](super::packer) call them; whoever runs a command for
//! a message takes its facts from [`Message`].
//!
//! ```text
//! {"queue":"jobs","offset":7,"time":"2026-01-31T12:00:00.000000Z","attempt":2,"key":"k",
//!  "id":"...","headers":{"a":"1"},"data":"the body"}
//! ```
//!
//! # Adding a field
//!
//! Fields are only ever added. A tag in [`crate::batch::tags`], a field of [`Attributes`], a line
//! in the writer's and in the reader's list, and one in mq-recv(1).

mod read;
mod time;
mod write;

pub use read::{Envelope, EnvelopeError, Reader, Text, push_header};
pub(crate) use time::is_time;
pub use time::{TimeReader, TimeText, parse_time};
pub use write::{Writer, push_number, push_text};

use super::delivery::Origin;
use crate::batch::{BatchHeader, Framing, Record, split_header, tags};
use crate::units::{Offset, WallTime};
use crate::wire::Receipt;

/// The attributes of a record, by what they are. Texts of a peer that are no UTF-8 are shown with
/// replacement characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes<'a> {
    /// The key.
    pub key: Option<&'a [u8]>,
    /// The id that the sender gave.
    pub id: Option<&'a [u8]>,
    /// When it happened, by its sender.
    pub event_time: Option<WallTime>,
    /// Not delivered after this.
    pub expires: Option<WallTime>,
    /// Not delivered before this.
    pub not_before: Option<WallTime>,
    all: &'a [u8],
}

impl<'a> Attributes<'a> {
    /// Reads them; what is malformed is passed over, as a server lets nothing so through.
    #[must_use]
    pub fn parse(all: &'a [u8]) -> Attributes<'a> {
        let mut attributes = Attributes { all, ..Attributes::default() };
        for (tag, value) in in_order(all) {
            match tag {
                tags::KEY => attributes.key = Some(value),
                tags::ID => attributes.id = Some(value),
                tags::EVENT_TIME => attributes.event_time = wall_time(value),
                tags::EXPIRES => attributes.expires = wall_time(value),
                tags::NOT_BEFORE => attributes.not_before = wall_time(value),
                _ => {}
            }
        }
        attributes
    }

    /// All of them, as they stand in the record.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        self.all
    }

    /// The headers, each as name and value, in the order in which they were given.
    pub fn headers(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        in_order(self.all)
            .filter_map(|(tag, value)| (tag == tags::HEADER).then(|| split_header(value))?)
    }
}

fn in_order(all: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    Record { attribute_bytes: all, body: b"" }.attributes().map_while(Result::ok)
}

fn wall_time(value: &[u8]) -> Option<WallTime> {
    Some(WallTime(u64::from_le_bytes(value.try_into().ok()?)))
}

/// One message.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// Where it comes from.
    pub origin: Origin<'a>,
    /// Its place in the queue.
    pub offset: Offset,
    /// When it was stored.
    pub time: WallTime,
    /// Its attributes.
    pub attributes: Attributes<'a>,
    /// Its body.
    pub body: &'a [u8],
}

impl Message<'_> {
    /// What settles it from elsewhere, if it is under a lease that allows that.
    #[must_use]
    pub fn receipt(&self) -> Option<Receipt> {
        let Origin { queue, queue_id, group, lease, .. } = self.origin;
        (lease.0 != 0).then(|| Receipt {
            queue: queue.clone(),
            group: group.clone(),
            incarnation: queue_id.0.as_fields().0,
            offset: self.offset,
            number: lease,
        })
    }
}

/// The messages of a verified batch; `payload` is without an annex.
pub fn messages<'a>(
    origin: Origin<'a>,
    header: &BatchHeader,
    payload: &'a [u8],
) -> impl Iterator<Item = Message<'a>> + use<'a> {
    let (framing, first, time) = (header.framing, header.offset, header.time);
    let mut rest = payload;
    let records = std::iter::from_fn(move || match framing {
        Framing::Delimited(delimiter) => {
            let at = memchr::memchr(delimiter, rest)?;
            let body = &rest[..at];
            rest = &rest[at + 1..];
            Some(Record { attribute_bytes: b"", body })
        }
        Framing::Records => {
            let (record, behind) = Record::decode(rest).ok()?;
            rest = behind;
            Some(record)
        }
    });
    records.zip(first.0..).map(move |(record, offset)| Message {
        origin,
        offset: Offset(offset),
        time,
        attributes: Attributes::parse(record.attribute_bytes),
        body: record.body,
    })
}
