"""Peers that are built from source: each has a directory below tools/peers."""

import os
import subprocess

from .common import TOP, Unavailable

PEERS = os.path.join(TOP, "tools", "peers")
MAKE = "source ../../lib.sh; need floor; make"  # for what is written in C


def built(bench, directory, path, command=MAKE):
    """The program `path` of a peer's directory, built by `command` when it is asked for first."""
    place = os.path.join(PEERS, directory)

    def make():
        done = subprocess.run(
            ["bash", "-c", "set -e; " + command], cwd=place, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True)
        if done.returncode == 0:
            return None
        lines = done.stdout.strip().splitlines() or ["no word"]
        # What ends a build says that it has failed, and no more.
        return next((line for line in lines if "error:" in line), lines[-1])

    if failure := bench.share(f"tools/peers/{directory}", make):
        raise Unavailable(f"tools/peers/{directory} cannot be built: {failure}")
    return os.path.join(place, path)
