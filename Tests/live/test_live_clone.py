"""Full backups of raw drives to raw files on a file system that shares blocks: they begin with a clone. At rest, under
guests that never stop writing, and over kills they are the drive as it stood."""

import random

import manifests
import pytest
from drives import make
from harness import kind
from images import MiB
from servers import IS_PEER
from sharing import TYPES, SharingFileSystem, shares_blocks
from target_processes import mounted
from test_live_restart import killed_at_random

pytestmark = pytest.mark.skipif(IS_PEER, reason="the peer reads and writes everything")


@pytest.fixture(params=TYPES)
def shared(request, tmp_path):
    """A directory on such a file system."""
    with mounted(SharingFileSystem(tmp_path, request.param)) as system:
        yield system.path


def test_at_rest_it_is_a_clone_and_its_manifest_says_so(shared, served, seed):
    drive = make(shared, "raw", seed)
    server = served(drive)
    truth = drive.path.read_bytes()
    agent = server.agent
    target = shared / "t.raw"
    agent.backup(drive.id, target)
    assert target.read_bytes() == truth
    assert shares_blocks(target)
    assert agent.job(drive.id)["cloned"] is True
    assert agent.job(drive.id)["progress"] == {"current": len(truth), "total": len(truth)}
    manifest = manifests.load(target)
    assert manifest["state"] == "complete" and manifest["cloned"] is True and manifest["size"] == len(truth)
    assert "extents" not in manifest and "checksum" not in manifest and manifest["end"] is True
    # Nobody has read it, so nobody can say whether it is what it was.
    agent.refused("verify", target, says=["no checksums", "--checksum"])
    restored = agent.ok("restore", target, shared / "r.raw")
    remarks = [event["io_error"] for event in restored.objects if kind(event) == "io_error"]
    assert [remark["action"] for remark in remarks] == ["warn"] and "no checksums" in remarks[0]["message"], remarks
    assert (shared / "r.raw").read_bytes() == truth and not shares_blocks(shared / "r.raw")


@pytest.mark.parametrize("option", ["--checksum=xxh3-128", "--checksum=sha-256", "--clone=never"])
def test_who_wants_checksums_gets_a_copy(shared, served, seed, option):
    drive = make(shared, "raw", seed)
    agent = served(drive).agent
    target = shared / "t.raw"
    agent.backup(drive.id, target, option)
    assert target.read_bytes() == drive.path.read_bytes()
    assert not shares_blocks(target)
    assert not agent.job(drive.id).get("cloned", False)
    manifests.judge(manifests.load(target), drive.path.read_bytes())
    assert kind(agent.ok("verify", target).objects[-1]) == "completed"


def test_other_file_systems_and_formats_get_copies(shared, served, targets, seed):
    drive = make(shared, "raw", seed)
    agent = served(drive).agent
    for target, image_format in ((targets / "t.raw", "raw"), (shared / "t.qcow2", "qcow2")):
        agent.backup(drive.id, target, "--format", image_format)
        assert not agent.job(drive.id).get("cloned", False)
        manifests.judge(manifests.load(target), drive.path.read_bytes())


@pytest.mark.parametrize("depth", (4, 16))
def test_it_is_of_one_instant_though_the_guest_never_stops(depth, shared, served, clients, tmp_path, seed):
    drive = make(shared, "raw", seed)
    server = served(drive)
    guest = clients.guest(server.endpoint(drive), seed, depth=depth, connections=2)
    guest.run()
    guest.go_on(200)
    for turn in range(3):
        target = shared / f"{turn}.raw"
        guest.mark()
        backup = server.backup(drive, target, "full", "raw")
        truth = guest.release(tmp_path / f"truth-{turn}")
        guest.go_on(200)
        backup.wait()
        assert server.agent.job(drive.id)["cloned"] is True
        truth.check(target, f"backup {turn}", instant=True)
        guest.go_on(200)
        truth.check(target, f"backup {turn}, after the guest went on", instant=True)
        target.unlink()
    guest.quiesce()
    after = guest.truth(tmp_path / "after")
    guest.end()
    server.stop()
    after.check(drive.path, "the drive after a clean stop")


def test_it_goes_on_over_kills(shared, served, clients, tmp_path, seed):
    chance = random.Random(seed)
    drive = make(shared, "raw", seed)
    server = served(drive)
    guest = clients.guest(server.endpoint(drive), seed, depth=8, survive=True)
    guest.run()
    for turn in range(3):
        guest.go_on(100)
        guest.quiesce()
        truth = guest.truth(tmp_path / f"truth-{turn}")
        target = shared / f"{turn}.raw"
        # What is cloned is done; the rest, what the guest overwrites meanwhile, is held up by the speed.
        backup = server.backup(drive, target, "full", "raw", speed="6M", manual=True)
        guest.run()
        killed_at_random(server, [guest], chance, kills=3, slowest=0.1)
        backup.end_view()
        truth.check(target, f"backup {turn} after three kills")
        assert len(target.read_bytes()) > 16 * MiB
    guest.quiesce()
    guest.end()
