"""Agents on directories of their own, and the client that drives them.

Everything here is written from the documents alone: what people type, what `--json` prints, exit codes.
Nothing waits by sleeping: an agent says when it is ready (sd_notify), a job says what happens to it.
"""

import hashlib
import json
import os
import queue
import select
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

# Nothing that is tested here takes a tenth of it; it ends what hangs.
PATIENCE = float(os.environ.get("DRIVE_BACKUP_TEST_PATIENCE", "60"))

END_EVENTS = ("completed", "failed", "cancelled")


def binary(name):
    directory = os.environ.get("DRIVE_BACKUP_BIN_DIR")
    if not directory:
        raise RuntimeError("DRIVE_BACKUP_BIN_DIR says where drive-backup and drive-backup-agent are; it is not set")
    path = Path(directory) / name
    if not path.exists():
        raise RuntimeError(f"there is no {path}")
    return str(path)


class Result:
    """What a command printed and how it ended."""

    def __init__(self, arguments, code, out, err):
        self.arguments, self.code, self.out, self.err = arguments, code, out, err

    @property
    def objects(self):
        """The JSON objects on standard output; there must be nothing else."""
        return [parse_line(line) for line in self.out.splitlines()]

    @property
    def object(self):
        assert len(self.objects) == 1, f"not one object: {self}"
        return self.objects[0]

    def __repr__(self):
        return f"{' '.join(self.arguments)} -> {self.code}\nstdout: {self.out}\nstderr: {self.err}"


def parse_line(line):
    value = json.loads(line)
    assert isinstance(value, dict), f"not a JSON object: {line}"
    return value


def run_client(*arguments, agent=None, as_json=True, environment=None, cwd=None, timeout=PATIENCE):
    command = [binary("drive-backup")]
    if agent:
        command += ["--agent", agent]
    if as_json:
        command += ["--json"]
    command += [str(argument) for argument in arguments]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        timeout=timeout, cwd=cwd, env={**os.environ, "LC_ALL": "C.UTF-8", **(environment or {})})
    return Result(["drive-backup", *map(str, arguments)], done.returncode, done.stdout, done.stderr)


def kind(event):
    """Which event it is: the name of its one case."""
    cases = [key for key in event if key not in ("sequence", "time", "job_id")]
    assert len(cases) == 1, f"not one case: {event}"
    return cases[0]


class Stream:
    """A client that runs on and prints events: `start`, `job watch`, `events --follow`."""

    def __init__(self, agent, *arguments):
        self.arguments = [str(argument) for argument in arguments]
        self.process = subprocess.Popen(
            [binary("drive-backup"), "--agent", agent, "--json", *self.arguments], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.events = []
        self.lines = queue.Queue()
        self.errors = ""
        self.readers = [threading.Thread(target=self.read_out), threading.Thread(target=self.read_err)]
        for reader in self.readers:
            reader.daemon = True
            reader.start()

    def read_out(self):
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def read_err(self):
        self.errors = self.process.stderr.read()

    def until(self, wanted):
        """Reads on until an event of which `wanted` is true, and returns it."""
        deadline = time.monotonic() + PATIENCE
        while True:
            left = deadline - time.monotonic()
            try:
                line = self.lines.get(timeout=max(left, 0.01))
            except queue.Empty:
                raise AssertionError(f"{self.arguments}: no such event in {PATIENCE} s; so far {self.events}")
            if line is None:
                self.process.wait(PATIENCE)
                self.readers[1].join(PATIENCE)
                raise AssertionError(
                    f"{self.arguments} ended ({self.process.returncode}) before such an event; "
                    f"events {self.events}, stderr {self.errors}")
            event = parse_line(line)
            self.events.append(event)
            if wanted(event):
                return event

    def until_kind(self, name):
        return self.until(lambda event: kind(event) == name)

    def until_state(self, state):
        return self.until(lambda event: event.get("state_changed", {}).get("state") == state)

    def end(self):
        """Waits for the client's end and returns its exit code."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                line = self.lines.get(timeout=max(deadline - time.monotonic(), 0.01))
            except queue.Empty:
                raise AssertionError(f"{self.arguments} has not ended after {PATIENCE} s; so far {self.events}")
            if line is None:
                break
            self.events.append(parse_line(line))
        code = self.process.wait(PATIENCE)
        self.readers[1].join(PATIENCE)
        return code

    def stop(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


class Agent:
    """An agent with a state, a runtime directory and a socket of its own."""

    def __init__(self, drives=(), allow=(), listen=None, arguments=(), directory=None):
        self.directory = Path(directory or tempfile.mkdtemp(prefix="dba-"))
        self.address = f"unix:{self.directory}/agent.sock"
        self.drives = [
            drive if isinstance(drive, str) else "id={},file={}".format(*drive) for drive in drives]
        self.allow = [str(path) for path in allow]
        self.listen = list(listen) if listen is not None else [self.address]
        self.arguments = list(arguments)
        self.process = None
        self.streams = []
        self.must_be_well = False

    # The process.

    def command(self):
        command = [
            binary("drive-backup-agent"), "--state-directory", str(self.directory / "state"),
            "--runtime-directory", str(self.directory / "run")]
        for address in self.listen:
            command += ["--listen", address]
        for directory in self.allow:
            command += ["--allow-directory", directory]
        for drive in self.drives:
            command += ["--drive", with_cache(drive)]
        return command + self.arguments

    def start(self):
        """Starts the agent and waits until it says that it is ready."""
        log = open(self.directory / "agent.log", "ab")
        notifications = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        name = str(self.directory / f"notify.{time.monotonic_ns()}")
        notifications.bind(name)
        self.process = subprocess.Popen(
            self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.directory,
            env={**os.environ, "NOTIFY_SOCKET": name})
        log.close()
        end = os.pidfd_open(self.process.pid)
        deadline = time.monotonic() + PATIENCE
        try:
            while True:
                ready, _, _ = select.select([notifications, end], [], [], max(deadline - time.monotonic(), 0))
                if end in ready:
                    raise AssertionError(f"the agent ended with {self.process.wait()} at its start: {self.log()}")
                assert ready, f"the agent has not said READY=1 after {PATIENCE} s: {self.log()}"
                if "READY=1" in notifications.recv(4096).decode().splitlines():
                    return self
        finally:
            os.close(end)
            notifications.close()
            os.unlink(name)

    def start_refused(self):
        """Starts an agent that must refuse to start, and returns the result: not 0, and one clear line."""
        done = subprocess.run(
            self.command(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            timeout=PATIENCE, cwd=self.directory)
        result = Result(self.command(), done.returncode, done.stdout, done.stderr)
        assert result.code not in (0, None) and result.code > 0, result
        assert result.out == "", result
        return result

    def log(self):
        path = self.directory / "agent.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def is_running(self):
        return self.process is not None and self.process.poll() is None

    def terminate(self):
        """SIGTERM; returns the exit code and the seconds it took."""
        begun = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(PATIENCE)
        return code, time.monotonic() - begun

    def kill(self):
        self.process.kill()
        self.process.wait()

    def restart(self):
        code, _ = self.terminate()
        assert code == 0, self.log()
        return self.start()

    def close(self):
        try:
            if self.must_be_well and self.is_running():
                self.is_well()
        finally:
            self.stop()

    def stop(self):
        for stream in self.streams:
            stream.stop()
        if self.is_running():
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.close()

    def peak_memory(self):
        """The most memory the process has had resident, in bytes."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no VmHWM")

    # Commands.

    def run(self, *arguments, **options):
        return run_client(*arguments, agent=self.address, **options)

    def ok(self, *arguments, **options):
        result = self.run(*arguments, **options)
        assert result.code == 0, f"{result}\n{self.log()}"
        return result

    def stream(self, *arguments):
        stream = Stream(self.address, *arguments)
        self.streams.append(stream)
        return stream

    def is_well(self):
        assert self.is_running(), f"the agent has ended: {self.log()}"
        result = self.run("agent", "ping")
        assert result.code == 0, f"{result}\n{self.log()}"
        return True

    def refused(self, *arguments, code=1, says=None, **options):
        """A command that must fail: this exit code, one line on standard error, nothing else, the agent well."""
        codes = code if isinstance(code, tuple) else (code,)
        result = self.run(*arguments, **options)
        assert result.code in codes, f"not refused with {codes}: {result}\n{self.log()}"
        assert result.out == "", f"printed something on standard output: {result}"
        if codes != (64,) or result.code != 64:
            assert_one_line(result)
        else:
            assert result.err.strip(), result
        for word in [says] if isinstance(says, str) else says or []:
            assert word.lower() in result.err.lower(), f"doesn't say {word!r}: {result}"
        # Whether it still answers is asked when the test ends.
        assert self.is_running(), f"the agent has ended: {self.log()}"
        self.must_be_well = True
        return result

    def backup(self, drive, target, *options, sync="full"):
        """A backup that must complete; returns its events."""
        result = self.run("start", drive, target, "--sync", sync, *options)
        assert result.code == 0, f"{result}\n{self.log()}"
        events = result.objects
        assert_events(events)
        assert kind(events[0]) == "started", events
        last = [event for event in events if kind(event) in END_EVENTS]
        assert len(last) == 1 and "completed" in last[0], events
        assert last[0]["completed"]["result"] == "completed", events
        assert last[0]["completed"].get("missing_bytes", 0) == 0, events
        assert Path(target).exists(), f"{target} isn't there after {events}"
        assert not Path(f"{target}.partial").exists(), f"{target}.partial is still there"
        return events

    def failing_backup(self, drive, target, *options, sync="full"):
        """A backup that starts and must fail; returns its events."""
        result = self.run("start", drive, target, "--sync", sync, *options)
        assert result.code == 1, f"{result}\n{self.log()}"
        assert_one_line(result)
        events = result.objects
        assert_events(events)
        ends = [event for event in events if kind(event) in END_EVENTS]
        assert len(ends) == 1 and "failed" in ends[0], events
        error = ends[0]["failed"]["error"]
        assert error["message"] and error["reason"] and error["code"], events
        self.is_well()
        return events

    def slow_job(self, drive, target, *options, sync="full", speed="64K"):
        """Starts a backup that lasts long enough to do something to it, detached; returns the `started` event."""
        events = self.ok("start", drive, target, "--sync", sync, "--speed", speed, "--detach", *options).objects
        assert_events(events)
        return next(event for event in events if kind(event) == "started")

    def job(self, identifier):
        return self.ok("job", "show", identifier).object


def takes_direct_transfers(path):
    """Whether a file can be used past the page cache: where its file system is known for it, and it is of whole blocks."""
    system = subprocess.run(
        ["stat", "--file-system", "--format=%T", path], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True).stdout
    return system.strip() in ("ext2/ext3", "xfs", "btrfs") and os.stat(path).st_size % 4096 == 0


def with_cache(drive):
    """A drive of the command line as the environment wants it used, where that can be."""
    mode = os.environ.get("DRIVE_BACKUP_TEST_CACHE")
    facts = dict(fact.split("=", 1) for fact in drive.replace(",,", "\0").split(",") if "=" in fact)
    path = facts.get("file", "").replace("\0", ",")
    if not mode or "cache" in facts or not os.path.isfile(path):
        return drive
    return f"{drive},cache={mode}" if mode != "none" or takes_direct_transfers(path) else drive


def assert_one_line(result):
    lines = result.err.splitlines()
    assert len(lines) == 1, f"not one line on standard error: {result}"
    assert lines[0].startswith("drive-backup: "), result
    assert len(lines[0]) > 25 and "Error Domain" not in lines[0] and "BlockError(" not in lines[0], result


def assert_events(events):
    """Numbered upwards, of one job, each with a time."""
    assert events, "no events"
    sequences = [event["sequence"] for event in events]
    assert sequences == sorted(set(sequences)), f"not numbered upwards: {sequences}"
    for event in events:
        assert event["job_id"] and event["time"] > 1_600_000_000_000_000_000, event
        kind(event)


def fingerprint(*directories):
    """Every file of the directories with what must not change when a command is refused."""
    found = {}
    for directory in directories:
        for path in [Path(directory), *sorted(Path(directory).rglob("*"))]:
            status = path.lstat()
            facts = [stat.filemode(status.st_mode), status.st_ino, status.st_nlink, status.st_mtime_ns]
            if stat.S_ISREG(status.st_mode):
                facts += [status.st_size, sha256(path)]
            elif stat.S_ISLNK(status.st_mode):
                facts += [os.readlink(path)]
            found[str(path)] = facts
    return found


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256(file)


def _sha256(file):
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


@contextmanager
def untouched(*directories):
    """Nothing below the directories is made, changed, renamed or removed meanwhile."""
    before = fingerprint(*directories)
    yield
    after = fingerprint(*directories)
    changed = {
        path: (before.get(path), after.get(path))
        for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    assert not changed, f"changed: {changed}"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
