"""What grows, and what with: copies of more and more, agents of more and more drives, and clients that only watch."""

import contextlib
import os
import random
import selectors
import socket
import time

from . import images, wire
from .backups import COMPLETED
from .common import PATIENCE, GiB, MiB, Noise, TiB, fill_cache, memory, remove, size_text
from .copies import MemoryWatch
from .results import Figure, Goal
from .servers import Agent

ROWS = {"growth": "time and memory of larger copies, of more drives, of a thousand watchers"}
WATCHERS, WATCHERS_GOAL = 1000, 64.0  # MiB resident
LINEAR, FLAT, FLAT_MEMORY = 1.2, 1.5, 1.25  # how much more than its share is still linear, flat, flat memory
DRIVES = (1, 10, 100)
A_DRIVE = 0.25  # MiB of anonymous memory that a further drive may take
HUGE = 15 * TiB


def measure(row, bench):
    yield from copies(row, bench)
    yield from drives(row, bench)
    yield from watchers(row, bench)


# Copies


def make_scattered(path, size, data):
    """A raw image of `size` bytes with `data` of them, a MiB at a time, evenly over it."""
    chance = random.Random(1)
    block = chance.randbytes(8 * MiB)
    pieces = data // MiB
    with open(path, "wb") as file:
        file.truncate(size)
        for index in range(pieces):
            start = chance.randrange(7 * 2048) * 512
            os.pwrite(file.fileno(), block[start:start + MiB], index * (size // pieces) // 4096 * 4096)
        os.fsync(file.fileno())


def copies(row, bench):
    """1, 4 and 16 GiB, a quarter of it data; and 15 TiB with as much data as 4 GiB have."""
    unit = GiB // (8 if bench.options.quick else 1)
    sizes = [(unit, unit // 4), (4 * unit, unit), (16 * unit, 4 * unit), (HUGE, unit)]
    seconds, peaks, noise, notes = {}, {}, [], []
    with bench.directory(row) as directory:
        sources = {}
        for size, data in sizes:
            path = f"{directory}/{size}.raw"
            try:
                make_scattered(path, size, data)
            except OSError as failure:
                notes.append(f"the file system takes no file of {size_text(size)}: {failure}")
                continue
            sources[size] = path
        for turn in range(bench.options.rounds + 1):  # the first is a warm-up
            with Noise() as watch:
                for size, path in sources.items():
                    took, peak = copy(bench, directory, path)
                    if turn:
                        seconds.setdefault(size, []).append(took)
                        peaks.setdefault(size, []).append(peak)
            if turn:
                noise.append(watch.share)
    small, middle, large = (size for size, _ in sizes[:3])

    def times(factor, values):
        return [value * factor for value in values]

    for size, factor in ((middle, 4), (large, 16)):
        yield Figure(
            row, f"copy of {size_text(size)}, a quarter data: linear in data", "s", seconds[size],
            {f"{factor} times {size_text(small)}": times(factor, seconds[small])}, Goal.ratio_at_most(LINEAR),
            noise=noise)
    reference = f"{size_text(middle)} with as much data"
    yield Figure(
        row, f"copy of {size_text(HUGE)} with {size_text(unit)} of data: flat in holes", "s", seconds.get(HUGE, []),
        {reference: seconds[middle]}, Goal.ratio_at_most(FLAT), notes=notes, noise=noise)
    for size in (large, HUGE):
        yield Figure(
            row, f"copy of {size_text(size)}: peak memory, agent and target process", "MiB", peaks.get(size, []),
            {size_text(small): peaks[small]}, Goal.ratio_at_most(FLAT_MEMORY))


def copy(bench, directory, path):
    """Seconds and peak memory in MiB of one copy by an agent of its own."""
    target = f"{directory}/target.raw"
    fill_cache(path)
    with Agent(bench, directory, [("bench", path, "raw")]) as agent:
        os.sync()
        with MemoryWatch(agent.pid, pause=0.02) as watch:
            begun = time.monotonic()
            agent.call("start", "bench", target, "--sync", "full", "--format", "raw")
            seconds = time.monotonic() - begun
        peak = memory(agent.pid)["VmHWM"] + watch.children()
    remove(target, f"{target}.manifest.json")
    return seconds, peak / MiB


# Drives


def drives(row, bench):
    found = {}
    with bench.directory(row) as directory:
        for index in range(max(DRIVES)):
            with open(f"{directory}/{index}.raw", "wb") as file:
                file.truncate(GiB)
        for count in DRIVES:
            listed = [(f"d{index}", f"{directory}/{index}.raw", "raw") for index in range(count)]
            with Agent(bench, directory, listed, exports=True) as agent:
                found[count] = memory(agent.pid)["RssAnon"] / MiB
    first = DRIVES[0]
    for count in DRIVES[1:]:
        yield Figure(row, f"{count} drives with exports: anonymous memory of each after the first", "MiB",
                     [(found[count] - found[first]) / (count - first)], goals=Goal.at_most(A_DRIVE),
                     notes=[f"together {found[count]:.1f} MiB, one drive {found[first]:.1f} MiB"])


# Watchers


def watchers(row, bench):
    """A thousand connections, each with a watch of all events; then one job runs, and all must see it."""
    with bench.directory(row) as directory, contextlib.ExitStack() as exits:
        drive = f"{directory}/drive.raw"
        images.make_raw(drive, 64 * MiB)
        agent = exits.enter_context(Agent(bench, directory, [("bench", drive, "raw")]))
        before = memory(agent.pid)
        clients = [exits.enter_context(contextlib.closing(connect(agent.address))) for _ in range(WATCHERS)]
        # Nothing tells that a watch stands but its first event: a job is run, and each has to see it.
        agent.call("start", "bench", f"{directory}/target", "--sync", "full", "--format", "raw")
        seen = drain(clients)
        after = memory(agent.pid)
    yield Figure(
        row, f"{WATCHERS} watchers on {WATCHERS} connections: resident memory", "MiB", [after["VmRSS"] / MiB],
        goals=Goal.at_most(WATCHERS_GOAL), notes=[
            f"anonymous {after['RssAnon'] / MiB:.1f} MiB; without watchers {before['VmRSS'] / MiB:.1f} and "
            f"{before['RssAnon'] / MiB:.1f}; {seen} of them saw a job end"])


def connect(address):
    client = socket.socket(socket.AF_UNIX)
    client.connect(address.removeprefix("unix:"))
    client.sendall(wire.hello() + wire.call_frame(1, "Agent/WatchEvents", {}))
    client.setblocking(False)
    return client


def drain(clients):
    """Reads until each has seen that a job has completed; returns how many have."""
    selector, left = selectors.DefaultSelector(), {}
    for client in clients:
        selector.register(client, selectors.EVENT_READ)
        left[client] = bytearray()
    seen = 0
    with selector:
        deadline = time.monotonic() + PATIENCE
        while left and time.monotonic() < deadline:
            for key, _ in selector.select(1):
                data = key.fileobj.recv(1 << 16)
                left[key.fileobj] += data
                if not data or has_completed(left[key.fileobj]):
                    seen += bool(data)
                    selector.unregister(key.fileobj)
                    del left[key.fileobj]
    if left or seen < len(clients):
        raise RuntimeError(f"growth: of {len(clients)} watchers {seen} have seen the job's end in {PATIENCE} s")
    return seen


def has_completed(received):
    """Whether an event that says so is among the frames; takes whole frames off the front."""
    while len(received) >= wire.HEADER.size:
        length, _, kind, _, _ = wire.HEADER.unpack_from(received)
        end = wire.HEADER.size + length
        if len(received) < end:
            return False
        payload = bytes(received[wire.HEADER.size:end])
        del received[:end]
        if kind == wire.GOAWAY or kind == wire.STATUS:
            raise RuntimeError(f"growth: a watch was ended: {wire.Connection.reason(payload)}")
        if kind == wire.MESSAGE and COMPLETED in wire.decode(payload):
            return True
    return False
