//! The output of a filter as the batches of a commit.
//!
//! Cut where messages end, into parts that go as one frame each; a message that is larger goes as a
//! chain of parts. Computes only; the [`committer`](super::committer) sends what comes out.

use std::ops::Range;

use crate::batch::{Framing, RECORD_HEADER_BYTES, Record, flags};
use crate::limits;

/// How the messages of an output are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Each ends with this byte; the last need not.
    Delimited(u8),
    /// All of it is one, unless there is nothing.
    Whole,
    /// They are records, with attributes; not what a filter writes.
    Records,
}

/// Why an output cannot be committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutputError {
    /// It is too large.
    #[error("the filter's output is over {} MiB, the most that is committed at once",
        limits::MESSAGE_BYTES_MAX >> 20)]
    TooLarge,
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// How its messages lie.
    pub framing: Framing,
    /// Flags of a chain.
    pub flags: u16,
    /// Messages.
    pub count: u32,
    /// What stands in front of the bytes: the header of a record, in its first part.
    pub prefix: Option<[u8; RECORD_HEADER_BYTES]>,
    /// Which bytes of the output.
    pub bytes: Range<usize>,
}

impl Part {
    /// Bytes of its payload.
    #[must_use]
    pub fn len(&self) -> usize {
        self.prefix.map_or(0, |prefix| prefix.len()) + self.bytes.len()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Cuts an output into parts of about `size` bytes. A last delimiter that is missing is added.
///
/// # Errors
/// [`OutputError::TooLarge`].
pub fn parts(cut: Cut, output: &mut Vec<u8>, size: usize) -> Result<Vec<Part>, OutputError> {
    let most = match cut {
        Cut::Records => {
            limits::MESSAGE_BYTES_MAX + limits::ATTRIBUTE_BYTES_MAX + RECORD_HEADER_BYTES
        }
        Cut::Delimited(_) => limits::PIPE_OUTPUT_BYTES_MAX,
        Cut::Whole => limits::MESSAGE_BYTES_MAX,
    };
    let ends = match cut {
        Cut::Delimited(byte) => output.last() != Some(&byte),
        Cut::Whole | Cut::Records => false,
    };
    if output.len() + usize::from(ends) > most {
        return Err(OutputError::TooLarge);
    }
    if output.is_empty() {
        return Ok(Vec::new());
    }
    let mut parts = Vec::new();
    match cut {
        Cut::Whole => record(&mut parts, 0..output.len()),
        Cut::Records => records(&mut parts, output, size),
        Cut::Delimited(byte) => {
            if ends {
                output.push(byte);
            }
            delimited(&mut parts, byte, output, size);
        }
    }
    Ok(parts)
}

fn delimited(parts: &mut Vec<Part>, byte: u8, output: &[u8], size: usize) {
    let mut at = 0;
    while at < output.len() {
        let most = (at + size).min(output.len());
        let end = match memchr::memrchr(byte, &output[at..most]) {
            Some(last) => at + last + 1,
            // A message that is longer than a part should be.
            None => {
                let rest = &output[most..];
                let end = memchr::memchr(byte, rest).expect("the last message has its end");
                let end = most + end + 1;
                if end - at > limits::BATCH_PAYLOAD_BYTES_MAX {
                    record(parts, at..end - 1);
                    at = end;
                    continue;
                }
                end
            }
        };
        let count = memchr::memchr_iter(byte, &output[at..end]).count() as u32;
        let framing = Framing::Delimited(byte);
        parts.push(Part { framing, flags: 0, count, prefix: None, bytes: at..end });
        at = end;
    }
}

/// Records as they stand; as many in a part as fit, or one in a chain.
fn records(parts: &mut Vec<Part>, output: &[u8], size: usize) {
    let framing = Framing::Records;
    let (mut at, mut end, mut count) = (0, 0, 0);
    while end < output.len() {
        let (_, rest) = Record::decode(&output[end..]).expect("our own records can be read");
        let next = output.len() - rest.len();
        if count > 0 && next - at > size {
            parts.push(Part { framing, flags: 0, count, prefix: None, bytes: at..end });
            (at, count) = (end, 0);
        }
        (end, count) = (next, count + 1);
        if end - at > limits::CHAIN_PART_BYTES as usize {
            chain(parts, None, at..end);
            (at, count) = (end, 0);
        }
    }
    if count > 0 {
        parts.push(Part { framing, flags: 0, count, prefix: None, bytes: at..end });
    }
}

/// One message as a record: one part, or a chain.
fn record(parts: &mut Vec<Part>, body: Range<usize>) {
    let mut prefix = [0u8; RECORD_HEADER_BYTES];
    prefix[4..].copy_from_slice(&(body.len() as u32).to_le_bytes());
    let framing = Framing::Records;
    if body.len() + prefix.len() <= limits::CHAIN_PART_BYTES as usize {
        parts.push(Part { framing, flags: 0, count: 1, prefix: Some(prefix), bytes: body });
        return;
    }
    chain(parts, Some(prefix), body);
}

fn chain(parts: &mut Vec<Part>, mut prefix: Option<[u8; RECORD_HEADER_BYTES]>, body: Range<usize>) {
    let framing = Framing::Records;
    let mut at = body.start;
    while at < body.end {
        let prefix = prefix.take();
        let room = limits::CHAIN_PART_BYTES as usize - prefix.map_or(0, |prefix| prefix.len());
        let end = (at + room).min(body.end);
        let last = end == body.end;
        let ends = if last { flags::CHAIN_END } else { 0 };
        let flags = flags::CHAIN | ends;
        parts.push(Part { framing, flags, count: u32::from(last), prefix, bytes: at..end });
        at = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(parts: &[Part], output: &[u8]) -> Vec<u8> {
        parts.iter().flat_map(|part| output[part.bytes.clone()].to_vec()).collect()
    }

    #[test]
    fn lines_are_cut_where_they_end() {
        let mut output = b"a\nbb\n\nccc".to_vec();
        let parts = parts(Cut::Delimited(b'\n'), &mut output, 4).unwrap();
        assert_eq!(output, b"a\nbb\n\nccc\n");
        assert_eq!(joined(&parts, &output), output);
        let counts: Vec<u32> = parts.iter().map(|part| part.count).collect();
        assert_eq!(counts, [1, 2, 1]);
        assert!(super::parts(Cut::Delimited(b'\n'), &mut Vec::new(), 4).unwrap().is_empty());
        assert!(super::parts(Cut::Whole, &mut Vec::new(), 4).unwrap().is_empty());
    }

    #[test]
    fn records_are_cut_where_they_end() {
        let mut output = Vec::new();
        let large = vec![b'x'; 3 << 20];
        for body in [&b"a"[..], b"bb", b"", &large, b"c"] {
            Record { attribute_bytes: b"", body }.encode(&mut output);
        }
        let whole = output.clone();
        let parts = parts(Cut::Records, &mut output, 20).unwrap();
        assert_eq!(joined(&parts, &output), whole);
        assert_eq!(parts.iter().map(|part| part.count).sum::<u32>(), 5);
        let counts: Vec<u32> = parts.iter().map(|part| part.count).collect();
        assert_eq!((counts[0], counts[1], counts[counts.len() - 1]), (2, 1, 1));
        assert!(parts[2..parts.len() - 1].iter().all(|part| part.flags & flags::CHAIN != 0));
    }

    #[test]
    fn large_messages_become_chains() {
        let mut output = vec![b'x'; 3 << 20];
        output.extend(b"\nshort\n");
        let lines = parts(Cut::Delimited(b'\n'), &mut output, 1 << 10).unwrap();
        let (chain, rest) = lines.split_at(lines.len() - 1);
        assert!(chain.iter().all(|part| part.flags & flags::CHAIN != 0));
        assert!(chain.iter().all(|part| part.len() <= limits::CHAIN_PART_BYTES as usize));
        assert_eq!(chain.iter().map(|part| part.count).sum::<u32>(), 1);
        assert_eq!(chain.iter().map(Part::len).sum::<usize>(), (3 << 20) + RECORD_HEADER_BYTES);
        assert_eq!((rest[0].count, &output[rest[0].bytes.clone()]), (1, &b"short\n"[..]));
        let mut whole = b"a\nb\n".to_vec();
        let parts = parts(Cut::Whole, &mut whole, 1).unwrap();
        assert_eq!((parts.len(), parts[0].count, parts[0].len()), (1, 1, 12));
        let mut huge = vec![b'x'; limits::MESSAGE_BYTES_MAX];
        huge.push(b'\n');
        let largest = super::parts(Cut::Delimited(b'\n'), &mut huge, 1).unwrap();
        assert_eq!(largest.iter().map(|part| part.count).sum::<u32>(), 1);
        huge[limits::MESSAGE_BYTES_MAX] = b'x';
        let cut = Cut::Delimited(b'\n');
        assert_eq!(super::parts(cut, &mut huge, 1), Err(OutputError::TooLarge));
        assert_eq!(super::parts(Cut::Whole, &mut huge, 1), Err(OutputError::TooLarge));
    }
}
