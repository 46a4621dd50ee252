"""`--mode existing`: an image that is there is written; what is not right is refused and left alone."""

import os

import pytest
from harness import untouched
from images import (
    CLUSTER, KiB, MiB, check, create, held_for_writing, info, qemu_img, qemu_io, raw, same, virtual_size)

SIZE = 4 * MiB


@pytest.fixture
def drive(start_agent, images):
    """An agent with one raw drive of 4 MiB: data, holes, and zeroes that are written down."""
    disk = raw(images / "d.raw", SIZE, [(0, 100 * KiB), (MiB, MiB), (SIZE - 4096, 4096)])
    with open(disk, "r+b") as file:
        file.seek(2 * MiB + 512 * KiB)
        file.write(bytes(256 * KiB))
    return start_agent(("vm1", disk)), disk


def used_raw(path, size=SIZE):
    path.write_bytes(b"\xaa" * size)
    return path


def used_qcow2(path, options=None, size=SIZE):
    create(path, size, options=options)
    qemu_io(path, "qcow2", f"write -P 0xaa 0 {size}")
    return path


@pytest.mark.parametrize("options", [
    None, "cluster_size=512", "cluster_size=4k", "cluster_size=2M", "compat=0.10", "refcount_bits=1", "refcount_bits=64",
    "preallocation=metadata", "lazy_refcounts=on"])
@pytest.mark.parametrize("used", [False, True])
def test_full_into_a_qcow2_image(drive, targets, options, used):
    agent, disk = drive
    target = (used_qcow2 if used else lambda path, options: create(path, SIZE, options=options))(
        targets / "t.qcow2", options)
    inode = target.stat().st_ino
    agent.backup("vm1", target, "--mode", "existing", "--format", "qcow2")
    check(target)
    same(disk, "raw", target, "qcow2")
    assert target.stat().st_ino == inode


@pytest.mark.parametrize("used", [False, True])
def test_full_into_a_raw_image(drive, targets, used):
    agent, disk = drive
    target = used_raw(targets / "t.raw") if used else raw(targets / "t.raw", SIZE)
    agent.backup("vm1", target, "--mode", "existing", "--format", "raw")
    same(disk, "raw", target, "raw")
    assert target.stat().st_size == SIZE


def test_full_into_an_image_with_a_backing_file_hides_the_backing_file(drive, images, targets):
    agent, disk = drive
    base = used_raw(images / "other.raw")
    target = create(targets / "t.qcow2", SIZE, backing=(base, "raw"))
    agent.backup("vm1", target, "--mode", "existing")
    check(target)
    same(disk, "raw", target, "qcow2")
    assert info(target)["full-backing-filename"] == str(base)
    assert base.read_bytes() == b"\xaa" * SIZE


def test_full_into_an_image_with_snapshots_keeps_the_snapshots(drive, targets):
    agent, disk = drive
    target = used_qcow2(targets / "t.qcow2")
    qemu_img("snapshot", "-c", "old", target)
    agent.backup("vm1", target, "--mode", "existing")
    check(target)
    same(disk, "raw", target, "qcow2")
    qemu_img("snapshot", "-a", "old", target)
    qemu_io(target, "qcow2", f"read -P 0xaa 0 {SIZE}")


def test_full_into_a_compressed_image(drive, targets):
    agent, disk = drive
    plain = used_raw(targets / "plain")
    target = targets / "t.qcow2"
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", plain, target)
    agent.backup("vm1", target, "--mode", "existing")
    check(target)
    same(disk, "raw", target, "qcow2")


def test_top_into_an_overlay_of_the_same_base(start_agent, images, targets):
    base = used_raw(images / "base.raw")
    disk = create(images / "d.qcow2", SIZE, backing=(base, "raw"))
    qemu_io(disk, "qcow2", "write -P 0x41 1M 4k", "write -z 2M 64k", f"write -P 0x42 {SIZE - 512} 512")
    target = create(targets / "t.qcow2", SIZE, backing=(base, "raw"))
    agent = start_agent(("vm1", disk))
    agent.backup("vm1", target, "--mode", "existing", sync="top")
    check(target)
    same(disk, "qcow2", target, "qcow2")
    facts = info(target)
    assert (facts["full-backing-filename"], facts["backing-filename-format"]) == (str(base), "raw")


def test_a_qcow2_image_is_known_without_a_format(drive, targets):
    agent, disk = drive
    target = used_qcow2(targets / "t")
    events = agent.backup("vm1", target, "--mode", "existing")
    assert events[0]["started"]["format"] == "qcow2"
    check(target)
    same(disk, "raw", target, "qcow2")


def test_a_blank_image_without_a_format_is_raw(drive, targets):
    agent, disk = drive
    target = raw(targets / "t", SIZE)
    events = agent.backup("vm1", target, "--mode", "existing")
    assert events[0]["started"]["format"] == "raw"
    same(disk, "raw", target, "raw")


def test_raw_without_a_format_refuses_a_source_that_would_make_it_look_like_qcow2(start_agent, images, targets):
    disk = create(images / "d.raw", 5 * MiB)
    os.truncate(disk, MiB)
    target = used_raw(targets / "t", MiB)
    agent = start_agent(f"id=vm1,file={disk},format=raw")
    with untouched(targets, images):
        agent.refused("start", "vm1", target, "--mode", "existing", says="--format raw")
    agent.backup("vm1", target, "--mode", "existing", "--format", "raw")
    same(disk, "raw", target, "raw")


@pytest.mark.parametrize("off_by", [-MiB, -CLUSTER, -512, 512, CLUSTER, MiB])
@pytest.mark.parametrize("target_format", ["raw", "qcow2"])
def test_another_size_is_refused(drive, images, targets, target_format, off_by):
    agent, _ = drive
    target = raw(targets / "t", SIZE + off_by) if target_format == "raw" else create(targets / "t", SIZE + off_by)
    with untouched(targets, images):
        result = agent.refused("start", "vm1", target, "--mode", "existing", "--format", target_format)
        assert str(SIZE) in result.err and str(SIZE + off_by) in result.err, result
        agent.refused("start", "vm1", target, "--mode", "existing")


def test_a_missing_file_is_refused(drive, images, targets):
    agent, _ = drive
    with untouched(targets, images):
        agent.refused("start", "vm1", targets / "none", "--mode", "existing", "--format", "qcow2", says="none")
        agent.refused("start", "vm1", targets / "no" / "such", "--mode", "existing")


def corrupt(offset, content):
    def change(path):
        with open(path, "r+b") as file:
            file.seek(offset)
            file.write(content)
    return change


BROKEN_HEADERS = {
    "version 9": corrupt(4, (9).to_bytes(4, "big")),
    "cluster bits 63": corrupt(20, (63).to_bytes(4, "big")),
    "cluster bits 8": corrupt(20, (8).to_bytes(4, "big")),
    "size beyond all bounds": corrupt(24, b"\xff" * 8),
    "encrypted": corrupt(32, (1).to_bytes(4, "big")),
    "level-1 table of 4 Gi entries": corrupt(36, b"\xff" * 4),
    "level-1 table beyond the end": corrupt(40, (1 << 60).to_bytes(8, "big")),
    "level-1 table not aligned": corrupt(40, (0x30001).to_bytes(8, "big")),
    "refcount table beyond the end": corrupt(48, (1 << 61).to_bytes(8, "big")),
    "unknown feature": corrupt(72, (1 << 62).to_bytes(8, "big")),
    "marked corrupt": corrupt(72, (2).to_bytes(8, "big")),
    "refcount order 9": corrupt(96, (9).to_bytes(4, "big")),
    "header length 8": corrupt(100, (8).to_bytes(4, "big")),
    "cut in the header": lambda path: os.truncate(path, 50),
    "cut behind the header": lambda path: os.truncate(path, 65536),
}


@pytest.mark.parametrize("fault", BROKEN_HEADERS)
def test_a_broken_header_is_refused(drive, images, targets, fault):
    agent, _ = drive
    target = create(targets / "t.qcow2", SIZE)
    BROKEN_HEADERS[fault](target)
    with untouched(targets, images):
        agent.refused("start", "vm1", target, "--mode", "existing", "--format", "qcow2", says="t.qcow2")
        agent.refused("start", "vm1", target, "--mode", "existing", says="t.qcow2")


def test_a_header_of_garbage_is_refused_as_qcow2(drive, images, targets):
    agent, _ = drive
    target = used_raw(targets / "t")
    with untouched(targets, images):
        agent.refused("start", "vm1", target, "--mode", "existing", "--format", "qcow2")


@pytest.mark.parametrize("target_format", ["raw", "qcow2"])
def test_a_target_that_another_process_writes_is_refused(drive, images, targets, target_format):
    agent, disk = drive
    target = raw(targets / "t", SIZE) if target_format == "raw" else create(targets / "t", SIZE)
    with held_for_writing(target, target_format), untouched(targets, images):
        agent.refused("start", "vm1", target, "--mode", "existing", "--format", target_format, says="lock")
    agent.backup("vm1", target, "--mode", "existing", "--format", target_format)
    same(disk, "raw", target, target_format)


def test_what_is_no_image_file_is_refused(drive, images, targets):
    agent, _ = drive
    os.mkfifo(targets / "fifo")
    (targets / "directory").mkdir()
    with untouched(targets, images):
        for name in (targets / "fifo", targets / "directory", "/dev/null", "/dev/zero", "/proc/self/mem"):
            agent.refused("start", "vm1", name, "--mode", "existing", "--format", "raw", code=(1, 77))


def test_a_cancelled_backup_leaves_an_existing_image_in_place(drive, targets):
    agent, _ = drive
    target = used_qcow2(targets / "t.qcow2")
    agent.slow_job("vm1", target, "--mode", "existing")
    agent.ok("job", "cancel", "vm1")
    assert agent.stream("job", "watch", "vm1").end() == 4
    check(target)
    assert virtual_size(target, "qcow2") == SIZE
    assert sorted(path.name for path in targets.iterdir()) == ["t.qcow2", "t.qcow2.manifest.json"]


def test_a_target_is_locked_while_it_is_written(drive, targets):
    agent, _ = drive
    target = used_qcow2(targets / "t.qcow2")
    agent.slow_job("vm1", target, "--mode", "existing")
    done = qemu_io(target, "qcow2", "write -P 1 0 512", check=False)
    assert "lock" in done.stdout, done.stdout
    agent.ok("job", "set-speed", "vm1", "0")
    assert agent.stream("job", "watch", "vm1").end() == 0
    qemu_io(target, "qcow2", "read 0 512")
