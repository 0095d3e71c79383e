//! Frames from client to server.

use super::frame::{from_json, push_frame, push_json, u16_at, u32_at, u64_at};
use super::{
    Admin, ClientInfo, FrameHeader, Kind, MAGIC, Nack, OpenReceive, OpenSend, WireError,
    frame_flags,
};
use crate::batch::Framing;
use crate::limits;
use crate::units::{Monotonic, Offset, OffsetRange, Position, SegmentNumber, Sequence};

/// Bytes in front of the payload in a PUBLISH body:
///
/// ```text
///  0               8        12        13          14       16            24
/// ┌───────────────┬────────┬─────────┬───────────┬────────┬─────────────┬─────────
/// │ sequence of   │ count  │ framing │ delimiter │ batch  │ read at, µs │ payload
/// │ the last, u64 │ u32    │ u8      │ u8        │ flags  │ u64         │ ...
/// └───────────────┴────────┴─────────┴───────────┴────────┴─────────────┴─────────
/// ```
///
/// A large message comes as several PUBLISH frames of one sequence and count 1, all but the last
/// with [`frame_flags::MORE`]; their payloads joined are one record. The last may have an annex, of
/// at most [`limits::LARGE_ANNEX_BYTES_MAX`].
pub const PUBLISH_HEAD_BYTES: usize = 24;

/// The fixed part of a PUBLISH.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublishHead {
    /// The sequence of the last message inside.
    pub sequence: Sequence,
    /// Messages inside.
    pub count: u32,
    /// How they lie in the payload.
    pub framing: Framing,
    /// Flags of the batch; only [`crate::batch::flags::ANNEX`] may be set.
    pub batch_flags: u16,
    /// When the last of these messages was read, on CLOCK_MONOTONIC, which all processes of a
    /// machine share; 0: not known. Up to version 2 the field meant something else.
    pub read: Monotonic,
    /// Whether more parts of the same large message follow.
    pub more: bool,
}

impl PublishHead {
    /// The frame header and the head, to be followed by `payload_bytes` of payload.
    #[must_use]
    pub fn encode(
        &self,
        channel: u16,
        payload_bytes: usize,
    ) -> [u8; super::FRAME_HEADER_BYTES + PUBLISH_HEAD_BYTES] {
        let mut out = [0u8; super::FRAME_HEADER_BYTES + PUBLISH_HEAD_BYTES];
        let header = FrameHeader {
            length: (PUBLISH_HEAD_BYTES + payload_bytes) as u32,
            kind: Kind::Publish,
            flags: if self.more { frame_flags::MORE } else { 0 },
            channel,
        };
        out[..8].copy_from_slice(&header.encode());
        let (framing, delimiter) = match self.framing {
            Framing::Delimited(byte) => (0, byte),
            Framing::Records => (1, 0),
        };
        let head = &mut out[8..];
        head[0..8].copy_from_slice(&self.sequence.0.to_le_bytes());
        head[8..12].copy_from_slice(&self.count.to_le_bytes());
        head[12] = framing;
        head[13] = delimiter;
        head[14..16].copy_from_slice(&self.batch_flags.to_le_bytes());
        head[16..24].copy_from_slice(&self.read.0.to_le_bytes());
        out
    }

    fn decode(header: &FrameHeader, body: &[u8]) -> Result<PublishHead, WireError> {
        let malformed = |what| WireError::Malformed { kind: Kind::Publish, what };
        if body.len() < PUBLISH_HEAD_BYTES {
            return Err(malformed("it is cut short"));
        }
        let framing = match (body[12], body[13]) {
            (0, delimiter) => Framing::Delimited(delimiter),
            (1, 0) => Framing::Records,
            _ => return Err(malformed("unknown framing")),
        };
        let batch_flags = u16_at(body, 14);
        if batch_flags & !crate::batch::flags::ANNEX != 0 {
            return Err(malformed("a flag that a sender must not set"));
        }
        let sequence = u64_at(body, 0);
        let count = u32_at(body, 8);
        if count == 0 || u64::from(count) > limits::BATCH_MESSAGES_MAX {
            return Err(malformed("an impossible count"));
        }
        if sequence < u64::from(count) {
            return Err(malformed("a sequence below its count"));
        }
        if body.len() - PUBLISH_HEAD_BYTES > limits::BATCH_PAYLOAD_BYTES_MAX {
            return Err(malformed("a payload over the limit"));
        }
        Ok(PublishHead {
            sequence: Sequence(sequence),
            count,
            framing,
            batch_flags,
            read: Monotonic(u64_at(body, 16)),
            more: header.has(frame_flags::MORE),
        })
    }
}

/// The fixed part of a COMMIT, laid out as that of a PUBLISH.
///
/// A commit is one step of a producer, whatever it holds: its sequence grows by one. It
/// comes as one frame or several, all but the last with [`frame_flags::MORE`]; the last one alone
/// has an annex, with [`crate::batch::flags::ANNEX`], and may hold no messages. A large message
/// inside comes as a chain of frames, with the flags of its batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitHead {
    /// The producer's sequence of the whole commit.
    pub sequence: Sequence,
    /// Messages inside this frame; in a chain all parts but the last have none.
    pub count: u32,
    /// How they lie in the payload.
    pub framing: Framing,
    /// Flags of the batch: of a chain, or that it begins with the annex.
    pub batch_flags: u16,
    /// Whether more of the same commit follows.
    pub more: bool,
}

impl CommitHead {
    const FLAGS: u16 = {
        use crate::batch::flags::{ANNEX, CHAIN, CHAIN_END};
        ANNEX | CHAIN | CHAIN_END
    };

    /// The frame header and the head, to be followed by `payload_bytes` of payload.
    #[must_use]
    pub fn encode(
        &self,
        channel: u16,
        payload_bytes: usize,
    ) -> [u8; super::FRAME_HEADER_BYTES + PUBLISH_HEAD_BYTES] {
        let CommitHead { sequence, count, framing, batch_flags, more } = *self;
        let head = PublishHead { sequence, count, framing, batch_flags, read: Monotonic(0), more };
        let mut out = head.encode(channel, payload_bytes);
        out[4] = Kind::Commit as u8;
        out
    }

    fn decode(header: &FrameHeader, body: &[u8]) -> Result<CommitHead, WireError> {
        let malformed = |what| WireError::Malformed { kind: Kind::Commit, what };
        if body.len() < PUBLISH_HEAD_BYTES {
            return Err(malformed("it is cut short"));
        }
        let framing = match (body[12], body[13]) {
            (0, delimiter) => Framing::Delimited(delimiter),
            (1, 0) => Framing::Records,
            _ => return Err(malformed("unknown framing")),
        };
        let batch_flags = u16_at(body, 14);
        if batch_flags & !CommitHead::FLAGS != 0 {
            return Err(malformed("a flag that a sender must not set"));
        }
        let count = u32_at(body, 8);
        if u64::from(count) > limits::BATCH_MESSAGES_MAX {
            return Err(malformed("an impossible count"));
        }
        let sequence = u64_at(body, 0);
        if sequence == 0 {
            return Err(malformed("a commit without a number"));
        }
        if body.len() - PUBLISH_HEAD_BYTES > limits::BATCH_PAYLOAD_BYTES_MAX {
            return Err(malformed("a payload over the limit"));
        }
        let more = header.has(frame_flags::MORE);
        if more == (batch_flags & crate::batch::flags::ANNEX != 0) {
            return Err(malformed("an annex belongs into the last frame of a commit"));
        }
        Ok(CommitHead { sequence: Sequence(sequence), count, framing, batch_flags, more })
    }
}

/// What becomes of messages that are given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ReleaseMode {
    /// Not handed over: ready again at once, no attempt counted.
    Release = 0,
}

/// A frame from a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// Opens the connection: the oldest and the newest version that the client speaks.
    Hello {
        /// The oldest.
        oldest: u16,
        /// The newest.
        newest: u16,
        /// Who it is; absent if this version cannot read it.
        client: Option<ClientInfo>,
    },
    /// Asks for an orderly stop.
    Stop,
    /// An administrative request.
    Admin(Admin),
    /// Opens a channel for sending.
    OpenSend(OpenSend),
    /// A batch with its payload.
    Publish(PublishHead, &'a [u8]),
    /// A batch of a commit with its payload.
    Commit(CommitHead, &'a [u8]),
    /// Opens a channel for receiving.
    OpenReceive(OpenReceive),
    /// How many messages may have been delivered on the channel in all.
    Credit(u64),
    /// These are settled.
    Ack(Vec<OffsetRange>),
    /// These are given back.
    Release(ReleaseMode, Vec<OffsetRange>),
    /// The batch at this place fails its checksum.
    Complain(SegmentNumber, Position),
    /// A try of these begins: it counts as an attempt from now on, whatever becomes of it.
    Begin(Vec<OffsetRange>),
    /// A try of these failed.
    Nack(Nack),
    /// How many extents the receiver is done with in all: as many more may come.
    Extents(u64),
    /// Ends the channel.
    Close,
}

/// Appends ranges as ACK and RELEASE carry them: pairs of u64, each range not empty, ascending.
pub fn encode_ranges(out: &mut Vec<u8>, ranges: &[OffsetRange]) {
    for range in ranges {
        out.extend_from_slice(&range.start.0.to_le_bytes());
        out.extend_from_slice(&range.end.0.to_le_bytes());
    }
}

fn decode_ranges(kind: Kind, bytes: &[u8]) -> Result<Vec<OffsetRange>, WireError> {
    if !bytes.len().is_multiple_of(16) || bytes.len() > limits::RANGES_PER_FRAME_MAX * 16 {
        return Err(WireError::Malformed { kind, what: "a list of ranges of the wrong size" });
    }
    let offset = |bytes, at| Offset(u64_at(bytes, at));
    let ranges: Vec<OffsetRange> = bytes
        .chunks_exact(16)
        .map(|pair| OffsetRange { start: offset(pair, 0), end: offset(pair, 8) })
        .collect();
    check_ranges(kind, &ranges)?;
    Ok(ranges)
}

/// Ranges of a peer are not empty, and ascend.
fn check_ranges(kind: Kind, ranges: &[OffsetRange]) -> Result<(), WireError> {
    let mut behind = Offset(0);
    for range in ranges {
        if range.start >= range.end || range.start < behind {
            let what = "ranges that are empty or out of order";
            return Err(WireError::Malformed { kind, what });
        }
        behind = range.end;
    }
    Ok(())
}

impl<'a> Request<'a> {
    /// Reads a frame's body.
    ///
    /// # Errors
    /// What is wrong with it; the connection must then end.
    pub fn decode(header: &FrameHeader, body: &'a [u8]) -> Result<Request<'a>, WireError> {
        let kind = header.kind;
        let malformed = |what| WireError::Malformed { kind, what };
        let sized = |bytes| {
            if body.len() == bytes { Ok(()) } else { Err(malformed("a body of the wrong size")) }
        };
        Ok(match kind {
            Kind::Hello => {
                if body.len() < 12 || body[..8] != MAGIC {
                    return Err(WireError::NotMq);
                }
                Request::Hello {
                    oldest: u16_at(body, 8),
                    newest: u16_at(body, 10),
                    client: from_json(kind, &body[12..]).ok(),
                }
            }
            Kind::Stop => Request::Stop,
            Kind::Admin => Request::Admin(from_json(kind, body)?),
            Kind::OpenSend => Request::OpenSend(from_json(kind, body)?),
            Kind::Publish => {
                let head = PublishHead::decode(header, body)?;
                Request::Publish(head, &body[PUBLISH_HEAD_BYTES..])
            }
            Kind::Commit => {
                let head = CommitHead::decode(header, body)?;
                Request::Commit(head, &body[PUBLISH_HEAD_BYTES..])
            }
            Kind::OpenReceive => Request::OpenReceive(from_json(kind, body)?),
            Kind::Credit => {
                sized(8)?;
                Request::Credit(u64_at(body, 0))
            }
            Kind::Ack => Request::Ack(decode_ranges(kind, body)?),
            Kind::Release => {
                if body.first() != Some(&0) || body.len() < 16 {
                    return Err(malformed("an unknown mode"));
                }
                Request::Release(ReleaseMode::Release, decode_ranges(kind, &body[16..])?)
            }
            Kind::Complain => {
                sized(16)?;
                Request::Complain(SegmentNumber(u64_at(body, 0)), Position(u64_at(body, 8)))
            }
            Kind::Begin => Request::Begin(decode_ranges(kind, body)?),
            Kind::Nack => {
                let nack: Nack = from_json(kind, body)?;
                check_ranges(kind, &nack.ranges)?;
                Request::Nack(nack)
            }
            Kind::Extents => {
                sized(8)?;
                Request::Extents(u64_at(body, 0))
            }
            Kind::Close => {
                sized(0)?;
                Request::Close
            }
            _ => return Err(WireError::Direction(kind)),
        })
    }

    /// Appends the frame's bytes to `out`.
    pub fn encode(&self, channel: u16, out: &mut Vec<u8>) {
        match self {
            Request::Hello { oldest, newest, client } => {
                let mut prefix = MAGIC.to_vec();
                prefix.extend_from_slice(&oldest.to_le_bytes());
                prefix.extend_from_slice(&newest.to_le_bytes());
                push_json(out, Kind::Hello, channel, &prefix, client);
            }
            Request::Stop => push_frame(out, Kind::Stop, 0, channel, &[]),
            Request::Admin(admin) => push_json(out, Kind::Admin, channel, &[], admin),
            Request::OpenSend(open) => push_json(out, Kind::OpenSend, channel, &[], open),
            Request::Publish(head, payload) => {
                out.extend_from_slice(&head.encode(channel, payload.len()));
                out.extend_from_slice(payload);
            }
            Request::Commit(head, payload) => {
                out.extend_from_slice(&head.encode(channel, payload.len()));
                out.extend_from_slice(payload);
            }
            Request::OpenReceive(open) => push_json(out, Kind::OpenReceive, channel, &[], open),
            Request::Credit(total) => {
                push_frame(out, Kind::Credit, 0, channel, &total.to_le_bytes());
            }
            Request::Ack(ranges) => {
                let mut body = Vec::with_capacity(ranges.len() * 16);
                encode_ranges(&mut body, ranges);
                push_frame(out, Kind::Ack, 0, channel, &body);
            }
            Request::Release(mode, ranges) => {
                let mut body = vec![0u8; 16];
                body[0] = *mode as u8;
                encode_ranges(&mut body, ranges);
                push_frame(out, Kind::Release, 0, channel, &body);
            }
            Request::Complain(segment, position) => {
                let mut body = segment.0.to_le_bytes().to_vec();
                body.extend_from_slice(&position.0.to_le_bytes());
                push_frame(out, Kind::Complain, 0, channel, &body);
            }
            Request::Begin(ranges) => {
                let mut body = Vec::with_capacity(ranges.len() * 16);
                encode_ranges(&mut body, ranges);
                push_frame(out, Kind::Begin, 0, channel, &body);
            }
            Request::Nack(nack) => push_json(out, Kind::Nack, channel, &[], nack),
            Request::Extents(done) => {
                push_frame(out, Kind::Extents, 0, channel, &done.to_le_bytes());
            }
            Request::Close => push_frame(out, Kind::Close, 0, channel, &[]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{Name, ProducerId};

    fn round_trip(request: &Request<'_>) {
        let mut bytes = Vec::new();
        request.encode(7, &mut bytes);
        let header = FrameHeader::decode(bytes[..8].try_into().expect("a header")).expect("valid");
        assert_eq!(header.length as usize, bytes.len() - 8);
        assert_eq!(header.channel, 7);
        assert_eq!(&Request::decode(&header, &bytes[8..]).expect("decodes"), request);
        for cut in 0..bytes.len() - 8 {
            // A body cut anywhere is an error or another valid request, never a panic.
            let _ = Request::decode(&header, &bytes[8..8 + cut]);
        }
    }

    #[test]
    fn requests_round_trip_and_never_panic() {
        let name = Name::new("q").expect("a name");
        let ranges =
            vec![OffsetRange::new(Offset(1), Offset(3)), OffsetRange::new(Offset(5), Offset(6))];
        let head = PublishHead {
            sequence: Sequence(9),
            count: 2,
            framing: Framing::Delimited(b'\n'),
            batch_flags: 0,
            read: Monotonic(1 << 40),
            more: false,
        };
        for request in [
            Request::Hello { oldest: 1, newest: 3, client: Some(ClientInfo::default()) },
            Request::Stop,
            Request::Admin(Admin::Declare {
                queue: name.clone(),
                wanted: crate::settings::Wanted::default(),
                change: true,
            }),
            Request::OpenSend(OpenSend {
                queue: name.clone(),
                producer: ProducerId(5),
                resume: None,
                named: false,
                unless_pending: false,
            }),
            Request::Publish(head, b"a\nb\n"),
            Request::Commit(
                CommitHead {
                    sequence: Sequence(3),
                    count: 2,
                    framing: Framing::Delimited(b'\n'),
                    batch_flags: crate::batch::flags::ANNEX,
                    more: false,
                },
                b"\0\0\0\0a\nb\n",
            ),
            Request::OpenReceive(OpenReceive {
                holding: ranges.clone(),
                until_end: true,
                ..OpenReceive::new(name.clone(), name, super::super::ReceiveMode::Take)
            }),
            Request::Begin(ranges.clone()),
            Request::Nack(Nack { ranges: ranges.clone(), ..Nack::default() }),
            Request::Credit(77),
            Request::Extents(3),
            Request::Ack(ranges.clone()),
            Request::Release(ReleaseMode::Release, ranges),
            Request::Complain(SegmentNumber(1), Position(2)),
            Request::Close,
        ] {
            round_trip(&request);
        }
    }

    #[test]
    fn bad_ranges_are_refused() {
        for pairs in [[(3u64, 3u64), (4, 5)], [(3, 5), (4, 6)], [(5, 3), (6, 7)]] {
            let mut body = Vec::new();
            for (start, end) in pairs {
                body.extend_from_slice(&start.to_le_bytes());
                body.extend_from_slice(&end.to_le_bytes());
            }
            let header =
                FrameHeader { length: body.len() as u32, kind: Kind::Ack, flags: 0, channel: 1 };
            assert!(Request::decode(&header, &body).is_err());
        }
    }
}
