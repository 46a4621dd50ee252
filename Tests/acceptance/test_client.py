"""The client: exit codes, JSON, what people see."""

import fcntl
import glob
import os
import signal
import subprocess
import time

import pytest
from harness import PATIENCE, binary, run_client
from images import KiB, MiB, create, raw

SIZE = 4 * MiB


@pytest.fixture
def agent(start_agent, images):
    return start_agent(("vm1", raw(images / "d.raw", SIZE, [(0, SIZE)])))


def test_an_agent_that_cannot_be_reached(tmp_path):
    for address in (f"unix:{tmp_path}/none", f"unix://{tmp_path}/none", "tcp://127.0.0.1:1"):
        for command in (["agent", "ping"], ["agent", "info"], ["drive", "list"], ["start", "vm1", tmp_path / "t"]):
            for as_json in (True, False):
                result = run_client(*command, agent=address, as_json=as_json)
                assert result.code == 69, result
                assert result.out == "" and len(result.err.splitlines()) == 1, result
                assert result.err.startswith("drive-backup: "), result
    assert list(tmp_path.iterdir()) == []


def test_a_socket_on_which_something_else_answers_garbage(tmp_path):
    import socket
    import threading

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        server.listen()

        def serve():
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"SSH-2.0-x\r\n" * 10)
                connection.recv(10)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        result = run_client("agent", "ping", agent=f"unix:{tmp_path}/s")
    assert result.code in (1, 69) and len(result.err.splitlines()) == 1, result


@pytest.mark.parametrize("address", ["", "unix:", "udp://x:1", "tcp://nohost", "127.0.0.1:1", "tcp://h:99999"])
def test_addresses_that_make_no_sense(address):
    result = run_client("--agent", address, "agent", "ping")
    assert result.code == 64, result


def test_the_address_comes_from_the_environment(agent):
    for address in (agent.address, agent.address.replace("unix:", "unix://")):
        result = run_client("agent", "ping", environment={"DRIVE_BACKUP_AGENT": address})
        assert result.code == 0, result
    result = run_client("agent", "ping", agent=agent.address, environment={"DRIVE_BACKUP_AGENT": "unix:/nowhere"})
    assert result.code == 0, result


def test_options_go_before_and_after_the_command(agent):
    one = subprocess.run(
        [binary("drive-backup"), "drive", "list", "--json", "--agent", agent.address], stdout=subprocess.PIPE, text=True)
    two = agent.ok("drive", "list")
    assert one.returncode == 0 and one.stdout == two.out


def test_usage(agent):
    for arguments in ([], ["job"], ["frobnicate"], ["job", "show"], ["drive", "add", "x"], ["start", "vm1"],
                      ["job", "list", "surplus"], ["export"], ["export", "add", "vm1"],
                      ["export", "add", "--snapshot-of", "vm1", "vm1", "unix:/x"], ["export", "remove"],
                      ["start-group"], ["start-group", "vm1"], ["start-group", "vm1="], ["restore", "a"], ["verify"]):
        result = agent.run(*arguments)
        assert result.code == 64 or (arguments in ([], ["job"], ["export"]) and result.code in (0, 64)), result


def test_help():
    top = run_client("--help", as_json=False)
    assert top.code == 0 and len(top.out.splitlines()) <= 45, top
    for word in ("start", "start-group", "verify", "restore", "job", "drive", "export", "events", "agent"):
        assert word in top.out
    start = run_client("start", "--help", as_json=False)
    assert start.code == 0
    for word in ("--sync", "--format", "--mode", "--overwrite", "--speed", "--job-id", "--request-key", "--detach",
                 "--manual-finalize", "--manual-dismiss", "full", "top", "none", "absolute-paths", "existing",
                 "--on-cbw-error", "break-snapshot", "break-guest-write", "--cbw-timeout", "--staging-full", "stall",
                 "--keep-target", "--on-source-error", "--on-target-error", "report", "ignore", "enospc", "stop", "auto", "--checksum"):
        assert word in start.out, word
    for word in ("--rebase", "--compress"):
        assert word not in start.out, word
    assert run_client("help", "start", as_json=False).code == 0
    assert run_client("--version", as_json=False).code == 0


def test_info_and_ping(agent):
    info = agent.ok("agent", "info").object
    assert info["pid"] == agent.process.pid and info["protocol_version"] == 1 and info["version"]
    assert info["drives"] == 1 and info["engine"] in ("ring", "threads") and info["started_at"] > 1e18
    assert agent.address in info["addresses"]
    assert isinstance(agent.ok("agent", "ping").object["round_trip_ns"], int)


def test_json_has_the_names_of_the_schema(agent, targets):
    result = agent.ok("start", "vm1", targets / "t", "--format", "qcow2", "--speed", "8M")
    for event in result.objects:
        assert set(event) <= {"sequence", "time", "job_id", "started", "state_changed", "progress", "completed"}, event
        assert isinstance(event["sequence"], int) and isinstance(event["time"], int), event
    started = result.objects[0]["started"]
    assert set(started) <= {"drive", "target", "point_in_time", "sync", "format"}
    assert (started["sync"], started["format"], started["target"]) == ("full", "qcow2", str(targets / "t"))
    job = agent.job("vm1")
    assert set(job) <= {
        "id", "type", "drive", "target", "state", "result", "progress", "speed", "error", "pause_reason", "sync", "format",
        "point_in_time", "created_at", "ended_at", "manual_finalize", "manual_dismiss", "last_sequence",
        "missing_bytes", "missing", "target_busy", "error_count", "errors", "manifest", "group", "grouped", "restarts",
        "on_source_error", "on_target_error", "cloned"}, job
    assert (job["on_source_error"], job["missing_bytes"], job["error_count"]) == ("report", 0, 0)
    for name in ("speed", "point_in_time", "created_at", "ended_at", "last_sequence"):
        assert isinstance(job[name], int) and not isinstance(job[name], bool), job


def test_verbs_print_the_job(agent, targets):
    agent.slow_job("vm1", targets / "t")
    assert agent.ok("job", "pause", "vm1").object["id"] == "vm1"
    assert agent.ok("job", "resume", "vm1").object["id"] == "vm1"
    assert agent.ok("job", "set-speed", "vm1", "1.5M").object["speed"] == 3 * MiB // 2
    assert agent.ok("job", "cancel", "vm1").object["id"] == "vm1"


def test_what_people_see(agent, targets):
    result = agent.ok("start", "vm1", targets / "t", as_json=False)
    assert result.out.splitlines()[0].strip() == "vm1", result
    assert str(targets / "t") in result.out + result.err
    for command in (["drive", "list"], ["drive", "show", "vm1"], ["job", "list", "--all"], ["job", "show", "vm1"],
                    ["agent", "info"], ["agent", "ping"], ["events"], ["job", "watch", "vm1"]):
        result = agent.ok(*command, as_json=False)
        assert result.out.strip() and "\x1b" not in result.out, result
        assert "Optional(" not in result.out and "DriveBackup" not in result.out, result
    empty = agent.ok("job", "list", as_json=False)
    assert empty.out.strip() == "" or "no" in (empty.out + empty.err).lower(), empty


def test_a_failure_as_people_see_it(agent, targets):
    agent.slow_job("vm1", targets / "t")
    (targets / "t").write_text("somebody else's")
    agent.ok("job", "set-speed", "vm1", "0")
    result = agent.run("job", "watch", "vm1", as_json=False)
    assert result.code == 1
    assert [line for line in result.err.splitlines() if line.startswith("drive-backup: ") and str(targets / "t") in line]


def test_detach_prints_the_id(agent, targets):
    result = agent.ok("start", "vm1", targets / "t", "--detach", "--speed", "64K", as_json=False)
    assert result.out.split() == ["vm1"], result
    agent.ok("job", "cancel", "vm1", as_json=False)


def test_interrupt_leaves_the_job_running(agent, targets):
    process = subprocess.Popen(
        [binary("drive-backup"), "--agent", agent.address, "start", "vm1", str(targets / "t"), "--speed", "64K"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline().strip() == "vm1"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    hints = [line for line in err.splitlines() if "job watch vm1" in line and "job cancel vm1" in line]
    assert len(hints) == 1, err
    assert process.returncode != 1
    assert agent.job("vm1")["state"] == "running"


def test_a_watch_whose_output_nobody_reads_ends_when_it_is_told_to(agent, targets):
    agent.slow_job("vm1", targets / "t")
    reading, writing = os.pipe()
    with open(reading, "rb"), open(writing, "wb", buffering=0) as output:
        # There is no room in it.
        os.write(writing, bytes(fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)))
        process = subprocess.Popen(
            [binary("drive-backup"), "--agent", agent.address, "--json", "job", "watch", "vm1"], stdout=output)
        try:
            deadline = time.monotonic() + PATIENCE
            while not any("pipe_write" in open(path).read() for path in glob.glob(f"/proc/{process.pid}/task/*/wchan")):
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.02)
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 128 + signal.SIGTERM
        finally:
            process.kill()
            process.wait()
    assert agent.job("vm1")["state"] == "running"


def test_a_watch_of_an_ended_job_tells_all_that_came_after_an_event(agent, images, targets):
    agent.backup("vm1", targets / "t")
    events = agent.ok("job", "watch", "vm1").objects
    numbers = [event["sequence"] for event in events]
    for index in range(len(events)):
        after = agent.ok("job", "watch", "vm1", "--after", numbers[index])
        assert [event["sequence"] for event in after.objects] == numbers[index + 1:], after
        people = agent.ok("job", "watch", "vm1", "--after", numbers[index], as_json=False)
        assert "backed up" in people.out + people.err, people


def test_output_into_a_reader_that_goes_away(agent, targets):
    for number in range(20):
        agent.backup("vm1", targets / f"{number}")
    done = subprocess.run(
        ["bash", "-c", 'set -o pipefail; "$0" --agent "$1" --json events | head -n 1', binary("drive-backup"), agent.address],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=60)
    assert len(done.stdout.splitlines()) == 1 and done.stderr == "", done
