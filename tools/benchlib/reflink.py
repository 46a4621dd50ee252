"""Backups between raw files of one file system that can share blocks, beside `cp --reflink`."""

import contextlib
import fcntl
import os
import random
import subprocess
import time

from .common import GiB, MiB, Turns, Unavailable, flush, remove, run, size_text
from .results import Figure, Goal
from .servers import Agent

ROWS = {"copy-reflink": "a raw drive to a raw image on one file system that shares blocks"}
MAKERS = {"xfs": ("mkfs.xfs", "-q"), "btrfs": ("mkfs.btrfs", "-q")}
SIZES = (GiB, 16 * GiB)
PIECE = 256 * MiB  # of random data; the drive is made of clones of it
GOAL = 0.05  # seconds
LONG = 1.0  # seconds: what takes this long for the smallest size is no clone
FICLONERANGE = 0x4020940D


@contextlib.contextmanager
def mounted(kind, directory):
    """A new file system on a loop device."""
    image, place = f"{directory}/{kind}.image", f"{directory}/{kind}"
    with open(image, "wb") as file:
        file.truncate(64 * GiB)
    os.makedirs(place)
    try:
        run(*MAKERS[kind], image, env={**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"})
        run("mount", "-o", "loop", image, place)
    except (RuntimeError, FileNotFoundError) as failure:
        remove(image)
        raise Unavailable(f"no {kind} on a loop device: {failure}") from failure
    try:
        yield place
    finally:
        run("umount", place)
        remove(image)


def make_drive(path, piece, size):
    """A raw image of clones, all of it data."""
    with open(piece, "rb") as source, open(path, "wb") as file:
        file.truncate(size)
        for start in range(0, size, PIECE):
            arguments = b"".join(
                value.to_bytes(8, "little", signed=index == 0)
                for index, value in enumerate((source.fileno(), 0, PIECE, start)))
            fcntl.ioctl(file.fileno(), FICLONERANGE, arguments)
        os.fsync(file.fileno())


def measure(row, bench):
    for kind in MAKERS:
        with bench.directory(row) as directory:
            try:
                with mounted(kind, directory) as place:
                    yield from on_file_system(row, bench, kind, directory, place)
            except Unavailable as reason:
                yield Figure(row, kind, "ms", [], goals=Goal.at_most(GOAL * 1000), notes=[str(reason)])


def on_file_system(row, bench, kind, directory, place):
    piece, drive, target = f"{place}/piece", f"{place}/drive.raw", f"{place}/target.raw"
    chance = random.Random(1)
    with open(piece, "wb") as file:
        for _ in range(0, PIECE, 8 * MiB):
            file.write(chance.randbytes(8 * MiB))
        os.fsync(file.fileno())
    for size in SIZES:
        make_drive(drive, piece, size)
        with Agent(bench, directory, [("bench", drive, "raw")]) as agent:
            def ours():
                return timed(target, lambda: agent.call(
                    "start", "bench", target, "--sync", "full", "--format", "raw"))

            case = f"{kind} on a loop device, {size_text(size)}"
            figure = Figure(row, case, "ms", [], goals=Goal.at_most(GOAL * 1000))
            first = ours()["ms"]
            if first > LONG * 1000:
                figure.ours = [first]
                figure.notes.append("no clone; one round, and nothing larger")
                yield figure
                return
            if size == SIZES[0]:
                remove(target)
                agent.call("start", "bench", target, "--sync", "full", "--format", "raw")
                subprocess.run(["cmp", drive, target], check=True)
            contestants = {"us": ours}
            if bench.options.peers:
                contestants["cp --reflink=always"] = lambda: timed(
                    target, lambda: run("cp", "--reflink=always", drive, target))
            turns = Turns.take(bench, contestants, bench.options.rounds, cost="ms")
        remove(drive)
        figure.ours, figure.peers, figure.noise = turns.of("us", "ms"), turns.peers("ms"), turns.noise
        yield figure


def timed(target, work):
    remove(target)
    os.sync()
    begun = time.monotonic()
    work()
    flush(target)
    return {"ms": (time.monotonic() - begun) * 1000}
