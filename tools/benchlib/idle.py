"""A server that has nothing to do: its memory, its processor time, and how long it takes to begin."""

import contextlib
import os
import socket
import struct
import subprocess
import time

from .common import GiB, MiB, Noise, PATIENCE, memory, remove
from .results import Figure, Goal, number
from .servers import runtime_directory, stop

ROWS = {"idle": "memory, processor time and start of a server of ten idle drives, each with an export"}
DRIVES = 10
MEMORY_GOAL, START_GOAL = 12.0, 100.0  # MiB of anonymous memory, milliseconds
CPU_GOAL = 0.01  # % of a core: a millisecond in ten seconds is none
SETTLE = 1.0  # seconds after the start


class Idle:
    """Processes that serve ten drives between them, from exec on. A context."""

    def __init__(self, commands, nbd_sockets, control_socket=None):
        self.commands, self.nbd_sockets, self.control_socket = commands, nbd_sockets, control_socket

    def __enter__(self):
        begun = time.monotonic()
        self.processes = [
            subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) for command in self.commands]
        try:
            for path in self.nbd_sockets:
                self.reach(path, greeted)
            if self.control_socket:
                self.reach(self.control_socket, lambda client: True)
        except BaseException:
            self.__exit__()
            raise
        self.started = time.monotonic() - begun
        self.pids = [process.pid for process in self.processes]
        return self

    def reach(self, path, is_answered):
        """Until it accepts and answers; tried in quick turns."""
        deadline = time.monotonic() + PATIENCE
        while True:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(PATIENCE)
                try:
                    client.connect(path)
                    if is_answered(client):
                        return
                except OSError:
                    pass
            for process, command in zip(self.processes, self.commands):
                if process.poll() is not None:
                    raise RuntimeError(f"it ended with {process.returncode} as it began: {' '.join(command)}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"nobody answers at {path} in {PATIENCE} s")
            time.sleep(0.0005)

    def __exit__(self, *_):
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            stop(process)
        remove(*self.nbd_sockets)
        if self.control_socket:
            remove(self.control_socket)


def greeted(client):
    """An NBD server has begun the handshake, which is then ended in good form: flags, and NBD_OPT_ABORT."""
    if client.recv(18, socket.MSG_WAITALL)[:8] != b"NBDMAGIC":
        return False
    client.sendall(struct.pack(">I8sII", 3, b"IHAVEOPT", 2, 0))
    return True


def ours(bench, directory, runtime):
    command = [f"{bench.binaries}/drive-backup-agent", "--listen", f"unix:{directory}/agent.sock",
               "--state-directory", f"{directory}/state", "--runtime-directory", runtime, "--log-level", "error"]
    for index in range(DRIVES):
        command += ["--drive", f"id=d{index},file={directory}/{index}.raw,format=raw",
                    "--export", f"drive=d{index},listen=unix:{directory}/{index}.nbd"]
    return Idle([command], [f"{directory}/{index}.nbd" for index in range(DRIVES)], f"{directory}/agent.sock")


def storage_daemon(directory):
    command = ["qemu-storage-daemon", "--chardev", f"socket,id=m,path={directory}/qmp,server=on,wait=off",
               "--monitor", "chardev=m", "--nbd-server", f"addr.type=unix,addr.path={directory}/qsd.nbd"]
    for index in range(DRIVES):
        command += ["--blockdev", f"driver=file,node-name=f{index},filename={directory}/{index}.raw,locking=off",
                    "--blockdev", f"driver=raw,node-name=d{index},file=f{index}",
                    "--export", f"type=nbd,id=e{index},node-name=d{index},name=d{index},writable=on"]
    return Idle([command], [f"{directory}/qsd.nbd"], f"{directory}/qmp")


def nbdkit(directory):
    """A process a drive; it has no control socket."""
    return Idle([["nbdkit", "--foreground", "--unix", f"{directory}/{index}.kit", "file", f"{directory}/{index}.raw"]
                 for index in range(DRIVES)], [f"{directory}/{index}.kit" for index in range(DRIVES)])


def run_times(pids):
    """Seconds on a processor of each thread, by the scheduler's own clock."""
    return {key: int(text.split()[0]) / 1e9 for key, text in of_threads(pids, "schedstat")}


def switches(pids):
    """How often each thread left a processor."""
    return {key: sum(int(line.split()[1]) for line in text.splitlines() if "ctxt_switches" in line)
            for key, text in of_threads(pids, "status")}


def of_threads(pids, name):
    for pid in pids:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{thread}/{name}") as file:
                yield (pid, thread), file.read()


def grown(before, after):
    """What has come since; of a thread that has ended nobody knows its last moments."""
    return sum(value - before.get(key, 0) for key, value in after.items())


def observe(idle, seconds):
    """One start, and a while without anything to do."""
    with idle as servers:
        time.sleep(SETTLE)
        cpu, switched, begun = run_times(servers.pids), switches(servers.pids), time.monotonic()
        time.sleep(seconds)
        cpu = grown(cpu, run_times(servers.pids)) / (time.monotonic() - begun)
        fields = [memory(pid) for pid in servers.pids]
        return {
            "anonymous": sum(field["RssAnon"] for field in fields) / MiB,
            "resident": sum(field["VmRSS"] for field in fields) / MiB, "start": servers.started * 1000,
            "cpu": cpu * 100, "switches": grown(switched, switches(servers.pids))}


def measure(row, bench):
    seconds = 2 if bench.options.quick else 10
    found, noise = {}, []
    with bench.directory(row) as directory, runtime_directory(directory) as runtime:
        for index in range(DRIVES):
            with open(f"{directory}/{index}.raw", "wb") as file:
                file.truncate(GiB)
        kinds = {"us": lambda: ours(bench, directory, runtime)}
        if bench.options.peers:
            kinds |= {"qemu-storage-daemon": lambda: storage_daemon(directory), "nbdkit": lambda: nbdkit(directory)}
        for kind in kinds.values():  # programs and libraries come into the page cache
            with kind():
                pass
        for _ in range(bench.options.rounds):
            with Noise() as watch:
                for name, kind in kinds.items():
                    found.setdefault(name, []).append(observe(kind(), seconds))
            noise.append(watch.share)
    yield from figures(row, seconds, found, noise)


def figures(row, seconds, found, noise):
    def of(name, quantity):
        return [entry[quantity] for entry in found[name]]

    def peers(quantity):
        return {name: of(name, quantity) for name in found if name != "us"}

    case = f"{DRIVES} drives, {DRIVES} exports"
    yield Figure(row, f"{case}: anonymous memory", "MiB", of("us", "anonymous"), peers("anonymous"),
                 Goal.at_most(MEMORY_GOAL))
    yield Figure(
        row, f"{case}: resident memory, the program's pages too", "MiB", of("us", "resident"), peers("resident"))
    # Others' work makes a start longer; it gives nobody that has nothing to do more to do.
    yield Figure(row, f"{case}: exec to all sockets answering", "ms", of("us", "start"), peers("start"),
                 Goal.at_most(START_GOAL), noise=noise)
    yield Figure(row, f"{case}: processor time of {seconds} s", "% of a core", of("us", "cpu"), peers("cpu"),
                 Goal.at_most(CPU_GOAL), notes=["context switches: " + ", ".join(
                     f"{name} {number(max(of(name, 'switches')))}" for name in found)])
