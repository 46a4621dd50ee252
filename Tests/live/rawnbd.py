"""The NBD protocol by hand (NBD proto.md), for what libnbd is too well-behaved to send."""

import os
import socket
import struct

from harness import PATIENCE

MAGIC, OPTION_MAGIC, REPLY_MAGIC = 0x4E42444D41474943, 0x49484156454F5054, 0x3E889045565A9
REQUEST_MAGIC, SIMPLE_MAGIC = 0x25609513, 0x67446698
OPT_EXPORT_NAME, OPT_ABORT, OPT_LIST, OPT_STARTTLS, OPT_INFO, OPT_GO, OPT_STRUCTURED = 1, 2, 3, 5, 6, 7, 8
READ, WRITE, DISCONNECT, FLUSH, TRIM, CACHE, ZEROES, STATUS = range(8)
REP_ACK, REP_SERVER, REP_INFO, REP_ERR_UNSUP = 1, 2, 3, (1 << 31) + 1


class RawClient:
    """One connection; `transmission` when the export is chosen."""

    def __init__(self, endpoint, transmission=True, timeout=PATIENCE):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(timeout)
        self.socket.connect(str(endpoint.socket))
        self.name = endpoint.name
        if transmission:
            self.greet()
            self.go()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.socket.close()

    def send(self, data):
        self.socket.sendall(data)

    def receive(self, length):
        data = b""
        while len(data) < length:
            more = self.socket.recv(min(length - len(data), 1 << 20))
            if not more:
                raise EOFError(f"the server ended the connection after {len(data)} of {length} bytes")
            data += more
        return data

    def ended(self):
        """Waits until the server ends the connection; what it still sends is dropped."""
        try:
            while self.socket.recv(1 << 20):
                pass
        except ConnectionError:
            pass
        return True

    def greet(self):
        magic, option, flags = struct.unpack(">QQH", self.receive(18))
        assert (magic, option) == (MAGIC, OPTION_MAGIC) and flags & 1, (magic, option, flags)
        self.send(struct.pack(">I", 3))

    def option(self, number, data=b"", length=None):
        self.send(struct.pack(">QII", OPTION_MAGIC, number, len(data) if length is None else length) + data)

    def option_reply(self):
        magic, option, kind, length = struct.unpack(">QIII", self.receive(20))
        assert magic == REPLY_MAGIC, hex(magic)
        return option, kind, self.receive(length)

    def go(self):
        name = self.name.encode()
        self.option(OPT_GO, struct.pack(">I", len(name)) + name + struct.pack(">H", 0))
        while True:
            _, kind, data = self.option_reply()
            if kind == REP_ACK:
                return
            assert kind == REP_INFO, (hex(kind), data)
            if data[:2] == b"\0\0":
                self.size = struct.unpack(">Q", data[2:10])[0]

    def request(self, command, offset=0, length=0, payload=b"", cookie=1, flags=0, magic=REQUEST_MAGIC):
        self.send(struct.pack(">IHHQQI", magic, flags, command, cookie, offset, length) + payload)

    def reply(self, read=0):
        """error, cookie, data of a simple reply."""
        magic, error, cookie = struct.unpack(">IIQ", self.receive(16))
        assert magic == SIMPLE_MAGIC, hex(magic)
        return error, cookie, self.receive(read) if read and not error else b""


def garbage(chance, most=4096):
    return os.urandom(chance.randrange(1, most))
