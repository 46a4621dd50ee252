#!/usr/bin/python3
"""A guest, made of libnbd: random requests on one drive, judged by a model of its bytes.

Run with the Python that has Debian's `python3-libnbd` (/usr/bin/python3), not with the tests' own; remote.py starts
it. It reads one JSON command a line from standard input and answers each with one line; a wrong byte, a request that
fails or a server that says something untrue is one line {"failure": ...} and exit code 1.

    nbd_client.py guest --socket PATH --export NAME --seed N [--depth N] [--connections N] [--survive]
    nbd_client.py view --socket PATH --export NAME --seed N --truth PREFIX
    nbd_client.py counters --socket PATH... --export NAME...
"""

import argparse
import collections
import json
import queue
import random
import re
import select
import sys
import threading
import time

import nbd

KiB, MiB = 1 << 10, 1 << 20
# One request may not take longer; it ends what hangs, and says nothing about speed.
STUCK = 120.0


def fail(text):
    print(json.dumps({"failure": text}), flush=True)
    sys.exit(1)


def answer(**values):
    print(json.dumps(values), flush=True)


class Commands:
    """The lines of standard input, without ever waiting for one."""

    def __init__(self):
        self.lines = queue.Queue()
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in sys.stdin:
            self.lines.put(json.loads(line))
        self.lines.put({"do": "end"})

    def next(self, wait=None):
        try:
            return self.lines.get(block=wait is not None, timeout=wait)
        except queue.Empty:
            return None


def connect(socket, export):
    handle = nbd.NBD()
    handle.set_export_name(export)
    handle.add_meta_context("base:allocation")
    handle.connect_unix(socket)
    return handle


def read_all(handle, size):
    content = bytearray(size)
    for offset in range(0, size, MiB):
        length = min(MiB, size - offset)
        content[offset:offset + length] = handle.pread(length, offset)
    return content


def first_difference(one, other):
    for start in range(0, len(one), 4096):
        if one[start:start + 4096] != other[start:start + 4096]:
            for index in range(start, min(start + 4096, len(one))):
                if one[index] != other[index]:
                    return index
    return None


class Request:
    """One that is on its way, or was when the connection ended."""

    __slots__ = ("handle", "cookie", "kind", "start", "end", "payload", "buffer", "issued", "completed", "extra",
                 "begun")

    def __init__(self, handle, kind, start, end, payload=None):
        self.handle, self.kind, self.start, self.end, self.payload = handle, kind, start, end, payload
        self.cookie = self.buffer = self.completed = self.extra = None
        self.issued = 0
        self.begun = time.monotonic()

    @property
    def changes(self):
        return self.kind in ("write", "zero", "trim")

    def new_bytes(self):
        return self.payload if self.kind == "write" else bytes(self.end - self.start)

    def __str__(self):
        return f"{self.kind} of {self.end - self.start} bytes at {self.start}"


class Engine:
    """Requests on one or more connections."""

    def __init__(self, handles):
        self.handles = handles
        self.pending = []
        self.turn = 0

    def next_handle(self):
        self.turn += 1
        return self.handles[self.turn % len(self.handles)]

    def submit(self, request, flags=0):
        handle, length = request.handle, request.end - request.start
        if request.kind == "write":
            # The buffer must outlive the request.
            request.buffer = nbd.Buffer.from_bytearray(bytearray(request.payload))
            request.cookie = handle.aio_pwrite(request.buffer, request.start, flags=flags)
        elif request.kind == "read":
            request.buffer = nbd.Buffer(length)
            request.cookie = handle.aio_pread(request.buffer, request.start)
        elif request.kind == "zero":
            request.cookie = handle.aio_zero(length, request.start, flags=flags)
        elif request.kind == "trim":
            request.cookie = handle.aio_trim(length, request.start)
        elif request.kind == "flush":
            request.cookie = handle.aio_flush()
        elif request.kind == "status":
            request.extra = []
            entries = request.extra

            def told(context, offset, found, error):
                if context == "base:allocation":
                    entries.append((offset, list(found)))
                return 0

            request.cookie = handle.aio_block_status(length, request.start, told)
        self.pending.append(request)

    def poll(self, milliseconds):
        """Moves bytes; raises nbd.Error when a connection has ended."""
        poller, watched = select.poll(), {}
        for handle in self.handles:
            direction = handle.aio_get_direction()
            events = (select.POLLIN if direction & 1 else 0) | (select.POLLOUT if direction & 2 else 0)
            if events:
                poller.register(handle.aio_get_fd(), events)
                watched[handle.aio_get_fd()] = handle
        for descriptor, events in poller.poll(milliseconds):
            handle = watched[descriptor]
            if events & (select.POLLIN | select.POLLHUP | select.POLLERR):
                handle.aio_notify_read()
            if events & select.POLLOUT and handle.aio_get_direction() & 2:
                handle.aio_notify_write()

    def completed(self):
        """Takes those that have ended."""
        done = [request for request in self.pending if request.handle.aio_command_completed(request.cookie)]
        if done:
            self.pending = [request for request in self.pending if request not in done]
        elif self.pending and time.monotonic() - self.pending[0].begun > STUCK:
            fail(f"no answer in {STUCK:.0f} s to a {self.pending[0]}")
        return done

    def free(self, start, end, alone, apart=1):
        """No request on its way is in conflict with one of this range; `alone` when it changes something."""
        start, end = start - start % apart, end + -end % apart
        return not any(
            start < other.end and other.start < end and (alone or other.changes) for other in self.pending)


class Guest:
    def __init__(self, options):
        self.options = options
        self.chance = random.Random(options.seed)
        self.pool = self.chance.randbytes(4 * MiB)
        self.commands = Commands()
        self.connect()
        handle = self.engine.handles[0]
        self.size = handle.get_size()
        self.data = read_all(handle, self.size)  # what has been acknowledged
        self.floating = bytearray(self.size)  # 1 where a TRIM was: the old content or zero
        self.overwritten = bytearray(self.size)  # 1 where a write or zero was, since the last truth
        self.flushed = bytearray(self.data)
        self.flushed_floating = bytearray(self.size)
        self.unflushed = []  # completed, and not yet covered by a flush
        self.lost = []  # on their way when the connection ended
        self.clock = 0
        self.log = None
        self.marked = None
        self.connected, self.running = True, False
        self.sweep = 0
        self.counts = {}
        self.history = collections.deque(maxlen=20_000)

    # Connections.

    def connect(self):
        first = connect(self.options.socket, self.options.export)
        handles = [first]
        # Flushes of one connection speak for all only where the server says so.
        if self.options.connections > 1 and first.can_multi_conn():
            handles += [
                connect(self.options.socket, self.options.export) for _ in range(self.options.connections - 1)]
        self.engine = Engine(handles)
        self.can_trim, self.can_zero = first.can_trim(), first.can_zero()
        self.can_flush, self.can_fua = first.can_flush(), first.can_fua()
        self.can_fast_zero = first.can_fast_zero()
        self.can_status = first.can_meta_context("base:allocation")
        self.unit = max(1, first.get_block_size(0) or 1)
        if first.is_read_only():
            fail("the export is read-only")

    def disconnected(self, error):
        if not self.options.survive:
            fail(f"the connection ended: {error}")
        # What had been answered before is known to libnbd, and counts.
        for request in list(self.engine.pending):
            try:
                if request.handle.aio_command_completed(request.cookie):
                    self.engine.pending.remove(request)
                    self.finish(request)
            except nbd.Error:
                pass
        self.lost = [request for request in self.engine.pending if request.changes]
        self.engine.pending = []
        self.connected = self.running = False

    # The work.

    def choose_range(self):
        chance, size, unit = self.chance, self.size, self.unit
        shape = chance.random()
        if shape < 0.35:  # a few blocks
            length = 4 * KiB << chance.randrange(5)
            start = chance.randrange(size // (4 * KiB)) * 4 * KiB
        elif shape < 0.75:  # any alignment
            length = min(1 + int(2 ** (chance.random() * 18)), size)
            start = chance.randrange(size)
        elif shape < 0.80:  # large
            length = chance.randrange(256 * KiB, 2 * MiB)
            start = chance.randrange(size)
        else:  # a sweep, so that everything is overwritten
            length = chance.choice((64 * KiB, 128 * KiB, 200 * KiB))
            start = self.sweep
            self.sweep = (self.sweep + length) % size
        start -= start % unit
        end = min(start + max(unit, length - length % unit), size)
        return start, end

    def choose_kind(self):
        shape = self.chance.random()
        if shape < 0.52:
            return "write"
        if shape < 0.62 and self.can_zero:
            return "zero"
        if shape < 0.70 and self.can_trim:
            return "trim"
        if shape < 0.72 and self.can_flush:
            return "flush"
        if shape < 0.75 and self.can_status:
            return "status"
        return "read"

    def issue(self):
        kind = self.choose_kind()
        if kind == "flush":
            start = end = 0
        else:
            start, end = self.choose_range()
            if kind == "write":
                end = min(end, start + MiB)
            if start >= end or not self.engine.free(
                    start, end, kind in ("write", "zero", "trim"), self.options.apart):
                return
        request = Request(self.engine.next_handle(), kind, start, end)
        flags = 0
        if kind == "write":
            place = self.chance.randrange(len(self.pool) - (end - start))
            request.payload = self.pool[place:place + end - start]
            if self.can_fua and self.chance.random() < 0.05:
                flags |= nbd.CMD_FLAG_FUA
                request.extra = "fua"
        elif kind == "zero" and self.chance.random() < 0.4:
            flags |= nbd.CMD_FLAG_NO_HOLE
        elif kind == "flush":
            # It covers what had been answered when it was sent.
            request.extra = len(self.unflushed)
        self.clock += 1
        request.issued = self.clock
        if self.log is not None and request.changes:
            self.log.append(request)
        self.engine.submit(request, flags)

    def finish(self, request):
        self.clock += 1
        request.completed = self.clock
        self.counts[request.kind] = self.counts.get(request.kind, 0) + 1
        if request.changes:
            self.history.append((request.issued, request.completed, request.kind, request.start, request.end))
        start, end = request.start, request.end
        if request.kind == "read":
            self.check(request.buffer.to_bytearray(), start, f"a {request}")
        elif request.kind == "status":
            self.check_status(request)
        elif request.kind == "flush":
            if self.options.survive:
                self.settle(request)
        else:
            apply(request, self.data, self.floating)
            self.note(request)
            if self.options.survive:
                durable = request.extra == "fua" and not any(
                    start < other.end and other.start < end for other in self.unflushed)
                if durable:
                    apply(request, self.flushed, self.flushed_floating)
                else:
                    self.unflushed.append(request)

    def note(self, request):
        if request.kind != "trim":
            self.overwritten[request.start:request.end] = b"\1" * (request.end - request.start)

    def settle(self, flush):
        """What had been answered when the flush was sent is on the disk for good."""
        covered = [request for request in self.unflushed if request.completed < flush.issued]
        for request in covered:
            apply(request, self.flushed, self.flushed_floating)
        self.unflushed = self.unflushed[len(covered):]

    def check(self, got, start, what):
        want = self.data[start:start + len(got)]
        if got == want:
            return
        for index in range(len(got)):
            if got[index] != want[index] and not (self.floating[start + index] and got[index] == 0):
                fail(f"{what}: byte {start + index} is {got[index]}, not {want[index]}; "
                     f"{describe(got, want, index)}; after {self.clock} steps; {self.past(start + index)}")

    def past(self, index):
        """What was last done to the byte's neighbourhood (sent and answered at which step, from, to)."""
        near = [entry for entry in self.history if entry[3] <= index + 4096 and index - 4096 < entry[4]]
        return f"floating {self.floating[index]}, requests around it: {near[-8:]}"

    def check_status(self, request):
        position = request.start
        if not request.extra:
            fail(f"no extent was told by a {request}")
        for offset, entries in request.extra:
            if offset != request.start or not entries or len(entries) % 2:
                fail(f"odd extents {offset} {entries} from a {request}")
            for length, flags in zip(entries[::2], entries[1::2]):
                if length == 0:
                    fail(f"an extent of no bytes from a {request}")
                end = min(position + length, request.end)
                if flags & nbd.STATE_ZERO and position < end:
                    zeroes = bytes(end - position)
                    if self.data[position:end] != zeroes:
                        for index in range(position, end):
                            if self.data[index] and not self.floating[index]:
                                fail(f"said to read as zeroes: bytes {position} to {end}, but {index} is not")
                position = end

    def step(self):
        try:
            if self.running:
                for _ in range(self.options.depth * 2):
                    if len(self.engine.pending) >= self.options.depth:
                        break
                    self.issue()
            self.engine.poll(20 if self.engine.pending else 0)
            for request in self.engine.completed():
                self.finish(request)
        except nbd.Error as error:
            self.disconnected(error)

    def drain(self):
        self.running = False
        while self.engine.pending and self.connected:
            self.step()

    # Commands.

    def serve(self):
        answer(ok=True, size=self.size, unit=self.unit, connections=len(self.engine.handles))
        while True:
            busy = self.connected and (self.running or self.engine.pending)
            command = self.commands.next(None if busy else 1.0)
            if command is None:
                if busy:
                    self.step()
                continue
            name = command.pop("do")
            if name == "end":
                return
            getattr(self, f"do_{name}")(**command)

    def do_run(self):
        self.running = self.connected
        answer(ok=True)

    def do_counts(self):
        answer(ok=True, connected=self.connected, **self.counts)

    def do_until(self, requests):
        """Goes on until so many requests have been answered in all."""
        while self.connected and sum(self.counts.values()) < requests:
            self.step()
        self.do_counts()

    def do_quiesce(self):
        self.drain()
        if self.connected and self.can_flush:
            self.engine.handles[0].flush()
            self.settle_all()
        answer(ok=True, connected=self.connected, **self.counts)

    def settle_all(self):
        self.flushed[:], self.flushed_floating[:], self.unflushed = self.data, self.floating, []

    def do_truth(self, path):
        """Reads the whole drive, which must be as the model says, and writes it down."""
        self.drain()
        got = read_all(self.engine.handles[0], self.size)
        self.check(got, 0, "a read of the whole drive")
        write_truth(path, got, self.floating, [], self.overwritten)
        self.overwritten = bytearray(self.size)
        answer(ok=True)

    def do_mark(self):
        """The backup may hold anything that is on its way, or sent before `release`."""
        self.log = [request for request in self.engine.pending if request.changes]
        self.marked = bytes(self.data), bytes(self.floating)
        answer(ok=True)

    def do_release(self, path):
        log, self.log = self.log, None
        write_truth(path, self.marked[0], self.marked[1], log)
        answer(ok=True, requests=len(log))

    def do_lose(self):
        """Waits for the end of the connection, which must come."""
        begun = time.monotonic()
        while self.connected:
            if time.monotonic() - begun > STUCK:
                fail("the connection of a killed server does not end")
            self.step()
            # Nothing on its way: the end of the connection shows when it is used.
            if self.connected and not self.engine.pending:
                self.running = True
        answer(ok=True, lost=len(self.lost))

    def do_durable(self, path, acknowledged):
        """What the image must hold: all that was acknowledged, or all that was flushed, with later writes or not."""
        if acknowledged:
            write_truth(path, self.data, self.floating, self.lost)
        else:
            write_truth(path, self.flushed, self.flushed_floating, self.unflushed + self.lost)
        answer(ok=True)

    def do_reconnect(self):
        """Connects again, reads everything, and takes over what became of the requests that were on their way."""
        self.connect()
        if self.engine.handles[0].get_size() != self.size:
            fail(f"the drive had {self.size} bytes and has {self.engine.handles[0].get_size()}")
        got = read_all(self.engine.handles[0], self.size)
        for request in self.lost:
            start, end = request.start, request.end
            new, old, now = request.new_bytes(), self.data[start:end], got[start:end]
            if request.kind == "trim":
                # It may still be passed on.
                self.floating[start:end] = b"\1" * (end - start)
            elif now == new:
                if now != old:
                    self.note(request)
                apply(request, self.data, self.floating)
            elif now != old:
                self.note(request)
                self.adopt(request, new, old, now)
        self.check(got, 0, "a read of the whole drive after the restart: acknowledged data is lost")
        lost, self.lost = len(self.lost), []
        # From here on the flushed state is taken from what is there: it is in the page cache, and read back.
        self.settle_all()
        self.connected = True
        answer(ok=True, lost=lost)


    def adopt(self, request, new, old, now):
        """A write or zero that a kill cut into pieces: each byte must be of before or of after."""
        for at, value in enumerate(now):
            index = request.start + at
            if value == new[at]:
                if value != old[at]:
                    self.data[index], self.floating[index] = value, 0
            elif value != old[at] and not (self.floating[index] and value == 0):
                fail(f"after the restart byte {index} is neither old nor new, in a {request} that was on its way")


def apply(request, data, floating):
    start, end = request.start, request.end
    if request.kind == "trim":
        floating[start:end] = b"\1" * (end - start)
    else:
        data[start:end] = request.new_bytes()
        floating[start:end] = bytes(end - start)


def describe(got, want, index):
    """Some bytes on both sides, and where the difference ends."""
    end = index
    while end < len(got) and got[end] != want[end]:
        end += 1
    return f"{end - index} bytes differ: got {bytes(got[index:index + 8]).hex()}…, want {bytes(want[index:index + 8]).hex()}…"


def ranges(marks):
    """Where bytes are 1."""
    return [list(found.span()) for found in re.finditer(b"\1+", marks)]


def write_truth(path, data, floating, requests, overwritten=b""):
    """PREFIX.data, and PREFIX.json with what may differ: trimmed ranges, and requests that may be in it or not; and what
    was overwritten since the last one."""
    with open(f"{path}.data", "wb") as file:
        file.write(data)
    pieces, blobs = [], bytearray()
    for request in requests:
        pieces.append([request.start, request.end, request.kind, len(blobs), request.issued, request.completed])
        if request.kind == "write":
            blobs += request.payload
    with open(f"{path}.pieces", "wb") as file:
        file.write(blobs)
    with open(f"{path}.json", "w") as file:
        json.dump({
            "floating": ranges(floating), "overwritten": ranges(overwritten), "pieces": pieces}, file)


class View:
    """A reader of a point in time: every read, of any range, must be the truth."""

    def __init__(self, options):
        self.chance = random.Random(options.seed)
        with open(f"{options.truth}.data", "rb") as file:
            self.truth = file.read()
        with open(f"{options.truth}.json") as file:
            self.floating = bytearray(len(self.truth))
            for start, end in json.load(file)["floating"]:
                self.floating[start:end] = b"\1" * (end - start)
        handle = connect(options.socket, options.export)
        if handle.get_size() != len(self.truth):
            fail(f"the view has {handle.get_size()} bytes, the drive {len(self.truth)}")
        if not handle.is_read_only():
            fail("the view is not read-only")
        self.can_status = handle.can_meta_context("base:allocation")
        self.unit = max(1, handle.get_block_size(0) or 1)
        self.engine = Engine([handle])
        self.commands = Commands()
        self.counts = 0

    def serve(self):
        answer(ok=True, size=len(self.truth))
        stopping = False
        while not (stopping and not self.engine.pending):
            command = self.commands.next()
            if command:
                if command["do"] == "counts":
                    answer(ok=True, reads=self.counts)
                    continue
                stopping = True
            try:
                while not stopping and len(self.engine.pending) < 8:
                    self.issue()
                self.engine.poll(20)
                done = self.engine.completed()
            except nbd.Error as error:
                fail(f"the view failed: {error}")
            for request in done:
                self.counts += 1
                if request.kind == "read":
                    self.compare(request.buffer.to_bytearray(), request.start)
                else:
                    self.compare_status(request)
        answer(ok=True, reads=self.counts)

    def issue(self):
        size, unit = len(self.truth), self.unit
        start = self.chance.randrange(size)
        length = 1 + int(2 ** (self.chance.random() * 20))
        start -= start % unit
        end = min(start + max(unit, length - length % unit), size)
        kind = "status" if self.can_status and self.chance.random() < 0.05 else "read"
        self.engine.submit(Request(self.engine.handles[0], kind, start, end))

    def compare(self, got, start):
        want = self.truth[start:start + len(got)]
        if got != want:
            for index in range(len(got)):
                if got[index] != want[index] and not (self.floating[start + index] and got[index] == 0):
                    fail(f"the view's byte {start + index}, in a read of {len(got)} bytes at {start}, is not that of "
                         f"the point in time; {describe(got, want, index)}")

    def compare_status(self, request):
        position = request.start
        for offset, entries in request.extra:
            for length, flags in zip(entries[::2], entries[1::2]):
                end = min(position + length, request.end)
                if flags & nbd.STATE_ZERO and any(
                        self.truth[index] and not self.floating[index] for index in range(position, end)):
                    fail(f"the view says that bytes {position} to {end} read as zeroes, and they do not")
                position = end


COUNTER = 512


def counters(options):
    """Writes n to each drive in turn, each write answered before the next is sent: dependent writes over drives.

    n stands at the start of each drive and, as a history, in slot n % slots behind it.
    """
    handles = [connect(path, name) for path, name in zip(options.socket, options.export)]
    commands = Commands()
    slots = [handle.get_size() // COUNTER - 1 for handle in handles]
    value, running = 0, True
    answer(ok=True)
    while running:
        value += 1
        for handle, count in zip(handles, slots):
            block = value.to_bytes(8, "big") * (COUNTER // 8)
            handle.pwrite(block, (1 + value % count) * COUNTER)
            handle.pwrite(block, 0)
        command = commands.next()
        while command:
            if command["do"] == "end":
                running = False
                break
            answer(ok=True, value=value)
            command = commands.next()
    for handle in handles:
        handle.flush()
    answer(ok=True, value=value)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("role", choices=("guest", "view", "counters"))
    parser.add_argument("--socket", action="append", required=True)
    parser.add_argument("--export", action="append", required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--depth", type=int, default=16)
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--survive", action="store_true", help="the server will be killed")
    parser.add_argument("--apart", type=int, default=1, help="no two changes in one unit of so many bytes at a time")
    parser.add_argument("--truth")
    options = parser.parse_args()
    try:
        if options.role == "counters":
            counters(options)
        else:
            options.socket, options.export = options.socket[0], options.export[0]
            (Guest if options.role == "guest" else View)(options).serve()
    except nbd.Error as error:
        fail(f"{options.role}: {error}")
    except BrokenPipeError:
        pass  # The test has ended and wants no answer any more.


if __name__ == "__main__":
    main()
