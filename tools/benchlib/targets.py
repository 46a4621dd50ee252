"""Places that backups go to: a fast one, one of 10 MiB a second, and one that hangs."""

import contextlib
import os
import subprocess

from .common import Unavailable, remove, wait

FAST, SLOW, HANGING = "fast", "10 MiB/s", "hanging"
KINDS = (FAST, SLOW, HANGING)


@contextlib.contextmanager
def target(kind, directory, size):
    """The path of a raw target: of the fast kind a new file, else one that is there, on a FUSE file system."""
    path = os.path.join(directory, "target")
    if kind == FAST:
        # Made new by each server, in its way.
        try:
            yield path
        finally:
            remove(path)
        return
    plugin = {
        SLOW: ["--filter=rate", "memory", str(size), "rate=80M"],  # in bits a second
        HANGING: ["--filter=delay", "memory", str(size), "wdelay=3600"],
    }[kind]
    mountpoint, pid_file = os.path.join(directory, "mount"), os.path.join(directory, "nbdfuse.pid")
    os.makedirs(mountpoint, exist_ok=True)
    process = subprocess.Popen(
        ["nbdfuse", "-P", pid_file, f"{mountpoint}/target", "--command", "nbdkit", "-s", "--exit-with-parent", *plugin],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        wait(lambda: os.path.exists(pid_file) or process.poll() is not None, "nbdfuse's mount")
        if process.poll() is not None:
            raise Unavailable(f"no slow targets, nbdfuse can't mount here: {process.stderr.read().strip()}")
        yield f"{mountpoint}/target"
    finally:
        subprocess.run(["fusermount3", "-uz", mountpoint], stderr=subprocess.DEVNULL)
        # nbdkit ends with it, and what still waits in the kernel gets an error.
        process.kill()
        process.wait()
        process.stderr.close()
        remove(pid_file)
        with contextlib.suppress(OSError):
            os.rmdir(mountpoint)
