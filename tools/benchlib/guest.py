"""What a guest notices of a backup of its disk: its latency, its rate, and how long the backup takes meanwhile.

The guest is fio's nbd engine on an export of a fully allocated drive. Idle and busy rounds take turns, each after a
sync and with servers of its own; a busy round counts only if the backup was running from before the guest's first
request until after its last one. For that fio works for a while before its requests count, and the backup begins in this
while. A round on the fast target ends when the copy has nearly ended.
"""

import contextlib
import dataclasses
import os
import statistics
import time

from . import images
from .backups import AgentJob, DaemonJob, FleecingJob
from .common import Noise, Unavailable, flush, size_text
from .load import Load
from .results import Figure, Goal, number
from .servers import Agent, StorageDaemon
from .targets import FAST, HANGING, KINDS, target

ROWS = {
    "guest-during-backup": "latency of a guest's 4-KiB requests while its drive is backed up",
    "guest-sequential": "rate of a guest's sequential writes of 1 MiB while its drive is backed up",
}
IDLE = "no backup"
DEFAULT, BEST = "qemu-storage-daemon, default", "qemu-storage-daemon, best"
P50_GOAL, P99_GOAL, SEQUENTIAL_GOAL = 1.5, 3.0, 0.35  # of no backup
NEARLY = 0.8  # share of a copy after which the guest stops
RAMP = 1.0  # seconds of fio's requests that do not count
LEAD = 0.2  # seconds of them that a backup has begun before: what is copied by then is saved no more
HANG = 4  # seconds beyond its time after which the guest counts as hanging
EXTRA = 3  # rounds that may not count


@dataclasses.dataclass(frozen=True)
class Case:
    way: str  # read, write
    depth: int
    kind: str  # of the target
    form: str = "raw"
    sequential: bool = False

    def __str__(self):
        what = "sequential writes of 1 MiB" if self.sequential else f"{self.way}s, depth {self.depth}"
        return f"{self.form} drive, {what}, {self.kind} target"

    def load(self, bench, server, seconds):
        work = ["--rw=write", "--bs=1M"] if self.sequential else [f"--rw=rand{self.way}", "--bs=4k"]
        return Load(server.uri("bench"), *work, f"--iodepth={self.depth}", f"--size={images.drive_size(bench)}",
                    seconds=seconds, ramp=RAMP)


def cases(row, options):
    if row == "guest-sequential":
        return [Case("write", 1, FAST, form, True) for form in (("raw",) if options.quick else ("raw", "qcow2"))]
    if options.quick:
        return [Case("write", 16, FAST), Case("write", 1, HANGING)]
    return [Case(way, depth, kind, form) for form in ("raw", "qcow2") for kind in KINDS for way in ("write", "read")
            for depth in ((1, 16) if form == "raw" or options.full else (16,))]


class Host:
    """A kind of server, with a new one for each thing that is asked."""

    def __init__(self, name, bench, directory, case):
        self.name, self.bench, self.directory, self.case = name, bench, directory, case
        self.drive = images.drive(bench, case.form, not case.sequential)

    def server(self):
        images.keep_cached(self.bench, self.drive)
        drives = [("bench", self.drive, self.case.form)]
        if self.name == "us":
            return Agent(self.bench, self.directory, drives, exports=True)
        return StorageDaemon(self.directory, drives, exports=True, aio="io_uring" if self.name == BEST else "threads")

    @contextlib.contextmanager
    def backup(self, server, at=0.0):
        """A backup to the case's target, which begins now, or at `at` if that is later."""
        job = {"us": AgentJob, BEST: FleecingJob}.get(self.name, DaemonJob)
        with target(self.case.kind, self.directory, images.drive_size(self.bench)) as path:
            try:
                time.sleep(max(0.0, at - time.monotonic()))
                running = job(server, "bench", path, existing=self.case.kind != FAST)
                yield running
                if self.name == "us":
                    running.cancel()
            finally:
                # Peers' jobs that wait for their target cannot be cancelled, and must not outlive it.
                if self.name != "us":
                    server.process.kill()

    @contextlib.contextmanager
    def beside(self, server, seconds):
        """A backup that begins now, and a guest that works for so long."""
        def guest():
            # Whatever happens, it ends with its server.
            return self.case.load(self.bench, server, seconds)

        if self.name == BEST:
            # Its export is made anew when the backup begins: a guest would lose it.
            with self.backup(server) as job:
                yield job, guest()
        else:
            load = guest()
            with self.backup(server, at=load.begun + RAMP - LEAD) as job:
                yield job, load

    def idle(self):
        with self.server() as server:
            os.sync()
            return self.case.load(self.bench, server, self.bench.options.seconds).result()

    def busy(self):
        """None when the backup has not run throughout."""
        seconds = self.bench.options.seconds
        with self.server() as server:
            os.sync()
            with self.beside(server, seconds) as (job, load):
                began = time.monotonic()
                deadline = load.begun + RAMP + seconds + HANG
                while load.is_running() and time.monotonic() < deadline:
                    if self.case.kind == FAST and job.progress() > NEARLY:
                        load.interrupt()
                        break
                    time.sleep(0.02)
                found = load.result(patience=max(0.5, deadline - time.monotonic()))
                in_time = began < load.begun + RAMP
                return found if in_time and job.is_running() and found["requests"] else None

    def whole_backup(self, longest):
        """Seconds of a whole backup while the guest works on; `longest` when it took more, and was given up."""
        with self.server() as server:
            os.sync()
            with self.beside(server, 2 * longest) as (job, load):
                begun = load.begun + RAMP - LEAD
                while not job.ended and time.monotonic() < begun + longest:
                    time.sleep(0.02)
                if self.name != "us":
                    flush(job.target)  # which is part of ours
                seconds = min(time.monotonic() - begun, longest)
                load.interrupt()
                load.result()
                job.is_running()  # which says so if it has failed
        return seconds


def measure(row, bench):
    for case in cases(row, bench.options):
        if bench.options.case not in str(case):
            continue
        bench.say(f"{row}, {case}")
        with bench.directory(row) as directory:
            try:
                yield from of_case(row, bench, case, directory)
            except Unavailable as reason:
                yield Figure(row, f"{case}", "ms", [], goals=Goal.ratio_at_most(P50_GOAL, IDLE), notes=[str(reason)])


def of_case(row, bench, case, directory):
    """Rounds of all hosts in turn; the peers take part in half of them."""
    hosts = [Host(name, bench, directory, case) for name in ("us", *((DEFAULT, BEST) if bench.options.peers else ()))]
    rounds, idle, busy, whole, noise, lost, notes = bench.options.rounds, {}, {}, {}, [], {}, []
    # A peer's backup is over before the guest again and again, or never.
    extra = {host.name: 0 if bench.options.quick and host.name != "us" else EXTRA for host in hosts}
    longest = 15 if bench.options.quick else 60  # seconds of a whole backup
    wanted = {host.name: rounds if host.name == "us" else max(1, rounds // 2) for host in hosts}
    while waiting := [host for host in hosts if len(busy.get(host.name, [])) < wanted[host.name]
                      and lost.get(host.name, 0) <= extra[host.name]]:
        with Noise() as watch:
            for host in waiting:
                try:
                    quiet, found = host.idle(), host.busy()
                except Unavailable as reason:
                    if host.name == "us":
                        raise
                    hosts.remove(host)
                    notes.append(f"without {host.name}: {reason}")
                    continue
                if found is None:
                    lost[host.name] = lost.get(host.name, 0) + 1
                else:
                    idle.setdefault(host.name, []).append(quiet)
                    busy.setdefault(host.name, []).append(found)
                if case.kind == FAST and not case.sequential and host.name != BEST:
                    seconds = whole.setdefault(host.name, [])
                    # Once is enough to know that it takes that long.
                    if len(seconds) < wanted[host.name] and longest not in seconds:
                        seconds.append(host.whole_backup(longest))
        noise.append(watch.share)
    notes += [f"{name}: {count} rounds not counted, the backup was over before the guest"
              for name, count in lost.items()]
    if case.sequential:
        goal = Goal.ratio_at_least(SEQUENTIAL_GOAL, IDLE)
        yield figure(row, f"{case}", "MiB/s", "mib_s", idle, busy, goal, noise, notes)
        return
    yield figure(row, f"{case}: p50", "ms", "p50", idle, busy, Goal.ratio_at_most(P50_GOAL, IDLE), noise, notes)
    if "us" in busy:
        notes.append(f"our longest request {number(max(entry['max'] for entry in busy['us']) * 1000)} ms")
    yield figure(row, f"{case}: p99", "ms", "p99", idle, busy, Goal.ratio_at_most(P99_GOAL, IDLE), noise, notes)
    if case.kind == FAST:
        yield Figure(
            row, f"{case}: whole backup of {size_text(images.drive_size(bench))} beside the guest", "s",
            whole.get("us", []), {DEFAULT: whole[DEFAULT]} if DEFAULT in whole else {},
            Goal.ratio_at_most(1.0, DEFAULT), noise=noise,
            notes=[f"{name}: given up after {longest} s" for name, values in whole.items() if longest in values])


def figure(row, case, unit, quantity, idle, busy, goal, noise, notes):
    """Ours busy beside ours idle; what the peers' guests notice is a note."""
    scale = 1000 if unit == "ms" else 1

    def of(rounds):
        return [entry[quantity] * scale for entry in rounds]

    peers = {IDLE: of(idle.get("us", []))}
    notes = list(notes)
    for name in (DEFAULT, BEST):
        if name in busy:
            before, during = statistics.median(of(idle[name])), statistics.median(of(busy[name]))
            peers[name] = of(busy[name])
            hung = " (hung)" if any(entry["hung"] for entry in busy[name]) else ""
            notes.append(f"{name}: {number(before)} -> {number(during)} {unit}{hung}, {during / before:.2f} x")
    return Figure(row, case, unit, of(busy.get("us", [])), peers, goal, notes=notes, noise=noise)
