"""Drives: added, listed, kept, locked."""

import os
import shutil
import subprocess
import time

import pytest
from harness import Agent, takes_direct_transfers, untouched
from images import KiB, MiB, create, held_for_writing, info, qemu_img, qemu_io, raw, run, same
from target_processes import until
from test_cases import uri

SIZE = 2 * MiB


@pytest.fixture
def disk(images):
    return raw(images / "d.raw", SIZE, [(0, SIZE)])


def test_the_shape_of_a_drive(start_agent, images, disk):
    overlay = create(images / "o.qcow2", SIZE, backing=("d.raw", "raw"), options="cluster_size=128k")
    top = create(images / "t.qcow2", SIZE, backing=(overlay, "qcow2"))
    agent = start_agent(("vm1", top))
    drive = agent.ok("drive", "show", "vm1").object
    assert drive["id"] == "vm1" and drive["file"] == str(top) and drive["format"] == "qcow2"
    assert drive["size"] == SIZE and drive["cluster_size"] == 64 * KiB and drive["from_command_line"] is True
    assert [(layer["file"], layer["format"], layer["size"]) for layer in drive["backing"]] == [
        (str(overlay), "qcow2", SIZE), (str(disk), "raw", SIZE)]
    assert not drive.get("read_only") and not drive.get("problem") and not drive.get("job_id")
    assert agent.ok("drive", "list").objects == [drive]


def test_add_list_show_remove(start_agent, images, disk, targets):
    agent = start_agent()
    assert agent.ok("drive", "list").objects == []
    added = agent.ok("drive", "add", "vm-1.a_B", disk).object
    assert (added["id"], added["file"], added["format"], added["size"]) == ("vm-1.a_B", str(disk), "raw", SIZE)
    assert not added.get("from_command_line")
    agent.ok("drive", "add", "a", create(images / "a.qcow2", SIZE), "--read-only")
    drives = agent.ok("drive", "list").objects
    assert [drive["id"] for drive in drives] == ["a", "vm-1.a_B"]
    assert drives[0]["read_only"] is True
    agent.backup("vm-1.a_B", targets / "t")
    agent.backup("a", targets / "a")
    agent.ok("drive", "remove", "a")
    assert [drive["id"] for drive in agent.ok("drive", "list").objects] == ["vm-1.a_B"]
    agent.refused("drive", "show", "a", says="a")
    # Nobody holds it any more.
    qemu_io(images / "a.qcow2", "qcow2", "write 0 512")


def test_a_relative_file_is_meant_from_where_the_client_is(start_agent, images, disk):
    agent = start_agent()
    assert agent.ok("drive", "add", "vm1", "d.raw", cwd=images).object["file"] == str(disk)


def test_added_drives_and_their_formats_outlive_a_restart(start_agent, images, disk, targets):
    image = create(images / "q.qcow2", SIZE)
    agent = start_agent()
    agent.ok("drive", "add", "vm1", disk)
    agent.ok("drive", "add", "vm2", image, "--read-only")
    agent.ok("drive", "add", "gone", create(images / "gone.qcow2", SIZE))
    agent.ok("drive", "remove", "gone")
    code, _ = agent.terminate()
    assert code == 0
    # Its guest makes the raw disk look like a qcow2 image; it was probed once, and that is kept (DESIGN 7.8).
    header = create(images / "header", SIZE).read_bytes()[:65536]
    with open(disk, "r+b") as file:
        file.write(header)
    agent.start()
    drives = {drive["id"]: drive for drive in agent.ok("drive", "list").objects}
    assert set(drives) == {"vm1", "vm2"}
    assert drives["vm1"]["format"] == "raw" and drives["vm1"]["file"] == str(disk)
    assert drives["vm2"]["format"] == "qcow2" and drives["vm2"]["read_only"] is True
    agent.backup("vm1", targets / "t", "--format", "raw")
    same(disk, "raw", targets / "t", "raw")


def test_drives_outlive_a_kill(start_agent, disk):
    agent = start_agent()
    agent.ok("drive", "add", "vm1", disk)
    agent.kill()
    agent.start()
    assert agent.ok("drive", "show", "vm1").object["file"] == str(disk)


def test_the_command_line_wins_for_the_same_id(start_agent, images, disk):
    agent = start_agent()
    agent.ok("drive", "add", "vm1", disk)
    other = create(images / "other.qcow2", SIZE)
    agent.drives = [f"id=vm1,file={other}"]
    agent.restart()
    drive = agent.ok("drive", "show", "vm1").object
    assert drive["file"] == str(other) and drive["from_command_line"] is True
    agent.refused("drive", "remove", "vm1", says="vm1")
    agent.refused("drive", "add", "vm1", disk, says="vm1")


def test_a_kept_drive_whose_file_is_gone_is_told_and_stops_nothing(start_agent, images, disk, targets):
    image = create(images / "q.qcow2", SIZE)
    agent = start_agent()
    agent.ok("drive", "add", "vm1", disk)
    agent.ok("drive", "add", "vm2", image)
    agent.terminate()
    image.unlink()
    agent.start()
    drive = agent.ok("drive", "show", "vm2").object
    assert str(image) in drive["problem"]
    with untouched(targets, images):
        agent.refused("start", "vm2", targets / "t", says="vm2")
    agent.backup("vm1", targets / "t")
    agent.ok("drive", "remove", "vm2")


def test_a_drive_on_the_command_line_that_cannot_be_opened_is_no_start(images, disk):
    broken = images / "broken.qcow2"
    shutil.copy(create(images / "q.qcow2", SIZE), broken)
    with open(broken, "r+b") as file:
        file.seek(20)
        file.write(b"\xff\xff\xff\xff")
    for drive, says in (
        (f"id=vm1,file={images}/none", "none"),
        (f"id=vm1,file={broken},format=qcow2", "broken.qcow2"),
        (f"id=vm1,file={disk},format=qcow2", "d.raw"),
        (f"id=vm1,file={images}", str(images)),
    ):
        agent = Agent([drive])
        try:
            result = agent.start_refused()
            assert says in result.err and "vm1" in result.err, result
            assert len(result.err.splitlines()) == 1, result
        finally:
            agent.close()


@pytest.mark.parametrize("drive", [
    "vm1", "id=vm1", "file=/x", "id=,file=/x", "id=vm1,file=", "id=vm1,file=/x,format=vmdk", "id=vm1,file=/x,colour=red",
    "id=vm1,file=/x,read-only=perhaps", "id=1vm,file=/x", "id=vm1,id=vm2,file=/x"])
def test_a_drive_option_that_makes_no_sense_is_a_usage_error(drive):
    agent = Agent([drive])
    try:
        assert agent.start_refused().code == 64
    finally:
        agent.close()


def test_additions_that_are_refused(start_agent, images, disk):
    agent = start_agent(("vm1", disk))
    other = raw(images / "other.raw", SIZE)
    (images / "link").symlink_to(disk)
    os.link(disk, images / "hard")
    os.mkfifo(images / "fifo")
    with untouched(images):
        agent.refused("drive", "add", "vm1", other, says="vm1")
        agent.refused("drive", "add", "vm2", images / "none", says="none")
        agent.refused("drive", "add", "vm2", images, code=(1, 64))
        agent.refused("drive", "add", "vm2", images / "fifo")
        agent.refused("drive", "add", "vm2", "/dev/null")
        for name in (disk, images / "link", images / "hard"):
            agent.refused("drive", "add", "vm2", name)
        for identifier in ("2vm", "a/b", "", "a b", "ä", "a" * 300, "../x"):
            agent.refused("drive", "add", identifier, other, code=64)
        agent.refused("drive", "add", "vm2", other, "--format", "vmdk", code=64)
        agent.refused("drive", "add", "vm2", other, "--format", "qcow2")
        agent.refused("drive", "add", "vm2", code=64)
    assert [drive["id"] for drive in agent.ok("drive", "list").objects] == ["vm1"]


def luks(images, path):
    # qemu-img times its key derivation and gives up when a busy machine makes the figure useless; that is not our test.
    for _ in range(20):
        made = qemu_img("create", "-q", "--object", "secret,id=s,data=x", "-f", "qcow2", "-o",
                        "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", path, SIZE, check=False)
        if made.returncode == 0:
            return
    raise AssertionError(made.stdout)


def data_file(images, path):
    create(path, SIZE, options=f"data_file={images}/elsewhere.raw,data_file_raw=on")


def backing_loop(images, path):
    create(path, SIZE)
    qemu_img("rebase", "-u", "-f", "qcow2", "-b", path, "-F", "qcow2", path)


def backing_missing(images, path):
    create(path, SIZE)
    qemu_img("rebase", "-u", "-f", "qcow2", "-b", images / "nowhere.raw", "-F", "raw", path)


def backing_is_a_protocol(images, path):
    create(path, SIZE)
    qemu_img("rebase", "-u", "-f", "qcow2", "-b", "nbd://localhost/x", "-F", "raw", path)


def backing_is_json(images, path):
    create(path, SIZE)
    qemu_img("rebase", "-u", "-f", "qcow2", "-b", 'json:{"driver":"file","filename":"/etc/passwd"}', "-F", "raw", path)


def level_one_beyond_the_end(images, path):
    create(path, SIZE)
    with open(path, "r+b") as file:
        file.seek(40)
        file.write((1 << 50).to_bytes(8, "big"))


def other_format(name):
    def make(images, path):
        create(path, SIZE, image_format=name)
    return make


@pytest.mark.parametrize("make", [
    luks, data_file, backing_loop, backing_missing, backing_is_a_protocol, backing_is_json, level_one_beyond_the_end,
    other_format("vmdk"), other_format("vdi"), other_format("vhdx"), other_format("vpc"), other_format("qed"),
    other_format("parallels")], ids=lambda make: getattr(make, "__name__", "x"))
def test_images_that_are_not_understood_are_refused_by_name(start_agent, images, make):
    path = images / "strange.img"
    make(images, path)
    agent = start_agent()
    with untouched(images):
        agent.refused("drive", "add", "vm1", path, says="strange.img")
    assert agent.ok("drive", "list").objects == []


# Past the page cache.


@pytest.fixture
def direct(images):
    """A directory for images, on a file system that lets its files be used past the page cache."""
    if not takes_direct_transfers(raw(images / "any.raw", SIZE)):
        pytest.skip("the file system is not known for direct I/O")
    return images


def cached(path):
    """How many bytes of a file the page cache has."""
    return int(run("fincore", "--bytes", "--noheadings", "--output", "res", path).stdout)


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_a_drive_is_used_past_the_page_cache(start_agent, direct, targets, image_format):
    base = raw(direct / "d.raw", SIZE, [(0, SIZE)])
    path = base if image_format == "raw" else create(direct / "q.qcow2", SIZE, backing=(base, "raw"))
    agent = start_agent()
    added = agent.ok("drive", "add", "vm1", path, "--format", image_format, "--cache", "none").object
    assert added["cache"] == "none"
    agent.terminate()
    agent.start()
    assert agent.ok("drive", "show", "vm1").object["cache"] == "none"
    assert "past the host's page cache" in agent.ok("drive", "show", "vm1", as_json=False).out
    address = f"unix:{agent.directory}/vm1.nbd"
    agent.ok("export", "add", "vm1", address)
    for file in {base, path}:
        run("sync", file)
        run("dd", f"if={file}", "iflag=nocache", "count=0")
    # Aligned and not, into clusters that are there and that are not, and where nothing is left of it.
    qemu_io(uri(address), "raw", "write -P 1 64k 128k", "write -P 2 333 777", "write -P 3 1M 100k", "write -z 1500k 33k",
            "read -P 2 333 777", "read -P 3 1M 512", "discard 1100k 5k")
    agent.backup("vm1", targets / "t", "--format", "raw")
    # What qcow2 has of its own to say at the end of the file may go by memory.
    assert cached(base) == 0 and cached(path) == 0
    agent.terminate()
    same(path, image_format, targets / "t", "raw")


def test_it_is_there_again_after_a_kill_with_much_on_its_way_to_the_disk(start_agent, direct):
    path = raw(direct / "d.raw", 256 * MiB)
    agent = start_agent(f"id=vm1,file={path},format=raw,cache=none")
    agent.ok("drive", "add", "vm2", raw(direct / "e.raw", 256 * MiB), "--format", "raw", "--cache", "none")
    for name in ("vm1", "vm2"):
        agent.ok("export", "add", name, f"unix:{agent.directory}/{name}.nbd")
    for _ in range(6):
        # Requests outlive the process that made them, and hold its locks.
        guests = [
            subprocess.Popen(
                ["qemu-img", "bench", "-w", "-q", "-f", "raw", "-c", "100000", "-d", "64", "-s", "1M", "-S", "1M",
                 uri(f"unix:{agent.directory}/{name}.nbd")],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for name in ("vm1", "vm2")]
        until(lambda: path.stat().st_blocks > 0, "the guests write")
        time.sleep(0.3)
        agent.kill()
        agent.start()
        for guest in guests:
            guest.kill()
            guest.wait()
        assert [drive.get("problem", "") for drive in agent.ok("drive", "list").objects] == ["", ""], agent.log()


def test_what_cannot_be_used_past_the_page_cache_is_refused(start_agent, direct):
    odd = raw(direct / "odd.raw", SIZE + 100, [(0, SIZE)])
    agent = start_agent()
    with untouched(direct):
        agent.refused("drive", "add", "vm1", odd, "--format", "raw", "--cache", "none", says="cache=writeback")
        agent.refused("drive", "add", "vm1", odd, "--cache", "off", code=64, says="off")
    agent.ok("drive", "add", "vm1", odd, "--format", "raw", "--read-only", "--cache", "none")
    assert agent.ok("drive", "add", "vm2", create(direct / "a.qcow2", SIZE)).object["cache"] == "writeback"


# Locks, as QEMU takes them.


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
@pytest.mark.parametrize("read_only", ["off", "on"])
def test_qemu_may_read_and_may_not_write_what_the_agent_has_open(start_agent, images, disk, image_format, read_only):
    path = disk if image_format == "raw" else create(images / "q.qcow2", SIZE, backing=(disk, "raw"))
    agent = start_agent(f"id=vm1,file={path},read-only={read_only}")
    with untouched(images):
        for file, file_format in ((path, image_format), (disk, "raw")):
            for command in ("write -P 1 0 512", "truncate 1M"):
                done = qemu_io(file, file_format, command, check=False)
                assert "lock" in done.stdout, done.stdout
            done = qemu_img("resize", "--shrink", "-f", file_format, file, "1M", check=False)
            assert done.returncode != 0 and "lock" in done.stdout, done.stdout
            qemu_img("info", "-f", file_format, file)
            qemu_img("compare", "-f", file_format, "-F", file_format, file, file)
    agent.terminate()
    qemu_io(path, image_format, "write -P 1 0 512")


def test_the_agent_refuses_what_qemu_has_open_for_writing(start_agent, images, disk):
    image = create(images / "q.qcow2", SIZE)
    overlay = create(images / "o.qcow2", SIZE, backing=(disk, "raw"))
    agent = start_agent()
    for path, image_format, drives in (
        (disk, "raw", (disk, overlay)), (image, "qcow2", (image,)),
    ):
        with held_for_writing(path, image_format):
            for drive in drives:
                agent.refused("drive", "add", "vm1", drive, says="lock")
                agent.refused("drive", "add", "vm1", drive, "--read-only", says="lock")
            refused = Agent([("vm1", path)])
            try:
                result = refused.start_refused()
                assert "lock" in result.err and len(result.err.splitlines()) == 1, result
            finally:
                refused.close()
    for name, path in (("a", image), ("b", overlay)):
        agent.ok("drive", "add", name, path)


def test_two_agents_may_not_have_one_drive(start_agent, disk):
    start_agent(("vm1", disk))
    second = Agent([("vm1", disk)])
    try:
        assert "lock" in second.start_refused().err
    finally:
        second.close()


def test_two_drives_may_share_a_backing_file(start_agent, images, disk, targets):
    one = create(images / "1.qcow2", SIZE, backing=(disk, "raw"))
    two = create(images / "2.qcow2", SIZE, backing=(disk, "raw"))
    agent = start_agent(("vm1", one), ("vm2", two))
    for name, path in (("vm1", one), ("vm2", two)):
        agent.backup(name, targets / name, sync="top")
        same(path, "qcow2", targets / name, "qcow2")
        assert info(targets / name)["full-backing-filename"] == str(disk)


def test_a_drive_in_use_is_not_removed(start_agent, images, disk, targets):
    agent = start_agent()
    agent.ok("drive", "add", "vm1", disk)
    agent.slow_job("vm1", targets / "t")
    assert agent.ok("drive", "show", "vm1").object["job_id"] == "vm1"
    agent.refused("drive", "remove", "vm1", says="vm1")
    agent.ok("job", "cancel", "vm1")
    assert agent.stream("job", "watch", "vm1").end() == 4
    agent.ok("drive", "remove", "vm1")
