"""Backups that outlive their agent: killed, stopped or upgraded in the midst of them, at random moments, under guests that
go on writing. A finished backup is the drive as it stood when the backup began, byte by byte."""

import random
import shutil
import time

import pytest
from drives import as_raw, make
from harness import END_EVENTS, kind
from images import MiB, check
from remote import wait_until
from servers import IS_PEER

pytestmark = pytest.mark.skipif(IS_PEER, reason="the peer's jobs do not outlive it")

# Drive, sync, format and how many backups: with five ends of the agent in each, nine of ten by kill -9, each sync mode
# sees more than fifty.
CASES = [
    pytest.param("raw", "full", "raw", 4, id="raw-full-raw"),
    pytest.param("raw", "full", "qcow2", 4, id="raw-full-qcow2"),
    pytest.param("raw-direct", "full", "raw", 2, id="raw-direct-full-raw"),
    pytest.param("raw", "none", "qcow2", 6, id="raw-none-qcow2"),
    pytest.param("overlay-64K", "full", "raw", 4, id="overlay-full-raw"),
    pytest.param("overlay-64K", "top", "qcow2", 12, id="overlay-top-qcow2"),
    pytest.param("overlay-64K-direct", "top", "qcow2", 2, id="overlay-direct-top-qcow2"),
    pytest.param("overlay-64K", "none", "qcow2", 6, id="overlay-none-qcow2"),
]


def killed_at_random(server, guests, chance, kills, slowest=0.4):
    """Kills or stops the agent so often, under its guests, which come back."""
    for kill in range(kills):
        time.sleep(chance.random() * slowest)
        if chance.random() < 0.9:
            server.kill()
        else:
            server.stop()
        for guest in guests:
            guest.ask("lose")
        server.start()
        for guest in guests:
            guest.ask("reconnect")
            guest.run()


def ended(server, job):
    """How a job ended: its last event."""
    watch = server.agent.stream("job", "watch", job)
    watch.end()
    ends = [event for event in watch.events if kind(event) in END_EVENTS]
    assert len(ends) == 1, f"{watch.events}\n{watch.errors}\n{server.log()}"
    return ends[0]


def failure(server, job):
    end = ended(server, job)
    assert kind(end) == "failed", f"{end}\n{server.log()}"
    return end["failed"]["error"]["reason"]


@pytest.mark.parametrize("drive_kind,sync,image_format,turns", CASES)
def test_a_backup_goes_on_over_kills_and_stops(
        drive_kind, sync, image_format, turns, served, clients, images, targets, tmp_path, seed):
    chance = random.Random(seed)
    drive = make(images, drive_kind, seed)
    server = served(drive)
    guest = clients.guest(server.endpoint(drive), seed, depth=8, survive=True)
    guest.run()
    for turn in range(turns):
        guest.go_on(100)
        guest.quiesce()
        truth = guest.truth(tmp_path / f"truth-{turn}")
        target = targets / f"{turn}.{image_format}"
        # It does not end by itself: a kill may find it copying, or with everything copied.
        backup = server.backup(drive, target, sync, image_format, speed="6M", manual=sync != "none")
        guest.run()
        killed_at_random(server, [guest], chance, kills=5)
        assert server.agent.job(drive.id)["restarts"] == 5
        guest.go_on(100)
        if sync == "none":
            # What is written after the end shines through.
            guest.quiesce()
            backup.finish()
        else:
            server.agent.run("job", "set-speed", drive.id, "0")
            wait_until(lambda: server.agent.job(drive.id)["state"] == "pending", "the end of the copy")
            server.agent.ok("job", "finalize", drive.id)
            backup.wait()
            guest.quiesce()
        if image_format == "qcow2":
            check(target, shared=sync == "none")
        if sync == "none":
            truth = truth.through(guest.truth(tmp_path / "after"))
        truth.check(as_raw(target, image_format, tmp_path / "content"), f"backup {turn} (sync {sync})")
        # What was read before a kill and after it has the digests that the manifest says.
        server.agent.ok("verify", target)
        for kind_of_file in ("state/staging/*.staging", "state/staging/*.sums", "run/jobs/*.record"):
            assert not list(server.agent.directory.glob(kind_of_file)), kind_of_file
        guest.run()
    guest.quiesce()
    guest.truth(tmp_path / "after")
    guest.end()
    assert server.agent.is_well()


def test_a_group_completes_together_or_goes_on_together(served, clients, images, targets, tmp_path, seed):
    """Killed about the moment at which all are done: then, after the restart, all have their names, or none has, since one
    was being flushed."""
    chance = random.Random(seed)
    drives = [make(images, "raw", seed + at, f"vm{at}", size=2 * MiB + 512) for at in range(3)]
    server = served(*drives)
    completed = 0
    for turn in range(16):
        contents = [drive.path.read_bytes() for drive in drives]
        names = [targets / f"{turn}-{drive.id}.raw" for drive in drives]
        server.agent.ok(
            "start-group", *(f"{drive.id}={name}" for drive, name in zip(drives, names)), "--sync", "full",
            "--completion", "grouped", "--manual-dismiss", "--detach",
            *(["--speed", "32M"] if chance.random() < 0.5 else []))
        time.sleep(chance.random() * 0.15)
        server.kill()
        found = [name.exists() for name in names]
        server.start()
        # A job that had ended before the kill is not there any more.
        ids = [job["id"] for job in server.agent.run("job", "list").objects]
        ends = {job: ended(server, job) for job in ids}
        for job in ids:
            server.agent.ok("job", "dismiss", job)
        assert len({name.exists() for name in names}) == 1, f"{found} at the kill, {ends}"
        assert not list(targets.glob("*.partial"))
        if names[0].exists():
            completed += 1
            assert {kind(end) for end in ends.values()} <= {"completed"}, ends
            for name, content in zip(names, contents):
                assert name.read_bytes() == content, name
                server.agent.ok("verify", name)
        else:
            assert not any(found)
            failures = [end["failed"]["error"]["reason"] for end in ends.values() if kind(end) == "failed"]
            assert set(failures) == {"FLUSH_INTERRUPTED"} and len(ends) == 3, ends
    print(f"{completed} of 16 groups completed")


@pytest.mark.parametrize("end", ["fails", "is cancelled"])
def test_a_group_fails_together(end, served, images, targets, seed):
    drives = [make(images, "raw", seed + at, f"vm{at}", size=2 * MiB) for at in range(2)]
    server = served(*drives)
    names = [targets / f"{drive.id}.raw" for drive in drives]
    server.agent.ok(
        "start-group", *(f"{drive.id}={name}" for drive, name in zip(drives, names)), "--sync", "full",
        "--completion", "grouped", "--manual-dismiss", "--detach", "--speed", "1")
    # The first is whole and waits for the second.
    server.agent.ok("job", "set-speed", "vm0", "0")
    server.agent.stream("job", "watch", "vm0").until_state("waiting")
    if end == "fails":
        (targets / "vm1.raw.partial").unlink()
        server.kill()
        server.start()
    else:
        server.agent.ok("job", "cancel", "vm1")
    assert kind(ended(server, "vm0")) == "cancelled"
    assert kind(ended(server, "vm1")) == ("failed" if end == "fails" else "cancelled")
    assert not list(targets.iterdir())


def test_individual_jobs_of_a_group_end_for_themselves(served, images, targets, seed):
    drives = [make(images, "raw", seed + at, f"vm{at}", size=2 * MiB) for at in range(2)]
    server = served(*drives)
    server.agent.ok(
        "start-group", *(f"{drive.id}={targets / drive.id}" for drive in drives), "--sync", "full", "--detach",
        "--speed", "1")
    server.agent.ok("job", "cancel", "vm1")
    server.agent.ok("job", "set-speed", "vm0", "0")
    assert kind(ended(server, "vm0")) == "completed"
    assert sorted(path.name for path in targets.iterdir()) == ["vm0", "vm0.manifest.json"]


def held(server, drive, target, *options):
    """A backup that cannot end before somebody wants it to."""
    server.agent.ok(
        "start", drive.id, target, "--sync", "full", "--speed", "1", "--manual-dismiss", "--detach", *options)


@pytest.mark.parametrize("drive_kind", ["raw", "overlay-64K"])
def test_who_else_writes_to_the_drive_is_noticed(drive_kind, served, images, targets, seed):
    drive = make(images, drive_kind, seed)
    server = served(drive)
    held(server, drive, targets / "a.raw", "--format", "raw")
    server.kill()
    time.sleep(0.02)
    with open(drive.path, "r+b") as file:
        byte = file.read(1)
        file.seek(0)
        file.write(byte)
    server.start()
    assert failure(server, drive.id) == "SOURCE_CHANGED"
    assert not list(targets.iterdir())


def test_a_drive_that_is_another_file_is_noticed(served, images, targets, seed):
    drive = make(images, "raw", seed)
    server = served(drive)
    held(server, drive, targets / "a.raw")
    server.kill()
    copy = images / "copy"
    shutil.copy2(drive.path, copy)
    copy.rename(drive.path)
    server.start()
    assert failure(server, drive.id) == "SOURCE_CHANGED"


@pytest.mark.parametrize("keep", [False, True])
def test_after_a_restart_of_the_host_a_backup_has_failed(keep, served, images, targets, seed):
    """tmpfs is empty then."""
    drive = make(images, "raw", seed)
    server = served(drive)
    held(server, drive, targets / "a.raw", *(["--keep-target"] if keep else []))
    server.kill()
    shutil.rmtree(server.agent.directory / "run")
    server.start()
    assert failure(server, drive.id) == "HOST_RESTARTED"
    assert [path.name for path in targets.iterdir()] == (["a.raw.partial"] if keep else [])
    assert not list((server.agent.directory / "state" / "staging").glob("*.staging"))
    # The drive is free.
    server.agent.ok("job", "dismiss", drive.id)
    server.backup(drive, targets / "b.raw", "full", "raw").wait()


def test_a_target_that_was_removed_fails_the_backup(served, images, targets, seed):
    drive = make(images, "raw", seed)
    server = served(drive)
    held(server, drive, targets / "a.raw")
    server.kill()
    (targets / "a.raw.partial").rename(targets / "elsewhere")
    (targets / "a.raw.partial").write_bytes(b"somebody's")
    server.start()
    assert failure(server, drive.id) == "TARGET_LOST"
    assert (targets / "a.raw.partial").read_bytes() == b"somebody's"


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_what_a_job_was_it_is_after_the_restart(how, served, images, targets, seed):
    drives = [make(images, "raw", seed + at, f"vm{at}", size=2 * MiB) for at in range(3)]
    server = served(*drives)
    paused, pending, slow = drives
    contents = [drive.path.read_bytes() for drive in drives]
    held(server, paused, targets / "paused")
    server.agent.ok("job", "pause", paused.id)
    server.agent.ok("start", pending.id, targets / "pending", "--sync", "full", "--manual-finalize", "--detach")
    server.agent.stream("job", "watch", pending.id).until_kind("pending")
    held(server, slow, targets / "slow", "--request-key", "again")
    watch = server.agent.stream("job", "watch", slow.id)
    watch.until_kind("started")
    server.agent.ok("job", "set-speed", slow.id, "2")
    before = {job["id"]: job for job in server.agent.run("job", "list").objects}
    server.kill() if how == "killed" else server.stop()
    server.start()
    after = {job["id"]: job for job in server.agent.run("job", "list").objects}
    for job, was in before.items():
        assert after[job]["restarts"] == 1
        for field in ("state", "pause_reason", "speed", "point_in_time", "created_at", "target", "format", "sync"):
            assert after[job].get(field) == was.get(field), (job, field)
    # The same request has the same job.
    again = server.agent.ok(
        "start", slow.id, targets / "slow", "--sync", "full", "--speed", "1", "--manual-dismiss", "--detach",
        "--request-key", "again").object
    assert again["sequence"] == watch.events[-1]["sequence"] or "started" in again
    server.agent.ok("job", "resume", paused.id)
    for job in (paused.id, slow.id):
        server.agent.ok("job", "set-speed", job, "0")
    server.agent.ok("job", "finalize", pending.id)
    for drive, content in zip(drives, contents):
        if drive is not slow:
            assert kind(ended(server, drive.id)) == "completed"
    # The client that watched has never left.
    assert watch.end() == 0
    assert [kind(event) for event in watch.events if kind(event) in END_EVENTS] == ["completed"]
    numbers = [event["sequence"] for event in watch.events]
    assert numbers == sorted(set(numbers)), numbers
    for name, content in zip(("paused", "pending", "slow"), contents):
        assert (targets / name).read_bytes() == content
        server.agent.ok("verify", targets / name)
