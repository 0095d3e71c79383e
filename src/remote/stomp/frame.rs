//! STOMP 1.2 frames: bytes there and back.
//!
//! ```text
//! COMMAND \n
//! name:value \n ...          \r \n : \ escaped, but not in CONNECT and CONNECTED
//! \n
//! body NUL                   as long as content-length says, or up to the first NUL
//! \n ...                     line ends between frames are heart-beats
//! ```
//!
//! The source is the specification at stomp.github.io. Pure: no socket, no clock.

use bytes::{Buf as _, Bytes, BytesMut};

/// The longest head of a frame, in bytes: far above what brokers send.
const HEAD_MAX: usize = 1 << 20;

/// The longest body, in bytes: that of mq's largest message, and some.
const BODY_MAX: usize = 65 << 20;

/// What is no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadFrame {
    /// Its head or its body goes on and on.
    #[error("a frame is too long")]
    TooLong,
    /// It is not UTF-8.
    #[error("the head of a frame is not UTF-8")]
    NotUtf8,
    /// A line without a colon, or a sequence that stands for nothing.
    #[error("a header of a frame is malformed")]
    BadHeader,
    /// No NUL behind the body.
    #[error("a frame does not end where its length says")]
    BadEnd,
}

/// A frame that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// `MESSAGE`, `RECEIPT`, ...
    pub command: String,
    /// Names and values, in their order.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Bytes,
}

impl Frame {
    /// The value of a header: the first, as the specification has it.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }
}

/// Takes the next frame off what was read; `None`: it is not all here.
///
/// # Errors
/// What is no frame: the connection is of no use any more.
pub fn decode(buffer: &mut BytesMut) -> Result<Option<Frame>, BadFrame> {
    let beats = buffer.iter().take_while(|byte| matches!(byte, b'\n' | b'\r')).count();
    buffer.advance(beats);
    let Some(head_len) = head_len(buffer) else {
        return if buffer.len() > HEAD_MAX { Err(BadFrame::TooLong) } else { Ok(None) };
    };
    let (command, headers) = parse_head(&buffer[..head_len])?;
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let body_len = match length.map(|(_, value)| value.trim().parse::<usize>()) {
        Some(Ok(length)) if length <= BODY_MAX => length,
        Some(Ok(_)) => return Err(BadFrame::TooLong),
        Some(Err(_)) => return Err(BadFrame::BadHeader),
        None => match memchr::memchr(0, &buffer[head_len..]) {
            Some(length) => length,
            None if buffer.len() > BODY_MAX => return Err(BadFrame::TooLong),
            None => return Ok(None),
        },
    };
    let end = head_len + body_len;
    match buffer.get(end) {
        None => {
            buffer.reserve(end + 1 - buffer.len());
            return Ok(None);
        }
        Some(0) => (),
        Some(_) => return Err(BadFrame::BadEnd),
    }
    let mut frame = buffer.split_to(end + 1);
    frame.advance(head_len);
    frame.truncate(body_len);
    Ok(Some(Frame { command, headers, body: frame.freeze() }))
}

/// The length of the head with the empty line that ends it.
fn head_len(buffer: &[u8]) -> Option<usize> {
    let mut line = 0;
    for end in memchr::memchr_iter(b'\n', buffer) {
        let length = end - line;
        if length == 0 || (length == 1 && buffer[line] == b'\r') {
            return Some(end + 1);
        }
        line = end + 1;
    }
    None
}

fn parse_head(head: &[u8]) -> Result<(String, Vec<(String, String)>), BadFrame> {
    let head = std::str::from_utf8(head).map_err(|_| BadFrame::NotUtf8)?;
    let mut lines = head.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line));
    let command = lines.next().unwrap_or_default().to_owned();
    let plain = command == "CONNECTED";
    let headers = lines.filter(|line| !line.is_empty()).map(|line| {
        let (name, value) = line.split_once(':').ok_or(BadFrame::BadHeader)?;
        if plain {
            return Ok((name.to_owned(), value.to_owned()));
        }
        Ok((unescape(name)?, unescape(value)?))
    });
    Ok((command, headers.collect::<Result<_, _>>()?))
}

fn unescape(text: &str) -> Result<String, BadFrame> {
    let Some(first) = memchr::memchr(b'\\', text.as_bytes()) else { return Ok(text.to_owned()) };
    let mut out = String::with_capacity(text.len());
    out.push_str(&text[..first]);
    let mut rest = text[first..].chars();
    while let Some(next) = rest.next() {
        out.push(match next {
            '\\' => match rest.next() {
                Some('\\') => '\\',
                Some('c') => ':',
                Some('n') => '\n',
                Some('r') => '\r',
                _ => return Err(BadFrame::BadHeader),
            },
            other => other,
        });
    }
    Ok(out)
}

fn escape(out: &mut BytesMut, text: &str) {
    if memchr::memchr3(b'\\', b':', b'\n', text.as_bytes()).is_none()
        && memchr::memchr(b'\r', text.as_bytes()).is_none()
    {
        return out.extend_from_slice(text.as_bytes());
    }
    for byte in text.bytes() {
        match byte {
            b'\\' => out.extend_from_slice(b"\\\\"),
            b':' => out.extend_from_slice(b"\\c"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            other => out.extend_from_slice(&[other]),
        }
    }
}

/// Puts together frames in one buffer, to be written at once.
#[derive(Debug, Default)]
pub struct Encoder(BytesMut);

impl Encoder {
    /// Begins a frame.
    pub fn begin(&mut self, command: &str) -> &mut Encoder {
        self.0.extend_from_slice(command.as_bytes());
        self.0.extend_from_slice(b"\n");
        self
    }

    /// A header, escaped.
    pub fn header(&mut self, name: &str, value: &str) -> &mut Encoder {
        escape(&mut self.0, name);
        self.0.extend_from_slice(b":");
        escape(&mut self.0, value);
        self.0.extend_from_slice(b"\n");
        self
    }

    /// A header as CONNECT has it: not escaped, so its value must be on one line.
    pub fn plain_header(&mut self, name: &str, value: &str) -> &mut Encoder {
        for part in [name, ":", value, "\n"] {
            self.0.extend_from_slice(part.as_bytes());
        }
        self
    }

    /// A header that is a number.
    pub fn number(&mut self, name: &str, value: u64) -> &mut Encoder {
        let mut digits = itoa::Buffer::new();
        self.plain_header(name, digits.format(value))
    }

    /// Ends a frame without a body.
    pub fn end(&mut self) {
        self.0.extend_from_slice(b"\n\0");
    }

    /// Ends a frame with a body of any bytes.
    pub fn body(&mut self, body: &[u8]) {
        self.number("content-length", body.len() as u64);
        self.0.extend_from_slice(b"\n");
        self.0.extend_from_slice(body);
        self.0.extend_from_slice(b"\0");
    }

    /// How many bytes are waiting to be taken.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.0.len()
    }

    /// Takes all that there is.
    pub fn take(&mut self) -> Bytes {
        self.0.split().freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(bytes: &[u8]) -> (Vec<Frame>, BytesMut) {
        let mut buffer = BytesMut::from(bytes);
        let mut frames = Vec::new();
        while let Some(frame) = decode(&mut buffer).expect("frames") {
            frames.push(frame);
        }
        (frames, buffer)
    }

    #[test]
    fn frames_come_back_as_they_were_at_any_cut() {
        let mut out = Encoder::default();
        out.begin("MESSAGE").header("a:\\\n\r", "1:\\\n\r").number("n", 7).body(b"\0\n\0");
        out.begin("RECEIPT").header("receipt-id", "").end();
        let bytes = out.take();
        let (whole, rest) = all(&bytes);
        assert!(rest.is_empty());
        assert_eq!(whole.len(), 2);
        assert_eq!(whole[0].headers[0], ("a:\\\n\r".to_owned(), "1:\\\n\r".to_owned()));
        assert_eq!(&whole[0].body[..], b"\0\n\0");
        assert_eq!(whole[1].header("receipt-id"), Some(""));
        for cut in 0..bytes.len() {
            let mut buffer = BytesMut::from(&bytes[..cut]);
            let mut frames = Vec::new();
            while let Some(frame) = decode(&mut buffer).expect("frames") {
                frames.push(frame);
            }
            buffer.extend_from_slice(&bytes[cut..]);
            while let Some(frame) = decode(&mut buffer).expect("frames") {
                frames.push(frame);
            }
            assert_eq!(frames, whole, "cut at {cut}");
        }
    }

    #[test]
    fn heart_beats_and_bodies_without_a_length_are_read() {
        let (frames, rest) = all(b"\n\r\nERROR\r\nmessage:no\r\n\r\nwhy\0\n\nMESS");
        assert_eq!(frames.len(), 1);
        assert_eq!((frames[0].header("message"), &frames[0].body[..]), (Some("no"), &b"why"[..]));
        assert_eq!(&rest[..], b"MESS");
    }

    #[test]
    fn what_is_no_frame_is_told_apart() {
        let bad = |bytes: &[u8]| decode(&mut BytesMut::from(bytes)).expect_err("bad");
        assert_eq!(bad(b"A\nb\n\n\0"), BadFrame::BadHeader);
        assert_eq!(bad(b"A\nb:\\t\n\n\0"), BadFrame::BadHeader);
        assert_eq!(bad(b"A\ncontent-length:x\n\n\0"), BadFrame::BadHeader);
        assert_eq!(bad(b"A\ncontent-length:1\n\nab\0"), BadFrame::BadEnd);
        assert_eq!(bad(b"A\ncontent-length:99999999999\n\n\0"), BadFrame::TooLong);
        assert_eq!(bad(b"\xff\n\n\0"), BadFrame::NotUtf8);
        assert_eq!(bad(&vec![b'a'; HEAD_MAX + 1]), BadFrame::TooLong);
    }
}
