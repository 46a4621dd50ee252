"""The images that are copied and served. Made once a run, and in the page cache when a timing begins."""

import os
import random

from .common import GiB, MiB, fill_cache, run


def make_raw(path, size, seed=1, longest=12):
    """A raw image: runs of random data and of holes in turn, 4 KiB to 8 MiB long, half of each."""
    chance = random.Random(seed)
    block = chance.randbytes(8 * MiB)
    with open(path, "wb") as file:
        file.truncate(size)
        position, data = 0, True
        while position < size:
            length = min(4096 << chance.randrange(longest), size - position)
            if data:
                start = chance.randrange(4096) * 512
                piece = block[start:start + length]
                os.pwrite(file.fileno(), piece + block[: length - len(piece)], position)
            position += length
            data = not data
        os.fsync(file.fileno())


def raw_source(bench):
    """The files of a source, its top layer first; copies fill the page cache with them."""
    path = os.path.join(bench.work, "source.raw")
    bench.share("source.raw", lambda: make_raw(path, bench.options.size))
    return [path]


def qcow2_source(bench):
    path = os.path.join(bench.work, "source.qcow2")
    [raw] = raw_source(bench)
    bench.share("source.qcow2", lambda: run("qemu-img", "convert", "-O", "qcow2", raw, path))
    return [path]


def chain_source(bench):
    """Three layers: of every 192 MiB the second and the third 64 have 32 MiB of another layer each."""
    path, middle = os.path.join(bench.work, "top.qcow2"), os.path.join(bench.work, "middle.qcow2")
    [raw], size = raw_source(bench), bench.options.size

    def make():
        run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", raw, middle)
        run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", middle, path)
        for layer, phase in ((middle, 1), (path, 2)):
            commands = []
            for start in range(phase * 64 * MiB, size, 192 * MiB):
                commands += ["-c", f"write -q -P {phase} {start} {min(32 * MiB, size - start)}"]
            if commands:
                run("qemu-io", "-f", "qcow2", *commands, layer)

    bench.share("chain", make)
    return [path, middle, raw]


def drive_size(bench):
    """Of the drive that guests write to, in bytes."""
    return GiB if bench.options.quick else 2 * GiB


def make_drive(path, size):
    """Fully allocated: no server allocates while it is measured."""
    chance = random.Random(1)
    block = chance.randbytes(8 * MiB)
    with open(path, "wb") as file:
        for start in range(0, size, len(block)):
            file.write(block[:min(len(block), size - start)])
        os.fsync(file.fileno())


def drive(bench, form, small=True):
    """A drive of random data that rows share, in the page cache as small or as large requests bring it there.

    What is written or read in large pieces stands in large folios, and for a small write ext4 looks at all of a folio's
    blocks: 60 microseconds instead of 2, which would hide what a server takes.
    """
    size = drive_size(bench)
    raw, path = os.path.join(bench.work, "drive.raw"), os.path.join(bench.work, f"drive.{form}")
    bench.share("drive.raw", lambda: make_drive(raw, size))
    if form == "qcow2":
        bench.share("drive.qcow2", lambda: run("qemu-img", "convert", "-O", "qcow2", raw, path))
    if bench.folios.get(path) != small:
        empty_cache(path)
        bench.folios[path] = small
    keep_cached(bench, path)
    return path


def keep_cached(bench, path):
    """Brings back what the page cache has lost of a drive meanwhile: a system may give up what nobody has read for a minute."""
    fill_cache(path, small=bench.folios[path])


def empty_cache(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
