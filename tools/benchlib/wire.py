"""Calls to the agent without a process for each: frames and fields by hand, as docs/protocol.md has them."""

import socket
import struct

from .common import PATIENCE

HEADER = struct.Struct(">IIBBH")
HELLO, CALL, MESSAGE, STATUS, PING, PONG, GOAWAY = 1, 2, 3, 4, 7, 8, 9
END = 1


def encode(fields):
    """A protobuf message of {number: int, str, bytes, or another such dictionary}."""
    out = bytearray()
    for number, value in fields.items():
        if isinstance(value, int):
            out += varint(number << 3) + varint(value)
        else:
            data = encode(value) if isinstance(value, dict) else value.encode() if isinstance(value, str) else value
            out += varint(number << 3 | 2) + varint(len(data)) + data
    return bytes(out)


def varint(value):
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def decode(data):
    """{number: the field's last value}, an int or bytes."""
    found, position = {}, 0

    def read():
        nonlocal position
        value = shift = 0
        while True:
            byte = data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while position < len(data):
        key = read()
        kind = key & 7
        if kind == 0:
            value = read()
        else:
            length = {1: 8, 5: 4}.get(kind) or read()
            value = data[position:position + length]
            position += length
        found[key >> 3] = value
    return found


def frame(kind, stream, payload, flags=0):
    return HEADER.pack(len(payload), stream, kind, flags, 0) + payload


def hello():
    """With more credit than a bench uses up."""
    return frame(HELLO, 0, encode({1: 1, 3: 1 << 40, 5: "tools/bench"}))


def call_frame(stream, method, request):
    return frame(CALL, stream, encode({1: f"drivebackup.v1.{method}", 4: encode(request)}), END)


class Connection:
    """One connection to the agent for one call after the other. A context."""

    def __init__(self, address, patience=PATIENCE):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(address.removeprefix("unix:"))
        self.socket.settimeout(patience)
        self.file = self.socket.makefile("rb")
        self.stream = -1
        self.socket.sendall(hello())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        # Shut down, not only closed: another thread may wait for it.
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.socket.close()

    def stream_of(self, method, request):
        """Makes the call at once; the iterator that it returns brings its messages, decoded."""
        self.stream += 2
        self.socket.sendall(call_frame(self.stream, method, request))
        return self.messages(method, self.stream)

    def messages(self, method, stream):
        while True:
            kind, of, payload = self.receive()
            if kind == PING:
                self.socket.sendall(frame(PONG, 0, payload))
            elif kind == GOAWAY:
                reason = self.reason(decode(payload).get(2, b""))
                raise RuntimeError(f"{method}: the agent ended the connection: {reason}")
            elif of == stream and kind == MESSAGE:
                yield decode(payload)
            elif of == stream and kind == STATUS:
                if decode(payload).get(1):
                    raise RuntimeError(f"{method}: {self.reason(payload)}")
                return

    def receive(self):
        header = self.file.read(HEADER.size)
        if len(header) < HEADER.size:
            raise RuntimeError("the agent closed the connection")
        length, stream, kind, _, _ = HEADER.unpack(header)
        return kind, stream, self.file.read(length)

    @staticmethod
    def reason(status):
        found = decode(status)
        return f"status {found.get(1)}, {found.get(2, b'').decode(errors='replace')}"

    def call(self, method, request):
        """A unary call to its end; returns the answer."""
        answers = list(self.stream_of(method, request))
        return answers[0] if answers else {}
