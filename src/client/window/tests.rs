//! What a window does, frame by frame.

use super::*;
use crate::batch::flags;

fn add_lines(window: &mut Window, lines: &[u8]) {
    let mut buffer = window.take_buffer();
    buffer[BODY_AT..BODY_AT + lines.len()].copy_from_slice(lines);
    let count = lines.iter().filter(|byte| **byte == b'\n').count() as u32;
    if let Some(unused) = window.push(buffer, BODY_AT + lines.len(), count, b'\n') {
        window.put_buffer(unused);
    }
}

fn write_all(window: &mut Window) -> usize {
    let mut frames = 0;
    while !window.unwritten().is_empty() {
        window.wrote(window.unwritten().len());
        frames += 1;
    }
    frames
}

fn confirm(window: &mut Window, sequence: u64) -> Vec<u8> {
    window.confirm(Sequence(sequence)).expect("fits");
    let mut bodies = Vec::new();
    while let Some(piece) = window.take_confirmed() {
        bodies.extend_from_slice(piece.body());
        window.recycle(piece);
    }
    bodies
}

fn three_batches() -> Window {
    let mut window = Window::default();
    for lines in [b"1\n2\n".as_slice(), b"3\n", b"4\n5\n"] {
        add_lines(&mut window, lines);
    }
    window
}

#[test]
fn confirmed_pieces_come_back_in_order() {
    let mut window = three_batches();
    assert_eq!(write_all(&mut window), 3);
    assert_eq!(confirm(&mut window, 3), b"1\n2\n3\n");
    assert_eq!(window.confirmed(), Sequence(3));
    assert!(!window.is_empty());
    assert!(window.confirm(Sequence(6)).is_err());
    confirm(&mut window, 5);
    assert!(window.is_empty());
    assert_eq!(window.cost, 0);
}

#[test]
fn resumed_window_sends_the_last_stored_batch_and_the_rest() {
    let mut window = three_batches();
    write_all(&mut window);
    confirm(&mut window, 2);
    window.rewind();
    window.resume(Sequence(2)).expect("fits");
    assert_eq!(write_all(&mut window), 2);
    window.rewind();
    window.resume(Sequence(3)).expect("fits");
    assert_eq!(write_all(&mut window), 2);
    window.rewind();
    window.resume(Sequence(5)).expect("fits");
    assert_eq!(write_all(&mut window), 1);
    for impossible in [1, 6] {
        assert!(window.resume(Sequence(impossible)).is_err(), "{impossible}");
    }
}

/// The messages that the frames in the window hold, from the first that is not written on.
fn unwritten_messages(window: &mut Window) -> Vec<(u64, Vec<u8>)> {
    let mut found = Vec::new();
    while !window.unwritten().is_empty() {
        let (head, payload) = window.pieces[window.next].decode();
        found.push((head.sequence.0, payload.to_vec()));
        window.wrote(window.unwritten().len());
    }
    found
}

#[test]
fn a_batch_of_which_the_beginning_is_stored_is_sent_on_from_there() {
    let mut window = Window::default();
    add_lines(&mut window, b"1\n2\n3\n4\n");
    add_lines(&mut window, b"5\n");
    write_all(&mut window);
    confirm(&mut window, 2);
    assert_eq!(window.confirmed(), Sequence(2));
    // The server may have more than it could still say.
    window.rewind();
    window.resume(Sequence(3)).expect("fits");
    let sent = unwritten_messages(&mut window);
    let sent: Vec<(u64, &[u8])> = sent.iter().map(|(last, m)| (*last, m.as_slice())).collect();
    assert_eq!(sent, [(3, b"1\n2\n3\n".as_slice()), (4, b"4\n"), (5, b"5\n")]);
    // And what it had said already is not sent again.
    let mut window = Window::default();
    add_lines(&mut window, b"1\n2\n3\n4\n");
    write_all(&mut window);
    confirm(&mut window, 3);
    window.rewind();
    window.resume(Sequence(3)).expect("fits");
    assert_eq!(unwritten_messages(&mut window), [(4, b"4\n".to_vec())]);
    assert_eq!(confirm(&mut window, 4), b"1\n2\n3\n4\n");
    assert!(window.is_empty());
    assert_eq!(window.cost, 0);
}

#[test]
fn the_rest_of_a_batch_can_be_forgotten() {
    let mut window = Window::default();
    let mut buffer = window.take_buffer();
    let payload = b"\x02\0\0\0xx1\n2\n3\n";
    buffer[PACKED_AT..PACKED_AT + payload.len()].copy_from_slice(payload);
    let copy = Some(b"one,two,three,".to_vec());
    let input = Input::Other { bytes: 14, copy, delimiter: Some(b',') };
    let lines = Framing::Delimited(b'\n');
    window.push_packed(buffer, PACKED_AT + payload.len(), 3, lines, flags::ANNEX, input);
    write_all(&mut window);
    window.rewind();
    window.resume(Sequence(2)).expect("fits");
    window.truncate(Sequence(2));
    let sent = unwritten_messages(&mut window);
    assert_eq!(sent, [(2, b"\x02\0\0\0xx1\n2\n".to_vec())]);
    assert_eq!(confirm(&mut window, 2), b"one,two,");
    assert!(window.is_empty());
}

#[test]
fn confirmations_of_what_was_not_sent_are_refused() {
    let mut window = three_batches();
    window.wrote(window.unwritten().len());
    assert!(window.confirm(Sequence(1)).is_ok());
    assert!(window.confirm(Sequence(2)).is_ok());
    assert!(window.confirm(Sequence(3)).is_err());
}

#[test]
fn parts_of_a_large_message_are_resent_together() {
    let mut window = three_batches();
    let part = || (vec![7u8; PART_BUFFER_BYTES], BODY_AT + PART_BYTES);
    window.push_record(vec![part(), part(), (vec![7u8; BUFFER_BYTES], BODY_AT + 1)]);
    assert_eq!(window.sequence(), Sequence(6));
    write_all(&mut window);
    window.rewind();
    window.resume(Sequence(6)).expect("fits");
    assert_eq!(write_all(&mut window), 3);
    window.rewind();
    window.resume(Sequence(5)).expect("fits");
    assert_eq!(write_all(&mut window), 4);
    confirm(&mut window, 6);
    assert!(window.is_empty());
}

#[test]
fn what_the_server_has_not_got_can_be_forgotten() {
    let mut window = three_batches();
    write_all(&mut window);
    window.rewind();
    window.resume(Sequence(3)).expect("fits");
    window.truncate(Sequence(3));
    assert_eq!(write_all(&mut window), 1);
    assert_eq!(confirm(&mut window, 3), b"1\n2\n3\n");
    assert!(window.is_empty());
    assert_eq!(window.sequence(), Sequence(3));
}

#[test]
fn tiny_batches_fill_the_window_too() {
    let mut window = Window::default();
    let mut batches = 0;
    while window.has_room() {
        add_lines(&mut window, b"\n");
        batches += 1;
    }
    assert!(batches < 100_000);
}
