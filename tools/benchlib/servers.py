"""Us and qemu-storage-daemon, as a host has them: started, driven, watched, and stopped."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time

from .common import PATIENCE, Unavailable, file_system, remove, wait


def stop(process, patience=10):
    """SIGTERM, then SIGKILL; returns when it is gone."""
    process.terminate()
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class Agent:
    """drive-backup-agent with default settings, its runtime directory on tmpfs as the manual wants it. A context.

    `drives` are (id, file, format), with cache=none where `direct`; each is exported when `exports` is set, see `uri`.
    """

    name = "us"

    def __init__(self, bench, directory, drives, exports=False, direct=False, arguments=()):
        self.client = os.path.join(bench.binaries, "drive-backup")
        self.directory = directory
        self.address = f"unix:{directory}/agent.sock"
        self.exits = contextlib.ExitStack()
        command = [os.path.join(bench.binaries, "drive-backup-agent"), "--listen", self.address,
                   "--state-directory", f"{directory}/state", "--log-level", "error", *arguments]
        for name, file, form in drives:
            command += ["--drive", f"id={name},file={file},format={form},cache={'none' if direct else 'writeback'}"]
            if exports:
                command += ["--export", f"drive={name},listen=unix:{directory}/{name}.nbd"]
        self.command = command

    def __enter__(self):
        runtime = self.exits.enter_context(runtime_directory(self.directory))
        self.process = subprocess.Popen([*self.command, "--runtime-directory", runtime], stdin=subprocess.DEVNULL)
        self.exits.callback(shutil.rmtree, f"{self.directory}/state", ignore_errors=True)
        self.exits.callback(stop, self.process)
        self.pid = self.process.pid
        try:
            wait(self.answers, "the agent")
        except BaseException:
            self.exits.close()
            raise
        return self

    def __exit__(self, *_):
        self.exits.close()

    def answers(self):
        if self.process.poll() is not None:
            raise RuntimeError(f"the agent ended with {self.process.returncode} as it began: {' '.join(self.command)}")
        return self.call("agent", "ping", check=False).returncode == 0

    def uri(self, drive):
        return f"nbd+unix:///{drive}?socket={self.directory}/{drive}.nbd"

    def call(self, *arguments, check=True):
        """The client with --json, to its end."""
        done = subprocess.run(
            [self.client, "--agent", self.address, "--json", *arguments], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if check and done.returncode:
            raise RuntimeError(f"drive-backup {' '.join(arguments)}: {(done.stderr or done.stdout).strip()}")
        return done


@contextlib.contextmanager
def runtime_directory(otherwise):
    """A directory on tmpfs, removed afterwards; one in `otherwise` where there is no tmpfs."""
    for parent in ("/run", "/dev/shm"):
        if os.access(parent, os.W_OK) and file_system(parent).startswith("tmpfs"):
            with tempfile.TemporaryDirectory(prefix="drive-backup-bench-", dir=parent) as path:
                yield path
            return
    yield f"{otherwise}/run"


class StorageDaemon:
    """qemu-storage-daemon, driven by QMP. A context.

    `drives` are (id, file, format); each is exported when `exports` is set. `aio` and `direct` are those of the drives'
    files, which others may have open, too.
    """

    name = "qemu-storage-daemon"

    def __init__(self, directory, drives, exports=False, aio="threads", direct=False, arguments=()):
        self.directory, self.aio = directory, aio
        self.events, self.nodes = [], 0
        command = [
            "qemu-storage-daemon", "--chardev", f"socket,id=m,path={directory}/qmp,server=on,wait=off",
            "--monitor", "chardev=m"]
        cache = f",cache.direct={'on' if direct else 'off'}"
        for name, file, form in drives:
            command += ["--blockdev", f"driver=file,node-name={name}-file,filename={file},aio={aio}{cache},locking=off",
                        "--blockdev", f"driver={form},node-name={name},file={name}-file{cache}"]
        command += arguments
        if exports:
            command += ["--nbd-server", f"addr.type=unix,addr.path={directory}/qsd.nbd,max-connections=16"]
        for name, _, _ in drives if exports else ():
            # In its main loop: with an I/O thread the NBD server of 7.2 aborts when a client leaves.
            command += ["--export", f"type=nbd,id={name}-export,node-name={name},name={name},writable=on"]
        self.command = command

    def __enter__(self):
        remove(f"{self.directory}/qmp", f"{self.directory}/qsd.nbd")
        self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        self.pid = self.process.pid
        self.qmp = socket.socket(socket.AF_UNIX)
        self.qmp.settimeout(PATIENCE)
        try:
            wait(self.connected, "qemu-storage-daemon")
            self.lines = self.qmp.makefile("r")
            self.lines.readline()
            self.ask("qmp_capabilities")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        """SIGKILL: a job that waits for its target would hold it up."""
        self.process.kill()
        self.process.wait()
        self.qmp.close()

    def connected(self):
        if self.process.poll() is not None:
            raise Unavailable(f"it ended with {self.process.returncode} as it began: {' '.join(self.command)}")
        try:
            self.qmp.connect(f"{self.directory}/qmp")
        except OSError:
            return False
        return True

    def uri(self, drive):
        return f"nbd+unix:///{drive}?socket={self.directory}/qsd.nbd"

    def ask(self, command, patience=PATIENCE, **arguments):
        """One QMP command and its answer; `_` stands for `-` in the names of arguments."""
        self.qmp.settimeout(patience)
        self.send(command, **arguments)
        while True:
            value = self.receive()
            if "error" in value:
                raise RuntimeError(f"qemu-storage-daemon, {command}: {value['error']['desc']}")
            if "return" in value:
                return value["return"]

    def send(self, command, **arguments):
        self.qmp.sendall(json.dumps({
            "execute": command, "arguments": {key.replace("_", "-"): value for key, value in arguments.items()},
        }).encode() + b"\n")

    def receive(self):
        """The next answer or event; an event is kept in `events`, too."""
        line = self.lines.readline()
        if not line:
            raise RuntimeError("qemu-storage-daemon has ended")
        value = json.loads(line)
        if "event" in value:
            self.events.append(value)
        return value

    def event(self, *names, patience=PATIENCE):
        """Waits for an event of one of the names that has not been asked for yet.

        TimeoutError after `patience` seconds.
        """
        deadline = time.monotonic() + patience
        while True:
            for index, value in enumerate(self.events):
                if value["event"] in names:
                    del self.events[index]
                    return value
            self.qmp.settimeout(max(deadline - time.monotonic(), 0.001))
            self.receive()

    def add_target(self, name, path, form):
        """A node over an image that is there."""
        self.ask("blockdev-add", driver="file", node_name=f"{name}-file", filename=path, locking="off", aio=self.aio)
        self.ask("blockdev-add", driver=form, node_name=name, file=f"{name}-file")

    def delete_target(self, name):
        """Is closed, and for qcow2 with its metadata written."""
        # The event of a job's end comes a moment before the job lets go of it.
        wait(lambda: not self.ask("query-jobs"), "the end of the peer's job", pause=0.001)
        self.ask("blockdev-del", node_name=name)
        self.ask("blockdev-del", node_name=f"{name}-file")

    def size(self, drive):
        """The drive's virtual size in bytes."""
        nodes = self.ask("query-named-block-nodes", flat=True)
        return next(node for node in nodes if node["node-name"] == drive)["image"]["virtual-size"]

    def next_node(self):
        self.nodes += 1
        return self.nodes
