"""What guests and jobs get when old content cannot be saved, or not in time, and when a target hangs: cases 58, 59, 61.

Staging is on a file system of its own: a job's file there is made immutable, so that writes to it fail, or the file system
is frozen, so that they hang.
"""

import os
import resource
import subprocess
from pathlib import Path

import pytest
from harness import Agent, kind
from images import KiB, MiB, create, qemu_io, raw, run
from target_processes import FreezingFileSystem, hangs, mounted, target_processes, until
from test_cases import Guest, content, finish, uri
from test_errors import small_file_system

SIZE = 64 * MiB
PLACE = 60 * MiB
# Where the guest writes. More than 64 KiB in a piece: less is written to staging by the thread that serves the drives,
# which a frozen file system would hold up.
WRITE = (PLACE + 256 * KiB, 512 * KiB)


@pytest.fixture
def disk(images):
    path = create(images / "vm1.qcow2", SIZE)
    # What comes first keeps a slow job from the rest.
    qemu_io(path, "qcow2", "write -P 0x40 0 4M", f"write -P 0x41 {PLACE} 1M")
    return path


@pytest.fixture
def staging(tmp_path):
    """A file system for staging, which spares its last GiB."""
    with mounted(FreezingFileSystem(tmp_path, size=3 << 30)) as system:
        yield system


@pytest.fixture
def agent(staging, start_agent, disk):
    # The file system comes first: it is unmounted when the agent has ended.
    return start_agent(f"id=vm1,file={disk},format=qcow2", arguments=["--staging", f"{staging.path}/staging"])


def files(staging):
    return sorted(path for path in (staging.path / "staging").iterdir() if path.name != "staging.lock")


def let_saving_fail(staging, fails):
    """Writes of old content fail, of those who have the file open, too; the job's checksums, beside it, can be written."""
    contents = [path for path in files(staging) if path.suffix == ".staging"]
    subprocess.run(["chattr", "+i" if fails else "-i", *contents], check=True)


def overwrite(verb="write"):
    return f"{verb} -P 0x55 {WRITE[0]} {WRITE[1]}"


def view_of(agent):
    address = f"unix:{agent.directory}/view.sock"
    agent.ok("export", "add", "--snapshot-of", "vm1", address)
    return address


def staging_errors(events):
    return [event["io_error"] for event in events if event.get("io_error", {}).get("side") == "staging"]


def lost(agent, stream, guest, view, reason):
    """The guest's write goes through, the job fails, nothing can be taken for the point in time any more."""
    guest.does(overwrite())
    assert stream.end() == 1, stream.events
    error = next(event["failed"]["error"] for event in stream.events if kind(event) == "failed")
    assert error["reason"] == reason and "vm1" in error["message"], error
    errors = staging_errors(stream.events)
    assert [error["action"] for error in errors] == ["report"], stream.events
    assert errors[0]["offset"] // MiB == PLACE // MiB, errors
    read = run("qemu-io", "-r", "-f", "raw", "-c", f"read -P 0x41 {PLACE} 64k", uri(view), check=False)
    assert read.returncode != 0 or "failed" in read.stdout, read.stdout
    guest.does(f"read -P 0x41 {PLACE} 256k", overwrite("read"), f"read -P 0x41 {PLACE + 768 * KiB} 256k")


def refused_to_the_guest(stream, guest, view):
    """The guest's write fails and changes nothing; the view stays what it was."""
    said = guest.tries(overwrite())
    assert "write failed" in said, said
    guest.does(f"read -P 0x41 {PLACE} 1M")
    said = run("qemu-io", "-r", "-f", "raw", "-c", f"read -P 0x41 {PLACE} 1M", uri(view)).stdout
    assert "failed" not in said, said
    told = stream.until(lambda event: event.get("io_error", {}).get("side") == "staging")["io_error"]
    assert told["action"] == "warn" and told["operation"] == "write" and told["message"], told
    assert told["offset"] // MiB == PLACE // MiB, told


def completes(agent, guest, stream, before, targets):
    """The guest may write again, and the backup is of its instant."""
    guest.does(overwrite())
    agent.ok("job", "set-speed", "vm1", 0)
    assert stream.end() == 0, (stream.events, agent.log())
    assert content(targets / "t", "raw", targets) == before
    guest.does(overwrite("read"))


def test_if_saving_fails_the_point_in_time_is_lost_and_the_guest_goes_on(agent, targets, staging):
    """58"""
    guest = Guest(agent, "vm1")
    agent.slow_job("vm1", targets / "t", "--format", "raw", speed="1")
    stream, view = agent.stream("job", "watch", "vm1"), view_of(agent)
    let_saving_fail(staging, True)
    try:
        lost(agent, stream, guest, view, "SNAPSHOT_BROKEN")
    finally:
        let_saving_fail(staging, False)
    assert list(targets.iterdir()) == []
    agent.backup("vm1", targets / "t", "--format", "raw")


def test_if_saving_fails_the_guests_write_fails_where_that_was_asked_for(agent, disk, targets, staging):
    """58"""
    guest = Guest(agent, "vm1")
    before = content(disk, "qcow2", targets)
    agent.slow_job("vm1", targets / "t", "--format", "raw", "--on-cbw-error", "break-guest-write", speed="1")
    stream, view = agent.stream("job", "watch", "vm1"), view_of(agent)
    let_saving_fail(staging, True)
    try:
        refused_to_the_guest(stream, guest, view)
    finally:
        let_saving_fail(staging, False)
    completes(agent, guest, stream, before, targets)


def test_if_saving_takes_too_long_the_point_in_time_is_lost_and_the_guest_goes_on(agent, targets, staging):
    """59"""
    guest = Guest(agent, "vm1")
    agent.slow_job("vm1", targets / "t", "--format", "raw", "--cbw-timeout", "0.5", speed="1")
    stream, view = agent.stream("job", "watch", "vm1"), view_of(agent)
    staging.freeze()
    lost(agent, stream, guest, view, "CBW_TIMEOUT")
    staging.thaw()
    until(lambda: files(staging) == [], "the job's staging is removed")
    agent.backup("vm1", targets / "t", "--format", "raw")


def test_if_saving_takes_too_long_the_guests_write_fails_where_that_was_asked_for(agent, disk, targets, staging):
    """59"""
    guest = Guest(agent, "vm1")
    before = content(disk, "qcow2", targets)
    agent.slow_job(
        "vm1", targets / "t", "--format", "raw", "--cbw-timeout", "0.5", "--on-cbw-error", "break-guest-write", speed="1")
    stream, view = agent.stream("job", "watch", "vm1"), view_of(agent)
    staging.freeze()
    refused_to_the_guest(stream, guest, view)
    staging.thaw()
    completes(agent, guest, stream, before, targets)


def test_a_limit_for_the_size_of_files_ends_the_job_and_not_the_agent(agent, targets):
    """Staging holds old content where it is in the drive, which is beyond the limit; the image is far smaller."""
    guest = Guest(agent, "vm1")
    agent.slow_job("vm1", targets / "t", "--format", "raw", speed="1")
    stream, view = agent.stream("job", "watch", "vm1"), view_of(agent)
    _, most = resource.prlimit(agent.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(agent.process.pid, resource.RLIMIT_FSIZE, (32 * MiB, most))
    lost(agent, stream, guest, view, "STAGING_FULL")
    agent.is_well()


def test_while_the_target_hangs_the_guest_reads_and_writes_everywhere(start_agent, images, targets, tmp_path):
    """61"""
    size = 8 * MiB
    disk = raw(images / "vm1.raw", size, [(0, size)])
    before = disk.read_bytes()
    freezing = FreezingFileSystem(tmp_path)
    try:
        if not freezing.mount():
            pytest.skip("no file system can be mounted here (root and loop devices are needed)")
        agent = start_agent(f"id=vm1,file={disk},format=raw")
        guest = Guest(agent, "vm1")
        agent.slow_job("vm1", freezing.path / "t", speed="1")
        stream = agent.stream("job", "watch", "vm1")
        stream.until(lambda event: event.get("progress", {}).get("current", 0) > 0)
        process = target_processes(agent)["vm1"]
        freezing.freeze()
        agent.ok("job", "set-speed", "vm1", 0)
        until(lambda: hangs(process), "the process waits for the frozen file system")
        # What is copied, what is being copied and what is not.
        guest.does("write -P 7 0 64k", f"write -P 8 64k {size - 64 * KiB}", "read -P 7 0 64k", "read -P 8 7M 1M")
        freezing.thaw()
        assert stream.end() == 0, (stream.events, agent.log())
        assert (freezing.path / "t").read_bytes() == before
        agent.terminate()
    finally:
        freezing.close()


def test_what_the_disk_below_staging_has_lost_fails_the_job(images, targets, tmp_path):
    """The file system has taken what was saved, its disk does not: it is gone when memory is, and reads as zeroes."""
    caches = Path("/proc/sys/vm/drop_caches")
    if not os.access(caches, os.W_OK):
        pytest.skip("to drop what the page cache has takes root")
    disk = raw(images / "d.raw", 128 * MiB, [(0, 128 * MiB)])
    with small_file_system(tmp_path / "small", 64 * MiB) as small, \
            mounted(FreezingFileSystem(small, 3 << 30, ["-O", "^has_journal"])) as staging, \
            Agent([("vm1", disk)], arguments=["--staging", f"{staging.path}/staging"]) as agent:
        agent.slow_job("vm1", targets / "t", "--format", "raw", speed="1")
        Guest(agent, "vm1").does(*(f"write -P 0x55 {start}M 16M" for start in range(16, 128, 16)))
        # It says that it fails.
        subprocess.run(["sync", "-f", str(staging.path)], stderr=subprocess.DEVNULL)
        caches.write_text("1\n")
        agent.ok("job", "set-speed", "vm1", "0")
        watch = agent.stream("job", "watch", "vm1")
        assert watch.end() == 1, watch.events
        error = next(event["failed"]["error"] for event in watch.events if kind(event) == "failed")
        assert error["reason"] == "SNAPSHOT_BROKEN" and "write back" in error["message"], error
        assert not (targets / "t").exists()
