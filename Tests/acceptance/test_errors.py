"""What goes wrong while a backup runs: no space, a source that cannot be read."""

import os
import struct
import subprocess
from contextlib import contextmanager

import pytest
from harness import Agent, kind, untouched
from images import KiB, MiB, check, create, held_for_writing, qemu_io, raw, same


@contextmanager
def small_file_system(directory, size):
    """A file system of its own in `directory`."""
    directory.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "drive-backup-test", str(directory)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        if os.getuid() == 0 and not os.environ.get("DRIVE_BACKUP_TEST_NO_MOUNT"):
            pytest.fail(f"couldn't mount a file system to fill (DRIVE_BACKUP_TEST_NO_MOUNT=1 skips this): {done.stdout}")
        pytest.skip("mounting a small file system takes root")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


@pytest.mark.parametrize("target_format", ["raw", "qcow2"])
def test_a_target_that_fills_its_file_system(start_agent, images, tmp_path, target_format):
    disk = raw(images / "d.raw", 16 * MiB, [(0, 16 * MiB)])
    agent = start_agent(("vm1", disk))
    with small_file_system(tmp_path / "small", 4 * MiB) as small:
        with untouched(images):
            events = agent.failing_backup("vm1", small / "t", "--format", target_format)
        assert list(small.iterdir()) == []
        errors = [event["io_error"] for event in events if "io_error" in event]
        assert len(errors) >= 1, events
        assert errors[0]["side"] == "target" and errors[0]["operation"] in ("write", "flush"), errors
        assert errors[0]["errno"] == 28 and errors[0]["action"] == "report", errors
        assert 0 <= errors[0].get("offset", 0) < 16 * MiB
        assert "t.partial" in errors[0]["message"] or str(small / "t") in errors[0]["message"], errors
        error = next(event["failed"]["error"] for event in events if "failed" in event)
        assert error["reason"] == "NO_SPACE" and error["code"] == "resource_exhausted", error
        job = agent.job("vm1")
        assert (job["state"], job["result"], job["error"]) == ("concluded", "failed", error)
        assert agent.stream("job", "watch", "vm1").end() == 1
        # Nobody holds the file system any more, and the next backup goes well.
        assert os.statvfs(small).f_bfree == os.statvfs(small).f_blocks
    agent.backup("vm1", tmp_path / "t", "--format", target_format)


@pytest.mark.parametrize("target_format", ["raw", "qcow2"])
def test_a_file_system_that_is_full_already(start_agent, images, tmp_path, target_format):
    disk = raw(images / "d.raw", 2 * MiB, [(0, 2 * MiB)])
    agent = start_agent(("vm1", disk))
    with small_file_system(tmp_path / "small", MiB) as small:
        with open(small / "filler", "wb", buffering=0) as filler:
            try:
                while True:
                    filler.write(bytes(64 * KiB))
            except OSError:
                pass
        for mode in ([], ["--overwrite"]):
            with untouched(images):
                result = agent.run("start", "vm1", small / "t", "--format", target_format, *mode)
            assert result.code == 1 and len(result.err.splitlines()) == 1, result
            assert [path.name for path in small.iterdir()] == ["filler"]
        agent.is_well()


def test_an_existing_target_without_space_is_kept(start_agent, images, tmp_path):
    disk = raw(images / "d.raw", 8 * MiB, [(0, 8 * MiB)])
    agent = start_agent(("vm1", disk))
    with small_file_system(tmp_path / "small", 2 * MiB) as small:
        target = create(small / "t.qcow2", 8 * MiB)
        agent.failing_backup("vm1", target, "--mode", "existing")
        assert sorted(path.name for path in small.iterdir()) == ["t.qcow2", "t.qcow2.manifest.json"]


def broken_image(path, size=4 * MiB):
    """A qcow2 image with one entry of its mapping that cannot be."""
    create(path, size)
    qemu_io(path, "qcow2", f"write -P 7 0 {size}")
    with open(path, "r+b") as file:
        file.seek(40)
        level_one = struct.unpack(">Q", file.read(8))[0]
        file.seek(level_one)
        level_two = struct.unpack(">Q", file.read(8))[0] & 0x00FFFFFFFFFFFE00
        file.seek(level_two + 8 * 40)
        file.write(struct.pack(">Q", (1 << 63) | 0x12345600))  # in the middle of a cluster
    return path


def test_a_source_that_cannot_be_read_everywhere(start_agent, images, targets):
    disk = broken_image(images / "d.qcow2")
    agent = start_agent(("vm1", disk))
    for target_format in ("raw", "qcow2"):
        with untouched(images, targets.parent / "none" if False else images):
            events = agent.failing_backup("vm1", targets / "t", "--format", target_format)
        errors = [event["io_error"] for event in events if "io_error" in event]
        assert errors and errors[0]["side"] == "source" and errors[0]["operation"] == "read", events
        assert errors[0]["action"] == "report" and errors[0]["message"], errors
        assert errors[0]["offset"] <= 40 * 64 * KiB < errors[0]["offset"] + max(errors[0]["length"], 64 * KiB), errors
        assert list(targets.iterdir()) == []
    agent.is_well()


def test_a_source_that_shrinks_under_the_agent(start_agent, images, targets):
    """Nobody may do that; it must not kill the agent, nor make a backup that looks whole."""
    disk = raw(images / "d.raw", 8 * MiB, [(0, 8 * MiB)])
    agent = start_agent(("vm1", disk))
    os.truncate(disk, MiB)
    result = agent.run("start", "vm1", targets / "t")
    agent.is_well()
    assert result.code == 1 and list(targets.iterdir()) == [], result


def test_a_target_directory_that_vanishes(start_agent, images, targets):
    disk = raw(images / "d.raw", 8 * MiB, [(0, 8 * MiB)])
    agent = start_agent(("vm1", disk))
    (targets / "sub").mkdir()
    agent.slow_job("vm1", targets / "sub" / "t")
    (targets / "sub" / "t.partial").unlink()
    (targets / "sub").rmdir()
    agent.ok("job", "set-speed", "vm1", "0")
    assert agent.stream("job", "watch", "vm1").end() == 1
    agent.is_well()


def test_a_partial_that_somebody_replaces_is_not_taken_for_ours(start_agent, images, targets):
    disk = raw(images / "d.raw", 8 * MiB, [(0, 8 * MiB)])
    agent = start_agent(("vm1", disk))
    agent.slow_job("vm1", targets / "t")
    (targets / "t.partial").unlink()
    (targets / "t.partial").write_bytes(b"somebody else's")
    agent.ok("job", "set-speed", "vm1", "0")
    assert agent.stream("job", "watch", "vm1").end() == 1
    assert not (targets / "t").exists()
    assert (targets / "t.partial").read_bytes() == b"somebody else's"
