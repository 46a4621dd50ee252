"""What serves the drives under test: our agent, or qemu-storage-daemon behind the same verbs.

The second is for the tests themselves: what they demand of us, another server that is known to be good must be able
to give (DRIVE_BACKUP_LIVE_SERVER=qemu tools/test live). It has no journal, so that a kill loses what a qcow2 drive had
acknowledged and not flushed; those tests say that they are not for it.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from harness import END_EVENTS, PATIENCE, Agent, kind
from images import create, qemu_img

IS_PEER = os.environ.get("DRIVE_BACKUP_LIVE_SERVER", "agent") == "qemu"


@dataclass
class Drive:
    id: str
    path: Path
    format: str
    # What the agent has without, or the environment asks for.
    cache: str | None = None


@dataclass
class Endpoint:
    socket: Path
    name: str

    @property
    def uri(self):
        return f"nbd+unix:///{self.name}?socket={self.socket}"


def serve(*drives):
    return (DaemonServer if IS_PEER else AgentServer)(drives)


class AgentServer:
    """drive-backup-agent with an export for each drive, at an address of its own."""

    def __init__(self, drives):
        self.drives = list(drives)
        self.agent = Agent([
            f"id={drive.id},file={drive.path},format={drive.format}" + (f",cache={drive.cache}" if drive.cache else "")
            for drive in drives])
        for drive in drives:
            self.agent.arguments += [
                "--export", f"drive={drive.id},listen=unix:{self.endpoint(drive).socket}"]
        self.views = 0

    def endpoint(self, drive):
        return Endpoint(self.agent.directory / f"{drive.id}.nbd", drive.id)

    def start(self):
        self.agent.start()
        return self

    @property
    def process(self):
        return self.agent.process

    def kill(self):
        self.agent.kill()

    def stop(self):
        """In order; the drives' files are nobody's any more."""
        code, _ = self.agent.terminate()
        assert code == 0, self.agent.log()

    def close(self):
        self.agent.stop()

    def log(self):
        return self.agent.log()

    def is_well(self):
        self.agent.is_well()

    def options(self, speed, manual):
        return (["--speed", str(speed)] if speed else []) + (["--manual-finalize"] if manual else [])

    def backup(self, drive, target, sync="full", format=None, speed=None, manual=False):
        """Starts a backup; returns when its point in time is fixed."""
        self.agent.ok(
            "start", drive.id, target, "--sync", sync, *(["--format", format] if format else []),
            *self.options(speed, manual), "--detach")
        return AgentBackup(self, drive.id, target)

    def has_job(self, drive):
        return any(job["id"] == drive.id for job in self.agent.ok("job", "list").objects)

    def give_up(self, drive):
        """Ends the drive's job, wherever it is."""
        self.agent.ok("job", "cancel", drive.id, "--force")
        self.agent.stream("job", "watch", drive.id).end()

    def group(self, targets, format=None, speed=None):
        """targets: a list of (drive, target)."""
        self.agent.ok(
            "start-group", *(f"{drive.id}={target}" for drive, target in targets), "--sync", "full",
            *(["--format", format] if format else []), *self.options(speed, False), "--detach")
        return [AgentBackup(self, drive.id, target) for drive, target in targets]


class AgentBackup:
    def __init__(self, server, job, target):
        self.server, self.agent, self.job, self.target = server, server.agent, job, target

    def is_running(self):
        return self.agent.job(self.job)["state"] in ("created", "running", "waiting", "pending")

    def set_speed(self, speed):
        # On a slow machine everything may have been copied by now, and that refuses it.
        result = self.agent.run("job", "set-speed", self.job, speed)
        assert result.code == 0 or self.agent.job(self.job)["state"] == "pending", f"{result}\n{self.agent.log()}"

    def wait(self):
        """Until it has completed, and nothing else."""
        watch = self.agent.stream("job", "watch", self.job)
        code = watch.end()
        ends = [event for event in watch.events if kind(event) in END_EVENTS]
        assert code == 0 and len(ends) == 1 and "completed" in ends[0], f"{watch.events[-3:]}\n{self.agent.log()}"
        assert ends[0]["completed"]["result"] == "completed", ends
        assert Path(self.target).exists()

    def finish(self):
        """The good end of a `none` job."""
        self.agent.ok("job", "cancel", self.job)
        self.wait()

    def cancel(self):
        self.agent.ok("job", "cancel", self.job)
        assert self.agent.stream("job", "watch", self.job).end() == 4

    def export(self):
        """Serves its point in time."""
        self.server.views += 1
        endpoint = Endpoint(self.agent.directory / f"view-{self.server.views}.nbd", f"view-{self.server.views}")
        self.agent.ok(
            "export", "add", "--snapshot-of", self.job, f"unix:{endpoint.socket}", "--name", endpoint.name)
        self.exported = endpoint
        return endpoint

    def withdraw(self):
        self.agent.ok("export", "remove", self.exported.name)

    def end_view(self):
        """Lets a job that was started with `manual` end as it should."""
        # One that has copied everything by now refuses it.
        self.agent.run("job", "set-speed", self.job, "0")
        watch = self.agent.stream("job", "watch", self.job)
        watch.until_kind("pending")
        self.agent.ok("job", "finalize", self.job)
        self.wait()


class DaemonServer:
    """qemu-storage-daemon, driven by QMP."""

    def __init__(self, drives):
        self.drives = list(drives)
        self.directory = Path(tempfile.mkdtemp(prefix="dbq-"))
        self.process = self.qmp = None
        self.nodes = 0
        self.ended = {}

    def endpoint(self, drive):
        return Endpoint(self.directory / "nbd", drive.id)

    def start(self):
        # In order: the NBD socket appears before the exports do, and QMP answers when all stands.
        for name in ("qmp", "nbd"):
            (self.directory / name).unlink(missing_ok=True)
        command = [
            "qemu-storage-daemon", "--chardev", f"socket,id=m,path={self.directory}/qmp,server=on,wait=off",
            "--nbd-server", f"addr.type=unix,addr.path={self.directory}/nbd,max-connections=0"]
        for drive in self.drives:
            command += [
                "--blockdev", f"driver=file,node-name=file-{drive.id},filename={drive.path},discard=unmap",
                "--blockdev", f"driver={drive.format},node-name={drive.id},file=file-{drive.id},discard=unmap",
                "--export", f"type=nbd,id=export-{drive.id},node-name={drive.id},name={drive.id},writable=on"]
        command += ["--monitor", "chardev=m"]
        with open(self.directory / "log", "ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + PATIENCE
        self.qmp = socket.socket(socket.AF_UNIX)
        self.qmp.settimeout(PATIENCE)
        while True:
            assert self.process.poll() is None and time.monotonic() < deadline, self.log()
            try:
                self.qmp.connect(str(self.directory / "qmp"))
                break
            except OSError:
                time.sleep(0.01)
        self.lines = self.qmp.makefile("r")
        self.lines.readline()
        self.ask("qmp_capabilities")
        return self

    def ask(self, command, **arguments):
        self.qmp.sendall(json.dumps({
            "execute": command, "arguments": {key.replace("_", "-"): value for key, value in arguments.items()},
        }).encode() + b"\n")
        while True:
            value = self.next()
            if "return" in value:
                return value["return"]
            assert "error" not in value, f"{command} {arguments}: {value}"

    def next(self):
        value = json.loads(self.lines.readline())
        if value.get("event", "").startswith("BLOCK_JOB_C"):
            self.ended[value["data"]["device"]] = value
        return value

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(PATIENCE) == 0

    def close(self):
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    def log(self):
        return (self.directory / "log").read_text(errors="replace")

    def is_well(self):
        self.ask("query-version")

    def add_target(self, drive, target, sync, format):
        format = format or drive.format
        backing = None
        if sync == "none":
            backing = (drive.path, drive.format)
        elif sync == "top":
            facts = json.loads(qemu_img("info", "-U", "--output=json", "-f", drive.format, drive.path).stdout)
            backing = (facts["full-backing-filename"], facts["backing-filename-format"])
        size = json.loads(qemu_img("info", "-U", "--output=json", "-f", drive.format, drive.path).stdout)["virtual-size"]
        if not Path(target).exists():
            if backing:
                qemu_img("create", "-q", "-u", "-f", format, "-b", backing[0], "-F", backing[1], target, size)
            else:
                create(target, size, format)
        self.nodes += 1
        name = f"target-{self.nodes}"
        self.ask("blockdev-add", driver="file", node_name=f"file-{name}", filename=str(target))
        extra = {"backing": drive.id if sync == "none" else None} if format == "qcow2" else {}
        self.ask("blockdev-add", driver=format, node_name=name, file=f"file-{name}", discard="unmap", **extra)
        return name

    def action(self, drive, node, sync, speed, manual=False):
        return {"job_id": drive.id, "device": drive.id, "target": node, "sync": sync, "speed": parse_rate(speed),
                "auto_finalize": not manual}

    def backup(self, drive, target, sync="full", format=None, speed=None, manual=False):
        if manual:
            # Its view needs a job without a copy: image fleecing.
            sync, format = "none", "qcow2"
        node = self.add_target(drive, target, sync, format)
        self.ended.pop(drive.id, None)
        self.ask("blockdev-backup", **self.action(drive, node, sync, speed))
        return DaemonBackup(self, drive, target, node)

    def has_job(self, drive):
        """Its jobs die with it."""
        return False

    def group(self, targets, format=None, speed=None):
        nodes = [(drive, target, self.add_target(drive, target, "full", format)) for drive, target in targets]
        actions = []
        for drive, _, node in nodes:
            self.ended.pop(drive.id, None)
            data = self.action(drive, node, "full", speed)
            actions.append({"type": "blockdev-backup", "data": {
                key.replace("_", "-"): value for key, value in data.items()}})
        self.ask("transaction", actions=actions)
        return [DaemonBackup(self, *node) for node in nodes]


class DaemonBackup:
    def __init__(self, server, drive, target, node):
        self.server, self.drive, self.target, self.node = server, drive, target, node

    def is_running(self):
        return any(job["id"] == self.drive.id for job in self.server.ask("query-jobs"))

    def set_speed(self, speed):
        self.server.ask("block-job-set-speed", device=self.drive.id, speed=parse_rate(speed))

    def wait(self):
        deadline = time.monotonic() + PATIENCE
        while self.drive.id not in self.server.ended:
            assert time.monotonic() < deadline
            self.server.next()
        end = self.server.ended[self.drive.id]
        assert end["event"] in ("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED") and "error" not in end["data"], end
        for name in (self.node, f"file-{self.node}"):
            self.server.ask("blockdev-del", node_name=name)

    def finish(self):
        self.server.ask("block-job-cancel", device=self.drive.id)
        self.wait()

    def cancel(self):
        self.finish()
        Path(self.target).unlink()

    def export(self):
        self.server.ask("block-export-add", type="nbd", id=self.node, node_name=self.node, name=self.node, writable=False)
        return Endpoint(self.server.directory / "nbd", self.node)

    def withdraw(self):
        self.server.ask("block-export-del", id=self.node, mode="hard")
        deadline = time.monotonic() + PATIENCE
        while any(export["id"] == self.node for export in self.server.ask("query-block-exports")):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def end_view(self):
        self.finish()


def parse_rate(rate):
    if not rate:
        return 0
    units = {"K": 10, "M": 20, "G": 30}
    text = str(rate)
    return int(text[:-1]) << units[text[-1]] if text[-1] in units else int(text)
