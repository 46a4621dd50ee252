"""Whole backups beside the tools that copy images: how long, how much processor time, how much memory."""

import contextlib
import os
import resource
import threading
import time

from . import images
from .common import MiB, Processes, Turns, Unavailable, cpu_seconds, fill_cache, flush, memory, remove, run, size_text
from .results import Figure, Goal
from .servers import Agent, StorageDaemon

ROWS = {
    "copy-raw-raw": "a raw drive to a raw image",
    "copy-raw-qcow2": "a raw drive to a qcow2 image",
    "copy-qcow2-qcow2": "a qcow2 drive to a qcow2 image",
    "copy-chain": "a qcow2 drive of three layers to a qcow2 image",
}
FORMATS = {  # source, target
    "copy-raw-raw": ("raw", "raw"), "copy-raw-qcow2": ("raw", "qcow2"), "copy-qcow2-qcow2": ("qcow2", "qcow2"),
    "copy-chain": ("qcow2", "qcow2"),
}
CPU_GOAL, MEMORY_GOAL = 0.8, 64.0  # of the best peer; MiB


class Copy:
    """One row's copies, by each tool: all from the same source to a target of the same name, flushed in the timing."""

    def __init__(self, bench, row, directory):
        make = {"copy-chain": images.chain_source, "copy-qcow2-qcow2": images.qcow2_source}.get(row, images.raw_source)
        self.sources = make(bench)
        self.source = self.sources[0]
        self.source_format, self.target_format = FORMATS[row]
        self.target = os.path.join(directory, "target")
        self.size = bench.options.size

    def timed(self, work, *servers):
        """{"s", "cpu"} of the work: wall time; processor time of the processes that it runs and of the servers."""
        remove(self.target)
        fill_cache(*self.sources)
        os.sync()
        cpu, begun = self.cpu(*servers), time.monotonic()
        work()
        seconds = time.monotonic() - begun
        cpu = self.cpu(*servers) - cpu
        remove(self.target)
        return {"s": seconds, "cpu": cpu}

    @staticmethod
    def cpu(*servers):
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        return ended.ru_utime + ended.ru_stime + (cpu_seconds(*servers) if servers else 0)

    def ours(self, agent):
        return lambda: self.timed(lambda: agent.call(
            "start", "bench", self.target, "--sync", "full", "--format", self.target_format), agent.pid)

    def convert(self, *options):
        def work():
            run("qemu-img", "convert", "-U", *options, "-f", self.source_format, "-O", self.target_format,
                self.source, self.target)
            flush(self.target)

        return lambda: self.timed(work)

    def cp(self):
        def work():
            run("cp", "--sparse=always", self.source, self.target)
            flush(self.target)

        return lambda: self.timed(work)

    def nbdcopy(self):
        """Between files where both are raw; else qemu-nbd reads and writes the format, on the same pipe of sockets."""
        def work():
            ends = []
            if self.source_format == "raw":
                ends.append([self.source])
            else:
                ends.append(["[", "qemu-nbd", "--read-only", "-f", self.source_format, self.source, "]"])
            if self.target_format == "raw":
                with open(self.target, "wb") as file:
                    file.truncate(self.size)
                ends.append([self.target])
            else:
                run("qemu-img", "create", "-q", "-f", self.target_format, self.target, str(self.size))
                ends.append(["[", "qemu-nbd", "-f", self.target_format, "--discard=unmap", self.target, "]"])
            run("nbdcopy", "--flush", "--", *ends[0], *ends[1])
            flush(self.target)

        return lambda: self.timed(work)

    def storage_daemon(self, daemon, **tuning):
        def work():
            name = f"target-{daemon.next_node()}"
            if self.target_format == "raw":
                with open(self.target, "wb") as file:
                    file.truncate(self.size)
            else:
                run("qemu-img", "create", "-q", "-f", self.target_format, self.target, str(self.size))
            daemon.add_target(name, self.target, self.target_format)
            daemon.ask("blockdev-backup", job_id="bench", device="bench", target=name, sync="full", **tuning)
            ended = daemon.event("BLOCK_JOB_COMPLETED")
            if "error" in ended["data"]:
                raise RuntimeError(f"qemu-storage-daemon: {ended['data']['error']}")
            daemon.delete_target(name)
            flush(self.target)

        return lambda: self.timed(work, daemon.pid)

    def peers(self, daemons):
        contestants = {
            "qemu-img convert": self.convert(),
            "qemu-img convert, -W -m 16": self.convert("-W", "-m", "16"),
            "qemu-img convert, -W -m 16 -t none": self.convert("-W", "-m", "16", "-t", "none"),
            "qemu-img convert, -W -m 16 -t none -T none": self.convert("-W", "-m", "16", "-t", "none", "-T", "none"),
            "nbdcopy": self.nbdcopy(),
        }
        if self.source_format == self.target_format == "raw":
            contestants["cp --sparse=always"] = self.cp()
        for name, daemon in daemons.items():
            contestants[name] = self.storage_daemon(daemon)
            contestants[f"{name} max-workers=16"] = self.storage_daemon(daemon, x_perf={"max-workers": 16})
        return contestants


class MemoryWatch:
    """What a process and its descendants have in memory at most, looked at every few milliseconds. A context."""

    def __init__(self, pid, pause=0.005):
        self.pid, self.pause, self.peaks, self.done = pid, pause, {}, threading.Event()
        self.own = 0  # bytes: the most that was resident at once and is no file's, of all of them

    def __enter__(self):
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        self.thread.join()

    def watch(self):
        while not self.done.wait(self.pause):
            own = 0
            for pid in Processes().tree(self.pid):
                fields = memory(pid)
                self.peaks[pid] = max(self.peaks.get(pid, 0), fields.get("VmHWM", 0))
                own += fields.get("RssAnon", 0) + fields.get("RssShmem", 0)
            self.own = max(self.own, own)

    def children(self):
        """The greatest VmHWM of a child's; targets have a process each, one after the other."""
        return max((peak for pid, peak in self.peaks.items() if pid != self.pid), default=0)


def measure(row, bench):
    with bench.directory(row) as directory, contextlib.ExitStack() as servers:
        copy = Copy(bench, row, directory)
        drives = [("bench", copy.source, copy.source_format)]
        agent = servers.enter_context(Agent(bench, directory, drives))
        # The warm-up of ours: compared with its source, and its memory watched.
        with MemoryWatch(agent.pid) as watch:
            copy.timed(lambda: check(agent, copy))
        contestants, daemons = {"us": copy.ours(agent)}, {}
        for aio in ("threads", "io_uring") if bench.options.peers else ():
            place = os.path.join(directory, aio)
            os.makedirs(place)
            try:
                daemons[f"qemu-storage-daemon, {aio}"] = servers.enter_context(StorageDaemon(place, drives, aio=aio))
            except Unavailable as reason:
                bench.say(f"without qemu-storage-daemon, {aio}: {reason}")
        if bench.options.peers:
            contestants |= copy.peers(daemons)
        turns = Turns.take(bench, contestants, bench.options.rounds)
        peak = memory(agent.pid)["VmHWM"]
    yield from figures(row, bench, turns, peak, watch)


def check(agent, copy):
    agent.call("start", "bench", copy.target, "--sync", "full", "--format", copy.target_format)
    run("qemu-img", "compare", "-U", "-f", copy.source_format, "-F", copy.target_format, copy.source, copy.target)


def figures(row, bench, turns, peak, watch):
    case = f"{size_text(bench.options.size)}, source in the page cache"
    wall = 0.85 if row == "copy-raw-raw" else 0.8
    yield Figure(row, f"{case}: wall", "s", turns.of("us", "s"), turns.peers("s"), Goal.ratio_at_most(wall),
                 notes=turns.left_out, noise=turns.noise)
    yield Figure(row, f"{case}: processor time", "CPU s", turns.of("us", "cpu"), turns.peers("cpu"),
                 Goal.ratio_at_most(CPU_GOAL), noise=turns.noise)
    yield Figure(row, f"{size_text(bench.options.size)}: agent's peak memory", "MiB", [peak / MiB],
                 goals=Goal.at_most(MEMORY_GOAL),
                 notes=[f"all that is resident, pages of the program too; the target's process has "
                        f"{watch.children() / MiB:.0f}, buffers that both share counted in both; without pages of files "
                        f"both had {watch.own / MiB:.0f} at most at once"])
