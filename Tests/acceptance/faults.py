"""Files whose reads and writes fail when a test says so: an nbdkit server with its filters, mounted by nbdfuse."""

import os
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness import PATIENCE


def need_fuse():
    missing = [name for name in ("nbdfuse", "nbdkit", "fusermount3") if not shutil.which(name)]
    if missing or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip(f"files that fail take nbdkit and nbdfuse ({', '.join(missing) or '/dev/fuse'} is missing)")


@contextmanager
def mounted(directory, *command):
    """A file, which is what the nbdkit of these arguments serves."""
    need_fuse()
    directory.mkdir()
    path = directory / "disk"
    log = open(f"{directory}.log", "wb")
    server = subprocess.Popen(
        ["nbdfuse", str(path), "[", "nbdkit", "--exit-with-parent", *map(str, command), "]"],
        stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + PATIENCE
        while not path.exists():
            said = open(log.name).read()
            assert server.poll() is None and time.monotonic() < deadline, f"nbdfuse doesn't come up: {said}"
            time.sleep(0.02)
        # In a directory in which files can be made, too: a manifest goes beside a target.
        place = Path(f"{directory}.place") / "disk"
        place.parent.mkdir()
        place.touch()
        bound = subprocess.run(
            ["mount", "--bind", str(path), str(place)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if bound.returncode != 0:
            if os.getuid() == 0 and not os.environ.get("DRIVE_BACKUP_TEST_NO_MOUNT"):
                pytest.fail(f"couldn't mount a file (DRIVE_BACKUP_TEST_NO_MOUNT=1 skips this): {bound.stdout}")
            pytest.skip("mounting a file takes root")
        try:
            yield place
        finally:
            subprocess.run(["umount", "-l", str(place)], check=True)
    finally:
        subprocess.run(["fusermount3", "-u", "-z", str(directory)], check=False)
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        log.close()


@contextmanager
def failing(directory, file, read=None, write=None):
    """`file` through a mount; while the file `directory`.trigger is there, reads or writes fail with that error."""
    options = []
    for word, error in (("pread", read), ("pwrite", write)):
        if error:
            options += [f"error-{word}={error}", f"error-{word}-rate=100%", f"error-{word}-file={directory}.trigger"]
    with mounted(directory, "--filter=error", "file", file, *options) as path:
        yield path


@contextmanager
def with_bad_sectors(directory, file, *ranges):
    """`file` through a mount, in which these (offset, length) cannot be read."""
    size = os.path.getsize(file)
    lines, end = ["# Mapfile. Created by a test", "0x0 ? 1"], 0
    for offset, length in ranges:
        lines += [f"{end:#x} {offset - end:#x} +", f"{offset:#x} {length:#x} -"]
        end = offset + length
    lines.append(f"{end:#x} {size - end:#x} +")
    mapfile = f"{directory}.map"
    with open(mapfile, "w") as out:
        out.write("\n".join(lines) + "\n")
    with mounted(directory, "--filter=ddrescue", "file", file, f"ddrescue-mapfile={mapfile}") as path:
        yield path


@contextmanager
def with_protected(directory, file, offset, length):
    """`file` through a mount, in which this range cannot be written."""
    with mounted(directory, "--filter=protect", "file", file, f"protect={offset}-{offset + length - 1}") as path:
        yield path


@contextmanager
def without_flush(directory, file):
    """`file` through a mount, whose every flush fails with EIO."""
    scripts = [
        f"get_size=stat -c %s {file}", f"pread=dd if={file} skip=$4 count=$3 iflag=count_bytes,skip_bytes status=none",
        f"pwrite=dd of={file} conv=notrunc seek=$4 oflag=seek_bytes status=none", "can_write=exit 0", "can_flush=exit 0",
        "flush=echo EIO the disk is gone >&2; exit 1"]
    with mounted(directory, "eval", *scripts) as path:
        yield path
