"""Many jobs: what the agent keeps of them is on disk, not in memory."""

import os
import time

from drivebackup_client import PATIENCE, Client, v1


def test_a_thousand_jobs_leave_memory_and_descriptors_as_they_were(own_agent):
    agent = own_agent
    os.truncate(agent.drive, 64 << 10)
    agent.terminate()
    agent.process.wait()
    agent.start()

    def jobs(count, **fields):
        request = v1("BackupRequest", drive="vm1", target=str(agent.targets / "t"), sync=1, overwrite=True, **fields)
        for _ in range(count):
            assert list(client.start("Backups/Start", request))[-1].completed.result == 1

    def descriptors():
        return len(os.listdir(f"/proc/{agent.process.pid}/fd"))

    def ended():
        """All ended jobs, page by page."""
        found, more = [], True
        while more:
            page = client.call("Jobs/List", v1(
                "ListJobsRequest", all=True, after_sequence=found[-1].last_sequence if found else 0))
            found, more = found + list(page.jobs), page.more
        return found

    with Client(agent.unix) as client:
        # One that stays, and is not told among those that were dismissed.
        jobs(1, job_id="kept", manual_dismiss=True)
        # Until all that is bounded is full: events and ended jobs in memory, SQLite's cache, the allocator's arenas.
        jobs(500)
        memory, files = agent.status("VmRSS"), descriptors()
        jobs(1000)
        deadline = time.monotonic() + PATIENCE
        while descriptors() > files:
            assert time.monotonic() < deadline, f"{files} descriptors were open, now {descriptors()} are"
        grown = agent.status("VmRSS") - memory
        print(f"{memory} KiB and {files} descriptors; {grown} KiB more after 1000 jobs")
        assert grown < 4096, f"memory has grown from {memory} by {grown} KiB"
        assert len({job.last_sequence for job in ended()}) == 1501
        # Each of them can still be watched from its first event on.
        assert [event.sequence for event in client.start("Agent/WatchEvents", v1(
            "WatchEventsRequest", no_follow=True))][0] == 1 << 20 | 1
