"""What a job does about errors of its drive and of its target: report, ignore, enospc, stop, auto, over real errors."""

import errno
import shutil
from pathlib import Path

import pytest
from faults import failing, with_bad_sectors, with_protected, without_flush
from harness import END_EVENTS, assert_one_line, kind
from images import KiB, MiB, check, held_for_writing, qemu_io, raw, same
from test_errors import small_file_system

SIZE = 16 * MiB


def io_errors(events):
    return [event["io_error"] for event in events if "io_error" in event]


def paused(stream):
    """Reads on until the job is paused by an error; returns that event's content."""
    changed = stream.until_state("paused")["state_changed"]
    assert changed["pause_reason"] == "error", changed
    return changed


def fill(directory, leave):
    """Takes the file system's space but for `leave` bytes; returns the file that does."""
    status = shutil.disk_usage(directory)
    filler = Path(directory) / "filler"
    filler.write_bytes(bytes(status.free - leave))
    return filler


def without(path, ranges, size):
    """The content of `path` with zeroes in these ranges."""
    content = bytearray(Path(path).read_bytes()[:size])
    for offset, length in ranges:
        content[offset:offset + length] = bytes(length)
    return bytes(content)


@pytest.mark.parametrize("target_format", ["raw", "qcow2"])
@pytest.mark.parametrize("policy", ["enospc", "auto", "stop"])
def test_no_space_pauses_the_job_and_it_goes_on_when_there_is_some(start_agent, images, tmp_path, policy, target_format):
    disk = raw(images / "d.raw", SIZE, [(0, SIZE)])
    agent = start_agent(("vm1", disk))
    with small_file_system(tmp_path / "small", 24 * MiB) as small:
        filler = fill(small, 4 * MiB)
        target = small / "t"
        stream = agent.stream("start", "vm1", target, "--format", target_format, "--on-target-error", policy)
        change = paused(stream)
        errors = io_errors(stream.events)
        assert errors and all(
            (error["side"], error["operation"], error["errno"], error["action"]) == ("target", "write", 28, "stop")
            and error["count"] >= 1 and error["length"] > 0 and error["offset"] + error["length"] <= SIZE
            for error in errors), errors
        assert change["pause_error"]["errno"] == errno.ENOSPC and change["pause_error"]["message"]
        job = agent.job("vm1")
        assert job["state"] == "paused" and job["pause_reason"] == "error", job
        assert job["pause_error"] == change["pause_error"] and job["on_target_error"] == policy, job
        assert job["error_count"] == sum(error["count"] for error in job["errors"]) >= 1, job
        # It is a pause like any other.
        assert "paused already" in agent.refused("job", "pause", "vm1").err
        agent.refused("job", "finalize", "vm1")
        agent.refused("job", "dismiss", "vm1")
        agent.ok("job", "set-speed", "vm1", "1G")
        assert agent.job("vm1")["progress"] == job["progress"]
        shown = agent.ok("job", "show", "vm1", as_json=False).out
        assert "paused because of an error" in shown and "errno 28" in shown and f"job resume vm1" in shown, shown
        # Still no space: paused again, with an error of its own.
        agent.ok("job", "resume", "vm1")
        paused(stream)
        assert len(io_errors(stream.events)) > len(errors)
        filler.unlink()
        agent.ok("job", "resume", "vm1")
        assert stream.end() == 0, stream.errors
        completed = stream.events[-1]["completed"] if "completed" in stream.events[-1] else next(
            event["completed"] for event in stream.events if "completed" in event)
        assert completed["result"] == "completed" and completed.get("missing_bytes", 0) == 0, completed
        check(target) if target_format == "qcow2" else None
        same(disk, "raw", target, target_format)
        assert not Path(f"{target}.partial").exists()


def test_an_error_that_is_not_about_space_fails_the_job_under_enospc(start_agent, images, tmp_path):
    disk = raw(images / "d.raw", 4 * MiB, [(0, 4 * MiB)])
    store = raw(tmp_path / "store.raw", 4 * MiB)
    with failing(tmp_path / "mount", store, write="EIO") as target:
        agent = start_agent(("vm1", disk))
        (tmp_path / "mount.trigger").touch()
        events = agent.failing_backup(
            "vm1", target, "--mode", "existing", "--format", "raw", "--on-target-error", "enospc")
        error = io_errors(events)[-1]
        assert (error["side"], error["errno"], error["action"]) == ("target", errno.EIO, "report"), error


def test_a_job_that_an_error_has_paused_is_cancelled_and_leaves_nothing(start_agent, images, tmp_path):
    disk = raw(images / "d.raw", SIZE, [(0, SIZE)])
    agent = start_agent(("vm1", disk))
    with small_file_system(tmp_path / "small", 4 * MiB) as small:
        stream = agent.stream("start", "vm1", small / "t", "--on-target-error", "stop")
        paused(stream)
        agent.ok("job", "cancel", "vm1")
        assert stream.end() == 4
        assert list(small.iterdir()) == []
        assert sum(kind(event) in END_EVENTS for event in stream.events) == 1


def test_while_an_error_has_paused_the_job_the_guest_goes_on_and_the_backup_is_of_the_instant(
        start_agent, images, tmp_path):
    disk = raw(images / "d.raw", SIZE, [(0, SIZE)])
    before = shutil.copyfile(disk, images / "before.raw")
    socket = tmp_path / "vm1.nbd"
    agent = start_agent(("vm1", disk), arguments=["--export", f"drive=vm1,listen=unix:{socket}"])
    with small_file_system(tmp_path / "small", 24 * MiB) as small:
        filler = fill(small, 2 * MiB)
        stream = agent.stream("start", "vm1", small / "t", "--format", "raw", "--on-target-error", "enospc")
        paused(stream)
        qemu_io(f"nbd+unix:///vm1?socket={socket}", "raw", f"write -P 0xee 0 {SIZE}", "flush")
        assert agent.job("vm1")["staging"]["used"] > 0
        filler.unlink()
        agent.ok("job", "resume", "vm1")
        assert stream.end() == 0, stream.errors
        same(before, "raw", small / "t", "raw")


@pytest.mark.parametrize("target_format", ["raw", "qcow2"])
def test_sectors_that_cannot_be_read_are_left_out_and_told_under_ignore(start_agent, images, targets, tmp_path, target_format):
    disk = raw(images / "d.raw", SIZE, [(0, SIZE)])
    bad = [(MiB + 512, 512), (5 * MiB, 12 * KiB), (SIZE - 4 * KiB, 4 * KiB)]
    missing = [(MiB, 4 * KiB), (5 * MiB, 12 * KiB), (SIZE - 4 * KiB, 4 * KiB)]
    with with_bad_sectors(tmp_path / "mount", disk, *bad) as drive:
        agent = start_agent(f"id=vm1,file={drive},format=raw,read-only=on")
        target = targets / "t"
        result = agent.run("start", "vm1", target, "--format", target_format, "--on-source-error", "ignore")
        assert result.code == 3, result
        completed = next(event["completed"] for event in result.objects if "completed" in event)
        assert completed["result"] == "completed_with_errors" and completed["missing_bytes"] == 20 * KiB, completed
        told = [(piece.get("offset", 0), piece["length"]) for piece in completed["missing"]]
        assert told == missing, completed
        errors = io_errors(result.objects)
        assert all((error["side"], error["operation"], error["errno"], error["action"])
                   == ("source", "read", errno.EIO, "ignore") for error in errors), errors
        assert sum(error["count"] for error in errors) == len(missing), errors
        job = agent.job("vm1")
        assert (job["state"], job["result"], job["missing_bytes"]) == ("concluded", "completed_with_errors", 20 * KiB)
        assert job["missing"] == completed["missing"] and job["error_count"] == len(missing), job
        assert agent.stream("job", "watch", "vm1").end() == 3
        # People are told, too.
        watched = agent.run("job", "watch", "vm1", as_json=False)
        assert watched.code == 3 and f"4096 bytes at {MiB}" in watched.out, watched
        shown = agent.ok("job", "show", "vm1", as_json=False).out
        assert "incomplete" in shown and f"12288 bytes at {5 * MiB}" in shown and "ignore" in shown, shown
    expected = images / "expected.raw"
    expected.write_bytes(without(disk, missing, SIZE))
    same(expected, "raw", target, target_format)


def test_a_sector_that_cannot_be_read_fails_the_job_under_report_and_says_where(start_agent, images, targets, tmp_path):
    disk = raw(images / "d.raw", SIZE, [(0, SIZE)])
    with with_bad_sectors(tmp_path / "mount", disk, (5 * MiB + 512, 512)) as drive:
        agent = start_agent(f"id=vm1,file={drive},format=raw,read-only=on")
        events = agent.failing_backup("vm1", targets / "t", "--on-source-error", "report")
        error = io_errors(events)[0]
        assert (error["side"], error["operation"], error["errno"], error["action"]) == (
            "source", "read", errno.EIO, "report"), error
        assert (error["offset"], error["length"]) == (5 * MiB, 4 * KiB), error
        assert list(targets.iterdir()) == []


def test_a_drive_that_cannot_be_read_pauses_the_job_under_stop_until_it_can(start_agent, images, targets, tmp_path):
    disk = raw(images / "d.raw", SIZE, [(0, SIZE)])
    with failing(tmp_path / "mount", disk, read="EIO") as drive:
        agent = start_agent(f"id=vm1,file={drive},format=raw,read-only=on")
        trigger = tmp_path / "mount.trigger"
        trigger.touch()
        stream = agent.stream("start", "vm1", targets / "t", "--on-source-error", "stop")
        for _ in range(2):
            change = paused(stream)
            assert change["pause_error"]["side"] == "source" and change["pause_error"]["errno"] == errno.EIO, change
            assert agent.job("vm1")["state"] == "paused"
            agent.ok("job", "resume", "vm1")
        paused(stream)
        trigger.unlink()
        agent.ok("job", "resume", "vm1")
        assert stream.end() == 0, stream.errors
        # However many requests were in flight.
        assert agent.log().count("is paused: ") == 3, agent.log()
    same(disk, "raw", targets / "t", "raw")


def test_a_target_that_cannot_be_written_pauses_the_job_under_stop_until_it_can(start_agent, images, tmp_path):
    disk = raw(images / "d.raw", SIZE, [(0, SIZE)])
    store = raw(tmp_path / "store.raw", SIZE)
    with failing(tmp_path / "mount", store, write="EIO") as target:
        agent = start_agent(("vm1", disk))
        trigger = tmp_path / "mount.trigger"
        trigger.touch()
        stream = agent.stream(
            "start", "vm1", target, "--mode", "existing", "--format", "raw", "--on-target-error", "stop")
        change = paused(stream)
        assert change["pause_error"]["side"] == "target" and change["pause_error"]["errno"] == errno.EIO, change
        trigger.unlink()
        agent.ok("job", "resume", "vm1")
        assert stream.end() == 0, stream.errors
    same(disk, "raw", store, "raw")


def test_clusters_that_cannot_be_written_are_left_out_and_told_under_ignore(start_agent, images, tmp_path):
    disk = raw(images / "d.raw", SIZE, [(0, SIZE)])
    store = raw(tmp_path / "store.raw", SIZE)
    with with_protected(tmp_path / "mount", store, 3 * MiB + 100 * KiB, 4 * KiB) as target:
        agent = start_agent(("vm1", disk))
        result = agent.run(
            "start", "vm1", target, "--mode", "existing", "--format", "raw", "--on-target-error", "ignore")
        assert result.code == 3, result
        completed = next(event["completed"] for event in result.objects if "completed" in event)
        missing = [(piece["offset"], piece["length"]) for piece in completed["missing"]]
        assert missing == [(3 * MiB + 64 * KiB, 64 * KiB)] and completed["missing_bytes"] == 64 * KiB, completed
        errors = io_errors(result.objects)
        assert errors and {(error["side"], error["operation"], error["action"]) for error in errors} == {
            ("target", "write", "ignore")}, errors
    held, wanted = store.read_bytes(), disk.read_bytes()
    for offset in range(0, SIZE, 64 * KiB):
        if offset != missing[0][0]:
            assert held[offset:offset + 64 * KiB] == wanted[offset:offset + 64 * KiB], offset


@pytest.mark.parametrize("policy", ["ignore", "stop", "enospc"])
def test_a_flush_of_the_target_that_fails_fails_the_job_under_every_policy(start_agent, images, tmp_path, policy):
    disk = raw(images / "d.raw", MiB, [(0, MiB)])
    store = raw(tmp_path / "store.raw", MiB)
    with without_flush(tmp_path / "mount", store) as target:
        agent = start_agent(("vm1", disk))
        events = agent.failing_backup(
            "vm1", target, "--mode", "existing", "--format", "raw", "--on-target-error", policy)
        errors = io_errors(events)
        assert [(error["side"], error["operation"], error["errno"], error["action"]) for error in errors] == [
            ("target", "flush", errno.EIO, "report")], errors


def test_a_job_of_sync_none_that_an_error_has_paused_ends_well_when_it_is_cancelled(start_agent, images, tmp_path):
    disk = raw(images / "d.raw", SIZE, [(0, SIZE)])
    before = shutil.copyfile(disk, images / "before.raw")
    socket = tmp_path / "vm1.nbd"
    agent = start_agent(("vm1", disk), arguments=["--export", f"drive=vm1,listen=unix:{socket}"])
    with small_file_system(tmp_path / "small", 24 * MiB) as small:
        filler = fill(small, 2 * MiB)
        target = small / "t"
        stream = agent.stream(
            "start", "vm1", target, "--sync", "none", "--format", "qcow2", "--on-target-error", "stop")
        stream.until_kind("started")
        qemu_io(f"nbd+unix:///vm1?socket={socket}", "raw", f"write -P 0xee 0 {SIZE}", "flush")
        paused(stream)
        filler.unlink()
        agent.ok("job", "cancel", "vm1")
        assert stream.end() == 0, stream.errors
        agent.terminate()
        same(before, "raw", target, "qcow2")
