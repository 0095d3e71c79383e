"""A client in another language, written after mq-format(5) alone: it shows that the page is
enough. Run by tests/tools/foreign.rs.

    foreign_client.py STORE send QUEUE      lines of stdin into the queue
    foreign_client.py STORE receive QUEUE   what is ready, to stdout, acknowledged
    foreign_client.py STORE dump QUEUE      the messages in the segment files, no server needed
"""

import json
import os
import socket
import struct
import sys
import uuid
import zlib

MAGIC = b"mq wire\n"
HELLO, OPEN_SEND, PUBLISH, OPEN_RECEIVE, CREDIT, ACK, CLOSE = 1, 0x20, 0x21, 0x30, 0x31, 0x32, 0x3F
WELCOME, ERROR, SENDING, CONFIRM, RECEIVING, DELIVER, END, CLOSED = (
    0x81, 0x82, 0xA0, 0xA1, 0xB0, 0xB1, 0xB2, 0xBF)
MORE = 1
NOWHERE = 2**64 - 1


class Connection:
    def __init__(self, store):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(30)
        self.socket.connect(os.path.join(store, "sock"))
        hello = {"tool": "foreign", "version": "1"}
        self.say(HELLO, 0, MAGIC + struct.pack("<HH", 2, 2) + json.dumps(hello).encode())
        body = self.expect(WELCOME)[1]
        assert body[:8] == MAGIC and struct.unpack_from("<H", body, 8) == (2,)

    def say(self, kind, channel, body=b"", flags=0):
        self.socket.sendall(struct.pack("<IBBH", len(body), kind, flags, channel) + body)

    def read(self, length):
        data = b""
        while len(data) < length:
            more = self.socket.recv(length - len(data))
            assert more, "the server has hung up"
            data += more
        return data

    def hear(self):
        length, kind, flags, channel = struct.unpack("<IBBH", self.read(8))
        body = self.read(length)
        assert kind != ERROR, body
        return kind, flags, body

    def expect(self, wanted):
        while True:
            kind, flags, body = self.hear()
            if kind == wanted:
                return flags, body


def send(store, queue):
    connection = Connection(store)
    producer = int.from_bytes(os.urandom(6), "little") + 1
    opening = {"queue": queue, "producer": producer}
    connection.say(OPEN_SEND, 1, json.dumps(opening).encode())
    sequence = json.loads(connection.expect(SENDING)[1])["last"]
    lines = sys.stdin.buffer.readlines()
    for first in range(0, len(lines), 1000):
        part = lines[first:first + 1000]
        sequence += len(part)
        head = struct.pack("<QIBBHII", sequence, len(part), 0, 10, 0, 0, 0)
        connection.say(PUBLISH, 1, head + b"".join(part))
    while lines:
        stored, _, _ = struct.unpack("<QQQ", connection.expect(CONFIRM)[1])
        if stored == sequence:
            break
    connection.say(CLOSE, 1)
    connection.expect(CLOSED)


def receive(store, queue):
    connection = Connection(store)
    opening = {"queue": queue, "group": "default", "mode": "take", "until_end": True}
    connection.say(OPEN_RECEIVE, 1, json.dumps(opening).encode())
    queue_id = uuid.UUID(json.loads(connection.expect(RECEIVING)[1])["queue_id"])
    delivered, chain = 0, b""
    connection.say(CREDIT, 1, struct.pack("<Q", 100))
    while True:
        kind, flags, body = connection.hear()
        if kind == END:
            break
        if kind != DELIVER:
            continue
        segment, position, end, _, _, _ = struct.unpack_from("<QQQIIQ", body)
        for batch in batches(body[40:], queue_id, segment, position):
            messages, chain = bodies(batch, chain)
            for message in messages:
                sys.stdout.buffer.write(message + b"\n")
            sys.stdout.buffer.flush()
            if batch.count:
                settled = struct.pack("<QQ", batch.offset, batch.offset + batch.count)
                connection.say(ACK, 1, settled)
                delivered += batch.count
        connection.say(CREDIT, 1, struct.pack("<Q", delivered + 100))
    connection.say(CLOSE, 1)
    connection.expect(CLOSED)


class Batch:
    def __init__(self, data, at, queue_id, segment, position):
        (self.length, self.framing, self.delimiter, self.flags, self.offset, self.count, crc,
         self.mark, self.time, self.producer, self.sequence, self.epoch, header_crc) = (
            struct.unpack_from("<IBBHQIIQQQQII", data, at))
        place = queue_id.bytes + struct.pack("<QQ", segment, position)
        self.valid = zlib.crc32(place + data[at:at + 60]) == header_crc
        if self.valid:
            self.payload = data[at + 64:at + self.length]
            assert zlib.crc32(self.payload) == crc, "the payload fails its checksum"


def batches(data, queue_id, segment, position):
    at = 0
    while at < len(data):
        place = NOWHERE if position == NOWHERE else position + at
        batch = Batch(data, at, queue_id, segment, place)
        assert batch.valid, "the header fails its checksum"
        yield batch
        at += batch.length


def bodies(batch, chain):
    """The messages of a batch, and what of a chain is still open."""
    payload = batch.payload
    if batch.flags & 4:
        return [], chain
    if batch.flags & 8:
        payload = payload[4 + struct.unpack_from("<I", payload)[0]:]
    if batch.flags & 1:
        chain += payload
        if not batch.flags & 2:
            return [], chain
        payload, chain = chain, b""
    if batch.framing == 0:
        messages = payload.split(bytes([batch.delimiter]))
        assert messages.pop() == b""
    else:
        messages, at = [], 0
        while at < len(payload):
            attributes, body = struct.unpack_from("<II", payload, at)
            at += 8 + attributes
            messages.append(payload[at:at + body])
            at += body
    assert len(messages) == batch.count
    return messages, chain


def seeded(queue_id, number, position, data):
    return zlib.crc32(queue_id.bytes + struct.pack("<QQ", number, position) + data)


def dump(store, queue):
    directory = os.path.join(store, "queues", queue)
    line, checksum = open(os.path.join(directory, "queue.json"), "rb").read().splitlines()
    assert checksum == b"crc32 %08x" % zlib.crc32(line)
    queue_id = uuid.UUID(json.loads(line)["id"])
    chain = b""
    for name in sorted(os.listdir(directory)):
        if not name.endswith(".seg"):
            continue
        number = int(name[:-4])
        data = open(os.path.join(directory, name), "rb").read()
        assert data[:8] == b"mq-segm\0" and data[16:32] == queue_id.bytes
        (crc,) = struct.unpack_from("<I", data, 60)
        assert crc == seeded(queue_id, number, 0, data[:60])
        at = 64
        while at + 64 <= len(data) and data[at:at + 8] != b"mq-foot\0":
            batch = Batch(data, at, queue_id, number, at)
            assert batch.valid, "%s at %d" % (name, at)
            messages, chain = bodies(batch, chain)
            for message in messages:
                sys.stdout.buffer.write(message + b"\n")
            at += batch.length
        if data[at:at + 8] == b"mq-foot\0":
            footer(data, at, queue_id, number)


def footer(data, at, queue_id, number):
    entries, entries_crc, version, crc = struct.unpack_from("<IIII", data, at + 48)
    assert version in (1, 2) and crc == seeded(queue_id, number, at, data[at:at + 60])
    index = data[at + 64:at + 64 + 16 * entries]
    assert entries_crc == seeded(queue_id, number, at + 64, index)
    trailer = data[-32:]
    assert struct.unpack("<QQ", trailer[:16]) == (at, number) and trailer[24:28] == b"sEaL"
    assert at + 64 + 16 * entries + 32 == len(data)


if __name__ == "__main__":
    {"send": send, "receive": receive, "dump": dump}[sys.argv[2]](sys.argv[1], sys.argv[3])
