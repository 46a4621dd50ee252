"""Backups of several drives at one instant."""

import pytest

from harness import assert_events, kind, untouched
from images import MiB, raw

SIZE = 8 * MiB
NAMES = ("a", "b", "c")


@pytest.fixture
def agent(start_agent, images):
    return start_agent(*[
        f"id={name},file={raw(images / name, SIZE, [(0, 2 * MiB)])},format=raw" for name in NAMES])


def pairs(targets, names=NAMES):
    return [f"{name}={targets}/{name}.raw" for name in names]


def test_all_start_at_one_instant_and_all_are_followed(agent, images, targets):
    events = agent.ok("start-group", *pairs(targets)).objects
    assert_events(events)
    assert [kind(event) for event in events[:3]] == ["started"] * 3
    assert [event["job_id"] for event in events[:3]] == list(NAMES)
    assert len({event["started"]["point_in_time"] for event in events[:3]}) == 1
    assert sorted(event["job_id"] for event in events if kind(event) == "completed") == list(NAMES)
    for name in NAMES:
        assert (targets / f"{name}.raw").read_bytes() == (images / name).read_bytes()


def test_people_get_the_ids(agent, targets):
    result = agent.ok("start-group", *pairs(targets), as_json=False)
    assert result.out.splitlines() == list(NAMES)
    assert sum("backed up" in line for line in result.err.splitlines()) == 3, result


@pytest.mark.parametrize("bad", NAMES)
def test_if_one_cannot_start_none_does(agent, targets, bad):
    (targets / f"{bad}.raw").write_text("there already")
    with untouched(targets):
        agent.refused("start-group", *pairs(targets), says=f"{bad}.raw")
    assert agent.ok("job", "list", "--all").objects == []
    (targets / f"{bad}.raw").unlink()
    agent.ok("start-group", *pairs(targets))


def test_what_makes_no_sense_is_refused(agent, images, targets):
    with untouched(targets):
        agent.refused("start-group", f"a={targets}/1", f"a={targets}/2", code=64, says="twice")
        agent.refused("start-group", f"a={targets}/1", f"b={targets}/1", code=64, says="twice")
        agent.refused("start-group", f"a={targets}/1", f"x={targets}/2", says="x")
        agent.refused("start-group", "a", code=64)
        agent.refused("start-group", f"a={targets}/1", f"b={images}/c", "--overwrite", says="drive c")


def test_the_worst_result_is_the_exit_code(agent, targets):
    stream = agent.stream("start-group", *pairs(targets), "--speed", "64K")
    for _ in NAMES:
        stream.until_kind("started")
    agent.ok("job", "set-speed", "a", 0)
    agent.ok("job", "set-speed", "c", 0)
    agent.ok("job", "cancel", "b")
    assert stream.end() == 4
    ends = {event["job_id"]: kind(event) for event in stream.events if kind(event) in ("completed", "cancelled")}
    assert ends == {"a": "completed", "b": "cancelled", "c": "completed"}


def test_a_detached_group_goes_on(agent, targets):
    events = agent.ok("start-group", *pairs(targets), "--detach").objects
    assert [kind(event) for event in events] == ["started"] * 3
    for name in NAMES:
        assert agent.stream("job", "watch", name).end() == 0
