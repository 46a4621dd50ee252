"""The agent under test: the real binary on sockets of its own."""

import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from drivebackup_client import PATIENCE, Client, Wire, hello  # noqa: E402


def agent_binary():
    path = os.environ.get("DRIVE_BACKUP_AGENT_BIN")
    if not path or not Path(path).exists():
        pytest.fail(
            "DRIVE_BACKUP_AGENT_BIN must name the built drive-backup-agent "
            f"(it is {path!r}): tools/test network sets it.", pytrace=False)
    return path


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Agent:
    def __init__(self, directory):
        self.directory = directory
        self.drive = directory / "drive.raw"
        self.targets = directory / "targets"
        self.targets.mkdir()
        # 32 MiB, every other one a hole.
        with open(self.drive, "wb") as file:
            for index in range(0, 32, 2):
                file.seek(index << 20)
                file.write(os.urandom(1 << 20))
            file.truncate(32 << 20)
        self.path = directory / "agent.sock"
        self.unix = f"unix:{self.path}"
        self.tcp = f"tcp://127.0.0.1:{free_port()}"
        self.process = None

    def start(self):
        notifications = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        name = str(self.directory / "notify")
        notifications.bind(name)
        command = [
            agent_binary(), "--listen", self.unix, "--listen", self.tcp,
            "--state-directory", str(self.directory / "state"), "--runtime-directory", str(self.directory / "run"),
            "--drive", f"id=vm1,file={self.drive},format=raw,read-only=on",
            "--allow-directory", str(self.targets)]
        with open(self.directory / "log", "ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, "NOTIFY_SOCKET": name})
        end = os.pidfd_open(self.process.pid)
        try:
            while True:
                ready, _, _ = select.select([notifications, end], [], [], PATIENCE)
                assert ready and end not in ready, f"the agent did not start: {self.log()}"
                if b"READY=1" in notifications.recv(4096):
                    return self
        finally:
            os.close(end)
            notifications.close()
            os.unlink(name)

    def log(self):
        return (self.directory / "log").read_text(errors="replace")

    def status(self, field):
        """A number of /proc/PID/status, in KiB where it is a size."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1])
        raise KeyError(field)

    @property
    def sockets(self):
        """How many sockets the agent has open."""
        count = 0
        for entry in Path(f"/proc/{self.process.pid}/fd").iterdir():
            try:
                count += os.readlink(entry).startswith("socket:")
            except FileNotFoundError:
                pass  # Closed meanwhile.
        return count

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def check(self):
        """The agent runs and answers."""
        assert self.process.poll() is None, f"the agent has died: {self.log()}"
        with Client(self.unix) as client:
            assert client.call("Agent/GetInfo").pid == self.process.pid

    def close(self):
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@pytest.fixture(scope="session")
def shared_agent(tmp_path_factory):
    agent = Agent(tmp_path_factory.mktemp("agent")).start()
    yield agent
    agent.close()


@pytest.fixture
def agent(shared_agent):
    """An agent that several tests use; it must be well after each."""
    yield shared_agent
    shared_agent.check()


@pytest.fixture
def own_agent(tmp_path):
    """An agent of the test's own, which it may end."""
    agent = Agent(tmp_path).start()
    yield agent
    agent.close()


@pytest.fixture(params=["unix", "tcp"])
def address(request, agent):
    return getattr(agent, request.param)


@pytest.fixture
def client(agent):
    with Client(agent.unix) as client:
        yield client


@pytest.fixture
def wire(agent):
    """A connection whose HELLOs are exchanged."""
    with Wire(agent.unix, hello()) as wire:
        wire.receive_hello()
        yield wire
