"""Disk images, made and judged by qemu-img and qemu-io."""

import json
import os
import random
import signal
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

KiB, MiB, GiB, TiB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
CLUSTER = 64 * KiB


def run(*arguments, check=True):
    done = subprocess.run(
        [str(argument) for argument in arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, timeout=300)
    assert not check or done.returncode == 0, f"{arguments}: {done.returncode}: {done.stdout}"
    return done


def qemu_img(*arguments, check=True):
    return run("qemu-img", *arguments, check=check)


def qemu_io(path, image_format, *commands, check=True):
    arguments = ["qemu-io", "-f", image_format]
    for command in commands:
        arguments += ["-c", command]
    done = run(*arguments, path, check=check)
    # qemu-io's exit code says little about its commands.
    assert not check or "failed" not in done.stdout, done.stdout
    return done


def create(path, size, image_format="qcow2", backing=None, options=None):
    arguments = ["create", "-q", "-f", image_format]
    if backing:
        arguments += ["-b", backing[0], "-F", backing[1]]
    if options:
        arguments += ["-o", options]
    qemu_img(*arguments, path, *([] if size is None else [size]))
    return path


def raw(path, size, pieces=(), seed=None):
    """A sparse raw image with `pieces` of (offset, length) filled with random bytes, all but never zero."""
    generator = random.Random(seed if seed is not None else str(path.name))
    with open(path, "wb") as file:
        file.truncate(size)
        for offset, length in pieces:
            file.seek(offset)
            file.write(generator.randbytes(min(length, size - offset)))
    return path


def info(path, image_format=None):
    arguments = ["-f", image_format] if image_format else []
    return json.loads(qemu_img("info", "--output=json", "-U", *arguments, path).stdout)


def virtual_size(path, image_format):
    return info(path, image_format)["virtual-size"]


def check(path, shared=False):
    """qemu-img check finds neither errors nor leaks; `shared` when somebody has a backing file open for writing."""
    done = qemu_img("check", *(["-U"] if shared else []), "-f", "qcow2", path, check=False)
    assert done.returncode == 0, f"qemu-img check {path}: {done.returncode}: {done.stdout}"


def same(one, one_format, other, other_format):
    done = qemu_img("compare", "-f", one_format, "-F", other_format, one, other, check=False)
    assert done.returncode == 0, f"{one} and {other}: {done.stdout}"


def allocated(path, image_format, size):
    """The numbers of the 64-KiB clusters of which the image itself, not its backing file, holds a part."""
    entries = json.loads(qemu_img("map", "--output=json", "-U", "-f", image_format, path).stdout)
    found = set()
    for entry in entries:
        if entry["depth"] == 0 and entry.get("present", True) and entry["length"]:
            end = min(entry["start"] + entry["length"], size)
            found.update(range(entry["start"] // CLUSTER, (end + CLUSTER - 1) // CLUSTER))
    return found


def data_bytes(path):
    """The bytes that the file takes on disk."""
    return os.stat(path).st_blocks * 512


@contextmanager
def held_for_writing(path, image_format):
    """Another process, qemu-nbd, has the image open for writing."""
    with tempfile.TemporaryDirectory(prefix="dbn-") as directory:
        run("qemu-nbd", "--fork", "--persistent", f"--pid-file={directory}/pid", "-k", f"{directory}/socket",
            "-f", image_format, path)
        pid = int(Path(directory, "pid").read_text())
        descriptor = os.pidfd_open(pid)
        try:
            yield
        finally:
            signal.pidfd_send_signal(descriptor, signal.SIGTERM)
            select_end(descriptor)
            os.close(descriptor)


def select_end(descriptor):
    import select

    ready, _, _ = select.select([descriptor], [], [], 30)
    assert ready, "qemu-nbd doesn't end"
