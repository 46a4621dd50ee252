"""Jobs: states and verbs (SEMANTICS 4 and 7.46 to 7.55), events, request keys."""

import pytest
from harness import END_EVENTS, assert_events, kind
from images import KiB, MiB, check, create, qemu_io, raw, same

SIZE = 8 * MiB


@pytest.fixture
def agent(start_agent, images):
    disk = raw(images / "d.raw", SIZE, [(0, SIZE)])
    other = raw(images / "e.raw", SIZE, [(0, SIZE)])
    agent = start_agent(("vm1", disk), ("vm2", other))
    agent.disk, agent.other = disk, other
    return agent


def states(events):
    return [event["state_changed"]["state"] for event in events if "state_changed" in event]


def end_of(events):
    ends = [event for event in events if kind(event) in END_EVENTS]
    assert len(ends) == 1, events
    return ends[0]


def test_a_plain_job(agent, targets):
    agent.backup("vm1", targets / "t")
    watch = agent.stream("job", "watch", "vm1")
    assert watch.end() == 0
    assert_events(watch.events)
    told = states(watch.events)
    assert told[0] in ("created", "running") and told[-1] == "concluded" and "paused" not in told
    order = ["created", "running", "waiting", "pending", "concluded"]
    assert told == sorted(set(told), key=order.index), told
    end = end_of(watch.events)
    assert end["completed"]["result"] == "completed"
    assert end["completed"]["progress"] == {"current": SIZE, "total": SIZE}
    started = next(event["started"] for event in watch.events if "started" in event)
    assert started["drive"] == "vm1" and started["target"] == str(targets / "t")
    assert started["sync"] == "full" and started["format"] == "raw" and started["point_in_time"] > 0

    assert agent.ok("job", "list").objects == []
    job = agent.ok("job", "list", "--all").object
    assert job == agent.job("vm1")
    assert (job["id"], job["type"], job["drive"], job["target"]) == ("vm1", "backup", "vm1", str(targets / "t"))
    assert (job["state"], job["result"]) == ("concluded", "completed")
    assert job["progress"] == {"current": SIZE, "total": SIZE}
    assert job["last_sequence"] == watch.events[-1]["sequence"]
    assert job["created_at"] <= job["point_in_time"] <= job["ended_at"]
    assert not job.get("error")


def test_progress_grows_and_stays_below_the_total(agent, targets):
    stream = agent.stream("start", "vm1", targets / "t", "--speed", "4M")
    assert stream.end() == 0
    seen = [event["progress"] for event in stream.events if "progress" in event]
    assert seen, "no progress was told in two seconds"
    currents = [progress.get("current", 0) for progress in seen]
    assert currents == sorted(currents)
    assert all(progress.get("current", 0) <= progress["total"] <= SIZE for progress in seen)


def test_detach_returns_when_the_point_in_time_is_fixed(agent, targets):
    started = agent.slow_job("vm1", targets / "t")
    assert started["job_id"] == "vm1"
    job = agent.ok("job", "list").object
    assert (job["id"], job["state"], job["speed"]) == ("vm1", "running", 64 * KiB)
    assert not job.get("result")
    assert (targets / "t.partial").exists() and not (targets / "t").exists()
    assert agent.ok("agent", "info").object["jobs"] == 1


def test_the_target_is_whole_when_completed_is_told(agent, targets):
    stream = agent.stream("start", "vm1", targets / "t.qcow2", "--format", "qcow2", "--speed", "16M")
    stream.until_kind("completed")
    check(targets / "t.qcow2")
    same(agent.disk, "raw", targets / "t.qcow2", "qcow2")
    qemu_io(targets / "t.qcow2", "qcow2", "write 0 512")  # closed and unlocked
    assert sorted(path.name for path in targets.iterdir()) == ["t.qcow2", "t.qcow2.manifest.json"]
    assert stream.end() == 0


def test_pause_and_resume(agent, targets):
    agent.slow_job("vm1", targets / "t")
    watch = agent.stream("job", "watch", "vm1")
    agent.refused("job", "resume", "vm1", says="vm1")
    agent.ok("job", "pause", "vm1")
    paused = watch.until_state("paused")
    assert paused["state_changed"]["pause_reason"] == "user"
    job = agent.job("vm1")
    assert (job["state"], job["pause_reason"]) == ("paused", "user")
    agent.refused("job", "pause", "vm1", says="vm1")
    agent.refused("job", "finalize", "vm1", says="vm1")
    agent.refused("job", "dismiss", "vm1", says="vm1")
    # It stays where it is, however fast it may be.
    assert agent.ok("job", "set-speed", "vm1", "0").object.get("speed", 0) == 0
    at = agent.job("vm1")["progress"]
    assert at["current"] < SIZE
    agent.ok("job", "resume", "vm1")
    assert watch.end() == 0
    between = [event for event in watch.events if event["sequence"] > paused["sequence"]]
    running = next(event["sequence"] for event in between if "state_changed" in event)
    for event in between:
        if "progress" in event and event["sequence"] < running:
            assert event["progress"]["current"] == at["current"], between
    assert states(watch.events).count("paused") == 1
    same(agent.disk, "raw", targets / "t", "raw")


def test_cancel(agent, targets):
    agent.slow_job("vm1", targets / "t")
    watch = agent.stream("job", "watch", "vm1")
    agent.ok("job", "cancel", "vm1")
    assert watch.end() == 4
    assert "cancelled" in end_of(watch.events)
    assert states(watch.events)[-1] == "concluded"
    assert list(targets.iterdir()) == []
    assert agent.job("vm1")["result"] == "cancelled"
    agent.refused("job", "cancel", "vm1", says="vm1")
    assert agent.stream("job", "watch", "vm1").end() == 4
    agent.backup("vm1", targets / "t")


def test_cancel_of_a_paused_job(agent, targets):
    agent.slow_job("vm1", targets / "t")
    watch = agent.stream("job", "watch", "vm1")
    agent.ok("job", "pause", "vm1")
    watch.until_state("paused")
    agent.ok("job", "cancel", "vm1")
    assert watch.end() == 4
    assert list(targets.iterdir()) == []


def test_an_attached_start_ends_with_the_jobs_result(agent, targets):
    stream = agent.stream("start", "vm1", targets / "t", "--speed", "64K")
    stream.until_kind("started")
    agent.ok("job", "cancel", "vm1")
    assert stream.end() == 4
    assert "cancelled" in end_of(stream.events)


def test_manual_finalize(agent, targets):
    agent.slow_job("vm1", targets / "t", "--manual-finalize", speed="0")
    watch = agent.stream("job", "watch", "vm1")
    watch.until_kind("pending")
    job = agent.job("vm1")
    assert job["state"] == "pending" and job["manual_finalize"] is True and not job.get("result")
    assert not (targets / "t").exists()
    for verb in (["pause"], ["dismiss"], ["set-speed", "1M"], ["resume"]):
        agent.refused("job", verb[0], "vm1", *verb[1:], says="vm1")
    agent.refused("start", "vm1", targets / "u", "--job-id", "another")
    agent.ok("job", "finalize", "vm1")
    assert watch.end() == 0
    same(agent.disk, "raw", targets / "t", "raw")
    agent.refused("job", "finalize", "vm1", says="vm1")


def test_cancel_in_pending_is_cancelled(agent, targets):
    agent.slow_job("vm1", targets / "t", "--manual-finalize", speed="0")
    watch = agent.stream("job", "watch", "vm1")
    watch.until_kind("pending")
    agent.ok("job", "cancel", "vm1")
    assert watch.end() == 4
    assert list(targets.iterdir()) == []


@pytest.mark.parametrize("result", ["completed", "cancelled"])
def test_manual_dismiss(agent, targets, result):
    agent.slow_job("vm1", targets / "t", "--manual-dismiss", speed="64K" if result == "cancelled" else "0")
    watch = agent.stream("job", "watch", "vm1")
    if result == "cancelled":
        agent.ok("job", "cancel", "vm1")
    watch.until_state("concluded")
    job = agent.ok("job", "list").object
    assert (job["state"], job["result"], job["manual_dismiss"]) == ("concluded", result, True)
    # The drive is free, the id is not.
    agent.refused("start", "vm1", targets / "u", says="vm1")
    agent.backup("vm1", targets / "u", "--job-id", "another")
    for verb in (["pause"], ["finalize"], ["set-speed", "1M"], ["resume"], ["cancel"]):
        agent.refused("job", verb[0], "vm1", *verb[1:], says="vm1")
    agent.ok("job", "dismiss", "vm1")
    assert agent.ok("job", "list").objects == []
    assert agent.job("vm1")["result"] == result
    agent.refused("job", "dismiss", "vm1", says=["vm1", "dismissed already"])
    agent.backup("vm1", targets / "v")


def test_set_speed(agent, targets):
    agent.slow_job("vm1", targets / "t")
    for speed in ("-1", "quick", "1e3x", ""):
        agent.refused("job", "set-speed", "vm1", speed, code=64)
    assert agent.job("vm1")["speed"] == 64 * KiB
    assert agent.ok("job", "set-speed", "vm1", "128K").object["speed"] == 128 * KiB
    assert agent.job("vm1")["speed"] == 128 * KiB
    agent.ok("job", "set-speed", "vm1", "0")
    assert agent.stream("job", "watch", "vm1").end() == 0
    same(agent.disk, "raw", targets / "t", "raw")


def test_the_speed_is_kept(agent, targets):
    """8 MiB at 2 MiB a second; the time is the agent's own record, and only a lower bound is held."""
    agent.backup("vm1", targets / "t", "--speed", "2M")
    job = agent.job("vm1")
    assert job["ended_at"] - job["created_at"] > 2.5e9


def test_two_jobs_at_once_under_names_of_their_own(agent, targets):
    agent.slow_job("vm1", targets / "t", "--job-id", "nightly-1.a_b")
    agent.slow_job("vm2", targets / "u")
    jobs = {job["id"]: job for job in agent.ok("job", "list").objects}
    assert set(jobs) == {"nightly-1.a_b", "vm2"} and jobs["nightly-1.a_b"]["drive"] == "vm1"
    for name in jobs:
        agent.ok("job", "set-speed", name, "0")
    for name in jobs:
        watch = agent.stream("job", "watch", name)
        assert watch.end() == 0
        assert {event["job_id"] for event in watch.events} == {name}


def test_watch_after_a_number(agent, targets):
    agent.backup("vm1", targets / "t")
    watch = agent.stream("job", "watch", "vm1")
    assert watch.end() == 0
    for number, event in enumerate(watch.events):
        later = agent.stream("job", "watch", "vm1", "--after", event["sequence"])
        assert later.end() == 0
        assert later.events == watch.events[number + 1:]


def test_events(agent, targets):
    agent.backup("vm1", targets / "t")
    agent.backup("vm2", targets / "u")
    events = agent.ok("events").objects
    assert_events(events)
    assert [event["job_id"] for event in events if "started" in event] == ["vm1", "vm2"]
    middle = events[len(events) // 2]["sequence"]
    assert agent.ok("events", "--after", middle).objects == [e for e in events if e["sequence"] > middle]
    last = events[-1]["sequence"]
    assert agent.ok("events", "--after", last).objects == []
    assert agent.ok("agent", "info").object["last_sequence"] == last

    follower = agent.stream("events", "--follow", "--after", last)
    agent.backup("vm1", targets / "v")
    follower.until_kind("completed")
    assert_events(follower.events)
    assert all(event["sequence"] > last for event in follower.events)


def test_numbers_of_events_grow_over_restarts(agent, targets):
    agent.backup("vm1", targets / "t")
    last = agent.ok("agent", "info").object["last_sequence"]
    agent.restart()
    agent.backup("vm1", targets / "u")
    agent.kill()
    agent.start()
    events = agent.backup("vm1", targets / "v")
    assert events[0]["sequence"] > last


def test_request_keys(agent, targets):
    first = agent.ok("start", "vm1", targets / "t", "--request-key", "k1").objects
    again = agent.ok("start", "vm1", targets / "t", "--request-key", "k1").objects
    assert end_of(again)["sequence"] == end_of(first)["sequence"]
    assert len(agent.ok("job", "list", "--all").objects) == 1
    agent.refused("start", "vm1", targets / "u", "--request-key", "k1", says="k1")
    agent.refused("start", "vm2", targets / "t", "--request-key", "k1", says="k1")
    assert sorted(path.name for path in targets.iterdir()) == ["t", "t.manifest.json"]
    # A refused start takes no key.
    agent.refused("start", "vm9", targets / "w", "--request-key", "k2")
    agent.backup("vm1", targets / "w", "--request-key", "k2")


def test_a_request_key_finds_a_running_job(agent, targets):
    agent.slow_job("vm1", targets / "t", "--request-key", "k")
    again = agent.slow_job("vm1", targets / "t", "--request-key", "k")
    assert again["job_id"] == "vm1"
    assert len(agent.ok("job", "list").objects) == 1
    agent.ok("job", "cancel", "vm1")


def test_a_client_that_goes_away_ends_no_job(agent, targets):
    stream = agent.stream("start", "vm1", targets / "t", "--speed", "256K")
    stream.until_kind("started")
    stream.process.kill()
    stream.process.wait()
    watch = agent.stream("job", "watch", "vm1")
    agent.ok("job", "set-speed", "vm1", "0")
    assert watch.end() == 0
    same(agent.disk, "raw", targets / "t", "raw")


def test_a_drive_can_be_backed_up_again_at_once(agent, targets):
    for number in range(5):
        agent.slow_job("vm1", targets / "t")
        agent.ok("job", "cancel", "vm1")
        assert agent.stream("job", "watch", "vm1").end() == 4
        assert list(targets.iterdir()) == []
    agent.backup("vm1", targets / "t")


def test_many_watchers(agent, targets):
    agent.slow_job("vm1", targets / "t")
    watchers = [agent.stream("job", "watch", "vm1") for _ in range(20)]
    for watcher in watchers:
        watcher.until_kind("started")
    agent.ok("job", "set-speed", "vm1", "0")
    for watcher in watchers:
        assert watcher.end() == 0
        assert "completed" in end_of(watcher.events)
