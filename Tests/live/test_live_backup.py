"""Backups of drives whose guest writes, zeroes and trims all the while."""

import random

import pytest
from drives import KINDS, as_raw, make
from images import KiB, MiB, check

SYNCS = ("full", "top", "none")


def cases():
    for drive_kind in KINDS:
        for sync in SYNCS:
            if sync != "top" or drive_kind.startswith("overlay"):
                yield pytest.param(drive_kind, sync, id=f"{drive_kind}-{sync}")
    for drive_kind, sync in (("raw-direct", "full"), ("raw-direct", "none"), ("overlay-64K-direct", "top")):
        yield pytest.param(drive_kind, sync, id=f"{drive_kind}-{sync}")


@pytest.mark.parametrize("drive_kind,sync", cases())
def test_backups_one_after_the_other_are_the_drive_as_it_stood(
        drive_kind, sync, served, clients, images, targets, tmp_path, seed):
    chance = random.Random(seed)
    drive = make(images, drive_kind, seed)
    server = served(drive)
    guest = clients.guest(server.endpoint(drive), seed, depth=chance.choice((4, 8, 16)), connections=2)
    guest.run()
    for turn in range(3):
        guest.go_on(300)
        guest.quiesce()
        truth = guest.truth(tmp_path / f"truth-{turn}")
        image_format = "qcow2" if sync != "full" or drive.format == "qcow2" else "raw"
        target = targets / f"{turn}.{image_format}"
        backup = server.backup(drive, target, sync, image_format, speed="8M")
        guest.run()
        # What is 16 MiB takes two seconds; the guest goes over everything in less.
        guest.go_on(1500)
        guest.quiesce()
        if sync == "none":
            guest.run()
            guest.go_on(300)
            guest.quiesce()
            assert backup.is_running()
            backup.finish()
        else:
            backup.wait()
        if sync == "full":
            # The digests are those of the point in time, too.
            server.agent.ok("verify", target)
        if image_format == "qcow2":
            check(target, shared=sync == "none")
        after = guest.truth(tmp_path / "after")
        if sync == "none":
            truth = truth.through(after)
        truth.check(as_raw(target, image_format, tmp_path / "content"), f"backup {turn} (sync {sync})")
        guest.run()
    guest.quiesce()
    after = guest.truth(tmp_path / "after")
    guest.end()
    server.stop()
    if drive.format == "qcow2":
        check(drive.path)
    after.check(as_raw(drive.path, drive.format, tmp_path / "content"), "the drive after a clean stop")


@pytest.mark.parametrize("drive_kind", ("raw", "overlay-64K"))
@pytest.mark.parametrize("depth", (4, 16))
def test_a_backup_is_of_one_instant_though_the_guest_never_stops(
        drive_kind, depth, served, clients, images, targets, tmp_path, seed):
    drive = make(images, drive_kind, seed)
    server = served(drive)
    guest = clients.guest(server.endpoint(drive), seed, depth=depth)
    guest.run()
    guest.go_on(200)
    for turn in range(4):
        target = targets / f"{turn}.raw"
        guest.mark()
        backup = server.backup(drive, target, "full", "raw", speed="16M")
        truth = guest.release(tmp_path / f"truth-{turn}")
        guest.go_on(800)
        backup.wait()
        truth.check(target, f"backup {turn}", instant=True)
    guest.quiesce()
    guest.truth(tmp_path / "after")
    guest.end()


def test_two_backups_of_two_drives_with_a_guest_each(served, clients, images, targets, tmp_path, seed):
    drives = [make(images, "raw", seed, "vm1"), make(images, "overlay-64K", seed + 1, "vm2")]
    server = served(*drives)
    guests = [clients.guest(server.endpoint(drive), seed + at) for at, drive in enumerate(drives)]
    truths, backups = [], []
    for at, (drive, guest) in enumerate(zip(drives, guests)):
        guest.run()
        guest.go_on(100)
        guest.quiesce()
        truths.append(guest.truth(tmp_path / f"truth-{at}"))
        backups.append(server.backup(drive, targets / f"{at}.raw", "full", "raw", speed="8M"))
        guest.run()
    for guest in guests:
        guest.go_on(1000)
    for at, backup in enumerate(backups):
        backup.wait()
        truths[at].check(targets / f"{at}.raw", f"the backup of {drives[at].id}")
    for guest in guests:
        guest.quiesce()
        guest.truth(tmp_path / "after")
        guest.end()


@pytest.mark.parametrize("drive_kind", ("raw", "overlay-64K"))
def test_a_cancelled_backup_leaves_the_guest_alone(drive_kind, served, clients, images, targets, tmp_path, seed):
    chance = random.Random(seed)
    drive = make(images, drive_kind, seed)
    server = served(drive)
    guest = clients.guest(server.endpoint(drive), seed)
    guest.run()
    for turn in range(8):
        target = targets / f"{turn}.raw"
        backup = server.backup(drive, target, "full", "raw", speed=f"{chance.choice((64, 1024))}K")
        guest.go_on(chance.randrange(1, 400))
        backup.cancel()
        assert not target.exists()
        guest.go_on(100)
    guest.quiesce()
    guest.truth(tmp_path / "after")
    guest.end()
