"""Running backups, ours and qemu-storage-daemon's, each driven over its socket: no process is started for a command."""

import threading
import time

from .common import PATIENCE, wait
from .wire import Connection, decode

FULL, EXISTING, RUNNING = 1, 2, 2  # SyncMode, TargetMode, JobState
STARTED, PROGRESS, COMPLETED, FAILED, CANCELLED = 4, 6, 9, 10, 11  # JobEvent


class AgentJob:
    """A running backup of ours, of sync full and into a raw image, and its events as they come."""

    def __init__(self, agent, drive, target, existing=False, speed=0):
        """Returns when the point in time is fixed. `speed` is in bytes a second, 0 for unlimited.

        `ended` becomes the number of an event, `ended_at` monotonic seconds.
        """
        self.agent, self.drive, self.ended, self.ended_at, self.share, self.failure = agent, drive, None, None, 0.0, ""
        self.connection = Connection(agent.address, patience=None)
        self.events = self.connection.stream_of("Backups/Start", {
            1: drive, 2: target, 3: FULL, 4: "raw", 7: speed, **({5: EXISTING} if existing else {})})
        for event in self.events:
            if STARTED in event:
                break
        self.thread = threading.Thread(target=self.follow, daemon=True)
        self.thread.start()

    def follow(self):
        try:
            for event in self.events:
                if PROGRESS in event:
                    progress = decode(event[PROGRESS])
                    self.share = progress.get(1, 0) / max(progress.get(2, 0), 1)
                for end in (COMPLETED, FAILED, CANCELLED):
                    if end in event:
                        self.ended_at, self.ended = time.monotonic(), end
                if FAILED in event:
                    self.failure = decode(decode(event[FAILED]).get(1, b"")).get(3, b"").decode(errors="replace")
        except (RuntimeError, OSError) as failure:
            self.failure = str(failure)
        if self.ended is None:
            self.ended_at, self.ended = time.monotonic(), FAILED

    def is_running(self):
        """Asked of the agent: events may be late. A backup that has failed is an error of the bench."""
        if self.ended == FAILED:
            raise RuntimeError(f"the backup failed: {self.failure}")
        with Connection(self.agent.address) as connection:
            return self.ended is None and connection.call("Jobs/Get", {1: self.drive}).get(5) == RUNNING

    def progress(self):
        return self.share

    def cancel(self, patience=PATIENCE):
        """Returns when the job is gone: how many seconds that took; None when it had ended before.

        That it is not gone after `patience` seconds is an error of the bench.
        """
        with Connection(self.agent.address) as connection:
            begun = time.monotonic()
            try:
                if self.ended is None:
                    connection.call("Jobs/Cancel", {1: self.drive})
            except RuntimeError:
                # It may just have ended by itself; its events say so.
                wait(lambda: self.ended is not None, "the end of a job that cannot be cancelled")
        wait(lambda: self.ended is not None, "the job's end", patience, pause=0.001)
        self.thread.join()
        self.connection.close()
        return self.ended_at - begun if self.ended == CANCELLED else None


class DaemonJob:
    """A running blockdev-backup of qemu-storage-daemon into a raw image, as it is by default."""

    def __init__(self, daemon, drive, target, existing=False, **tuning):
        """Returns when the point in time is fixed."""
        self.daemon, self.drive, self.target = daemon, drive, target
        if not existing:
            with open(target, "wb") as file:
                file.truncate(daemon.size(drive))
        self.name = f"target-{daemon.next_node()}"
        daemon.add_target(self.name, target, "raw")
        daemon.ask("blockdev-backup", job_id=self.name, device=self.source(), target=self.name, sync="full", **tuning)

    def source(self):
        return self.drive

    def job(self):
        """What query-jobs says of it; None when it is gone."""
        return next((job for job in self.daemon.ask("query-jobs") if job["id"] == self.name), None)

    def is_running(self):
        job = self.job()
        return bool(job) and job["status"] == "running"

    def progress(self):
        job = self.job()
        return job["current-progress"] / max(job["total-progress"], 1) if job else 1.0

    @property
    def ended(self):
        return self.job() is None

    def cancel(self, patience=10):
        """Returns when the job is gone and its target closed: the seconds until it was gone.

        None when it had ended before; `patience` when it was not gone then; the daemon is good for nothing then.
        """
        begun = time.monotonic()
        try:
            try:
                self.daemon.ask("block-job-cancel", patience=patience, device=self.name, force=True)
            except RuntimeError:
                if self.job():
                    raise
                self.daemon.delete_target(self.name)
                return None
            event = self.daemon.event("BLOCK_JOB_CANCELLED", "BLOCK_JOB_COMPLETED", patience=patience)
            seconds = time.monotonic() - begun
        except TimeoutError:
            return patience
        self.daemon.delete_target(self.name)
        return seconds if event["event"] == "BLOCK_JOB_CANCELLED" else None


class FleecingJob(DaemonJob):
    """The same with the settings that its documentation recommends against slow targets: image fleecing.

    Old data goes to a local file at once, and the copy reads it from there.
    """

    def __init__(self, daemon, drive, target, existing=False):
        super().__init__(daemon, drive, target, existing, x_perf={"max-workers": 4, "max-chunk": 1 << 20})

    def source(self):
        daemon, drive = self.daemon, self.drive
        scratch = f"{daemon.directory}/scratch"
        with open(scratch, "wb") as file:
            file.truncate(daemon.size(drive))
        daemon.ask("blockdev-add", driver="file", node_name="scratch-file", filename=scratch, aio="io_uring")
        daemon.ask("blockdev-add", driver="raw", node_name="scratch", file="scratch-file")
        # The filter goes between the export and the drive: the export is made anew above it.
        daemon.ask("block-export-del", id=f"{drive}-export", mode="hard")
        wait(lambda: not daemon.ask("query-block-exports"), "the end of the peer's export")
        daemon.ask("blockdev-add", driver="copy-before-write", node_name="cbw", file=drive, target="scratch",
                   on_cbw_error="break-snapshot")
        daemon.ask("blockdev-add", driver="snapshot-access", node_name="snapshot", file="cbw")
        daemon.ask("block-export-add", type="nbd", id=f"{drive}-export", node_name="cbw", name=drive, writable=True)
        return "snapshot"
