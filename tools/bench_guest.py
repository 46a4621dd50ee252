"""The rows of tools/bench that measure what a guest notices of a backup: see `tools/bench --help`.

The guest is fio's nbd engine on an export of a fully allocated raw drive, which is in the page cache. Idle and busy
rounds take turns, each after a sync; a busy round counts only if the backup was running from before the guest's first
request until after its last one. A round on the fast target ends when the copy has nearly ended.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time

MiB = 1 << 20
P50_GOAL, P99_GOAL = 1.5, 3.0  # busy / idle, at most
LONGEST_GOAL = 0.2  # seconds that one write may take beside a slow target
SEQUENTIAL_GOAL = 0.35  # busy / idle rate, at least
PATIENCE = 60  # seconds for what does not take one, and for a guest's request that hangs
TARGETS = ("fast", "10MiB/s", "5s-a-write")
ROWS = ("guest-during-backup", "guest-sequential")


def make_drive(path, size):
    """Fully allocated: what fio then measures is no allocation."""
    block = random.Random(1).randbytes(8 * MiB)
    with open(path, "wb") as file:
        for start in range(0, size, len(block)):
            file.write(block[:min(len(block), size - start)])
        os.fsync(file.fileno())


@contextlib.contextmanager
def target(kind, directory, size):
    """A file to back up to: a new one, or one of a FUSE file system that is slow."""
    path = os.path.join(directory, "target")
    if kind == "fast":
        # Made new by each server, in its way.
        yield path
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        return
    mountpoint = os.path.join(directory, "mount")
    os.makedirs(mountpoint, exist_ok=True)
    slow = {
        "10MiB/s": ["--filter=rate", "memory", str(size), "rate=80M"],  # in bits a second
        "5s-a-write": ["--filter=delay", "memory", str(size), "wdelay=5"],
    }[kind]
    pid_file = os.path.join(directory, "nbdfuse.pid")
    process = subprocess.Popen(
        ["nbdfuse", "-P", pid_file, f"{mountpoint}/target", "--command", "nbdkit", "-s", "--exit-with-parent", *slow],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait(lambda: os.path.exists(pid_file) or process.poll() is not None, "nbdfuse's mount")
        if process.poll() is not None:
            sys.exit("tools/bench: nbdfuse can't mount here (is there a /dev/fuse?)")
        yield f"{mountpoint}/target"
    finally:
        subprocess.run(["fusermount3", "-uz", mountpoint], stderr=subprocess.DEVNULL)
        # nbdkit ends with it, and what still waits in the kernel gets an error.
        process.kill()
        process.wait()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(pid_file)
        with contextlib.suppress(OSError):
            os.rmdir(mountpoint)


def wait(condition, what, patience=PATIENCE):
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"tools/bench: {what} did not come in {patience} s")
        time.sleep(0.02)


class Ours:
    """drive-backup-agent as a guest's host has it: default settings."""

    name = "us"

    def __init__(self, binaries, directory, drive):
        self.client = os.path.join(binaries, "drive-backup")
        self.directory = directory
        self.address = f"unix:{directory}/agent.sock"
        self.uri = f"nbd+unix:///bench?socket={directory}/bench.nbd"
        self.process = subprocess.Popen([
            os.path.join(binaries, "drive-backup-agent"), "--listen", self.address,
            "--state-directory", f"{directory}/state", "--runtime-directory", f"{directory}/run",
            "--drive", f"id=bench,file={drive},format=raw", "--export", f"drive=bench,listen=unix:{directory}/bench.nbd",
            "--log-level", "error"])
        wait(lambda: self.process.poll() is not None or self.call("agent", "ping").returncode == 0, "the agent")
        if self.process.poll() is not None:
            sys.exit("tools/bench: the agent did not start")

    def call(self, *arguments):
        return subprocess.run(
            [self.client, "--agent", self.address, "--json", *arguments], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def start(self, path, fresh):
        """Starts a full backup, unlimited; returns when its point in time is fixed."""
        self.ended, self.share = None, 0.0
        done = self.call(
            "start", "bench", path, "--sync", "full", "--format", "raw", "--detach",
            *([] if fresh else ["--mode", "existing"]))
        if done.returncode:
            sys.exit(f"tools/bench: {done.stderr.strip()}")
        self.watcher = subprocess.Popen(
            [self.client, "--agent", self.address, "--json", "job", "watch", "bench"], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        threading.Thread(target=self.follow, args=(self.watcher,), daemon=True).start()

    def follow(self, watcher):
        for line in watcher.stdout:
            event = json.loads(line)
            if "progress" in event:
                self.share = event["progress"].get("current", 0) / max(event["progress"]["total"], 1)
            for end in ("completed", "failed", "cancelled"):
                if end in event:
                    self.ended = end
        self.ended = self.ended or "lost"

    def is_running(self):
        """Asked of the agent: the watcher may be late."""
        return self.ended is None and json.loads(self.call("job", "show", "bench").stdout)["state"] == "running"

    def progress(self):
        return self.share

    def has_ended(self):
        return self.ended

    def cancel(self):
        if self.ended is None:
            self.call("job", "cancel", "bench")
        wait(lambda: self.ended is not None, "the job's end")
        self.watcher.wait()

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for name in ("state", "run"):
            shutil.rmtree(f"{self.directory}/{name}", ignore_errors=True)


class Peer:
    """qemu-storage-daemon with blockdev-backup as it is by default."""

    name = "qemu-storage-daemon, default"
    best = False

    def __init__(self, binaries, directory, drive):
        self.directory, self.drive = directory, drive
        self.size = os.path.getsize(drive)
        self.uri = f"nbd+unix:///bench?socket={directory}/bench.nbd"
        self.process = None
        self.launch()

    def launch(self):
        self.nodes, self.ended = 0, None
        for name in ("qmp", "bench.nbd"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{self.directory}/{name}")
        command = [
            "qemu-storage-daemon", "--chardev", f"socket,id=m,path={self.directory}/qmp,server=on,wait=off",
            "--monitor", "chardev=m",
            "--blockdev", f"driver=file,node-name=file,filename={self.drive},aio={'io_uring' if self.best else 'threads'}",
            "--blockdev", "driver=raw,node-name=drive,file=file"]
        if self.best:
            # Image fleecing: the old data goes to a local file at once, and the copy reads it from there.
            self.scratch = f"{self.directory}/scratch"
            with open(self.scratch, "wb") as file:
                file.truncate(self.size)
            command += [
                "--blockdev", f"driver=file,node-name=scratch-file,filename={self.scratch},aio=io_uring",
                "--blockdev", "driver=raw,node-name=scratch,file=scratch-file"]
        command += [
            "--nbd-server", f"addr.type=unix,addr.path={self.directory}/bench.nbd",
            # In its main loop: with an I/O thread the NBD server of 7.2 aborts when a client leaves.
            "--export", "type=nbd,id=e,node-name=drive,name=bench,writable=on"]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        self.qmp = socket.socket(socket.AF_UNIX)
        self.qmp.settimeout(PATIENCE)

        def connected():
            if self.process.poll() is not None:
                sys.exit("tools/bench: qemu-storage-daemon did not start")
            try:
                self.qmp.connect(f"{self.directory}/qmp")
            except OSError:
                return False
            return True

        wait(connected, "qemu-storage-daemon")
        self.lines = self.qmp.makefile("r")
        self.lines.readline()
        self.ask("qmp_capabilities")

    def ask(self, command, **arguments):
        self.qmp.sendall(json.dumps({
            "execute": command, "arguments": {key.replace("_", "-"): value for key, value in arguments.items()},
        }).encode() + b"\n")
        while True:
            value = json.loads(self.lines.readline())
            if value.get("event") in ("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED"):
                self.ended = value["event"]
            if "error" in value:
                sys.exit(f"tools/bench: {command}: {value['error']['desc']}")
            if "return" in value:
                return value["return"]

    def start(self, path, fresh):
        self.ended = None
        if fresh:
            with open(path, "wb") as file:
                file.truncate(self.size)
        self.nodes += 1
        name = f"target-{self.nodes}"
        self.ask("blockdev-add", driver="file", node_name=f"{name}-file", filename=path, locking="off")
        self.ask("blockdev-add", driver="raw", node_name=name, file=f"{name}-file")
        self.ask("blockdev-backup", job_id="bench", device=self.source(), target=name, sync="full", **self.tuning())

    def source(self):
        return "drive"

    def tuning(self):
        return {}

    def jobs(self):
        return [job for job in self.ask("query-jobs") if job["id"] == "bench"]

    def is_running(self):
        return any(job["status"] == "running" for job in self.jobs())

    def progress(self):
        for job in self.jobs():
            return job["current-progress"] / max(job["total-progress"], 1)
        return 1.0

    def has_ended(self):
        return self.ended or (None if self.jobs() else "ended")

    def cancel(self):
        """A job that waits for its target cannot be cancelled; so the process goes, and comes back."""
        self.stop()
        self.launch()

    def stop(self):
        self.process.kill()
        self.process.wait()


class BestPeer(Peer):
    """With the settings that its documentation recommends against slow targets."""

    name = "qemu-storage-daemon, best"
    best = True

    def source(self):
        # The filter goes between the export and the drive: the export is made anew above it.
        self.ask("block-export-del", id="e", mode="hard")
        wait(lambda: not self.ask("query-block-exports"), "the end of the peer's export")
        self.ask(
            "blockdev-add", driver="copy-before-write", node_name="cbw", file="drive", target="scratch",
            on_cbw_error="break-snapshot")
        self.ask("blockdev-add", driver="snapshot-access", node_name="snapshot", file="cbw")
        self.ask("block-export-add", type="nbd", id="e", node_name="cbw", name="bench", writable=True)
        return "snapshot"

    def tuning(self):
        return {"x_perf": {"max-workers": 4, "max-chunk": MiB}}


def fio(uri, *options):
    return subprocess.Popen(
        ["fio", "--name=guest", "--ioengine=nbd", f"--uri={uri}", "--thread", "--time_based", "--randrepeat=0",
         "--percentile_list=50:99:99.9", "--output-format=json", *options],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def result(process):
    try:
        out, err = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        # One request took all this time; fio cannot be asked for figures while it waits.
        process.kill()
        process.wait()
        return {"p50": PATIENCE, "p99": PATIENCE, "max": PATIENCE, "iops": 0, "mib_s": 0, "requests": 1, "error": 0}
    try:
        # A line about the signal may stand before the object.
        job = json.loads(out[out.index("{"):])["jobs"][0]
    except (ValueError, LookupError):
        sys.exit(f"tools/bench: fio ended with {process.returncode}: {err or out}")
    write = job["write"]
    clat, points = write["clat_ns"], write["clat_ns"].get("percentile", {})
    return {
        "p50": points.get("50.000000", 0) / 1e9, "p99": points.get("99.000000", 0) / 1e9, "max": clat["max"] / 1e9,
        "iops": write["iops"], "mib_s": write["bw_bytes"] / MiB, "requests": write["total_ios"],
        "error": job.get("error", 0)}


def idle_round(server, work, seconds):
    os.sync()
    return result(fio(server.uri, *work, f"--runtime={seconds}"))


def busy_round(server, work, seconds, path, fresh):
    """None when the backup was too fast to have run throughout."""
    os.sync()
    server.start(path, fresh)
    process = fio(server.uri, *work, f"--runtime={seconds}")
    deadline = time.monotonic() + seconds + 5
    while process.poll() is None and time.monotonic() < deadline:
        if fresh and server.progress() > 0.8:
            process.send_signal(signal.SIGINT)
            break
        time.sleep(0.05)
    measured = result(process)
    throughout = server.is_running()
    server.cancel()
    return measured if throughout and measured["requests"] else None


def whole_backup(server, work, path):
    """Seconds of a whole backup to the fast target while the guest writes."""
    os.sync()
    begun = time.monotonic()
    server.start(path, True)
    process = fio(server.uri, *work, "--runtime=120")
    wait(server.has_ended, "the end of a backup to the fast target", 240)
    seconds = time.monotonic() - begun
    process.send_signal(signal.SIGINT)
    result(process)
    server.cancel()
    return seconds


def median(rounds, key):
    return statistics.median(entry[key] for entry in rounds)


def compare(kind, server, work, options, directory, rounds):
    """Idle and busy rounds in turn; returns both lists, and how many busy ones did not count."""
    idle, busy, short = [], [], 0
    while len(busy) < rounds and short < rounds + 3:
        idle.append(idle_round(server, work, options.seconds))
        with target(kind, directory, options.drive_size) as path:
            measured = busy_round(server, work, options.seconds, path, kind == "fast")
        if measured is None:
            short += 1
        else:
            busy.append(measured)
    return idle, busy, short


def measure(row, options, directory):
    """Yields one result a server and case."""
    drive = os.path.join(directory, "drive.raw")
    make_drive(drive, options.drive_size)
    sequential = row == "guest-sequential"
    cases = [("fast", 1)] if sequential else [(kind, depth) for kind in TARGETS for depth in (1, 16)]
    for make_server in [Ours] + ([] if options.no_peers else [Peer, BestPeer]):
        server = make_server(options.binaries, directory, drive)
        rounds = options.rounds if make_server is Ours else max(1, options.rounds // 2)
        try:
            for kind, depth in cases:
                work = [f"--iodepth={depth}", f"--size={options.drive_size}",
                        *(["--rw=write", "--bs=1M"] if sequential else ["--rw=randwrite", "--bs=4k"])]
                idle, busy, short = compare(kind, server, work, options, directory, rounds)
                found = {
                    "row": row, "server": server.name, "target": kind, "depth": depth, "rounds": len(busy),
                    "rounds_not_counted": short}
                if busy:
                    found.update(judge(sequential, kind, idle, busy))
                else:
                    found.update(met=False, problem="the backup never ran throughout a round")
                if kind == "fast" and not sequential:
                    with target(kind, directory, options.drive_size) as path:
                        found["backup_seconds"] = round(whole_backup(server, work, path), 2)
                yield found
        finally:
            server.stop()


def judge(sequential, kind, idle, busy):
    found = {}
    for name, rounds in (("idle", idle), ("busy", busy)):
        found[name] = {key: float(f"{median(rounds, key):.3g}") for key in ("p50", "p99", "iops", "mib_s")}
        found[name]["max"] = float(f"{max(entry['max'] for entry in rounds):.3g}")
        found[name]["p50_all"] = [float(f"{entry['p50']:.3g}") for entry in rounds]
        found[name]["p99_all"] = [float(f"{entry['p99']:.3g}") for entry in rounds]
    if sequential:
        found["rate_ratio"] = round(median(busy, "mib_s") / median(idle, "mib_s"), 3)
        found["met"] = found["rate_ratio"] >= SEQUENTIAL_GOAL
    else:
        found["p50_ratio"] = round(median(busy, "p50") / median(idle, "p50"), 2)
        found["p99_ratio"] = round(median(busy, "p99") / median(idle, "p99"), 2)
        found["met"] = found["p50_ratio"] <= P50_GOAL and found["p99_ratio"] <= P99_GOAL and (
            kind == "fast" or found["busy"]["max"] <= LONGEST_GOAL)
    # A request that failed makes its figures worthless.
    if any(entry["error"] for entry in idle + busy):
        found.update(met=False, problem="fio's requests failed")
    return found


def show(found):
    """One line for people; times in milliseconds."""
    line = f"{found['row']:20} {found['target']:>10} depth {found['depth']:<2} {found['server']:28} "
    if "problem" in found:
        line += found["problem"]
    if "rate_ratio" in found:
        line += (f"{found['idle']['mib_s']:7.0f} -> {found['busy']['mib_s']:7.0f} MiB/s, ratio {found['rate_ratio']:.2f} "
                 f"(goal {SEQUENTIAL_GOAL})")
    elif "p50_ratio" in found:
        idle, busy = found["idle"], found["busy"]
        line += "  ".join(
            f"{key} {idle[key] * 1e3:.3f} -> {busy[key] * 1e3:.3f} ms" for key in ("p50", "p99", "max"))
        line += f"  ratios {found['p50_ratio']:.2f}, {found['p99_ratio']:.2f} (goals {P50_GOAL}, {P99_GOAL})"
        if "backup_seconds" in found:
            line += f"  whole backup {found['backup_seconds']:.1f} s"
    line += f"  {found['rounds']} rounds" + (
        f", {found['rounds_not_counted']} not counted" if found["rounds_not_counted"] else "")
    line += "  for the record" if found["server"] != Ours.name else f"  met: {'yes' if found['met'] else 'NO'}"
    print(line, flush=True)
