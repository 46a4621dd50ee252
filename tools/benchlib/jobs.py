"""The start and the end of a backup: how long a guest waits at the point in time, and how long a cancel takes."""

import contextlib
import os
import random
import statistics
import time

from . import images, targets
from .backups import AgentJob, DaemonJob
from .common import MiB, Noise, TiB, Unavailable, remove, size_text
from .load import Load
from .results import Figure, Goal, number
from .servers import Agent, StorageDaemon
from .targets import FAST, KINDS

ROWS = {
    "pit-freeze": "the longest request of a guest around the start of a backup",
    "cancel": "from the cancel of a backup until it is gone",
}
PEER = "qemu-storage-daemon"
FREEZE_GOAL, CANCEL_GOAL = 20.0, 100.0  # milliseconds
SIZE = TiB
# Its data: what the guest works on, and pieces of a MiB all over it. The guest fills no hole block by block: an image
# of hundreds of thousands of extents takes a minute to remove.
WORKED_ON, PIECES = 256 * MiB, 64
SPEED = 64 * MiB  # bytes a second of these backups: the peer allocates the target's holes, until its disk is full
AROUND = 0.2  # seconds after the start's answer in which a request counts
GAP = 0.3  # seconds between two starts


def server_of(name, bench, directory, path):
    drives = [("bench", path, "raw")]
    if name == "us":
        return Agent(bench, directory, drives, exports=True), AgentJob
    return StorageDaemon(directory, drives, exports=True), DaemonJob


def measure(row, bench):
    return freeze(row, bench) if row == "pit-freeze" else cancel(row, bench)


def names(bench):
    return ("us", PEER) if bench.options.peers else ("us",)


# The point in time


def make_sparse(path):
    chance = random.Random(1)
    with open(path, "wb") as file:
        file.truncate(SIZE)
        for place in (*range(0, WORKED_ON, MiB), *range(SIZE // PIECES, SIZE, SIZE // PIECES)):
            os.pwrite(file.fileno(), chance.randbytes(MiB), place)
        os.fsync(file.fileno())


def freeze(row, bench):
    starts = 3 if bench.options.quick else 5
    values, quiet, noise, took = {}, {}, [], {}
    with bench.directory(row) as directory:
        drive = f"{directory}/drive.raw"
        try:
            make_sparse(drive)
        except OSError as failure:
            yield Figure(row, size_text(SIZE), "ms", [], goals=Goal.at_most(FREEZE_GOAL), notes=[
                f"the file system takes no file of {size_text(SIZE)}: {failure}"])
            return
        for _ in range(bench.options.rounds):
            with Noise() as watch:
                for name in names(bench):
                    at_start, without, seconds = freeze_round(name, bench, directory, drive, starts)
                    values.setdefault(name, []).append(at_start * 1000)
                    quiet.setdefault(name, []).append(without * 1000)
                    took.setdefault(name, []).append(seconds * 1000)
            noise.append(watch.share)
    notes = [f"{name}: without a start {number(statistics.median(quiet[name]))} ms, the start's answer after "
             f"{number(statistics.median(took[name]))} ms" for name in names(bench)]
    peers = {PEER: values[PEER]} if PEER in values else {}
    yield Figure(
        row, f"{size_text(SIZE)} sparse, reads and writes of 4 KiB, depth 4; longest of {starts} starts", "ms",
        values["us"], peers, (Goal.ratio_at_most(1.0), Goal.at_most(FREEZE_GOAL)), notes=notes, noise=noise)


def freeze_round(name, bench, directory, drive, starts):
    """Seconds: the longest request around a start, the longest in as long a time before one, the longest start."""
    context, make_job = server_of(name, bench, directory, drive)
    windows = []
    log = f"{directory}/latency"
    with context as server:
        os.sync()
        load = Load(
            server.uri("bench"), "--rw=randrw", "--bs=4k", "--iodepth=4", f"--size={WORKED_ON}",
            f"--write_lat_log={log}", "--log_unix_epoch=1", seconds=600)
        time.sleep(1)
        for start in range(starts):
            time.sleep(GAP)
            # A name of its own: the last one's process may still be in a flush.
            target = f"{directory}/target-{start}"
            begun = time.time()
            job = make_job(server, "bench", target, speed=SPEED)
            answered = time.time()
            windows.append((begun, answered))
            time.sleep(AROUND)
            job.cancel()
            remove(target)
        if not load.is_running():
            raise RuntimeError(f"pit-freeze: fio ended before the last start: {load.result()}")
        load.interrupt()
        load.result()
    requests = list(latencies(directory))
    remove(*(f"{directory}/{name}" for name in os.listdir(directory) if name.startswith("latency")))

    def longest(begin, end):
        return max((latency for at, latency in requests if at >= begin and at - latency <= end), default=0.0)

    return (max(longest(begun, answered + AROUND) for begun, answered in windows),
            max(longest(begun - GAP, begun - 0.002) for begun, _ in windows),
            max(answered - begun for begun, answered in windows))


def latencies(directory):
    """(end, latency) of each request in seconds, by the clock of time.time(), to the millisecond."""
    for name in os.listdir(directory):
        if name.startswith("latency") and "_lat." in name and "clat" not in name and "slat" not in name:
            with open(f"{directory}/{name}") as file:
                for line in file:
                    at, latency = line.split(",")[:2]
                    yield int(at) / 1000, int(latency) / 1e9


# The cancel


def cancel(row, bench):
    drive, patience = images.drive(bench, "raw"), 2 if bench.options.quick else 10  # seconds
    for kind in KINDS:
        values, noise, notes = {}, [], []
        with bench.directory(row) as directory:
            try:
                for _ in range(bench.options.rounds):
                    with Noise() as watch:
                        for name in names(bench):
                            if name != "us" and values.get(name, [0])[-1] >= patience * 1000:
                                continue  # Once is enough to know that it hangs.
                            seconds = cancel_once(name, bench, directory, drive, kind, patience)
                            values.setdefault(name, []).append(seconds * 1000)
                    noise.append(watch.share)
            except Unavailable as reason:
                notes.append(str(reason))
        if values.get(PEER, [0])[-1] >= patience * 1000:
            notes.append(f"{PEER} cannot: > {patience} s")
        yield Figure(row, f"{kind} target", "ms", values.get("us", []), {PEER: values[PEER]} if PEER in values else {},
                     Goal.at_most(CANCEL_GOAL), notes=notes, noise=noise)


def cancel_once(name, bench, directory, drive, kind, patience):
    """Seconds, `patience` for a peer that has not done it by then; a backup that had ended before is taken again."""
    for _ in range(10):
        context, make_job = server_of(name, bench, directory, drive)
        with context as server, contextlib.ExitStack() as exits:
            path = exits.enter_context(targets.target(kind, directory, images.drive_size(bench)))
            if name != "us":
                # It must not outlive its target if it hangs in it.
                exits.callback(server.process.kill)
            os.sync()
            job = make_job(server, "bench", path, existing=kind != FAST)
            # In the midst of its work, and not in its beginning.
            deadline = time.monotonic() + 0.3
            while time.monotonic() < deadline and job.progress() < 0.1:
                time.sleep(0.002)
            seconds = job.cancel(patience)
            if seconds is not None:
                return seconds
    raise RuntimeError(f"cancel, {name}: the copy is over before it can be cancelled")
