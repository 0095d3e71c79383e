//! Frames from server to client.

use super::frame::{from_json, push_frame, push_json, u16_at, u32_at, u64_at};
use super::{
    FRAME_HEADER_BYTES, Fault, FrameHeader, Goodbye, Kind, MAGIC, Receiving, Sending, ServerInfo,
    WireError, frame_flags,
};
use crate::units::{Count, LeaseNumber, Offset, Position, SegmentNumber, Sequence};

/// Bytes in front of the batches in a DELIVER body:
///
/// ```text
///  0          8           16                  24         28         32         40
/// ┌──────────┬───────────┬───────────────────┬──────────┬──────────┬──────────┬─────────
/// │ segment  │ position  │ first offset      │ attempt  │ reserved │ lease    │ batches
/// │ u64      │ u64       │ behind, u64       │ u32      │ 0        │ u64      │ ...
/// └──────────┴───────────┴───────────────────┴──────────┴──────────┴──────────┴─────────
/// ```
///
/// The batches stand one behind the other as in the segment file from that position on; segment
/// and position are `u64::MAX` for one batch that was cut (see [`crate::batch::Place::cut`]).
pub const DELIVER_HEAD_BYTES: usize = 40;

/// The fixed part of a DELIVER.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeliverHead {
    /// The segment of the batches.
    pub segment: SegmentNumber,
    /// Where the first header stands in it.
    pub position: Position,
    /// The first offset behind the last message; in a part with `more`: the message's own.
    pub end: Offset,
    /// How often the messages were handed over before, plus one; 0: not counted.
    pub attempt: u32,
    /// The number of the lease that all messages inside are under, for their receipts; 0: none.
    pub lease: LeaseNumber,
    /// More parts of the same large message follow.
    pub more: bool,
    /// The messages may have been delivered before.
    pub redelivered: bool,
    /// More is ready than the credit allows.
    pub behind: bool,
}

impl DeliverHead {
    /// The frame header and the head, to be followed by `batch_bytes` of batches.
    #[must_use]
    pub fn encode(
        &self,
        channel: u16,
        batch_bytes: usize,
    ) -> [u8; FRAME_HEADER_BYTES + DELIVER_HEAD_BYTES] {
        let mut out = [0u8; FRAME_HEADER_BYTES + DELIVER_HEAD_BYTES];
        let flag = |on: bool, bit: u8| if on { bit } else { 0 };
        let header = FrameHeader {
            length: (DELIVER_HEAD_BYTES + batch_bytes) as u32,
            kind: Kind::Deliver,
            flags: flag(self.more, frame_flags::MORE)
                | flag(self.redelivered, frame_flags::REDELIVERED)
                | flag(self.behind, frame_flags::BEHIND),
            channel,
        };
        out[..8].copy_from_slice(&header.encode());
        let head = &mut out[8..];
        head[0..8].copy_from_slice(&self.segment.0.to_le_bytes());
        head[8..16].copy_from_slice(&self.position.0.to_le_bytes());
        head[16..24].copy_from_slice(&self.end.0.to_le_bytes());
        head[24..28].copy_from_slice(&self.attempt.to_le_bytes());
        head[32..40].copy_from_slice(&self.lease.0.to_le_bytes());
        out
    }

    fn decode(header: &FrameHeader, body: &[u8]) -> Result<DeliverHead, WireError> {
        if body.len() < DELIVER_HEAD_BYTES {
            return Err(WireError::Malformed { kind: Kind::Deliver, what: "it is cut short" });
        }
        Ok(DeliverHead {
            segment: SegmentNumber(u64_at(body, 0)),
            position: Position(u64_at(body, 8)),
            end: Offset(u64_at(body, 16)),
            attempt: u32_at(body, 24),
            lease: LeaseNumber(u64_at(body, 32)),
            more: header.has(frame_flags::MORE),
            redelivered: header.has(frame_flags::REDELIVERED),
            behind: header.has(frame_flags::BEHIND),
        })
    }
}

/// Bytes of the body of an EXTENT: the head of a DELIVER, and how many bytes of batches stand in the
/// segment's file from that position on, as a u64.
///
/// The descriptor of the file comes with the frame (SCM_RIGHTS, with its first byte) when the
/// frame has [`frame_flags::OPENS`]; without, the file is that of the EXTENT before on this channel.
/// The descriptor is open for reading only, and stays good when the segment is dropped.
pub const EXTENT_BYTES: usize = DELIVER_HEAD_BYTES + 8;

/// The whole of an EXTENT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtentHead {
    /// What is delivered; it is never a part of a large message.
    pub head: DeliverHead,
    /// Bytes of the batches, one behind the other.
    pub bytes: u64,
    /// A descriptor of the segment's file comes with the frame.
    pub opens: bool,
}

impl ExtentHead {
    /// The frame's bytes.
    #[must_use]
    pub fn encode(&self, channel: u16) -> [u8; FRAME_HEADER_BYTES + EXTENT_BYTES] {
        let mut out = [0u8; FRAME_HEADER_BYTES + EXTENT_BYTES];
        let (front, rest) = out.split_at_mut(FRAME_HEADER_BYTES + DELIVER_HEAD_BYTES);
        front.copy_from_slice(&self.head.encode(channel, EXTENT_BYTES - DELIVER_HEAD_BYTES));
        front[4] = Kind::Extent as u8;
        front[5] |= if self.opens { frame_flags::OPENS } else { 0 };
        rest.copy_from_slice(&self.bytes.to_le_bytes());
        out
    }

    fn decode(header: &FrameHeader, body: &[u8]) -> Result<ExtentHead, WireError> {
        let malformed = |what| WireError::Malformed { kind: Kind::Extent, what };
        if body.len() != EXTENT_BYTES {
            return Err(malformed("a body of the wrong size"));
        }
        let head = DeliverHead::decode(header, body)?;
        let bytes = u64_at(body, DELIVER_HEAD_BYTES);
        if head.more || head.position.0.checked_add(bytes).is_none() {
            return Err(malformed("an impossible range of a file"));
        }
        Ok(ExtentHead { head, bytes, opens: header.has(frame_flags::OPENS) })
    }
}

/// A frame from a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply<'a> {
    /// Answers HELLO with the version that is spoken from now on.
    Welcome(u16, ServerInfo),
    /// Something failed: the channel's request, or with channel 0 the connection.
    Error(Fault),
    /// The server is going down.
    Goodbye(Goodbye),
    /// Answers an administrative request; the JSON depends on the request.
    Reply(&'a [u8]),
    /// A channel for sending is open.
    Sending(Sending),
    /// Everything up to this sequence is stored; the offset is the first behind it. Of all
    /// messages that the channel has confirmed so far, so many were not stored because they were
    /// there already (their id, or a pending one of their key).
    Confirm(Sequence, Offset, Count),
    /// What was published last waits for room in the queue: why. A CONFIRM follows in time.
    Held(Fault),
    /// A channel for receiving is open.
    Receiving(Receiving),
    /// Batches.
    Deliver(DeliverHead, &'a [u8]),
    /// Batches, where they are stored.
    Extent(ExtentHead),
    /// Nothing is left of what was ready.
    End,
    /// The channel is closed; all that came before is done.
    Closed,
}

impl<'a> Reply<'a> {
    /// Reads a frame's body.
    ///
    /// # Errors
    /// What is wrong with it; the connection is then of no use.
    pub fn decode(header: &FrameHeader, body: &'a [u8]) -> Result<Reply<'a>, WireError> {
        let kind = header.kind;
        let sized = |bytes| {
            if body.len() == bytes {
                Ok(())
            } else {
                Err(WireError::Malformed { kind, what: "a body of the wrong size" })
            }
        };
        Ok(match kind {
            Kind::Welcome => {
                if body.len() < 10 || body[..8] != MAGIC {
                    return Err(WireError::NotMq);
                }
                Reply::Welcome(u16_at(body, 8), from_json(kind, &body[10..])?)
            }
            Kind::Error => Reply::Error(from_json(kind, body)?),
            Kind::Goodbye => Reply::Goodbye(from_json(kind, body)?),
            Kind::Reply => Reply::Reply(body),
            Kind::Sending => Reply::Sending(from_json(kind, body)?),
            Kind::Confirm => {
                sized(24)?;
                Reply::Confirm(
                    Sequence(u64_at(body, 0)),
                    Offset(u64_at(body, 8)),
                    Count(u64_at(body, 16)),
                )
            }
            Kind::Held => Reply::Held(from_json(kind, body)?),
            Kind::Receiving => Reply::Receiving(from_json(kind, body)?),
            Kind::Deliver => {
                let head = DeliverHead::decode(header, body)?;
                Reply::Deliver(head, &body[DELIVER_HEAD_BYTES..])
            }
            Kind::Extent => Reply::Extent(ExtentHead::decode(header, body)?),
            Kind::End => {
                sized(0)?;
                Reply::End
            }
            Kind::Closed => {
                sized(0)?;
                Reply::Closed
            }
            _ => return Err(WireError::Direction(kind)),
        })
    }

    /// Appends the frame's bytes to `out`.
    pub fn encode(&self, channel: u16, out: &mut Vec<u8>) {
        match self {
            Reply::Welcome(version, server) => {
                let mut prefix = MAGIC.to_vec();
                prefix.extend_from_slice(&version.to_le_bytes());
                push_json(out, Kind::Welcome, channel, &prefix, server);
            }
            Reply::Error(fault) => push_json(out, Kind::Error, channel, &[], fault),
            Reply::Goodbye(goodbye) => push_json(out, Kind::Goodbye, channel, &[], goodbye),
            Reply::Reply(json) => push_frame(out, Kind::Reply, 0, channel, json),
            Reply::Sending(sending) => push_json(out, Kind::Sending, channel, &[], sending),
            Reply::Held(fault) => push_json(out, Kind::Held, channel, &[], fault),
            Reply::Confirm(sequence, offset, there_already) => {
                let mut body = [0u8; 24];
                body[..8].copy_from_slice(&sequence.0.to_le_bytes());
                body[8..16].copy_from_slice(&offset.0.to_le_bytes());
                body[16..].copy_from_slice(&there_already.0.to_le_bytes());
                push_frame(out, Kind::Confirm, 0, channel, &body);
            }
            Reply::Receiving(receiving) => push_json(out, Kind::Receiving, channel, &[], receiving),
            Reply::Deliver(head, batches) => {
                out.extend_from_slice(&head.encode(channel, batches.len()));
                out.extend_from_slice(batches);
            }
            Reply::Extent(extent) => out.extend_from_slice(&extent.encode(channel)),
            Reply::End => push_frame(out, Kind::End, 0, channel, &[]),
            Reply::Closed => push_frame(out, Kind::Closed, 0, channel, &[]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::ErrorCode;
    use super::*;
    use crate::units::Micros;

    #[test]
    fn replies_round_trip_and_never_panic() {
        let info = ServerInfo {
            version: "1".to_owned(),
            pid: 3,
            producer_retry: Micros(5),
            cannot: vec![],
        };
        let head = DeliverHead {
            segment: SegmentNumber(1),
            position: Position(64),
            end: Offset(4),
            attempt: 0,
            lease: LeaseNumber(7),
            more: false,
            redelivered: true,
            behind: true,
        };
        let fault = Fault::new(ErrorCode::Full, "no room");
        for reply in [
            Reply::Welcome(1, info),
            Reply::Error(fault),
            Reply::Goodbye(Goodbye { reason: "stopped".to_owned(), orderly: true }),
            Reply::Reply(b"null"),
            Reply::Confirm(Sequence(5), Offset(6), Count(1)),
            Reply::Receiving(Receiving::default()),
            Reply::Deliver(head, b"some batches"),
            Reply::Extent(ExtentHead { head, bytes: 1 << 20, opens: true }),
            Reply::End,
            Reply::Closed,
        ] {
            let mut bytes = Vec::new();
            reply.encode(3, &mut bytes);
            let header =
                FrameHeader::decode(bytes[..8].try_into().expect("a header")).expect("valid");
            assert_eq!(Reply::decode(&header, &bytes[8..]).expect("decodes"), reply);
            for cut in 0..bytes.len() - 8 {
                let _ = Reply::decode(&header, &bytes[8..8 + cut]);
            }
        }
    }

    #[test]
    fn codes_of_newer_versions_are_understood_as_unknown() {
        let fault: Fault =
            serde_json::from_str(r#"{"code":"from-the-future","message":"m"}"#).expect("parses");
        assert_eq!(fault.code, ErrorCode::Unknown);
    }
}
