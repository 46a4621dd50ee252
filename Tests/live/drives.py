"""The drives that live tests write to."""

import random

from images import KiB, MiB, create, qemu_img, raw
from servers import Drive

# Not a multiple of a block, nor of any cluster.
SIZE = 16 * MiB + 5 * 512

# What takes no parts of sectors, on any disk.
DIRECT_SIZE = 16 * MiB + 3 * 4096

KINDS = ("raw", "overlay-64K", "overlay-4K", "overlay-2M", "plain-64K")


def make(directory, drive_kind, seed, identifier="vm1", size=SIZE):
    """A raw drive, a qcow2 overlay on a raw base, or a qcow2 image alone, half full of random data; what is called `-direct`
    is used past the page cache."""
    if drive_kind.endswith("-direct"):
        drive = make(directory, drive_kind.removesuffix("-direct"), seed, identifier, DIRECT_SIZE)
        drive.cache = "none"
        return drive
    chance = random.Random(seed)
    pieces = [(start, chance.randrange(MiB)) for start in range(0, size, MiB)]
    form, _, cluster = drive_kind.partition("-")
    base = raw(directory / f"{identifier}-base.raw", size, pieces, seed)
    if form == "raw":
        return Drive(identifier, base, "raw")
    top = directory / f"{identifier}.qcow2"
    if form == "overlay":
        create(top, None, "qcow2", (base, "raw"), f"cluster_size={cluster}")
    else:
        qemu_img("convert", "-q", "-f", "raw", "-O", "qcow2", "-o", f"cluster_size={cluster}", base, top)
    return Drive(identifier, top, "qcow2")


def as_raw(path, image_format, to):
    """The image's content as a raw file; others may have it, and its backing files, open."""
    qemu_img("convert", "-U", "-f", image_format, "-O", "raw", path, to)
    return to
