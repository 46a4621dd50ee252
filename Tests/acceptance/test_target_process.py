"""A target cannot hold the agent hostage: it is used by a process of its own, which the agent can leave whatever it hangs
in (DESIGN.md 6). Hanging is a file system that is frozen: no signal, SIGKILL included, ends a write to it."""

import os
import signal
import subprocess

import pytest
from harness import kind
from images import MiB, qemu_io, raw, same
from target_processes import hangs, is_gone, target_processes, until

SIZE = 8 * MiB


@pytest.fixture
def agent(start_agent, images):
    disk = raw(images / "d.raw", SIZE, [(0, SIZE)])
    agent = start_agent(("vm1", disk))
    agent.disk = disk
    return agent


def names(directory):
    """What is there, but for the manifests of targets."""
    return sorted(path.name for path in directory.iterdir() if not path.name.endswith(".manifest.json"))


def process_of(agent, job):
    processes = target_processes(agent)
    assert job in processes, f"{job} has no process: {processes}"
    return processes[job]


def test_a_process_with_nothing_of_the_agents_writes_the_target(agent, targets):
    agent.slow_job("vm1", targets / "t")
    process = process_of(agent, "vm1")
    opened = {}
    for link in os.listdir(f"/proc/{process}/fd"):
        try:
            opened[link] = os.readlink(f"/proc/{process}/fd/{link}")
        except FileNotFoundError:
            continue  # Closed meanwhile.
    files = {path for path in opened.values() if path.startswith("/") and not path.startswith(("/dev/", "/memfd:"))}
    # Standard error is the agent's log here.
    files.discard(str(agent.directory / "agent.log"))
    assert files == {str(targets), str(targets / "t.partial")}, opened
    assert sum(path.startswith("socket:") for path in opened.values()) == 1, opened
    agents = {os.readlink(f"/proc/{agent.process.pid}/fd/{link}") for link in os.listdir(f"/proc/{agent.process.pid}/fd")}
    assert str(targets / "t.partial") not in agents and str(targets) not in agents, agents
    agent.ok("job", "set-speed", "vm1", "0")
    assert agent.stream("job", "watch", "vm1").end() == 0
    same(agent.disk, "raw", targets / "t", "raw")
    until(lambda: is_gone(process), "the process of a job that has ended is gone")
    assert not agent.job("vm1").get("target_busy")


@pytest.mark.parametrize("target_format", ["raw", "qcow2"])
def test_a_stopped_process_holds_nobody_up(agent, targets, target_format):
    agent.slow_job("vm1", targets / "t", "--format", target_format)
    process = process_of(agent, "vm1")
    os.kill(process, signal.SIGSTOP)
    watch = agent.stream("job", "watch", "vm1")
    agent.ok("job", "cancel", "vm1")
    assert watch.end() == 4
    agent.backup("vm1", targets / "u")
    until(lambda: names(targets) == ["u"], "what the job has made is removed")
    assert is_gone(process)
    until(lambda: not agent.run("job", "show", "vm1").object.get("target_busy"), "the target is free")
    agent.backup("vm1", targets / "t")


@pytest.mark.parametrize("policy", ["report", "ignore", "stop"])
def test_a_killed_process_fails_the_job_and_leaves_nothing(agent, targets, policy):
    agent.slow_job("vm1", targets / "t", "--on-target-error", policy)
    watch = agent.stream("job", "watch", "vm1")
    process = process_of(agent, "vm1")
    agent.ok("job", "set-speed", "vm1", "1M")
    os.kill(process, signal.SIGKILL)
    assert watch.end() == 1
    failed = next(event["failed"]["error"] for event in watch.events if kind(event) == "failed")
    assert failed["reason"] == "IO_ERROR", failed
    assert str(process) in failed["message"] and "killed by signal 9" in failed["message"], failed
    assert str(targets / "t") in failed["message"], failed
    until(lambda: list(targets.iterdir()) == [], "what the job has made is removed")
    agent.backup("vm1", targets / "t")


def test_a_killed_process_leaves_an_existing_target_where_it_is(agent, targets):
    raw(targets / "t", SIZE)
    agent.slow_job("vm1", targets / "t", "--mode", "existing", "--format", "raw")
    watch = agent.stream("job", "watch", "vm1")
    agent.ok("job", "set-speed", "vm1", "1M")
    os.kill(process_of(agent, "vm1"), signal.SIGKILL)
    assert watch.end() == 1
    assert names(targets) == ["t"]
    agent.backup("vm1", targets / "t", "--mode", "existing", "--format", "raw")


def test_a_process_that_dies_while_it_makes_the_target_durable(agent, targets):
    agent.ok("start", "vm1", targets / "t", "--sync", "full", "--manual-finalize", "--detach")
    watch = agent.stream("job", "watch", "vm1")
    watch.until_kind("pending")
    process = process_of(agent, "vm1")
    os.kill(process, signal.SIGSTOP)
    agent.ok("job", "finalize", "vm1")
    os.kill(process, signal.SIGKILL)
    assert watch.end() == 1
    failed = next(event["failed"]["error"] for event in watch.events if kind(event) == "failed")
    assert failed["reason"] == "FLUSH_INTERRUPTED", failed
    until(lambda: list(targets.iterdir()) == [], "what the job has made is removed")


def test_what_is_to_be_kept_of_a_killed_process_is_kept(agent, targets):
    agent.slow_job("vm1", targets / "t", "--keep-target")
    process = process_of(agent, "vm1")
    os.kill(process, signal.SIGSTOP)
    agent.ok("job", "cancel", "vm1")
    assert agent.stream("job", "watch", "vm1").end() == 4
    until(lambda: is_gone(process) and not agent.job("vm1").get("target_busy"), "the target is free")
    assert names(targets) == ["t.partial"]
    agent.refused("start", "vm1", targets / "t", "--sync", "full", says="t.partial")
    agent.backup("vm1", targets / "t", "--overwrite")


def test_a_process_ends_with_its_agent(agent, targets):
    agent.slow_job("vm1", targets / "t")
    process = process_of(agent, "vm1")
    os.kill(process, signal.SIGSTOP)
    agent.kill()
    assert not is_gone(process), "it is stopped, not killed"
    os.kill(process, signal.SIGCONT)
    until(lambda: is_gone(process), "it ends when nobody is there")
    # It would be refused while somebody has it locked.
    qemu_io(targets / "t.partial", "raw", "write 0 64k")


def test_signals_that_are_meant_for_the_agent_do_not_end_a_target(agent, targets):
    agent.slow_job("vm1", targets / "t")
    process = process_of(agent, "vm1")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(process, number)
    agent.ok("job", "set-speed", "vm1", "0")
    assert agent.stream("job", "watch", "vm1").end() == 0
    same(agent.disk, "raw", targets / "t", "raw")


def hang(agent, freezing):
    """A job whose process hangs in the kernel; that process."""
    agent.slow_job("vm1", freezing.path / "t")
    process = process_of(agent, "vm1")
    freezing.freeze()
    agent.ok("job", "set-speed", "vm1", "0")
    until(lambda: hangs(process), "the process waits for the frozen file system")
    return process


def test_a_target_that_hangs_is_left_behind_and_busy(agent, targets, freezing):
    process = hang(agent, freezing)
    watch = agent.stream("job", "watch", "vm1")
    agent.ok("job", "cancel", "vm1")
    assert watch.end() == 4
    assert not is_gone(process)
    # The job is gone at once; its process is given a moment to end by itself, and is the target's user all the while.
    busy = agent.job("vm1")["target_busy"]
    assert str(process) in busy and "vm1" in busy, busy
    busy = until(lambda: "abandoned" in (said := agent.job("vm1")["target_busy"]) and said, "the process is killed")
    assert str(process) in busy and "vm1" in busy, busy
    assert busy in agent.run("job", "show", "vm1", as_json=False).out
    # The drive is free at once, the target is not.
    agent.backup("vm1", targets / "u", "--job-id", "j2")
    refused = agent.refused("start", "vm1", freezing.path / "t", "--sync", "full", "--job-id", "j3", says="abandoned")
    assert str(process) in refused.err
    assert not is_gone(process)
    freezing.thaw()
    until(lambda: not agent.job("vm1").get("target_busy"), "the target is free")
    assert is_gone(process)
    agent.backup("vm1", freezing.path / "t", "--job-id", "j4")
    assert not (freezing.path / "t.partial").exists()
    same(agent.disk, "raw", freezing.path / "t", "raw")


def test_what_is_left_is_removed_without_being_asked_for(agent, freezing):
    hang(agent, freezing)
    agent.ok("job", "cancel", "vm1")
    agent.stream("job", "watch", "vm1").end()
    assert (freezing.path / "t.partial").exists()
    freezing.thaw()
    until(lambda: not (freezing.path / "t.partial").exists(), "what the job has made is removed")


def test_an_agent_ends_whatever_its_targets_hang_in_and_the_next_one_removes_what_is_left(agent, freezing):
    process = hang(agent, freezing)
    agent.ok("job", "cancel", "vm1")
    assert agent.stream("job", "watch", "vm1").end() == 4
    code, _ = agent.terminate()
    assert code == 0
    assert "left behind" not in agent.log(), "the end was not one in order"
    assert (freezing.path / "t.partial").exists() and not is_gone(process)
    # What is left there hangs like everything else, and holds nobody up.
    agent.start()
    agent.is_well()
    freezing.thaw()
    until(lambda: not (freezing.path / "t.partial").exists(), "what an earlier agent has left is removed")
    agent.backup("vm1", freezing.path / "t")


def test_an_agent_ends_while_its_targets_hang(agent, freezing):
    hang(agent, freezing)
    code, _ = agent.terminate()
    assert code == 0
    assert "left behind" not in agent.log(), "the end was not one in order"


def test_a_start_that_hangs_can_be_cancelled(agent, targets, freezing):
    freezing.freeze()
    start = agent.stream("start", "vm1", str(freezing.path / "t"), "--sync", "full")
    process = until(lambda: target_processes(agent).get("vm1"), "there is a process for the target")
    until(lambda: hangs(process), "it hangs")
    agent.ok("job", "cancel", "vm1")
    assert start.end() in (1, 4)
    agent.backup("vm1", targets / "u")
    agent.refused("start", "vm1", freezing.path / "t", "--sync", "full", says="abandoned")
    freezing.thaw()
    until(lambda: is_gone(process), "the process is gone")
    until(lambda: not (freezing.path / "t.partial").exists(), "what it has made is removed")
    agent.backup("vm1", freezing.path / "t")


def test_an_upgraded_program_still_serves_targets(start_agent, images, targets, tmp_path, monkeypatch):
    """The file of the running program was replaced."""
    import shutil

    from harness import binary
    directory = tmp_path / "bin"
    directory.mkdir()
    for name in ("drive-backup-agent", "drive-backup"):
        shutil.copy(binary(name), directory / name)
    monkeypatch.setenv("DRIVE_BACKUP_BIN_DIR", str(directory))
    disk = raw(images / "d.raw", SIZE, [(0, SIZE)])
    agent = start_agent(("vm1", disk))
    (directory / "drive-backup-agent").unlink()
    (directory / "drive-backup-agent").write_text("#!/bin/false\n")
    agent.backup("vm1", targets / "t")
    same(disk, "raw", targets / "t", "raw")


def test_the_word_that_makes_a_targets_process_is_not_in_the_help():
    from harness import binary
    said = subprocess.run([binary("drive-backup-agent"), "--help"], stdout=subprocess.PIPE, text=True, check=True)
    assert "target-process" not in said.stdout
