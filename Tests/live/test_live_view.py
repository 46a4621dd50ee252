"""The point in time of a running backup, served to readers while the guest writes."""

import subprocess

import pytest
from drives import as_raw, make
from servers import IS_PEER


@pytest.mark.parametrize("sync", ("full", "none"))
@pytest.mark.parametrize("drive_kind", ("raw", "overlay-64K"))
def test_readers_of_a_view_see_the_point_in_time(
        drive_kind, sync, served, clients, images, targets, tmp_path, seed):
    drive = make(images, drive_kind, seed)
    server = served(drive)
    guest = clients.guest(server.endpoint(drive), seed)
    guest.run()
    guest.go_on(200)
    guest.quiesce()
    truth = guest.truth(tmp_path / "truth")
    target = targets / "t.qcow2"
    if sync == "none":
        backup = server.backup(drive, target, "none", "qcow2")
    else:
        backup = server.backup(drive, target, "full", "qcow2", speed="4M", manual=True)
    endpoint = backup.export()
    view = clients.view(endpoint, seed, truth)
    guest.run()
    for turn in range(3):
        guest.go_on(600)
        copy = tmp_path / f"copy-{turn}.raw"
        subprocess.run(
            ["nbdcopy", "--", endpoint.uri, str(copy)], check=True, timeout=120, stdin=subprocess.DEVNULL)
        truth.check(copy, f"copy {turn} of the view by nbdcopy")
    as_raw_over_nbd(endpoint, tmp_path / "convert.raw")
    truth.check(tmp_path / "convert.raw", "a copy of the view by qemu-img")
    assert view.stop() > 50
    backup.withdraw()
    guest.quiesce()
    if sync == "none":
        backup.finish()
    else:
        backup.end_view()
    after = guest.truth(tmp_path / "after")
    if sync == "none":
        truth = truth.through(after)
    truth.check(as_raw(target, "qcow2", tmp_path / "content"), "the backup itself")
    guest.end()


def as_raw_over_nbd(endpoint, to):
    subprocess.run(
        ["qemu-img", "convert", "-f", "raw", "-O", "raw",
         f"nbd+unix:///{endpoint.name}?socket={endpoint.socket}", str(to)],
        check=True, timeout=120, stdin=subprocess.DEVNULL)


@pytest.mark.skipif(IS_PEER, reason="the peer's view is of a job that copies nothing")
def test_a_view_stays_while_its_job_goes_from_nothing_to_everything_done(
        served, clients, images, targets, tmp_path, seed):
    drive = make(images, "overlay-64K", seed)
    server = served(drive)
    guest = clients.guest(server.endpoint(drive), seed)
    guest.run()
    guest.go_on(200)
    guest.quiesce()
    truth = guest.truth(tmp_path / "truth")
    backup = server.backup(drive, targets / "t.raw", "full", "raw", speed="2M", manual=True)
    views = [clients.view(backup.export(), seed + at, truth) for at in range(1)]
    guest.run()
    guest.go_on(500)
    backup.set_speed("16M")
    guest.go_on(500)
    watch = server.agent.stream("job", "watch", backup.job)
    backup.set_speed("0")
    watch.until_kind("pending")
    guest.go_on(500)
    for view in views:
        assert view.stop() > 50
    backup.withdraw()
    server.agent.ok("job", "finalize", backup.job)
    backup.wait()
    truth.check(targets / "t.raw", "the backup")
    guest.quiesce()
    guest.truth(tmp_path / "after")
    guest.end()
