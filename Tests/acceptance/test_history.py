"""What outlives the agent: ended jobs, events, request keys; and hooks."""

import errno
import json
import os
import signal
import subprocess
import time
from contextlib import contextmanager

import pytest
from harness import PATIENCE, assert_events, kind
from images import MiB, raw
from target_processes import target_processes

SIZE = 1 * MiB


@pytest.fixture
def disk(images):
    return raw(images / "d.raw", SIZE, [(0, SIZE)])


def lasting(events):
    """Events but progress, which is merged."""
    return [event for event in events if kind(event) != "progress"]


def kill(agent):
    agent.kill()
    agent.start()


@pytest.mark.parametrize("end", ["restart", "kill"])
def test_ended_jobs_are_there_after_a_restart(start_agent, disk, targets, end):
    agent = start_agent(("vm1", disk))
    agent.backup("vm1", targets / "a")
    agent.slow_job("vm1", targets / "b", "--job-id", "second")
    watch = agent.stream("job", "watch", "second")
    watch.until_kind("started")
    agent.ok("job", "cancel", "second")
    assert watch.end() == 4
    jobs = agent.ok("job", "list", "--all").objects
    assert [(job["id"], job["result"]) for job in jobs] == [("vm1", "completed"), ("second", "cancelled")]
    shown = [agent.job("vm1"), agent.job("second")]
    assert shown == jobs
    events = lasting(agent.ok("events").objects)
    assert_events(events)
    watched = lasting(watch.events)
    if end == "kill":
        kill(agent)
    else:
        agent.restart()
    assert agent.ok("job", "list", "--all").objects == jobs
    assert agent.ok("job", "list").objects == []
    assert [agent.job("vm1"), agent.job("second")] == shown
    assert agent.ok("events").objects == events
    assert agent.ok("events", "--after", events[4]["sequence"]).objects == events[5:]
    again = agent.stream("job", "watch", "second")
    assert again.end() == 4
    assert again.events == watched
    later = agent.stream("job", "watch", "second", "--after", watched[2]["sequence"])
    assert later.end() == 4
    assert later.events == watched[3:]
    agent.refused("job", "cancel", "second", says="concluded")
    # Numbers go on.
    new = agent.backup("vm1", targets / "c")
    assert new[0]["sequence"] > events[-1]["sequence"]
    assert len(agent.ok("job", "list", "--all").objects) == 3


def test_what_was_seen_before_a_kill_is_there_after_it(start_agent, disk, targets):
    agent = start_agent(("vm1", disk))
    seen, last = [], 0
    for number in range(6):
        follow = agent.stream("events", "--follow", "--after", last)
        if number % 2:
            agent.ok("start", "vm1", targets / f"t{number}", "--detach")
            follow.until_kind("completed")
        else:
            agent.ok("start", "vm1", targets / f"t{number}", "--detach", "--speed", "4K")
            follow.until_kind("started")
        agent.kill()
        follow.stop()
        follow.end()
        seen += lasting(follow.events)
        last = max(event["sequence"] for event in follow.events)
        agent.start()
        kept = lasting(agent.ok("events").objects)
        assert_numbered(kept)
        missing = [event for event in seen if event not in kept]
        assert not missing, f"seen and not kept: {missing}"
        assert len({event["sequence"] for event in seen}) == len(seen)
        if not number % 2:
            # It has gone on.
            agent.ok("job", "cancel", "vm1")
            assert agent.stream("job", "watch", "vm1").end() == 4
    ends = [event for event in seen if kind(event) == "completed"]
    completed = [job for job in agent.ok("job", "list", "--all").objects if job["result"] == "completed"]
    assert len(ends) == 3 and [job["last_sequence"] for job in completed] == [end["sequence"] for end in ends]


def assert_numbered(events):
    numbers = [event["sequence"] for event in events]
    assert numbers == sorted(set(numbers)), numbers


@pytest.mark.parametrize("end", ["restart", "kill"])
def test_a_request_key_returns_its_job_after_a_restart(start_agent, disk, targets, end):
    agent = start_agent(("vm1", disk))
    first = agent.backup("vm1", targets / "a", "--request-key", "k1")
    if end == "kill":
        kill(agent)
    else:
        agent.restart()
    again = agent.ok("start", "vm1", targets / "a", "--request-key", "k1", "--sync", "full").objects
    assert again[0] == first[0] and again[-1] == first[-1]
    agent.refused("start", "vm1", targets / "b", "--request-key", "k1", "--sync", "full", says="k1")
    assert not (targets / "b").exists()
    assert len(agent.ok("job", "list", "--all").objects) == 1


def test_the_history_is_bounded(start_agent, disk, targets):
    agent = start_agent(("vm1", disk), arguments=["--history-count", "3"])
    for number in range(8):
        agent.backup("vm1", targets / f"t{number}", "--job-id", f"j{number}")
    agent.restart()
    deadline = time.monotonic() + PATIENCE
    while len(agent.ok("job", "list", "--all").objects) > 3:
        assert time.monotonic() < deadline, "surplus jobs stay"
    jobs = agent.ok("job", "list", "--all").objects
    assert [job["id"] for job in jobs] == ["j5", "j6", "j7"]
    assert {event["job_id"] for event in agent.ok("events").objects} == {"j5", "j6", "j7"}
    agent.refused("job", "show", "j1", says="j1")


def test_the_table_of_ended_jobs(start_agent, disk, targets):
    agent = start_agent(("vm1", disk))
    agent.backup("vm1", targets / "t")
    lines = agent.ok("job", "list", "--all", as_json=False).out.splitlines()
    assert lines[0].split() == ["JOB", "RESULT", "DURATION", "BYTES", "RATE", "ERRORS", "ENDED", "TARGET"]
    assert lines[1].startswith("vm1  completed") and lines[1].endswith(str(targets / "t")) and "1.00 MiB" in lines[1]


# The state directory.


def test_a_damaged_state_is_set_aside(start_agent, disk, images, targets):
    agent = start_agent(("vm1", disk))
    agent.ok("drive", "add", "vm2", raw(images / "e.raw", SIZE), "--format", "raw")
    before = agent.backup("vm1", targets / "a")
    agent.terminate()
    state = agent.directory / "state"
    noise = os.urandom(8192)
    (state / "state.sqlite").write_bytes(noise)
    agent.start()
    assert [drive["id"] for drive in agent.ok("drive", "list").objects] == ["vm1"]
    kept = [path for path in state.glob("state.sqlite.damaged-*")]
    assert len(kept) == 1 and kept[0].read_bytes() == noise
    problem, = agent.ok("agent", "info").object["problems"]
    assert str(kept[0]) in problem and "lost" in problem and problem in agent.log()
    assert problem in agent.ok("agent", "info", as_json=False).out
    # Numbers go on all the same, and what is kept from now on is kept.
    assert agent.backup("vm1", targets / "b")[0]["sequence"] > before[-1]["sequence"]
    agent.ok("drive", "add", "vm2", images / "e.raw", "--format", "raw")
    agent.restart()
    assert agent.ok("agent", "info").object["problems"] == []
    assert [drive["id"] for drive in agent.ok("drive", "list").objects] == ["vm1", "vm2"]
    assert len(agent.ok("job", "list", "--all").objects) == 1


@contextmanager
def small_file_system(path, size):
    path.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(path)], capture_output=True)
    if done.returncode:
        pytest.skip("a file system cannot be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def fill(path):
    with open(path / "filler", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            assert error.errno == errno.ENOSPC


def test_a_full_state_directory_stops_no_drive_and_no_job(start_agent, disk, images, targets, tmp_path):
    other = raw(images / "e.raw", SIZE)
    with small_file_system(tmp_path / "small", "8M"):
        agent = start_agent(
            ("vm1", disk),
            arguments=["--state-directory", str(tmp_path / "small"), "--staging", str(tmp_path / "staging")])
        try:
            agent.ok("drive", "add", "vm2", other, "--format", "raw")
            agent.backup("vm1", targets / "a")
            fill(tmp_path / "small")
            # Until there is no room left in the files either.
            for number in range(40):
                agent.backup("vm1", targets / "b", "--overwrite")
                if agent.ok("agent", "info").object["problems"]:
                    break
            assert "space" in agent.ok("agent", "info").object["problems"][0]
            agent.refused("drive", "add", "vm3", raw(images / "f.raw", SIZE), "--format", "raw", says="space")
            # Neither does it stop the start.
            agent.kill()
            agent.start()
            assert [drive["id"] for drive in agent.ok("drive", "list").objects] == ["vm1", "vm2"]
            agent.backup("vm1", targets / "c")
            assert agent.ok("job", "show", "vm1").object["target"] == str(targets / "c")
            assert agent.ok("agent", "info").object["problems"]
            agent.refused("drive", "add", "vm3", images / "f.raw", "--format", "raw")
            agent.terminate()
            (tmp_path / "small" / "filler").unlink()
            agent.start()
            assert agent.ok("agent", "info").object["problems"] == []
            agent.ok("drive", "add", "vm3", images / "f.raw", "--format", "raw")
        finally:
            agent.kill()


@pytest.mark.parametrize("end", ["terminate", "kill"])
def test_a_state_directory_that_is_read_only_is_read(start_agent, disk, images, targets, tmp_path, end):
    other = raw(images / "e.raw", SIZE)
    with small_file_system(tmp_path / "small", "16M"):
        agent = start_agent(
            ("vm1", disk),
            arguments=["--state-directory", str(tmp_path / "small"), "--staging", str(tmp_path / "staging")])
        try:
            agent.ok("drive", "add", "vm2", other, "--format", "raw")
            agent.backup("vm1", targets / "a")
            jobs = agent.ok("job", "list", "--all").objects
            getattr(agent, end)()
            subprocess.run(["mount", "-o", "remount,ro", str(tmp_path / "small")], check=True)
            agent.start()
            assert [drive["id"] for drive in agent.ok("drive", "list").objects] == ["vm1", "vm2"]
            assert agent.ok("job", "list", "--all").objects == jobs
            agent.backup("vm2", targets / "b")
            assert len(agent.ok("job", "list", "--all").objects) == 2
            assert agent.ok("agent", "info").object["problems"]
            agent.refused("drive", "remove", "vm2")
            assert len(agent.ok("drive", "list").objects) == 2
        finally:
            agent.kill()


# Hooks.


def hook(path, body):
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def wait_for(condition, what):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def test_hooks_get_the_job(start_agent, disk, targets, tmp_path):
    done, failed = tmp_path / "done", tmp_path / "failed"
    agent = start_agent(("vm1", disk), arguments=[
        "--on-completed", hook(tmp_path / "c", f"cat > {done}.part; echo noted $DRIVE_BACKUP_JOB; mv {done}.part {done}"),
        "--on-failed", hook(tmp_path / "f", f"cat > {failed}.part; mv {failed}.part {failed}; exit 3")])
    agent.backup("vm1", targets / "a")
    wait_for(done.exists, "the hook for a completed job was not run")
    assert json.loads(done.read_text()) == agent.job("vm1")
    wait_for(lambda: "noted vm1" in agent.log(), "what the hook printed is not in the log")
    # Cancelled: none of both.
    done.unlink()
    agent.slow_job("vm1", targets / "b")
    agent.ok("job", "cancel", "vm1")
    assert agent.stream("job", "watch", "vm1").end() == 4
    agent.slow_job("vm1", targets / "c", "--manual-finalize", speed="4K")
    os.kill(target_processes(agent)["vm1"], signal.SIGKILL)
    agent.run("job", "finalize", "vm1")
    agent.run("job", "set-speed", "vm1", 0)
    wait_for(failed.exists, "the hook for a failed job was not run")
    job = json.loads(failed.read_text())
    assert (job["id"], job["result"], job["error"]["reason"]) == ("vm1", "failed", "IO_ERROR")
    assert not done.exists()


def test_a_hook_that_hangs_holds_nobody_up(start_agent, disk, targets, tmp_path):
    pids = tmp_path / "pids"
    agent = start_agent(("vm1", disk), arguments=[
        "--on-completed", hook(tmp_path / "c", f"trap '' TERM; echo $$ >> {pids}; while :; do sleep 1; done")])
    for number in range(8):
        agent.backup("vm1", targets / f"t{number}")
    wait_for(lambda: pids.exists() and len(pids.read_text().split()) == 4, "not four hooks at once")
    agent.is_well()
    code, seconds = agent.terminate()
    assert code == 0 and seconds < 5
    for pid in pids.read_text().split():
        os.kill(int(pid), signal.SIGKILL)


@pytest.mark.parametrize("option", ["--on-completed", "--on-failed"])
@pytest.mark.parametrize("path", ["nowhere", ".", "plain"])
def test_a_hook_that_cannot_be_run_stops_the_start(start_agent, tmp_path, option, path):
    from harness import Agent
    (tmp_path / "plain").write_text("#!/bin/sh\n")
    agent = Agent(arguments=[option, str(tmp_path / path)])
    try:
        assert option in agent.start_refused().err
    finally:
        agent.close()
