//! The frame header, kinds of frames, and what can be wrong with one.

use crate::limits;

/// Bytes of a frame header:
///
/// ```text
///  0             4      5       6         8
/// ┌─────────────┬──────┬───────┬─────────┬──────
/// │ body length │ kind │ flags │ channel │ body
/// │ u32         │ u8   │ u8    │ u16     │ ...
/// └─────────────┴──────┴───────┴─────────┴──────
/// ```
pub const FRAME_HEADER_BYTES: usize = 8;

/// Bits of [`FrameHeader::flags`].
pub mod frame_flags {
    /// PUBLISH, DELIVER: more parts of the same large message follow. COMMIT: more of the same
    /// commit.
    pub const MORE: u8 = 1 << 0;
    /// DELIVER: these messages may have been delivered before.
    pub const REDELIVERED: u8 = 1 << 1;
    /// DELIVER: more is ready than the credit allows.
    pub const BEHIND: u8 = 1 << 2;
    /// EXTENT: a descriptor of the segment's file comes with the frame.
    pub const OPENS: u8 = 1 << 3;
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $value:literal,)*) => {
        /// What a frame is. Below 0x80 from client to server, from there on the other way.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Kind {
            $($(#[$doc])* $name = $value,)*
        }

        impl Kind {
            fn from_byte(byte: u8) -> Option<Kind> {
                match byte {
                    $($value => Some(Kind::$name),)*
                    _ => None,
                }
            }

            /// Every kind, for tests and documentation.
            pub const ALL: &'static [Kind] = &[$(Kind::$name,)*];
        }
    };
}

kinds! {
    /// Opens a connection.
    Hello = 0x01,
    /// Asks the server to stop in an orderly way; needs no HELLO.
    Stop = 0x02,
    /// An administrative request.
    Admin = 0x10,
    /// Opens a channel for sending.
    OpenSend = 0x20,
    /// A batch, or a part of a large message.
    Publish = 0x21,
    /// A batch of a commit, which is stored wholly or not at all.
    Commit = 0x22,
    /// Opens a channel for receiving.
    OpenReceive = 0x30,
    /// How many messages may have been delivered on the channel in all.
    Credit = 0x31,
    /// These are settled.
    Ack = 0x32,
    /// These are given back.
    Release = 0x33,
    /// A delivered batch fails its checksum.
    Complain = 0x34,
    /// A try of these begins: a command is started on them.
    Begin = 0x35,
    /// A try of these failed.
    Nack = 0x36,
    /// How many extents the receiver is done with.
    Extents = 0x37,
    /// Ends a channel.
    Close = 0x3f,
    /// Answers HELLO.
    Welcome = 0x81,
    /// Something failed: a channel, a request, or with channel 0 the connection.
    Error = 0x82,
    /// The server is going down in an orderly way.
    Goodbye = 0x83,
    /// Answers an administrative request.
    Reply = 0x90,
    /// Answers OPEN_SEND.
    Sending = 0xa0,
    /// Everything up to a sequence is stored as the queue's policy says.
    Confirm = 0xa1,
    /// What was published waits for room in the queue.
    Held = 0xa2,
    /// Answers OPEN_RECEIVE; again when a queue that was waited for appears.
    Receiving = 0xb0,
    /// Messages.
    Deliver = 0xb1,
    /// Nothing is left of what was ready when the receiver began.
    End = 0xb2,
    /// Messages, as a range of a segment's file that the receiver reads itself.
    Extent = 0xb3,
    /// Answers CLOSE when all that came before it is done.
    Closed = 0xbf,
}

/// What is wrong with bytes on the wire. "Not enough yet" is not an error and not here.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// A body longer than any frame may be.
    #[error("a frame of {0} bytes is longer than the limit of {max}", max = limits::FRAME_BODY_BYTES_MAX)]
    TooLong(u32),
    /// A kind that this version does not know.
    #[error("unknown frame kind {0:#04x}")]
    UnknownKind(u8),
    /// A frame that travels only in the other direction.
    #[error("a {0:?} frame does not travel in this direction")]
    Direction(Kind),
    /// A body of the wrong size or with impossible values.
    #[error("malformed {kind:?} frame: {what}")]
    Malformed {
        /// Which frame.
        kind: Kind,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A JSON body that does not parse.
    #[error("malformed {kind:?} frame: {source}")]
    Json {
        /// Which frame.
        kind: Kind,
        /// What the parser says.
        source: serde_json::Error,
    },
    /// The peer does not speak mq at all.
    #[error("the peer does not speak the mq protocol")]
    NotMq,
}

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Bytes of the body.
    pub length: u32,
    /// What the frame is.
    pub kind: Kind,
    /// See [`frame_flags`].
    pub flags: u8,
    /// The channel; 0 for the connection itself.
    pub channel: u16,
}

impl FrameHeader {
    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; FRAME_HEADER_BYTES] {
        let mut out = [0u8; FRAME_HEADER_BYTES];
        out[0..4].copy_from_slice(&self.length.to_le_bytes());
        out[4] = self.kind as u8;
        out[5] = self.flags;
        out[6..8].copy_from_slice(&self.channel.to_le_bytes());
        out
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`WireError::TooLong`], [`WireError::UnknownKind`].
    pub fn decode(bytes: &[u8; FRAME_HEADER_BYTES]) -> Result<FrameHeader, WireError> {
        let length = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let kind = Kind::from_byte(bytes[4]).ok_or(WireError::UnknownKind(bytes[4]))?;
        if length as usize > limits::FRAME_BODY_BYTES_MAX {
            return Err(WireError::TooLong(length));
        }
        let channel = u16::from_le_bytes([bytes[6], bytes[7]]);
        Ok(FrameHeader { length, kind, flags: bytes[5], channel })
    }

    /// Whether `bit` of [`frame_flags`] is set.
    #[must_use]
    pub fn has(&self, bit: u8) -> bool {
        self.flags & bit != 0
    }
}

/// Appends a frame with this body to `out`. Panics when the body is over the limit: a
/// programmer's error.
pub(super) fn push_frame(out: &mut Vec<u8>, kind: Kind, flags: u8, channel: u16, body: &[u8]) {
    assert!(body.len() <= limits::FRAME_BODY_BYTES_MAX, "{kind:?} frame over the limit");
    let header = FrameHeader { length: body.len() as u32, kind, flags, channel };
    out.extend_from_slice(&header.encode());
    out.extend_from_slice(body);
}

/// Appends a frame with a JSON body.
pub(super) fn push_json<T: serde::Serialize>(
    out: &mut Vec<u8>,
    kind: Kind,
    channel: u16,
    prefix: &[u8],
    value: &T,
) {
    let mut body = prefix.to_vec();
    serde_json::to_writer(&mut body, value).expect("our own types serialize");
    push_frame(out, kind, 0, channel, &body);
}

/// Reads a JSON body.
pub(super) fn from_json<'a, T: serde::Deserialize<'a>>(
    kind: Kind,
    body: &'a [u8],
) -> Result<T, WireError> {
    if body.len() > limits::JSON_BYTES_MAX {
        return Err(WireError::Malformed { kind, what: "the JSON is too long" });
    }
    serde_json::from_slice(body).map_err(|source| WireError::Json { kind, source })
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}
