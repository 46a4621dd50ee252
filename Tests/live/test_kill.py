"""kill -9 of the agent at random moments under load, 25 times a drive: what was acknowledged is there after the restart,
what was flushed is in the file whatever happens, and a qcow2 file is clean or leaking at every moment."""

import json
import random
import shutil
import subprocess
import time

import pytest
from drives import as_raw, make
from images import qemu_img
from remote import Truth
from servers import IS_PEER

KILLS = 25


def assert_clean_or_leaking(path, when):
    """qemu-img check: 0 is clean, 3 is leaks and nothing else."""
    done = subprocess.run(
        ["qemu-img", "check", "-U", "--output=json", "-f", "qcow2", str(path)], stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=60)
    # What it finds goes to standard error, before the object that counts it.
    assert done.returncode in (0, 3), (
        f"{when}: qemu-img check ends with {done.returncode}: {done.stdout} {done.stderr}")
    found = json.loads(done.stdout)
    assert not found.get("corruptions") and not found.get("check-errors"), f"{when}: {done.stdout}"
    return found.get("leaks", 0)


# The peer's qcow2 loses what was not flushed.
@pytest.mark.parametrize("drive_kind", ["raw"] if IS_PEER else ["raw", "overlay-64K", "raw-direct"])
def test_nothing_acknowledged_is_lost_by_a_killed_agent(
        drive_kind, served, clients, images, targets, tmp_path, seed):
    chance = random.Random(seed)
    drive = make(images, drive_kind, seed)
    server = served(drive)
    guest = clients.guest(server.endpoint(drive), seed, depth=16, connections=2, survive=True)
    lost = judged = 0
    for kill in range(KILLS):
        guest.run()
        guest.go_on(20)
        # One that was running goes on, or makes room for another.
        running = server.has_job(drive)
        if running and chance.random() < 0.5:
            server.give_up(drive)
            running = False
        if not running and chance.random() < 0.4:
            # So that some are killed while old data is being saved, and TRIMs are being kept.
            server.backup(drive, targets / f"{kill}.raw", "full", "raw", speed="256K")
        # The random moment.
        time.sleep(chance.random() * 0.25)
        server.kill()
        lost += guest.ask("lose")["lost"]
        if chance.random() < 0.4:
            judged += 1
            judge_the_file(drive, guest, images, tmp_path, kill)
        server.start()
        guest.ask("reconnect")
    assert lost > 0, "no kill met a request on its way"
    print(f"{KILLS} kills, {lost} requests were on their way, {judged} times the file was judged")
    assert judged > 0
    guest.run()
    guest.go_on(200)
    guest.quiesce()
    after = guest.truth(tmp_path / "after")
    guest.end()
    server.stop()
    if drive.format == "qcow2":
        leaks = assert_clean_or_leaking(drive.path, "after the clean stop")
        print(f"{leaks} clusters leak after {KILLS} kills")
    after.check(as_raw(drive.path, drive.format, tmp_path / "content"), "the drive after a clean stop")


def judge_the_file(drive, guest, images, tmp_path, kill):
    """A copy of the file as the kill left it, as a crash of the host would have found it at best."""
    copy = images / "copy"
    shutil.copyfile(drive.path, copy)
    if drive.format == "qcow2":
        assert_clean_or_leaking(copy, f"the file right after kill {kill}")
    # A raw file holds what was acknowledged; a qcow2 file alone, without its journal, what was flushed.
    guest.ask("durable", path=str(tmp_path / "durable"), acknowledged=drive.format == "raw")
    Truth(tmp_path / "durable").check(
        as_raw(copy, drive.format, tmp_path / "content"), f"a copy of the file right after kill {kill}")
    copy.unlink()


@pytest.mark.skipif(IS_PEER, reason="the peer has no journal")
def test_a_restart_by_sigterm_loses_nothing_either(served, clients, images, tmp_path, seed):
    drive = make(images, "overlay-64K", seed)
    server = served(drive)
    guest = clients.guest(server.endpoint(drive), seed, depth=8, survive=True)
    for _ in range(5):
        guest.run()
        guest.go_on(150)
        server.stop()
        guest.ask("lose")
        assert_clean_or_leaking(drive.path, "after a stop under load")
        qemu_img("check", "-f", "qcow2", drive.path)
        server.start()
        guest.ask("reconnect")
    guest.quiesce()
    guest.truth(tmp_path / "after")
    guest.end()
