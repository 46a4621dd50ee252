"""NBD servers on one drive: requests a second, and what each costs the server in processor time."""

import contextlib
import dataclasses
import os
import statistics
import subprocess

from . import images
from .common import Noise, Turns, Unavailable, cpu_seconds, listens, wait
from .load import Load, limit
from .peers import built
from .results import LOWER_IS_BETTER, Figure, Goal, number
from .servers import Agent, StorageDaemon, stop

ROWS = {
    "nbd-4k-read": "random reads of 4 KiB from an export",
    "nbd-4k-write": "random writes of 4 KiB to an export",
    "nbd-1m-read": "sequential reads of 1 MiB from an export",
    "nbd-1m-write": "sequential writes of 1 MiB to an export",
}
RATE_GOALS = {1: 1.1, 16: 1.5, 64: 1.8}  # by depth
CPU_GOALS = {"read": 0.6, "write": 0.8}
LARGE_GOALS = {"read": 1.2, "write": 1.0}
# A server that does nothing, or one system call a request, asleep between requests or not. One that is slower may have a better
# rate of one connection with many requests on their way: fio then sends more of them at a time.
NOTHING, ONE_CALL = "a server that does nothing", "a bare one with a pread or pwrite a request"
WAYS = {"asleep": "serve", "awake": "serve-awake"}
DISK_ENGINES = {"the disk, io_uring": "io_uring", "the disk, libaio": "libaio"}  # direct drives: the disk without a server


@dataclasses.dataclass(frozen=True)
class Cell:
    depth: int
    connections: int = 1
    form: str = "raw"
    direct: bool = False

    def __str__(self):
        return (f"{self.form}, {'O_DIRECT' if self.direct else 'page cache'}, depth {self.depth}, "
                f"{self.connections} connection{'s' if self.connections > 1 else ''}")


def cells(row, options):
    """--full: all of them. Else raw in the page cache whole, and of the others what differs."""
    if row.startswith("nbd-1m"):
        default = [Cell(1), Cell(16), Cell(16, form="qcow2")]
        more = [Cell(depth, connections, form, direct) for form in ("raw", "qcow2") for direct in (False, True)
                for depth in (1, 16) for connections in (1, 4)]
    else:
        default = [
            *(Cell(depth, connections) for connections in (1, 4) for depth in (1, 16, 64)),
            Cell(1, form="qcow2"), Cell(16, form="qcow2"), Cell(16, 4, "qcow2"),
            Cell(1, direct=True), Cell(16, direct=True)]
        more = [Cell(depth, connections, form, direct) for form in ("raw", "qcow2") for direct in (False, True)
                for depth in (1, 16, 64) for connections in (1, 4)]
    if options.quick:
        return [Cell(16)] if row.startswith("nbd-1m") else [Cell(1), Cell(16)]
    return more if options.full else default


@contextlib.contextmanager
def qemu_nbd(directory, path, cell, aio):
    """qemu-nbd; yields its process id and address."""
    address = f"{directory}/qemu-nbd.sock"
    cache = "none" if cell.direct else "writeback"
    with process(address, "qemu-nbd", "--persistent", "--shared=8", f"--socket={address}", "-f", cell.form,
                 f"--cache={cache}", f"--aio={aio}", "-x", "bench", path) as pid:
        yield pid, f"nbd+unix:///bench?socket={address}"


@contextlib.contextmanager
def nbdkit(directory, path):
    address = f"{directory}/nbdkit.sock"
    with process(address, "nbdkit", "--foreground", "--unix", address, "file", path) as pid:
        yield pid, f"nbd+unix:///bench?socket={address}"


@contextlib.contextmanager
def floor(bench, directory, way, *file):
    address = f"{directory}/nbd-floor.sock"
    with process(address, built(bench, "nbd-floor", ".build-peer/nbd-floor"), way, address, *file) as pid:
        yield pid, f"nbd+unix:///bench?socket={address}"


@contextlib.contextmanager
def process(address, *command):
    """A server of one socket, from when it is there; yields its process id."""
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def is_ready():
        if server.poll() is not None:
            raise Unavailable(f"it ended with {server.returncode} as it began: {' '.join(command)}")
        return listens(address)

    try:
        wait(is_ready, command[0])
        yield server.pid
    finally:
        stop(server)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(address)


@contextlib.contextmanager
def ours(bench, directory, path, cell):
    with Agent(bench, directory, [("bench", path, cell.form)], exports=True, direct=cell.direct) as agent:
        yield agent.pid, agent.uri("bench")


@contextlib.contextmanager
def storage_daemon(directory, path, cell, aio):
    with StorageDaemon(directory, [("bench", path, cell.form)], exports=True, aio=aio, direct=cell.direct) as daemon:
        yield daemon.pid, daemon.uri("bench")


def contestants(bench, row, cell, directory, path):
    """Each starts its server, loads it for a round, and stops it: one after the other on the same file."""
    servers = {"us": lambda: ours(bench, directory, path, cell)}
    if bench.options.peers:
        for aio in ("threads", "io_uring"):
            if cell.direct and aio == "threads":
                aio = "native"
            servers[f"qemu-nbd, {aio}"] = lambda aio=aio: qemu_nbd(directory, path, cell, aio)
            servers[f"qemu-storage-daemon, {aio}"] = lambda aio=aio: storage_daemon(directory, path, cell, aio)
        if cell.form == "raw" and not cell.direct:
            servers["nbdkit file"] = lambda: nbdkit(directory, path)
        if row.startswith("nbd-4k"):
            for name, file in floors(row, cell, path).items():
                servers |= {f"{name} ({way})": lambda way=way, file=file: floor(bench, directory, WAYS[way], *file)
                            for way in WAYS}
    found = {name: lambda server=server: loaded(server, bench, row, cell, path) for name, server in servers.items()}
    if bench.options.peers and cell.form == "raw" and cell.direct:
        found |= {name: lambda engine=engine: load(bench, row, cell, path, disk_engine=engine)
                  for name, engine in DISK_ENGINES.items()}
    return found


def floors(row, cell, path):
    """Those that say something of a cell, and the file that each uses."""
    found = {}
    if not cell.direct:
        found[NOTHING] = []
    # It waits for the disk, and what an image holds it does not know.
    if cell.depth == 1 if cell.direct else cell.form == "raw" or row == "nbd-4k-read":
        found[ONE_CALL] = [path, "direct"] if cell.direct else [path]
    return found


def load(bench, row, cell, where, disk_engine=None):
    """A round of requests, and the machine's share that was in use."""
    way = row.rsplit("-", 1)[1]
    work = [f"--rw=rand{way}", "--bs=4k"] if row.startswith("nbd-4k") else [f"--rw={way}", "--bs=1M"]
    with Noise() as noise:
        found = Load(where, *work, f"--iodepth={cell.depth}", f"--size={images.drive_size(bench)}",
                     connections=cell.connections, disk_engine=disk_engine,
                     seconds=bench.options.seconds * (0.4 if bench.options.quick else 1)).result()
    return {
        "cost": 1 / max(found["rate"], 1e-9), "rate": found["rate"], "mib_s": found["mib_s"], "cores": found["cores"],
        "requests": found["requests"], "busy": noise.busy}


def loaded(server, bench, row, cell, path):
    if not cell.direct:
        images.keep_cached(bench, path)
    with server() as (pid, uri):
        os.sync()
        before = cpu_seconds(pid)
        found = load(bench, row, cell, uri)
        cpu = cpu_seconds(pid) - before
    os.sync()
    return found | {"us": cpu * 1e6 / max(found["requests"], 1)}


def measure(row, bench):
    for cell in cells(row, bench.options):
        way, small = row.rsplit("-", 1)[1], row.startswith("nbd-4k")
        goal = Goal.ratio_at_least(RATE_GOALS[cell.depth] if small else LARGE_GOALS[way])
        if bench.options.case not in str(cell):
            continue
        bench.say(f"{row}, {cell}")
        path = images.drive(bench, cell.form, small)
        with bench.directory(row) as directory:
            turns = Turns.take(bench, contestants(bench, row, cell, directory, path), bench.options.rounds, cost="cost")
        quantity, unit = ("rate", "requests/s") if small else ("mib_s", "MiB/s")
        cores, busy = (statistics.median(turns.of("us", quantity)) for quantity in ("cores", "busy"))
        yield bounded(Figure(
            row, f"{cell}", unit, turns.of("us", quantity), turns.peers(quantity), goal, notes=turns.left_out,
            noise=turns.noise, limit=limit(cores, cell.connections, busy)))
        yield bounded(Figure(
            row, f"{cell}: server's processor time", "us CPU/request", turns.of("us", "us"), turns.peers("us"),
            Goal.ratio_at_most(CPU_GOALS[way]) if small else (), noise=turns.noise))


def bounded(figure):
    """The figure without the floors among its peers; where one is short of the goal, and better than us, that is said."""
    found = {name: figure.peers.pop(name) for name in list(figure.peers)
             if name.startswith((NOTHING, ONE_CALL)) or name in DISK_ENGINES}
    goal, peer = figure.goals[0], figure.peers.get(figure.best_peer)
    best = min if LOWER_IS_BETTER[figure.unit] else max
    kinds = {
        NOTHING: [name for name in found if name.startswith(NOTHING)],
        ONE_CALL: [name for name in found if name.startswith(ONE_CALL)],
        "fio on the disk, without a server": list(DISK_ENGINES.keys() & found.keys())}
    for what, names in kinds.items():
        if not names:
            continue
        value = best(statistics.median(found[name]) for name in names)
        figure.notes = [*figure.notes, f"{what}: {number(value)}"]
        is_better = best(value, figure.median) == value
        if peer and is_better and figure.met is False and not goal.is_met(value / statistics.median(peer)):
            figure.limit = f"out of reach: the goal is {number(goal.value * statistics.median(peer))}"
    return figure
