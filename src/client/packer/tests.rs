//! What becomes of an input, read back as a server reads it.

use super::*;
use crate::batch::{self, Framing, Record, flags};
use crate::client::envelope::Attributes;
use crate::client::given::Delay;
use crate::units::{Micros, Sequence};
use crate::wire::{FRAME_HEADER_BYTES, FrameHeader, PublishHead, Request};

const NOW: WallTime = WallTime(1_000_000);

fn packing() -> Packing {
    Packing {
        cut: Cut::At(b'\n'),
        envelopes: false,
        given: Given::default(),
        rerun: None,
        copies: false,
    }
}

fn key(key: &str) -> Given {
    Given::new(Some(key.to_owned()), &[], None, None, None).expect("fits")
}

/// The batches in the window: head, annex, messages with attributes and bodies.
type Batch = (PublishHead, Vec<u8>, Vec<(Vec<u8>, Vec<u8>)>);

fn batches(window: &mut Window) -> Vec<Batch> {
    let mut found = Vec::new();
    let mut parts = Vec::new();
    while !window.unwritten().is_empty() {
        let frame = window.unwritten().to_vec();
        let header = frame.first_chunk::<FRAME_HEADER_BYTES>().expect("a header");
        let header = FrameHeader::decode(header).expect("valid");
        let request = Request::decode(&header, &frame[FRAME_HEADER_BYTES..]).expect("a request");
        let Request::Publish(head, payload) = request else { panic!("a PUBLISH") };
        let behind_annex = match head.batch_flags & flags::ANNEX {
            0 => 0,
            _ => 4 + u32::from_le_bytes(payload[..4].try_into().expect("four")) as usize,
        };
        let (annex, rest) = payload.split_at(behind_annex);
        parts.extend_from_slice(rest);
        if !head.more {
            batch::check_messages(head.framing, &parts, head.count).expect("as announced");
            found.push((head, annex.to_vec(), messages_of(head.framing, &parts)));
            parts.clear();
        }
        window.wrote(frame.len());
    }
    found
}

fn messages_of(framing: Framing, mut payload: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let Framing::Records = framing else {
        return batch::bodies(framing, payload).map(|body| (Vec::new(), body.to_vec())).collect();
    };
    let mut found = Vec::new();
    while !payload.is_empty() {
        let (record, behind) = Record::decode(payload).expect("checked");
        found.push((record.attribute_bytes.to_vec(), record.body.to_vec()));
        payload = behind;
    }
    found
}

fn bodies(batches: &[Batch]) -> Vec<Vec<u8>> {
    batches.iter().flat_map(|(_, _, messages)| messages.iter().map(|m| m.1.clone())).collect()
}

fn feed(
    packer: &mut Packer,
    mut input: &[u8],
    step: usize,
    window: &mut Window,
) -> Result<(), Misfit> {
    while !input.is_empty() {
        let space = packer.space();
        let bytes = space.len().min(step).min(input.len());
        space[..bytes].copy_from_slice(&input[..bytes]);
        packer.advance(bytes, NOW, window)?;
        input = &input[bytes..];
    }
    packer.end_source(NOW, window)
}

fn packed(packing: Packing, input: &[u8], step: usize) -> Result<Vec<Batch>, Misfit> {
    let mut window = Window::default();
    feed(&mut Packer::new(packing), input, step, &mut window).map(|()| batches(&mut window))
}

#[test]
fn lines_get_their_attributes_whatever_a_read_returns() {
    let input = b"one\n\ntwo\0\xff\r\n\nlast without its end";
    let expected: Vec<&[u8]> = input.split(|byte| *byte == b'\n').collect();
    for step in 1..=input.len() {
        let found = packed(Packing { given: key("k"), ..packing() }, input, step).expect("fits");
        assert_eq!(bodies(&found), expected, "step {step}");
        for (head, _, messages) in &found {
            assert_eq!(head.framing, Framing::Records);
            assert!(messages.iter().all(|m| Attributes::parse(&m.0).key == Some(b"k")));
        }
    }
    let whole = Packing { cut: Cut::Whole, given: key("k"), ..packing() };
    assert_eq!(bodies(&packed(whole, input, 5).expect("fits")), [input]);
    let empty = Packing { cut: Cut::Whole, given: key("k"), ..packing() };
    assert_eq!(bodies(&packed(empty, b"", 5).expect("fits")), [b""]);
}

#[test]
fn what_a_read_returned_is_a_batch_and_large_ones_are_several() {
    let lines = vec![b'\n'; limits::SEND_BATCH_BYTES];
    let found =
        packed(Packing { given: key("key"), ..packing() }, &lines, usize::MAX).expect("fits");
    assert_eq!(found.len(), 16);
    assert_eq!(bodies(&found).len(), lines.len());
    assert_eq!(packed(packing(), b"a\nb\nc\n", 4).expect("fits").len(), 2);
}

#[test]
fn messages_of_all_sizes_come_through_with_attributes() {
    let part = 1 << 20;
    let sizes = [
        0,
        1,
        limits::SEND_BATCH_BYTES - 1,
        limits::SEND_BATCH_BYTES,
        part - 40,
        part,
        limits::BATCH_PAYLOAD_BYTES_MAX - 14,
        limits::BATCH_PAYLOAD_BYTES_MAX - 13,
        3 * part + 17,
    ];
    let mut input = Vec::new();
    for (n, size) in sizes.iter().enumerate() {
        input.extend(std::iter::repeat_n(b'a' + n as u8, *size));
        input.extend_from_slice(b"\nx\n");
    }
    let mut expected: Vec<&[u8]> = input.split(|byte| *byte == b'\n').collect();
    expected.pop();
    for rerun in [false, true] {
        let rerun = rerun.then(Rerun::new);
        let is_rerun = rerun.is_some();
        let found = packed(Packing { given: key("k"), rerun, ..packing() }, &input, 100_003);
        let found = found.expect("fits");
        assert!(found.iter().all(|(_, annex, _)| annex.is_empty() != is_rerun));
        assert!(bodies(&found) == expected);
    }
}

#[test]
fn delayed_messages_are_in_batches_of_their_own() {
    let given = |delay| Given::new(None, &[], None, Some(delay), None).expect("fits");
    let later = given(Delay::For(Micros(5)));
    let envelopes = Packing { envelopes: true, given: Given::default(), ..packing() };
    let lines = br#"{"data":"now"}
{"data":"past","not_before":"1970-01-01T00:00:01Z"}
{"data":"later","not_before":"1970-01-01T00:00:01.000001Z"}
{"data":"again now"}
"#;
    let found = packed(envelopes, lines, usize::MAX).expect("fits");
    let counts: Vec<u32> = found.iter().map(|(head, _, _)| head.count).collect();
    assert_eq!(counts, [2, 1, 1]);
    let found = packed(Packing { given: later.clone(), ..packing() }, b"a\n", 9).expect("fits");
    let not_before = Attributes::parse(&found[0].2[0].0).not_before;
    assert_eq!(not_before, Some(WallTime(NOW.0 + 5)));
    // The second fits a batch, but not with the account of what was taken in front of it.
    for bytes in [2 << 20, 1_052_630] {
        let large = vec![b'x'; bytes];
        let refused = packed(Packing { given: later.clone(), ..packing() }, &large, usize::MAX);
        assert_eq!(refused.err(), Some(Misfit::DelayedLarge { message: 1 }));
    }
}

#[test]
fn bad_lines_are_named_and_what_is_before_them_is_kept() {
    let mut window = Window::default();
    let mut packer = Packer::new(Packing { envelopes: true, ..packing() });
    let input = b"{\"data\":\"a\"}\n\n \r\n{\"data\":\"b\"}\n{\"data\":5}\n{\"data\":\"c\"}\n";
    let error = feed(&mut packer, input, usize::MAX, &mut window).expect_err("a bad line");
    assert!(matches!(error, Misfit::Envelope { line: 5, .. }), "{error:?}");
    assert_eq!(bodies(&batches(&mut window)), [b"a", b"b"]);
    let attributes = format!("{{\"data\":\"\",\"id\":\"{}\"}}", "x".repeat(70_000));
    let error = packed(Packing { envelopes: true, ..packing() }, attributes.as_bytes(), 1 << 20);
    assert!(matches!(error, Err(Misfit::Envelope { line: 1, .. })));
}

#[test]
fn a_message_over_the_limit_is_refused_where_it_begins() {
    let mut input = b"one\n".to_vec();
    input.resize(4 + limits::MESSAGE_BYTES_MAX + 1, b'x');
    let error = packed(Packing { given: key("k"), ..packing() }, &input, usize::MAX);
    assert_eq!(error.err(), Some(TooLarge { message: 2, begins: 4 }.into()));
    input.truncate(4 + limits::MESSAGE_BYTES_MAX);
    let found = packed(Packing { given: key("k"), ..packing() }, &input, usize::MAX);
    assert_eq!(bodies(&found.expect("fits"))[1].len(), limits::MESSAGE_BYTES_MAX);
}

#[test]
fn a_rerun_sends_what_is_not_stored_and_says_how_far_the_input_is() {
    let named = || Packing { rerun: Some(Rerun::new()), ..packing() };
    let found = packed(named(), b"a\nb\nc\n", 4).expect("fits");
    assert_eq!(found.len(), 2);
    assert!(found.iter().all(|(head, ..)| head.framing == Framing::Delimited(b'\n')));
    let (annex, first_annex) = (&found[1].1[4..], &found[0].1[4..]);
    assert_ne!(annex, first_annex);
    for (stored, annex, rest) in [(3, annex, vec!["d"]), (1, first_annex, vec!["b", "c", "d"])] {
        let mut window = Window::default();
        window.skip_to(Sequence(stored));
        let mut packer = Packer::new(named());
        packer.rerun().expect("it has one").expect(Sequence(stored), Some(annex)).expect("ours");
        assert!(packer.is_open());
        feed(&mut packer, b"a\nb\nc\nd\n", 100, &mut window).expect("the same");
        assert!(!packer.is_open());
        let found = batches(&mut window);
        assert_eq!(found.last().expect("one").0.sequence, Sequence(4));
        assert_eq!(bodies(&found), rest.iter().map(|m| m.as_bytes()).collect::<Vec<_>>());
    }
    let mut window = Window::default();
    let mut packer = Packer::new(named());
    packer.rerun().expect("it has one").expect(Sequence(3), Some(annex)).expect("ours");
    let error = feed(&mut packer, b"a\nB\nc\nd\n", 100, &mut window).expect_err("it differs");
    assert!(matches!(error, Misfit::Rerun(_)));
    assert!(window.unwritten().is_empty());
}

#[test]
fn copies_are_of_the_input_as_it_came() {
    for (cut, input) in [(Cut::At(b','), b"one,,two,three,".as_slice()), (Cut::Whole, b"one,two")] {
        let mut window = Window::default();
        let packing = Packing { cut, given: key("k"), copies: true, ..packing() };
        feed(&mut Packer::new(packing), input, 5, &mut window).expect("fits");
        batches(&mut window);
        window.confirm(window.sequence()).expect("all is written");
        let (mut copy, mut bytes) = (Vec::new(), 0);
        while let Some(piece) = window.take_confirmed() {
            copy.extend_from_slice(piece.body());
            bytes += piece.input_bytes();
        }
        assert_eq!(copy, input);
        assert_eq!(bytes, input.len() as u64);
    }
}
