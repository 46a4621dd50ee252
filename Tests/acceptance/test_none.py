"""Backups of sync mode none, as far as nobody writes to the drive; and what is kept of a target."""

import pytest

from harness import kind, untouched
from images import MiB, create, info, qemu_img, raw

SIZE = 8 * MiB


@pytest.fixture
def disk(images):
    return raw(images / "vm1.raw", SIZE, [(0, 3 * MiB)])


@pytest.fixture
def agent(start_agent, disk):
    return start_agent(f"id=vm1,file={disk},format=raw")


def end(agent, *verbs):
    """The job's events to its end."""
    stream = agent.stream("job", "watch", "vm1")
    for verb in verbs:
        agent.ok("job", *verb, "vm1")
    code = stream.end()
    return code, stream.events


def test_a_cancel_is_the_good_end(agent, disk, targets):
    target = targets / "t.qcow2"
    agent.slow_job("vm1", target, "--format", "qcow2", sync="none", speed="2M")
    assert agent.job("vm1")["sync"] == "none"
    code, events = end(agent, ["cancel"])
    assert code == 0 and kind(events[-1]) == "completed", events
    states = [event["state_changed"]["state"] for event in events if kind(event) == "state_changed"]
    assert states[-2:] == ["aborting", "concluded"], events
    agent.terminate()
    facts = info(target)
    assert facts["full-backing-filename"] == str(disk) and facts["backing-filename-format"] == "raw"
    qemu_img("compare", "-f", "qcow2", "-F", "raw", target, disk)


def test_by_force_nothing_is_left(agent, targets):
    with untouched_names(targets):
        agent.slow_job("vm1", targets / "t.qcow2", "--format", "qcow2", sync="none")
        code, events = end(agent, ["cancel", "--force"])
        assert code == 4 and kind(events[-1]) == "cancelled", events


def untouched_names(directory):
    class Check:
        def __enter__(self):
            self.before = sorted(directory.iterdir())

        def __exit__(self, *_):
            assert sorted(directory.iterdir()) == self.before

    return Check()


def test_what_cannot_be_is_refused(agent, images, targets):
    other = raw(images / "other.raw", SIZE)
    strange = create(targets / "strange.qcow2", SIZE, backing=(other, "raw"))
    alone = create(targets / "alone.qcow2", SIZE)
    plain = raw(targets / "plain.raw", SIZE)
    with untouched(targets, images):
        agent.refused("start", "vm1", targets / "t", "--sync", "none", says="backing")
        agent.refused("start", "vm1", targets / "t", "--sync", "none", "--format", "raw", says="backing")
        agent.refused("start", "vm1", strange, "--sync", "none", "--mode", "existing", says="other.raw")
        agent.refused("start", "vm1", alone, "--sync", "none", "--mode", "existing", says="backing")
        agent.refused("start", "vm1", plain, "--sync", "none", "--mode", "existing", says="backing")
        agent.refused("start", "vm1", plain, "--sync", "none", "--mode", "existing", "--format", "raw", says="backing")
        agent.refused(
            "start", "vm1", targets / "t", "--sync", "none", "--format", "qcow2", "--manual-finalize", code=64,
            says="finalize")


def test_an_existing_target_lies_on_the_drive(agent, disk, images, targets):
    (images / "link.raw").hardlink_to(disk)
    target = targets / "t.qcow2"
    qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", "../images/link.raw", "-F", "raw", target, SIZE)
    agent.slow_job("vm1", target, "--mode", "existing", sync="none", speed="2M")
    code, _ = end(agent, ["cancel"])
    assert code == 0


@pytest.mark.parametrize("keeps", [True, False])
def test_what_is_kept_of_a_target(agent, targets, keeps):
    target = targets / "t.qcow2"
    agent.slow_job(
        "vm1", target, "--format", "qcow2", *(["--keep-target"] if keeps else []), speed="1")
    stream = agent.stream("job", "watch", "vm1")
    stream.until(lambda event: kind(event) == "progress" and event["progress"]["current"] > 0)
    agent.ok("job", "cancel", "vm1")
    assert stream.end() == 4
    partial = targets / "t.qcow2.partial"
    assert partial.exists() == keeps and not target.exists()
    if keeps:
        qemu_img("check", "-q", "-f", "qcow2", partial)
        agent.refused("start", "vm1", target, says="partial")


def test_staging_is_where_it_is_told_and_leaves_nothing(start_agent, disk, targets, tmp_path):
    staging = tmp_path / "staging"
    agent = start_agent(f"id=vm1,file={disk},format=raw", arguments=["--staging", f"{staging},size=1G"])
    agent.backup("vm1", targets / "t")
    assert [path.name for path in staging.iterdir()] == ["staging.lock"]
    assert list((agent.directory / "run" / "jobs").iterdir()) == []


def test_what_a_killed_agent_has_left_goes_on_or_is_removed_and_told(start_agent, disk, targets):
    agent = start_agent(f"id=vm1,file={disk},format=raw")
    agent.slow_job("vm1", targets / "t", "--job-id", "nightly")
    agent.kill()
    for directory, name in (("run/jobs", "9-nightly.record"), ("state/staging", "9-nightly.staging")):
        (agent.directory / directory / name.replace("nightly", "starting")).write_bytes(b"left")
    agent.start()
    assert "The job starting was being started" in agent.log()
    assert [path.name for path in (agent.directory / "run" / "jobs").iterdir()] == ["1-nightly.record"]
    staging = agent.directory / "state" / "staging"
    assert {path.name for path in staging.iterdir()} == {"staging.lock", "1-nightly.staging", "1-nightly.sums"}
    assert (targets / "t.partial").exists()
    agent.ok("job", "set-speed", "nightly", "0")
    assert agent.stream("job", "watch", "nightly").end() == 0
    assert (targets / "t").read_bytes() == disk.read_bytes()
    assert list((agent.directory / "run" / "jobs").iterdir()) == []
    assert [path.name for path in staging.iterdir()] == ["staging.lock"]
