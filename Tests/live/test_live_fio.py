"""fio as a guest: it verifies what it reads back, on a drive under backup."""

import subprocess

import pytest
from drives import make
from images import MiB, check
from remote import wait_until

SIZE = 64 * MiB


class Fio:
    def __init__(self, endpoint, *options):
        self.process = subprocess.Popen(
            ["fio", "--name=guest", "--ioengine=nbd", f"--uri=nbd+unix:///{endpoint.name}?socket={endpoint.socket}",
             f"--size={SIZE}", "--verify_state_save=0", *options],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def end(self):
        out, _ = self.process.communicate(timeout=180)
        assert self.process.returncode == 0, out
        assert "err= 0" in out, out
        return out


@pytest.mark.parametrize("drive_kind", ("raw", "overlay-64K"))
@pytest.mark.parametrize("pattern", ("randwrite", "randrw"))
def test_fio_finds_its_data_while_backups_run(drive_kind, pattern, served, images, targets, seed):
    drive = make(images, drive_kind, seed, size=SIZE)
    server = served(drive)
    fio = Fio(
        server.endpoint(drive), f"--rw={pattern}", "--bsrange=512-128k", "--bs_unaligned=0", "--iodepth=16",
        "--verify=crc32c", "--verify_backlog=64", "--verify_fatal=1", "--do_verify=1", "--verify_dump=0",
        f"--randseed={seed}", "--loops=12")
    turn = 0
    try:
        while fio.process.poll() is None or turn == 0:
            backup = server.backup(drive, targets / f"{turn}.qcow2", "full", "qcow2", speed="256M")
            backup.wait()
            check(targets / f"{turn}.qcow2")
            (targets / f"{turn}.qcow2").unlink()
            turn += 1
        fio.end()
    finally:
        fio.process.kill()
        fio.process.wait()
    assert turn > 1, "fio ended before a backup did"
    server.is_well()


def test_nbdcopy_of_the_view_while_fio_writes(served, clients, images, targets, tmp_path, seed):
    drive = make(images, "raw", seed, size=SIZE)
    server = served(drive)
    guest = clients.guest(server.endpoint(drive), seed)
    guest.run()
    guest.go_on(500)
    guest.quiesce()
    truth = guest.truth(tmp_path / "truth")
    guest.end()
    backup = server.backup(drive, targets / "t.qcow2", "none", "qcow2")
    endpoint = backup.export()
    fio = Fio(
        server.endpoint(drive), "--rw=randwrite", "--bsrange=512-64k", "--iodepth=16", f"--randseed={seed}",
        "--time_based=1", "--runtime=120")
    try:
        wait_until(lambda: drive.path.read_bytes() != truth.data, "fio writes something")
        for turn in range(3):
            copy = tmp_path / f"{turn}.raw"
            subprocess.run(["nbdcopy", "--", endpoint.uri, str(copy)], check=True, timeout=120)
            truth.check(copy, f"copy {turn}")
        assert fio.process.poll() is None, "fio ended too early to prove anything"
        fio.process.terminate()
        fio.process.communicate(timeout=60)
    finally:
        fio.process.kill()
        fio.process.wait()
    backup.withdraw()
    backup.finish()
