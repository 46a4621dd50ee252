"""What is in a finished backup: full and top, raw and qcow2, of every kind of source; qemu-img is the judge."""

from collections import namedtuple

import pytest
from harness import Agent, kind
from images import (
    CLUSTER, GiB, KiB, MiB, TiB, allocated, check, create, data_bytes, info, qemu_img, qemu_io, raw, same,
    virtual_size)

Source = namedtuple("Source", "path format size backing")


def tagged(images, name):
    """SEMANTICS 7.1: a disk with four pieces far apart."""
    path = raw(images / f"{name}.raw", 64 * MiB)
    qemu_io(path, "raw", "write -P 0x5d 0 64k", "write -P 0xd5 1M 32k", "write -P 0xdc 32M 124k",
            f"write -P 0xdc {64 * MiB - 64 * KiB} 64k")
    return Source(path, "raw", 64 * MiB, None)


def odd(size):
    def make(images, name):
        path = raw(images / f"{name}.raw", size, [(0, 700), (size // 2, 300), (max(size - 1536, 0), 1536)])
        return Source(path, "raw", size, None)
    return make


def alone(options, size=9 * MiB + 512, convert=()):
    """A qcow2 image without backing file."""
    def make(images, name):
        plain = raw(images / f"{name}.plain", size, [
            (0, 3 * KiB), (100 * KiB, 200 * KiB), (3 * MiB + 512, 700 * KiB), (size - 512, 512)])
        path = images / f"{name}.qcow2"
        qemu_img("convert", "-f", "raw", "-O", "qcow2", *convert, "-o", options, plain, path)
        return Source(path, "qcow2", size, None)
    return make


def written(options, size=5 * MiB, commands=()):
    """A qcow2 image that qemu-io wrote, with zero clusters and discarded ones."""
    def make(images, name):
        path = create(images / f"{name}.qcow2", size, options=options)
        qemu_io(path, "qcow2", "write -P 0x11 0 1M", "write -P 0x22 1500k 100k", "write -z 256k 256k",
                "write -z -u 640k 64k", "discard 768k 64k", f"write -P 0x33 {size - 4608} 4608", *commands)
        return Source(path, "qcow2", size, None)
    return make


def overlay(images, name):
    """SEMANTICS 7.3: data, a zero flag and a discard over a base, the last cluster short."""
    size = 4 * MiB + 1536
    base = raw(images / f"{name}.base", size, [(0, size)])
    path = create(images / f"{name}.qcow2", size, backing=(base, "raw"))
    qemu_io(path, "qcow2", "write -P 0x41 1M 4k", "write -z 2M 64k", "discard 128k 64k", f"write -P 0x42 {size - 512} 512")
    return Source(path, "qcow2", size, (base, "raw"))


def chain(bottom, middle, top, sizes=(6 * MiB + 1536, 7 * MiB, 8 * MiB + 512), relative=False):
    """Three layers; each is a format and its options. Lower layers are shorter."""
    def make(images, name):
        directory = images / name
        directory.mkdir()
        generator = 1
        lower = None
        for index, ((image_format, options), size) in enumerate(zip((bottom, middle, top), sizes)):
            path = directory / f"{index}.{image_format}"
            if image_format == "raw":
                raw(path, size, [(0, 2 * MiB), (3 * MiB, 900 * KiB), (size - 1000, 1000)])
            else:
                backing = lower and (lower[0].name if relative else lower[0], lower[1])
                # qemu-img resolves a relative backing name from the image's directory.
                create(path, size, backing=backing, options=options)
                commands = []
                for step in range(12):
                    generator = (generator * 1103515245 + 12345) % (1 << 31)
                    offset = generator % (size - 200 * KiB) // 512 * 512
                    length = (generator >> 7) % (150 * KiB) // 512 * 512 + 512
                    if step % 4 == 3:
                        commands.append(f"write -z {offset} {length}")
                    else:
                        commands.append(f"write -P {(generator >> 3) % 254 + 1} {offset} {length}")
                commands.append(f"write -P {index + 100} {size - 512} 512")
                qemu_io(path, "qcow2", *commands)
            lower = (path, image_format)
        below = directory / f"1.{middle[0]}"
        return Source(lower[0], lower[1], sizes[2], (below, middle[0]))
    return make


def with_snapshot(images, name):
    source = written("cluster_size=64k")(images, name)
    qemu_img("snapshot", "-c", "before", source.path)
    qemu_io(source.path, "qcow2", "write -P 0x77 0 300k")
    return source


def compressed_overlay(compression):
    def make(images, name):
        size = 4 * MiB
        base = raw(images / f"{name}.base", size, [(0, size)])
        plain = create(images / f"{name}.plain", size, backing=(base, "raw"))
        qemu_io(plain, "qcow2", "write -P 0x10 0 300k", "write -P 0x20 1M 1M", "write -z 3M 128k")
        path = images / f"{name}.qcow2"
        qemu_img("convert", "-c", "-f", "qcow2", "-O", "qcow2", "-B", base, "-F", "raw", "-o",
                 f"compression_type={compression}", plain, path)
        return Source(path, "qcow2", size, (base, "raw"))
    return make


SOURCES = {
    "tagged": tagged,
    "size-3M1536": odd(3 * MiB + 1536),
    "size-1000": odd(1000),
    "size-513": odd(513),
    "size-1": odd(1),
    "size-0": odd(0),
    "qcow2": alone("cluster_size=64k"),
    "qcow2-512": alone("cluster_size=512"),
    "qcow2-2M": alone("cluster_size=2M"),
    "qcow2-v2": alone("compat=0.10"),
    "qcow2-zlib": alone("compression_type=zlib", convert=("-c",)),
    "qcow2-zstd": alone("compression_type=zstd", convert=("-c",)),
    "qcow2-zlib-512": alone("compression_type=zlib,cluster_size=512", convert=("-c",)),
    "qcow2-metadata": alone("preallocation=metadata"),
    "qcow2-refcount1": alone("refcount_bits=1"),
    "qcow2-refcount64": alone("refcount_bits=64"),
    "qcow2-written": written("cluster_size=64k"),
    "qcow2-written-4k": written("cluster_size=4k,lazy_refcounts=on"),
    "qcow2-subclusters": written("extended_l2=on,cluster_size=128k"),
    "qcow2-snapshot": with_snapshot,
    "overlay": overlay,
    "overlay-zlib": compressed_overlay("zlib"),
    "overlay-zstd": compressed_overlay("zstd"),
    "chain-2M-over-512": chain(("raw", None), ("qcow2", "cluster_size=512"), ("qcow2", "cluster_size=2M")),
    "chain-512-over-2M": chain(("raw", None), ("qcow2", "cluster_size=2M"), ("qcow2", "cluster_size=512")),
    "chain-v2-at-the-bottom": chain(
        ("qcow2", "compat=0.10,cluster_size=4k"), ("qcow2", "cluster_size=256k"), ("qcow2", None)),
    "chain-relative": chain(("raw", None), ("qcow2", None), ("qcow2", "cluster_size=32k"), relative=True),
    "chain-subclusters": chain(
        ("qcow2", None), ("qcow2", "extended_l2=on,cluster_size=64k"), ("qcow2", "extended_l2=on,cluster_size=128k")),
    "chain-longer-below": chain(
        ("raw", None), ("qcow2", None), ("qcow2", None), sizes=(6 * MiB, 5 * MiB + 512, 4 * MiB + 512)),
}


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    """One agent with all the sources."""
    images = tmp_path_factory.mktemp("gallery")
    sources = {name: make(images, name) for name, make in SOURCES.items()}
    drives = [f"id={name},file={source.path},format={source.format}".replace("id=", "id=d-")
              for name, source in sources.items()]
    with Agent(drives) as agent:
        yield agent, sources


def rounded(size, image_format):
    return size if image_format == "raw" else (size + 511) // 512 * 512


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("target_format", ["raw", "qcow2"])
def test_full(gallery, targets, name, target_format):
    agent, sources = gallery
    source = sources[name]
    target = targets / f"t.{target_format}"
    events = agent.backup(f"d-{name}", target, "--format", target_format)

    assert virtual_size(target, target_format) == rounded(source.size, "qcow2")  # qemu-img counts sectors
    if target_format == "raw":
        assert target.stat().st_size == source.size
    else:
        check(target)
        assert "backing-filename" not in info(target)
    same(source.path, source.format, target, target_format)
    started, completed = events[0]["started"], events[-1] if kind(events[-1]) == "completed" else None
    assert started["sync"] == "full" and started["format"] == target_format and started["drive"] == f"d-{name}"
    if completed:
        progress = completed["completed"]["progress"]
        assert progress.get("current", 0) == progress.get("total", 0) <= source.size


@pytest.mark.parametrize("name", SOURCES)
def test_top(gallery, targets, name):
    agent, sources = gallery
    source = sources[name]
    target = targets / "t.qcow2"
    events = agent.backup(f"d-{name}", target, "--format", "qcow2", sync="top")

    check(target)
    assert virtual_size(target, "qcow2") == rounded(source.size, "qcow2")
    same(source.path, source.format, target, "qcow2")
    facts = info(target)
    if source.backing:
        path, backing_format = source.backing
        assert events[0]["started"]["sync"] == "top"
        assert facts["backing-filename"] == str(path.resolve())
        assert facts["backing-filename-format"] == backing_format
        assert allocated(target, "qcow2", source.size) == allocated(source.path, source.format, source.size)
    else:
        # Nothing below: all of it is copied, as QEMU does.
        assert events[0]["started"]["sync"] == "full"
        assert "backing-filename" not in facts


def test_top_masks_what_was_zeroed(gallery, targets):
    agent, sources = gallery
    target = targets / "t.qcow2"
    agent.backup("d-overlay", target, sync="top")
    import json

    entries = json.loads(qemu_img("map", "--output=json", target).stdout)

    def at(offset):
        return next(e for e in entries if e["start"] <= offset < e["start"] + e["length"])

    for zeroed in (2 * MiB, 128 * KiB):
        assert at(zeroed)["depth"] == 0 and at(zeroed)["zero"], at(zeroed)
    assert allocated(target, "qcow2", sources["overlay"].size) == {2, 16, 32, 64}
    assert data_bytes(target) < 1 * MiB


@pytest.mark.parametrize("target_format", ["raw", "qcow2"])
def test_holes_and_zeroes_take_no_space(start_agent, images, targets, target_format):
    disk = raw(images / "d.raw", 256 * MiB, [(10 * MiB, 64 * KiB), (200 * MiB, 64 * KiB)])
    with open(disk, "r+b") as file:
        file.seek(50 * MiB)
        file.write(bytes(20 * MiB))  # zeroes that are written down, not a hole
    agent = start_agent(("vm1", disk))
    target = targets / "t"
    agent.backup("vm1", target, "--format", target_format)
    same(disk, "raw", target, target_format)
    assert data_bytes(target) < 2 * MiB, f"{data_bytes(target)} bytes"


def test_a_disk_of_15_tebibytes(start_agent, images, targets):
    disk = create(images / "big.qcow2", 15 * TiB)
    qemu_io(disk, "qcow2", "write -P 0x5a 0 64k", "write -P 0x5b 7T 1M", f"write -P 0x5c {15 * TiB - 512} 512")
    agent = start_agent(("big", disk))
    target = targets / "t.qcow2"
    agent.backup("big", target)
    check(target)
    for pattern, offset, length in ((0x5a, 0, 65536), (0x5b, 7 * TiB, MiB), (0x5c, 15 * TiB - 512, 512)):
        qemu_io(target, "qcow2", f"read -P {pattern} {offset} {length}")
    assert agent.peak_memory() < 256 * MiB


def test_memory_stays_within_bounds(start_agent, images, targets):
    """Eight jobs at once, 64 MiB each in pieces with holes between."""
    disks = []
    for number in range(8):
        disk = raw(images / f"{number}.raw", 128 * MiB, [(at * MiB, MiB) for at in range(0, 128, 2)], seed=number)
        disks.append((f"vm{number}", disk))
    agent = start_agent(*disks)
    streams = [
        agent.stream("start", name, targets / name, "--sync", "full", "--format", ("raw", "qcow2")[number % 2])
        for number, (name, _) in enumerate(disks)]
    for stream in streams:
        assert stream.end() == 0, stream.errors
    for number, (name, disk) in enumerate(disks):
        same(disk, "raw", targets / name, ("raw", "qcow2")[number % 2])
    assert agent.peak_memory() < 256 * MiB, f"{agent.peak_memory() // MiB} MiB"


def test_the_format_is_the_drives_own_when_none_is_said(start_agent, images, targets):
    disk = raw(images / "d.raw", MiB, [(0, MiB)])
    image = create(images / "d.qcow2", MiB)
    agent = start_agent(("one", disk), ("two", image))
    agent.backup("one", targets / "one")
    agent.backup("two", targets / "two")
    assert info(targets / "one")["format"] == "raw"
    assert info(targets / "two")["format"] == "qcow2"


def test_a_raw_disk_that_begins_with_a_qcow2_header_stays_raw(start_agent, images, targets):
    """SEMANTICS 7.43 and 7.44: its guest wrote that header, and it means nothing."""
    disk = create(images / "d.raw", 5 * MiB)
    with open(disk, "r+b") as file:
        file.truncate(2 * MiB)
    agent = start_agent(f"id=vm1,file={disk},format=raw")
    for target_format in ("raw", "qcow2"):
        target = targets / f"t.{target_format}"
        agent.backup("vm1", target, "--format", target_format)
        same(disk, "raw", target, target_format)
        assert virtual_size(target, target_format) == 2 * MiB


def test_a_relative_target_is_meant_from_where_the_client_is(start_agent, images, targets):
    disk = raw(images / "d.raw", MiB, [(0, MiB)])
    agent = start_agent(("vm1", disk))
    agent.ok("start", "vm1", "here.raw", "--format", "raw", cwd=targets)
    same(disk, "raw", targets / "here.raw", "raw")
    assert agent.job("vm1")["target"] == str(targets / "here.raw")


def test_commas_in_a_drives_file_are_doubled(start_agent, images, targets):
    disk = raw(images / "a,b.raw", MiB, [(0, MiB)])
    agent = start_agent(f"id=vm1,file={str(disk).replace(',', ',,')},format=raw")
    agent.backup("vm1", targets / "t,1.raw")
    same(disk, "raw", targets / "t,1.raw", "raw")


def test_many_backups_of_one_drive_one_after_another(start_agent, images, targets):
    disk = raw(images / "d.raw", MiB, [(0, MiB)])
    agent = start_agent(("vm1", disk))
    for number in range(10):
        agent.backup("vm1", targets / f"{number}.raw")
    jobs = agent.ok("job", "list", "--all").objects
    assert len(jobs) == 10 and all(job["result"] == "completed" for job in jobs), jobs
