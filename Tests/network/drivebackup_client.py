"""A client of drive-backup-agent, written from docs/protocol.md and proto/ alone.

`Wire` speaks frames, right and wrong ones. `Client` makes calls: any number at once, from any thread.
"""

import atexit
import collections
import importlib
import itertools
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

# Ends what hangs; nothing that is tested here takes a tenth of it.
PATIENCE = float(os.environ.get("DRIVE_BACKUP_TEST_PATIENCE", "60"))

HEADER = struct.Struct(">IIBBH")
HELLO, CALL, MESSAGE, STATUS, CANCEL, CREDIT, PING, PONG, GOAWAY = range(1, 10)
END = 1

(OK, CANCELLED, UNKNOWN, INVALID_ARGUMENT, DEADLINE_EXCEEDED, NOT_FOUND, ALREADY_EXISTS, PERMISSION_DENIED,
 RESOURCE_EXHAUSTED, FAILED_PRECONDITION, ABORTED, OUT_OF_RANGE, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS,
 UNAUTHENTICATED) = range(17)


def _generate():
    """Lets protoc make the messages from proto/."""
    proto = Path(os.environ.get("DRIVE_BACKUP_PROTO", Path(__file__).parents[2] / "proto"))
    out = tempfile.mkdtemp(prefix="drivebackup-proto-")
    atexit.register(shutil.rmtree, out, ignore_errors=True)
    files = [str(path.relative_to(proto)) for path in sorted(proto.rglob("*.proto"))]
    subprocess.run(["protoc", f"--proto_path={proto}", f"--python_out={out}", *files], check=True)
    sys.path.insert(0, out)
    modules = [importlib.import_module(file[: -len(".proto")].replace("/", ".") + "_pb2") for file in files]
    by_name = {}
    for module in modules:
        for name, descriptor in module.DESCRIPTOR.message_types_by_name.items():
            by_name[descriptor.full_name] = getattr(module, name)
    return by_name, {method.full_name: method for module in modules
                     for service in module.DESCRIPTOR.services_by_name.values() for method in service.methods}


MESSAGES, METHODS = _generate()


def rpc(name, **fields):
    """A message of package drivebackup.rpc.v1."""
    return MESSAGES[f"drivebackup.rpc.v1.{name}"](**fields)


def v1(name, **fields):
    """A message of package drivebackup.v1."""
    return MESSAGES[f"drivebackup.v1.{name}"](**fields)


def frame(kind, stream=0, payload=b"", flags=0, reserved=0, length=None):
    """The bytes of a frame; `length` may lie."""
    return HEADER.pack(len(payload) if length is None else length, stream, kind, flags, reserved) + payload


def hello(max_payload=0, initial_credit=1 << 20, version=1):
    return frame(HELLO, payload=rpc(
        "Hello", protocol_version=version, max_payload=max_payload, initial_credit=initial_credit,
        software="network tests").SerializeToString())


def call(stream, method, request=b"", timeout_ns=0, metadata=(), flags=END):
    request = request if isinstance(request, bytes) else request.SerializeToString()
    return frame(CALL, stream, rpc(
        "Call", method=f"drivebackup.v1.{method}", timeout_ns=timeout_ns, metadata=metadata,
        message=request).SerializeToString(), flags)


def credit(stream, count):
    return frame(CREDIT, stream, rpc("Credit", bytes=count).SerializeToString())


def ping(token):
    return frame(PING, payload=rpc("Ping", token=token).SerializeToString())


Frame = collections.namedtuple("Frame", "kind stream flags payload")


class Closed(Exception):
    """The other side has closed the connection."""


class StatusError(Exception):
    def __init__(self, status):
        self.code, self.message = status.code, status.message
        self.reason = self.subject = ""
        for detail in status.details:
            if detail.type == "drivebackup.v1.ErrorInfo":
                info = v1("ErrorInfo")
                info.ParseFromString(detail.value)
                self.reason, self.subject = info.reason, info.subject
        super().__init__(f"{self.code} {self.reason}: {self.message}")


class Wire:
    """A socket, and frames on it."""

    def __init__(self, address, say_hello=None):
        if address.startswith("unix:"):
            self.socket = socket.socket(socket.AF_UNIX)
            # Without a timeout: with one a full queue of connections would be an error rather than a wait.
            self.socket.connect(address[len("unix:"):])
            self.socket.settimeout(PATIENCE)
        else:
            host, port = address[len("tcp://"):].rsplit(":", 1)
            self.socket = socket.create_connection((host.strip("[]"), int(port)), PATIENCE)
        self.file = self.socket.makefile("rb")
        if say_hello is not None:
            self.send(say_hello)

    def send(self, data):
        self.socket.sendall(data)

    def receive(self):
        """The next frame. Raises Closed at the end."""
        try:
            header = self.file.read(HEADER.size)
            if len(header) < HEADER.size:
                raise Closed
            length, stream, kind, flags, reserved = HEADER.unpack(header)
            assert length <= 4 << 20 and reserved == 0 and flags in (0, END) and HELLO <= kind <= GOAWAY, header
            payload = self.file.read(length)
        except ConnectionResetError:
            raise Closed from None
        if len(payload) < length:
            raise Closed
        return Frame(kind, stream, flags, payload)

    def receive_hello(self):
        first = self.receive()
        assert first.kind == HELLO and first.stream == 0
        message = rpc("Hello")
        message.ParseFromString(first.payload)
        assert message.protocol_version == 1
        return message

    def receive_until(self, kind, stream=0):
        """The next frame of that kind and stream, and those before it."""
        before = []
        while True:
            received = self.receive()
            if (received.kind, received.stream) == (kind, stream):
                return received, before
            before.append(received)

    def receive_status(self, stream):
        """How the call ended, and the messages it sent before."""
        received, before = self.receive_until(STATUS, stream)
        status = rpc("Status")
        status.ParseFromString(received.payload)
        return status, [f.payload for f in before if (f.kind, f.stream) == (MESSAGE, stream)]

    def receive_goaway(self):
        """The GOAWAY; the agent must close after it."""
        received, _ = self.receive_until(GOAWAY)
        message = rpc("GoAway")
        message.ParseFromString(received.payload)
        return message

    def receive_end(self):
        """Reads until the agent closes."""
        try:
            while True:
                self.receive()
        except Closed:
            pass

    def is_alive(self, token=0x1234567890ABCDEF):
        """Waits until a PING is answered; raises Closed if the connection ends instead."""
        self.send(ping(token))
        message = rpc("Pong")
        while message.token != token:
            message.ParseFromString(self.receive_until(PONG)[0].payload)
        return True

    def close(self):
        self.file.close()
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Call:
    """A call that runs. Iterating brings its responses; it raises StatusError if the call fails."""

    def __init__(self, client, stream, response_type):
        self.client, self.stream, self.response_type = client, stream, response_type
        self.arrived = collections.deque()
        self.status = None
        self.consumed = 0

    def __iter__(self):
        return self

    def __next__(self):
        with self.client.changed:
            if not self.client.changed.wait_for(lambda: self.arrived or self.status is not None, PATIENCE):
                raise TimeoutError(f"nothing came on stream {self.stream}")
            if not self.arrived:
                if self.status.code == OK:
                    raise StopIteration
                raise StatusError(self.status)
            payload = self.arrived.popleft()
        self.consumed += len(payload)
        if self.consumed * 2 >= self.client.window:
            self.client.send(credit(self.stream, self.consumed))
            self.consumed = 0
        response = self.response_type()
        response.ParseFromString(payload)
        return response

    def cancel(self, reason=""):
        self.client.send(frame(CANCEL, self.stream, rpc("Cancel", reason=reason).SerializeToString()))


class Client:
    """A connection on which calls can be made."""

    def __init__(self, address, window=1 << 16):
        self.window = window
        self.wire = Wire(address, hello(initial_credit=window))
        self.hello = self.wire.receive_hello()
        self.calls = {}
        self.next_stream = 1
        self.pongs = set()
        self.goaway = None
        self.is_closed = False
        self.tokens = itertools.count(1)
        self.changed = threading.Condition()
        self.writing = threading.Lock()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def send(self, data):
        with self.writing:
            self.wire.send(data)

    def start(self, method, request=None, timeout=None, metadata=()):
        """Sends a call and returns it."""
        descriptor = METHODS[f"drivebackup.v1.{method.replace('/', '.')}"]
        request = MESSAGES[descriptor.input_type.full_name]() if request is None else request
        with self.writing:
            with self.changed:
                if self.goaway is not None or self.is_closed:
                    raise StatusError(rpc("Status", code=UNAVAILABLE, message="the connection takes no calls"))
                stream, self.next_stream = self.next_stream, self.next_stream + 2
                result = Call(self, stream, MESSAGES[descriptor.output_type.full_name])
                self.calls[stream] = result
            self.wire.send(call(stream, method, request, int((timeout or 0) * 1e9), metadata))
        return result

    def call(self, method, request=None, **options):
        """The one response of a call."""
        responses = list(self.start(method, request, **options))
        assert len(responses) == 1, f"{method} had {len(responses)} responses"
        return responses[0]

    def ping(self):
        token = next(self.tokens)
        self.send(ping(token))
        with self.changed:
            assert self.changed.wait_for(lambda: token in self.pongs or self.is_closed, PATIENCE)
            return token in self.pongs

    def _read(self):
        try:
            while True:
                self._take(self.wire.receive())
        except (Closed, OSError, ValueError):
            pass
        with self.changed:
            self.is_closed = True
            for lost in self.calls.values():
                if lost.status is None:
                    lost.status = rpc("Status", code=UNAVAILABLE, message="the connection was lost")
            self.changed.notify_all()

    def _take(self, received):
        if received.kind == PING:
            self.send(frame(PONG, payload=received.payload))
            return
        with self.changed:
            if received.kind == MESSAGE:
                self.calls[received.stream].arrived.append(received.payload)
            elif received.kind == STATUS:
                status = rpc("Status")
                status.ParseFromString(received.payload)
                self.calls.pop(received.stream).status = status
            elif received.kind == PONG:
                message = rpc("Pong")
                message.ParseFromString(received.payload)
                self.pongs.add(message.token)
            elif received.kind == GOAWAY:
                self.goaway = rpc("GoAway")
                self.goaway.ParseFromString(received.payload)
            self.changed.notify_all()

    def close(self):
        try:
            self.wire.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.reader.join(PATIENCE)
        self.wire.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
