"""The load generator: fio's nbd engine, and how near it is to its own limit."""

import json
import signal
import subprocess
import time

from .common import CORES, MiB, PATIENCE

SATURATED = 0.95  # of a core for each of fio's threads, or of all cores together
GREEDY = 0.6  # fio's share of all cores from which on it, and not the server, decides
NOTHING = {"p50": 0.0, "p99": 0.0, "max": 0.0, "rate": 0.0, "mib_s": 0.0, "requests": 0, "cores": 0.0, "hung": False}


class Load:
    """fio against an export: starts at once; `result` waits for its end. Requests of the first `ramp` seconds do not count.

    With a `disk_engine` of fio's it is against a file, without a server and past the page cache.
    """

    def __init__(self, where, *options, seconds=None, connections=1, ramp=0, disk_engine=None):
        self.connections = connections
        place = [f"--ioengine={disk_engine}", "--direct=1", f"--filename={where}"] if disk_engine else [
            "--ioengine=nbd", f"--uri={where}"]
        command = [
            "fio", "--name=load", *place, "--thread", f"--numjobs={connections}",
            "--group_reporting", "--randrepeat=0", "--percentile_list=50:99:99.9", "--output-format=json", *options]
        if seconds:
            command += ["--time_based", f"--runtime={seconds * 1000:.0f}ms"]
        if ramp:
            command += [f"--ramp_time={ramp * 1000:.0f}ms"]
        self.begun = time.monotonic()
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def is_running(self):
        return self.process.poll() is None

    def interrupt(self):
        """It ends soon, with figures."""
        self.process.send_signal(signal.SIGINT)

    def result(self, patience=PATIENCE):
        """{"p50", "p99", "max"} in seconds, "rate" in requests/s, "mib_s", "requests", "cores" that fio used.

        fio cannot be asked while it waits for a request: one that takes longer than the patience makes all latencies as
        long as all of it has taken.
        """
        try:
            out, err = self.process.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            seconds = time.monotonic() - self.begun
            return {**NOTHING, "p50": seconds, "p99": seconds, "max": seconds, "requests": 1, "hung": True}
        if self.process.returncode == -signal.SIGINT and not out:
            return NOTHING  # it was still about to begin
        try:
            # A line about a signal may stand before the object.
            job = json.loads(out[out.index("{"):])["jobs"][0]
        except (ValueError, LookupError):
            raise RuntimeError(f"fio ended with {self.process.returncode}: {(err or out).strip()}") from None
        if job.get("error"):
            raise RuntimeError(f"fio's requests failed with error {job['error']}: {err.strip()}")
        way = max((job["read"], job["write"]), key=lambda way: way["total_ios"])
        latency, points = way["clat_ns"], way["clat_ns"].get("percentile", {})
        return {
            "p50": points.get("50.000000", 0) / 1e9, "p99": points.get("99.000000", 0) / 1e9,
            "max": latency["max"] / 1e9, "rate": way["iops"], "mib_s": way["bw_bytes"] / MiB,
            "requests": way["total_ios"], "cores": (job["usr_cpu"] + job["sys_cpu"]) / 100 * self.connections,
            "hung": False}


def limit(cores, connections, busy):
    """Why fio, and not the server, is the limit; None when it isn't.

    `cores` are those that fio used, `busy` is the share of all cores that was in use.
    """
    if cores >= SATURATED * connections:
        return f"fio is the limit: {cores / connections:.0%} of a core for each connection"
    if busy >= SATURATED and cores >= GREEDY * CORES:
        return f"fio is the limit: all cores are busy, {cores / CORES:.0%} of them with fio"
    return None
