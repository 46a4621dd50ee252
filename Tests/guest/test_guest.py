"""A real Linux guest writes files and syncs while backups of its disk are taken, and while its agent is killed."""

import re
import subprocess

import pytest
from images import MiB, check, create, qemu_img, raw
from linux_guest import content
from servers import IS_PEER, Drive

SIZE = 192 * MiB


def make_disk(folder, kind):
    """A disk with an ext4 file system; as an overlay its base has the file system and the overlay nothing yet."""
    base = raw(folder / "disk.raw", SIZE)
    subprocess.run(
        ["mke2fs", "-q", "-F", "-t", "ext4", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(base)], check=True)
    if kind == "raw":
        return Drive("vm1", base, "raw")
    return Drive("vm1", create(folder / "disk.qcow2", None, "qcow2", (base, "raw")), "qcow2")


def tool(*command, codes=(0,)):
    done = subprocess.run(
        [str(part) for part in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        timeout=120)
    assert done.returncode in codes, f"{command}: {done.returncode}: {done.stdout.decode(errors='replace')}"
    return done.stdout


def debugfs(image, request):
    """What debugfs prints, without its own words."""
    done = subprocess.run(
        ["debugfs", "-R", request, str(image)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, timeout=120)
    assert done.returncode == 0 and b"File not found" not in done.stderr, f"{request}: {done.stderr}"
    return done.stdout


class FileSystem:
    """The file system of an image, after its journal was replayed on a copy."""

    def __init__(self, image, image_format, folder, name):
        self.copy = folder / f"{name}.raw"
        qemu_img("convert", "-U", "-f", image_format, "-O", "raw", image, self.copy)
        # As a mount would: the journal first. What else is wrong must not be repaired in silence.
        tool("e2fsck", "-E", "journal_only", "-fy", self.copy, codes=(0, 1))
        # Orphans (files that were being truncated or removed) are a mount's business, too; anything else is not
        # "safely fixed", and -p refuses it.
        tool("e2fsck", "-fp", self.copy, codes=(0, 1))
        tool("fsck.ext4", "-fn", self.copy)

    def files(self):
        """The writer's files: phase and number."""
        listing = debugfs(self.copy, "ls -p /").decode()
        names = [line.split("/")[5] for line in listing.splitlines() if line.count("/") >= 6]
        return sorted(
            (phase, int(number)) for phase, number in re.findall(r"^(\w+)\.(\d+)$", "\n".join(names), re.MULTILINE))

    def read(self, path):
        return debugfs(self.copy, f"cat {path}")

    def assert_holds(self, phase, first, last):
        """Every file of these numbers is there with its content."""
        there = set(self.files())
        for number in range(first, last + 1):
            assert (phase, number) in there, f"{phase}.{number} was synced, and is not in it: {sorted(there)}"
            assert self.read(f"/{phase}.{number}") == content(phase, number), f"{phase}.{number} has another content"

    def assert_slots(self, phases):
        """No slot holds a round of another phase."""
        for slot in range(8):
            lines = set(self.read(f"/slot{slot}").decode(errors="replace").splitlines())
            others = [line for line in lines if not any(phase in line for phase in phases)]
            # The last line is cut.
            others = [line for line in others if len(line) > 12]
            assert not others, f"slot{slot}: {others[:3]}"


@pytest.mark.parametrize("kind", ("raw", "overlay"))
def test_a_guest_writes_on_while_it_is_backed_up_and_its_agent_killed(kind, served, boot, tmp_path):
    drive = make_disk(tmp_path, kind)
    server = served(drive)
    guest = boot(server.endpoint(drive))
    guest.command("mount -t ext4 -o discard /dev/vda /m")
    guest.write()
    guest.until_synced(15)
    phases = ["before"]
    number = 15

    for turn, (sync, image_format) in enumerate(
            [("full", "raw"), ("top" if kind == "overlay" else "full", "qcow2"), ("none", "qcow2")]):
        # What is synced here must be in the backup; what is first written after `started` must not.
        last = guest.synced()
        target = tmp_path / f"target-{turn}"
        # So slow that it runs on under all that the guest writes below.
        backup = server.backup(drive, target, sync, image_format, speed="128K")
        phase = f"phase{turn}"
        guest.command(f"echo {phase} > /tmp/phase")
        if turn == 1:
            guest.command("fstrim /m || true")
        guest.until_synced(12)
        assert backup.is_running(), "the backup was too quick to prove anything"
        backup.set_speed("0")
        if sync == "none":
            # What was not overwritten is the drive's; so the drive must stand still for the comparison.
            number = guest.stop_writing()
            guest.command("sync")
            backup.finish()
        else:
            backup.wait()
        if image_format == "qcow2":
            check(target, shared=sync == "none")
        system = FileSystem(target, image_format, tmp_path, f"content-{turn}")
        found = system.files()
        assert phase not in {name for name, _ in found}, f"backup {turn} has what was written after it: {found}"
        system.assert_holds(last[0], max(1, last[1] - 8), last[1])
        system.assert_slots(phases)
        phases.append(phase)
        target.unlink()

    # The agent dies, and another comes up at the same address.
    guest.command("echo killed > /tmp/phase")
    guest.write(number)
    guest.until_synced(5)
    server.kill()
    before_kill = guest.synced()
    server.start()
    guest.until_synced(10)
    last = guest.stop_writing()
    if not IS_PEER or kind == "raw":
        guest.command(f"for i in $(seq {before_kill[1]} {last}); do [ -s /m/killed.$i ] || exit 1; done")
    guest.command("echo 3 > /proc/sys/vm/drop_caches; ! dmesg | grep -iE 'ext4-fs error|i/o error|aborting'")
    guest.off()
    server.stop()
    if IS_PEER and kind == "overlay":
        return  # It loses what it had not flushed, and the guest's file system with it.
    if kind == "overlay":
        done = qemu_img("check", "-f", "qcow2", drive.path, check=False)
        assert done.returncode in (0, 3), done.stdout
    system = FileSystem(drive.path, drive.format, tmp_path, "after")
    system.assert_holds("killed", max(number + 1, last - 30), last)
