"""Processes of targets as an operator sees them, and a file system that hangs on command."""

import contextlib
import os
import subprocess
import time
from pathlib import Path

import pytest
from harness import PATIENCE


def target_processes(agent):
    """The processes that the agent runs for targets, by the ids of their jobs."""
    found = {}
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit():
            continue
        try:
            words = (directory / "cmdline").read_bytes().split(b"\0")
            parent = int((directory / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue  # It has ended.
        if words[0].startswith(b"drive-backup-target ") and parent == agent.process.pid:
            found[words[0].decode().split(" ", 1)[1]] = int(directory.name)
    return found


def until(condition, what):
    """Waits for something that is announced by nothing."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {PATIENCE} s: {what}"
        time.sleep(0.02)
    return value


def states(process):
    """Of its threads, as `ps` shows them; of one that has ended none, or Z."""
    found = set()
    try:
        for task in Path(f"/proc/{process}/task").iterdir():
            try:
                found.add((task / "stat").read_text().rpartition(")")[2].split()[0])
            except OSError:
                continue  # The thread has ended.
    except OSError:
        pass  # All have.
    return found


def is_gone(process):
    """Whether all of it has ended; one that waits to be reaped has."""
    return states(process) <= {"Z", "X"}


def hangs(process):
    """A thread of it waits for something that no signal interrupts."""
    return "D" in states(process)


@contextlib.contextmanager
def mounted(system):
    """The file system, mounted for as long as the body runs; a skip where that is not possible here."""
    try:
        if not system.mount():
            pytest.skip(f"{system.needs}: no such file system can be mounted here")
        yield system
    finally:
        system.close()


class FreezingFileSystem:
    """An ext4 of its own, in which every change hangs, in a way that no signal ends, while it is frozen."""

    needs = "root and loop devices are needed"

    def __init__(self, directory, size=96 << 20, options=()):
        self.size, self.options = size, options
        self.path = directory / "freezing"
        self.image = directory / "freezing.img"
        self.is_frozen = self.is_mounted = False

    def mount(self):
        """False where that is not possible here."""
        self.path.mkdir()
        with open(self.image, "wb") as file:
            file.truncate(self.size)
        for command in (["mkfs.ext4", "-q", "-F", *self.options, str(self.image)],
                        ["mount", "-o", "loop", str(self.image), str(self.path)]):
            if subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode:
                return False
        self.is_mounted = True
        return True

    def freeze(self):
        subprocess.run(["fsfreeze", "--freeze", str(self.path)], check=True)
        self.is_frozen = True

    def thaw(self):
        if self.is_frozen:
            subprocess.run(["fsfreeze", "--unfreeze", str(self.path)], check=True)
        self.is_frozen = False

    def close(self):
        self.thaw()
        if self.is_mounted:
            # Who was left behind in it may need a moment to go.
            until(lambda: subprocess.run(["umount", str(self.path)], stderr=subprocess.DEVNULL).returncode == 0,
                  f"{self.path} is unmounted")
        os.unlink(self.image)
