"""The agent's own life: start, directories, sockets, signals."""

import os
import signal
import socket
import stat
import subprocess
import time

import pytest
from harness import Agent, Result, binary, fingerprint, run_client, untouched
from images import KiB, MiB, check, create, raw, same

SIZE = 8 * MiB


@pytest.fixture
def disk(images):
    return raw(images / "d.raw", SIZE, [(0, SIZE)])


def test_directories_and_the_socket_are_made(start_agent):
    agent = start_agent()
    for name in ("state", "run"):
        assert stat.S_IMODE((agent.directory / name).stat().st_mode) == 0o700
    status = (agent.directory / "agent.sock").stat()
    assert stat.S_ISSOCK(status.st_mode) and stat.S_IMODE(status.st_mode) == 0o660
    assert agent.terminate()[0] == 0
    assert not (agent.directory / "agent.sock").exists()


def test_deep_directories_are_made(start_agent, tmp_path):
    agent = Agent()
    try:
        agent.arguments = ["--state-directory", str(agent.directory / "a" / "b" / "state")]
        agent.start()
        assert (agent.directory / "a" / "b" / "state").is_dir()
    finally:
        agent.close()


def test_sigterm_with_a_running_job(start_agent, disk, targets):
    agent = start_agent(("vm1", disk))
    agent.slow_job("vm1", targets / "t.qcow2", "--format", "qcow2")
    watch = agent.stream("job", "watch", "vm1")
    watch.until_kind("started")
    code, seconds = agent.terminate()
    assert code == 0 and seconds < 5, (code, seconds, agent.log())
    assert not (targets / "t.qcow2").exists(), "an unfinished target looks finished"
    assert [left.name for left in targets.iterdir()] == ["t.qcow2.partial"]
    agent.start()
    # The client that watches has not left, and the job goes on.
    agent.ok("job", "set-speed", "vm1", "0")
    assert watch.end() == 0 and "completed" in watch.events[-1], watch.events
    check(targets / "t.qcow2")
    same(disk, "raw", targets / "t.qcow2", "qcow2")


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM])
def test_signals_stop_it_in_order(start_agent, disk, name):
    agent = start_agent(("vm1", disk))
    follower = agent.stream("events", "--follow")
    agent.process.send_signal(name)
    assert agent.process.wait(10) == 0
    follower.end()
    assert not (agent.directory / "agent.sock").exists()


def test_sigterm_while_paused_and_pending(start_agent, images, disk, targets):
    other = raw(images / "e.raw", MiB, [(0, MiB)])
    agent = start_agent(("vm1", disk), ("vm2", other))
    agent.slow_job("vm1", targets / "t")
    agent.slow_job("vm2", targets / "u", "--manual-finalize", speed="0")
    agent.stream("job", "watch", "vm2").until_kind("pending")
    agent.ok("job", "pause", "vm1")
    code, seconds = agent.terminate()
    assert code == 0 and seconds < 5, agent.log()
    assert not (targets / "t").exists() and not (targets / "u").exists()
    agent.start()
    assert agent.job("vm1")["state"] == "paused" and agent.job("vm2")["state"] == "pending"
    agent.ok("job", "finalize", "vm2")
    agent.ok("job", "set-speed", "vm1", "0")
    agent.ok("job", "resume", "vm1")
    for name in ("vm1", "vm2"):
        assert agent.stream("job", "watch", name).end() == 0
    same(disk, "raw", targets / "t", "raw")
    same(other, "raw", targets / "u", "raw")


def test_kill_leaves_nothing_that_looks_finished(start_agent, disk, targets):
    agent = start_agent(("vm1", disk))
    agent.slow_job("vm1", targets / "t")
    agent.kill()
    assert not (targets / "t").exists()
    agent.start()
    assert not (targets / "t").exists()
    for job in agent.ok("job", "list").objects:
        agent.ok("job", "cancel", job["id"])
        assert agent.stream("job", "watch", job["id"]).end() == 4
    agent.backup("vm1", targets / "t", "--overwrite")
    same(disk, "raw", targets / "t", "raw")


def test_two_agents_on_one_state_directory(start_agent, disk):
    first = start_agent(("vm1", disk))
    for shared in ("state", "run"):
        second = Agent()
        try:
            option = "--state-directory" if shared == "state" else "--runtime-directory"
            second.arguments = [option, str(first.directory / shared)]
            with untouched(first.directory / "run"):
                result = second.start_refused()
            assert str(first.directory / shared) in result.err and len(result.err.splitlines()) == 1, result
            first.is_well()
        finally:
            second.close()
    assert first.ok("drive", "show", "vm1").object["id"] == "vm1"


def test_a_socket_that_answers_is_not_taken(start_agent):
    first = start_agent()
    second = Agent(listen=[first.address])
    try:
        result = second.start_refused()
        assert f"{first.directory}/agent.sock" in result.err and len(result.err.splitlines()) == 1, result
    finally:
        second.close()
    first.is_well()


def test_a_socket_that_nobody_answers_on_is_replaced(start_agent):
    agent = start_agent()
    agent.kill()
    assert (agent.directory / "agent.sock").exists()
    agent.start()
    agent.is_well()


def test_a_file_that_is_no_socket_is_not_replaced(start_agent):
    agent = Agent()
    try:
        (agent.directory / "agent.sock").write_text("precious")
        result = agent.start_refused()
        assert "agent.sock" in result.err, result
        assert (agent.directory / "agent.sock").read_text() == "precious"
    finally:
        agent.close()


@pytest.mark.parametrize("address", ["unix:", "http://x", "tcp://127.0.0.1", "tcp://127.0.0.1:99999", "x"])
def test_addresses_that_make_no_sense(address):
    agent = Agent(listen=[address])
    try:
        assert agent.start_refused().code in (1, 64)
    finally:
        agent.close()


def test_tcp_beyond_loopback_without_tls_is_refused():
    agent = Agent(listen=["tcp://0.0.0.0:0"])
    try:
        assert "loopback" in agent.start_refused().err
    finally:
        agent.close()


def test_a_state_directory_that_cannot_be(images):
    (images / "file").write_text("x")
    for option in ("--state-directory", "--runtime-directory"):
        agent = Agent(arguments=[option, str(images / "file")])
        try:
            assert "file" in agent.start_refused().err
        finally:
            agent.close()


@pytest.mark.parametrize("arguments", [
    ["--no-such"], ["--log-level", "loud"], ["surplus"], ["--history-age", "x"], ["--history-age", "0d"],
    ["--history-count", "0"], ["--history-count", "many"], ["--on-completed", ""]])
def test_options_of_later_are_usage_errors(arguments):
    agent = Agent(arguments=arguments)
    try:
        assert agent.start_refused().code == 64
    finally:
        agent.close()


@pytest.mark.parametrize("arguments", [
    ["--export", "drive=vm1"], ["--export", "vm1"], ["--export", "drive=vm1,listen=/x"], ["--engine", "steam"],
    ["--export", "drive=vm1,listen=tls://127.0.0.1:1"], ["--export", "drive=vm1,listen=unix:/x,writable=maybe"],
    ["--export", "drive=vm1,listen=unix:/x", "--export", "drive=vm1,listen=unix:/y"], ["--staging", ""],
    ["--staging", "/x,size=lots"], ["--staging", "/x,limit=1G"]])
def test_options_that_make_no_sense_are_usage_errors(arguments):
    agent = Agent(arguments=arguments)
    try:
        assert agent.start_refused().code == 64
    finally:
        agent.close()


@pytest.mark.parametrize("engine", ["ring", "threads"])
def test_the_engine_is_chosen(start_agent, engine):
    assert start_agent(arguments=["--engine", engine]).ok("agent", "info").object["engine"] == engine


def test_the_help_tells_what_is_there():
    done = subprocess.run([binary("drive-backup-agent"), "--help"], stdout=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 0
    for word in ("--listen", "--state-directory", "--runtime-directory", "--allow-directory", "--drive", "read-only",
                 "--export", "--staging", "--engine", "--history-age", "--history-count", "--on-completed", "--on-failed"):
        assert word in done.stdout, word
    for word in ("--config",):
        assert word not in done.stdout, word
    version = subprocess.run([binary("drive-backup-agent"), "--version"], stdout=subprocess.PIPE, text=True, timeout=60)
    assert version.returncode == 0 and version.stdout.strip()


def test_the_log_is_one_line_an_entry(start_agent, disk, targets):
    agent = start_agent(("vm1", disk))
    agent.backup("vm1", targets / "t")
    agent.terminate()
    lines = agent.log().splitlines()
    assert lines, "nothing was logged"
    assert any("vm1" in line for line in lines)
    assert all(line.strip() for line in lines)


def test_the_agent_serves_after_garbage(start_agent):
    agent = start_agent()
    for garbage in (b"", b"\0", b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 100_000, os.urandom(4096)):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(agent.directory / "agent.sock"))
            try:
                connection.sendall(garbage)
                connection.shutdown(socket.SHUT_WR)
                connection.settimeout(20)
                while connection.recv(65536):
                    pass
            except (BrokenPipeError, ConnectionResetError):
                pass
        agent.is_well()
