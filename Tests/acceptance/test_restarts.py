"""Jobs whose agent is killed or stopped: what of them goes on as it was, and how the others end."""

import os
import shutil
import signal
from pathlib import Path

import manifests
import pytest
from faults import with_bad_sectors
from harness import END_EVENTS, kind
from images import KiB, MiB, check, qemu_io, raw, same
from target_processes import hangs, is_gone, target_processes, until
from test_errors import small_file_system
from test_policies import fill, paused

SIZE = 8 * MiB


@pytest.fixture
def agent(start_agent, images):
    disk = raw(images / "d.raw", SIZE, [(0, SIZE)])
    agent = start_agent(("vm1", disk))
    agent.disk = disk
    return agent


def end_of(agent, job):
    """The last event of a job, of which there is one."""
    watch = agent.stream("job", "watch", job)
    watch.end()
    ends = [event for event in watch.events if kind(event) in END_EVENTS]
    assert len(ends) == 1, f"{watch.events}\n{watch.errors}"
    return ends[0]


def restarted_by(agent, how):
    if how == "kill":
        agent.kill()
        agent.start()
    else:
        agent.restart()


def go_on_to_the_end(agent, job="vm1", result="completed"):
    # One that waits to be finalized has copied everything by now, maybe.
    agent.run("job", "set-speed", job, "0")
    if agent.job(job).get("manual_finalize"):
        until(lambda: agent.job(job)["state"] == "pending", "the end of the copy")
        agent.ok("job", "finalize", job)
    end = end_of(agent, job)
    assert kind(end) == "completed" and end["completed"]["result"] == result, end
    return end["completed"]


@pytest.mark.parametrize("how", ["kill", "stop"])
@pytest.mark.parametrize("target_format", ["raw", "qcow2"])
def test_a_backup_that_went_through_kills_has_the_manifest_of_its_content(agent, targets, how, target_format):
    content = Path(agent.disk).read_bytes()
    target = targets / "t"
    agent.slow_job("vm1", target, "--format", target_format, "--manual-finalize", speed="1")
    for speed in ("4M", "8M", "1"):
        agent.run("job", "set-speed", "vm1", speed)
        restarted_by(agent, how)
    job = agent.job("vm1")
    assert job["restarts"] == 3 and job["manifest"] == str(target) + ".manifest.json", job
    go_on_to_the_end(agent)
    same(agent.disk, "raw", target, target_format)
    manifests.judge(manifests.load(target), content)
    agent.ok("verify", target)
    assert sorted(path.name for path in targets.iterdir()) == ["t", "t.manifest.json"]
    no_files_of_jobs(agent)


def test_an_existing_target_goes_on_with_its_partial_manifest(agent, targets):
    target = raw(targets / "t", SIZE)
    agent.slow_job("vm1", target, "--mode", "existing", "--format", "raw", "--manual-finalize", speed="1")
    until(lambda: manifests.path_of(target).exists(), "the target is marked as partly written")
    assert manifests.load(target)["state"] == "partial"
    agent.kill()
    assert manifests.load(target)["state"] == "partial"
    agent.start()
    assert agent.job("vm1")["state"] == "running"
    go_on_to_the_end(agent)
    assert manifests.load(target)["state"] == "complete"
    assert Path(target).read_bytes() == Path(agent.disk).read_bytes()
    agent.ok("verify", target)
    assert sorted(path.name for path in targets.iterdir()) == ["t", "t.manifest.json"]


def errors_told(agent):
    errors = [event["io_error"] for event in agent.ok("events").objects if "io_error" in event]
    return sum(error.get("count", 1) for error in errors)


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_a_job_that_an_error_has_paused_stays_paused_by_it(start_agent, images, tmp_path, how):
    disk = raw(images / "d.raw", SIZE, [(0, SIZE)])
    agent = start_agent(("vm1", disk))
    with small_file_system(tmp_path / "small", 16 * MiB) as small:
        filler = fill(small, 2 * MiB)
        target = small / "t"
        paused(agent.stream("start", "vm1", target, "--format", "raw", "--on-target-error", "stop"))
        until(lambda: errors_told(agent) == agent.job("vm1")["error_count"], "all errors are told")
        # Answered when the next agent would know of it, and of all before.
        agent.ok("job", "set-speed", "vm1", "0")
        before = agent.job("vm1")
        assert before["error_count"] >= 1, before
        restarted_by(agent, how)
        # Nothing has changed for those who watch.
        events = agent.ok("events", "--after", str(before["last_sequence"])).objects
        assert [event for event in events if "progress" not in event] == [], events
        after = agent.job("vm1")
        for field in ("state", "pause_reason", "pause_error", "on_target_error", "error_count", "errors"):
            assert after[field] == before[field], (field, after)
        assert after["pause_reason"] == "error" and after["restarts"] == 1, after
        assert "paused already" in agent.refused("job", "pause", "vm1").err
        # Still no space: it is the same job with the same policy.
        watch = agent.stream("job", "watch", "vm1", "--after", str(after["last_sequence"]))
        agent.ok("job", "resume", "vm1")
        paused(watch)
        filler.unlink()
        agent.ok("job", "resume", "vm1")
        assert kind(end_of(agent, "vm1")) == "completed"
        same(disk, "raw", target, "raw")
        agent.ok("verify", target)


@pytest.mark.parametrize("held_at", ["running", "pending"])
def test_what_is_missing_is_known_after_a_restart(start_agent, images, targets, tmp_path, held_at):
    disk = raw(images / "d.raw", SIZE, [(0, SIZE)])
    with with_bad_sectors(tmp_path / "mount", disk, (4 * KiB, 8 * KiB)) as drive:
        agent = start_agent(f"id=vm1,file={drive},format=raw,read-only=on")
        target = targets / "t"
        agent.ok(
            "start", "vm1", target, "--format", "raw", "--on-source-error", "ignore", "--manual-finalize", "--detach",
            *(["--speed", "1"] if held_at == "running" else []))
        watch = agent.stream("job", "watch", "vm1")
        if held_at == "pending":
            watch.until_kind("pending")
        until(lambda: agent.job("vm1").get("missing_bytes"), "the job has met the bad sectors")
        before = agent.job("vm1")
        assert before["missing_bytes"] == 8 * KiB and before["state"] == held_at, before
        restarted_by(agent, "kill")
        after = agent.job("vm1")
        for field in ("missing_bytes", "missing", "state"):
            assert after[field] == before[field], (field, after)
        if held_at == "running":
            agent.ok("job", "set-speed", "vm1", "0")
            agent.stream("job", "watch", "vm1", "--after", str(after["last_sequence"])).until_kind("pending")
        agent.ok("job", "finalize", "vm1")
        completed = end_of(agent, "vm1")["completed"]
        assert completed["result"] == "completed_with_errors" and completed["missing_bytes"] == 8 * KiB, completed
        content = bytearray(Path(disk).read_bytes())
        content[4 * KiB:12 * KiB] = bytes(8 * KiB)
        assert Path(target).read_bytes() == content


def no_files_of_jobs(agent):
    for place in ("state/staging", "run/jobs"):
        found = [path.name for path in (agent.directory / place).iterdir() if path.suffix != ".lock"]
        assert found == [], place


@pytest.mark.parametrize("how,reason", [("kill", "AGENT_RESTARTED"), ("stop", "AGENT_STOPPING")])
@pytest.mark.parametrize("work", ["verify", "restore", "restore to a drive"])
def test_what_reads_a_backup_ends_with_its_agent(start_agent, images, targets, work, how, reason):
    disk = raw(images / "d.raw", SIZE, [(0, SIZE)])
    spare = raw(images / "spare.raw", SIZE)
    agent = start_agent(("vm1", disk), ("spare", spare))
    target = targets / "t"
    agent.backup("vm1", target, "--format", "raw")
    command = {
        "verify": ["verify", target], "restore": ["restore", target, targets / "new"],
        "restore to a drive": ["restore", target, "spare"]}[work]
    agent.ok(*command, "--speed", "1", "--detach", "--job-id", "j")
    watch = agent.stream("job", "watch", "j")
    watch.until_kind("started")
    before = agent.job("j")
    restarted_by(agent, how)
    # Whoever watched learns of it.
    assert watch.end() == 1, watch.errors
    ends = [event for event in watch.events if kind(event) in END_EVENTS]
    assert [event["failed"]["error"]["reason"] for event in ends] == [reason], watch.events
    assert end_of(agent, "j") == ends[0]
    after = agent.job("j")
    assert (after["state"], after["result"], after["error"]["reason"]) == ("concluded", "failed", reason), after
    for field in ("type", "target", "created_at", "manifest", "drive", "format"):
        assert after.get(field) == before.get(field), (field, after)
    if work == "restore to a drive":
        assert "partly restored" in after["error"]["message"], after
    until(lambda: sorted(path.name for path in targets.iterdir()) == ["t", "t.manifest.json"],
          "what it has made is removed")
    no_files_of_jobs(agent)
    # It is not told again, and everything is free.
    restarted_by(agent, how)
    assert end_of(agent, "j") == ends[0]
    agent.ok(*command, "--job-id", "j")
    if work == "restore":
        same(disk, "raw", targets / "new", "raw")


def guest_writes(socket, value):
    qemu_io(f"nbd+unix:///vm1?socket={socket}", "raw", f"write -P {value} 0 1M", "flush")


def hung(start_agent, images, tmp_path, freezing):
    """An agent with an exported drive, whose job's process hangs in its target; and that process."""
    disk = raw(images / "d.raw", SIZE, [(0, SIZE)])
    agent = start_agent(("vm1", disk), arguments=["--export", f"drive=vm1,listen=unix:{tmp_path}/vm1.nbd"])
    agent.before = shutil.copyfile(disk, images / "before.raw")
    agent.slow_job("vm1", freezing.path / "t", "--format", "raw")
    process = target_processes(agent)["vm1"]
    freezing.freeze()
    agent.ok("job", "set-speed", "vm1", "1M")
    until(lambda: hangs(process), "the process waits for the frozen file system")
    return agent, process


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_a_job_whose_target_hangs_goes_on_after_a_restart(start_agent, images, tmp_path, freezing, how):
    agent, process = hung(start_agent, images, tmp_path, freezing)
    restarted_by(agent, how)
    assert "left behind" not in agent.log(), "the end was not one in order"
    assert not is_gone(process)
    job = agent.job("vm1")
    assert (job["state"], job["restarts"]) == ("running", 1), job
    until(lambda: agent.job("vm1").get("target_busy"), "it is told that the target is busy")
    # The guest does not wait for it.
    guest_writes(tmp_path / "vm1.nbd", 0x77)
    # Not even a further restart does.
    restarted_by(agent, how)
    assert agent.job("vm1")["state"] == "running"
    freezing.thaw()
    go_on_to_the_end(agent)
    same(agent.before, "raw", freezing.path / "t", "raw")
    agent.ok("verify", freezing.path / "t")


def test_a_job_whose_target_still_hangs_after_a_restart_can_be_cancelled(start_agent, images, tmp_path, freezing):
    agent, process = hung(start_agent, images, tmp_path, freezing)
    restarted_by(agent, "kill")
    until(lambda: agent.job("vm1").get("target_busy"), "it is told that the target is busy")
    agent.ok("job", "cancel", "vm1")
    assert kind(end_of(agent, "vm1")) == "cancelled"
    assert not is_gone(process)
    guest_writes(tmp_path / "vm1.nbd", 0x78)
    # The drive is free.
    agent.backup("vm1", tmp_path / "other", "--job-id", "j2")
    freezing.thaw()
    until(lambda: not (freezing.path / "t.partial").exists(), "what the job has made is removed")
    agent.backup("vm1", freezing.path / "t", "--job-id", "j3")


def test_a_job_whose_target_does_not_answer_outlives_a_stop_in_order(agent, targets):
    agent.slow_job("vm1", targets / "t", "--format", "raw", speed="1")
    process = target_processes(agent)["vm1"]
    # Its requests end with it, after the job was suspended.
    os.kill(process, signal.SIGSTOP)
    agent.ok("job", "set-speed", "vm1", "0")
    agent.ok("job", "show", "vm1")
    agent.restart()
    go_on_to_the_end(agent)
    same(agent.disk, "raw", targets / "t", "raw")
    agent.ok("verify", targets / "t")


def test_a_stopped_process_of_a_killed_agent_is_waited_for(agent, targets):
    agent.slow_job("vm1", targets / "t", "--format", "raw", speed="1")
    process = target_processes(agent)["vm1"]
    os.kill(process, signal.SIGSTOP)
    try:
        agent.kill()
        agent.start()
        until(lambda: agent.job("vm1").get("target_busy"), "it is told that the target is busy")
        assert agent.job("vm1")["state"] == "running"
    finally:
        os.kill(process, signal.SIGCONT)
    go_on_to_the_end(agent)
    same(agent.disk, "raw", targets / "t", "raw")
