"""Cases of a backup's acceptance table, one test each; its name is the case in a sentence, its docstring the number.

The other cases have their tests where the rest of their subject is; docs/testing.md lists all of them.
"""

import json
import subprocess

import pytest
from faults import failing
from harness import END_EVENTS, kind, untouched
from images import CLUSTER, KiB, MiB, allocated, check, create, data_bytes, info, qemu_img, qemu_io, raw, run, same

SIZE = 8 * MiB


def uri(address, name=""):
    return f"nbd+unix:///{name}?socket={address.removeprefix('unix:')}"


class Guest:
    """A guest that writes to a drive's export, one command after the other."""

    def __init__(self, agent, drive):
        self.address = f"unix:{agent.directory}/{drive}.nbd"
        agent.ok("export", "add", drive, self.address)

    def tries(self, *commands):
        """Returns what qemu-io says."""
        arguments = [word for command in commands for word in ("-c", command)]
        done = run("qemu-io", "-f", "raw", "-d", "unmap", *arguments, uri(self.address), check=False)
        assert done.returncode == 0 or "failed" in done.stdout, done
        return done.stdout

    def does(self, *commands):
        said = self.tries(*commands)
        assert "failed" not in said, said


@pytest.fixture
def disk(images):
    """Random bytes in all of it."""
    return raw(images / "vm1.raw", SIZE, [(0, SIZE)])


@pytest.fixture
def agent(start_agent, disk):
    return start_agent(f"id=vm1,file={disk},format=raw")


def content(path, image_format, directory):
    """What the image shows, as bytes."""
    plain = directory / f"{path.name}.plain"
    qemu_img("convert", "-U", "-f", image_format, "-O", "raw", path, plain)
    data = plain.read_bytes()
    plain.unlink()
    return data


def finish(agent, drive="vm1"):
    """Lets a slow job go on to its end, which must be good."""
    stream = agent.stream("job", "watch", drive)
    agent.ok("job", "set-speed", drive, 0)
    assert stream.end() == 0, (stream.events, agent.log())
    return stream.events


# Content and sync modes.


def test_a_sparse_disk_is_copied_equal_and_its_zeroes_take_no_space(start_agent, images, targets):
    """1"""
    path = raw(images / "vm1.raw", 64 * MiB)
    qemu_io(path, "raw", "write -P 0x5d 0 64K", "write -P 0xd5 1M 32K", "write -P 0xdc 32M 124K",
            f"write -P 0xdc {64 * MiB - 64 * KiB} 64K")
    agent = start_agent(f"id=vm1,file={path},format=raw")
    for target_format in ("raw", "qcow2"):
        target = targets / target_format
        done = agent.backup("vm1", target, "--format", target_format)[-1]["completed"]
        assert done["progress"]["current"] == done["progress"]["total"] == 64 * MiB
        same(path, "raw", target, target_format)
        assert data_bytes(target) < 2 * MiB


def test_a_disk_that_ends_inside_a_cluster_has_its_tail_and_no_more(start_agent, images, targets):
    """2"""
    size = 3 * MiB + 1536
    path = raw(images / "vm1.raw", size, [(size - 1536, 1536)])
    agent = start_agent(f"id=vm1,file={path},format=raw")
    for target_format in ("raw", "qcow2"):
        target = targets / target_format
        done = agent.backup("vm1", target, "--format", target_format)[-1]["completed"]
        assert done["progress"]["total"] == size
        assert info(target, target_format)["virtual-size"] == size
        same(path, "raw", target, target_format)


def test_top_has_the_touched_clusters_of_an_overlay_and_masks_what_was_zeroed(start_agent, images, targets):
    """3"""
    base = raw(images / "base.raw", SIZE, [(0, SIZE)])
    top = create(images / "vm1.qcow2", SIZE, backing=(base, "raw"))
    qemu_io(top, "qcow2", "write -P 0x41 1M 4k", "write -z 2M 64k", "discard 128k 64k", f"write -P 0x42 {SIZE - 4096} 4k")
    agent = start_agent(f"id=vm1,file={top},format=qcow2")
    target = targets / "t.qcow2"
    agent.backup("vm1", target, sync="top")
    assert allocated(target, "qcow2", SIZE) == {2, 16, 32, SIZE // CLUSTER - 1}
    facts = info(target)
    assert facts["full-backing-filename"] == str(base) and facts["backing-filename-format"] == "raw"
    same(top, "qcow2", target, "qcow2")
    qemu_img("rebase", "-u", "-b", "", target)
    assert content(target, "qcow2", targets)[2 * MiB:2 * MiB + CLUSTER] == bytes(CLUSTER)


def test_top_of_a_drive_without_backing_file_is_full(agent, disk, targets):
    """4"""
    target = targets / "t.qcow2"
    events = agent.backup("vm1", target, "--format", "qcow2", sync="top")
    assert events[0]["started"]["sync"] == "full"
    assert "backing-filename" not in info(target)
    same(disk, "raw", target, "qcow2")


def test_a_cluster_that_the_top_layer_has_in_part_is_copied_whole(start_agent, images, targets):
    """5"""
    base = raw(images / "base.raw", SIZE, [(0, SIZE)])
    top = create(images / "vm1.qcow2", SIZE, backing=(base, "raw"), options="cluster_size=4k")
    qemu_io(top, "qcow2", "write -P 0x41 1M 512", "write -P 0x42 3000k 4k")
    agent = start_agent(f"id=vm1,file={top},format=qcow2")
    target = targets / "t.qcow2"
    agent.backup("vm1", target, sync="top")
    assert allocated(target, "qcow2", SIZE) == {16, 3000 * KiB // CLUSTER}
    same(top, "qcow2", target, "qcow2")


def test_none_has_the_old_clusters_that_the_guest_wrote_and_nothing_else(agent, disk, targets):
    """6"""
    before = disk.read_bytes()
    guest = Guest(agent, "vm1")
    target = targets / "t.qcow2"
    agent.slow_job("vm1", target, "--format", "qcow2", sync="none", speed="0")
    guest.does("write -P 0x5e 0 512")
    stream = agent.stream("job", "watch", "vm1")
    agent.ok("job", "cancel", "vm1")
    assert stream.end() == 0 and stream.events[-1]["completed"]["result"] == "completed"
    assert allocated(target, "qcow2", SIZE) == {0}
    assert content(target, "qcow2", targets) == before


def test_none_copies_a_cluster_once_however_often_it_is_written(agent, disk, targets):
    """7"""
    before = disk.read_bytes()
    guest = Guest(agent, "vm1")
    target = targets / "t.qcow2"
    agent.slow_job("vm1", target, "--format", "qcow2", sync="none", speed="0")
    stream = agent.stream("job", "watch", "vm1")
    guest.does("write -P 1 64k 512")
    stream.until(lambda event: event.get("progress", {}).get("current") == CLUSTER)
    guest.does("write -P 2 64k 512", "write -P 3 70k 4k")
    agent.ok("job", "cancel", "vm1")
    assert stream.end() == 0
    assert stream.events[-1]["completed"]["progress"]["current"] == CLUSTER
    assert content(target, "qcow2", targets) == before


def test_the_target_of_none_names_its_backing_file_so_that_it_is_found(start_agent, images, targets):
    """8"""
    raw(images / "vm1.raw", SIZE, [(0, SIZE)])
    directory = images.parent / "agent"
    directory.mkdir()
    agent = start_agent("id=vm1,file=../images/vm1.raw,format=raw", directory=directory)
    target = targets / "t.qcow2"
    agent.slow_job("vm1", target, "--format", "qcow2", sync="none")
    agent.ok("job", "cancel", "vm1")
    assert agent.stream("job", "watch", "vm1").end() == 0
    facts = info(target)
    assert facts["full-backing-filename"] == str(images / "vm1.raw") and facts["backing-filename-format"] == "raw"


def test_none_and_top_into_a_new_raw_image_are_refused_before_a_file_is_made(start_agent, images, targets):
    """9"""
    base = raw(images / "base.raw", SIZE)
    top = create(images / "vm1.qcow2", SIZE, backing=(base, "raw"))
    agent = start_agent(f"id=vm1,file={top},format=qcow2")
    with untouched(targets, images):
        for sync in ("none", "top"):
            agent.refused("start", "vm1", targets / "t", "--sync", sync, "--format", "raw", says="backing")


def test_a_write_across_a_border_preserves_both_clusters(agent, disk, targets):
    """11"""
    before = disk.read_bytes()
    guest = Guest(agent, "vm1")
    target = targets / "t.qcow2"
    agent.slow_job("vm1", target, "--format", "qcow2", sync="none", speed="0")
    stream = agent.stream("job", "watch", "vm1")
    guest.does(f"write -P 0x77 {MiB - 256} 512")
    stream.until(lambda event: event.get("progress", {}).get("current") == 2 * CLUSTER)
    assert disk.read_bytes()[MiB - 256:MiB + 256] == b"\x77" * 512
    agent.ok("job", "cancel", "vm1")
    assert stream.end() == 0
    assert allocated(target, "qcow2", SIZE) == {15, 16}
    assert content(target, "qcow2", targets) == before


def test_what_a_guest_zeroes_or_discards_is_old_in_the_backup_and_freed_in_the_drive(agent, disk, targets):
    """12"""
    before = disk.read_bytes()
    guest = Guest(agent, "vm1")
    agent.slow_job("vm1", targets / "t", speed="1")
    guest.does("write -z -u 6M 1M", "discard 7M 1M")
    finish(agent)
    assert (targets / "t").read_bytes() == before
    after = disk.read_bytes()
    assert after[6 * MiB:7 * MiB] == bytes(MiB) and after[:6 * MiB] == before[:6 * MiB]
    # Kept discards are passed on when nobody needs the old content any more.
    assert data_bytes(disk) <= SIZE - MiB


@pytest.mark.parametrize("cluster, unit", [("4k", CLUSTER), ("64k", CLUSTER), ("512k", 512 * KiB), ("2M", 2 * MiB)])
def test_the_unit_of_the_copy_is_the_targets_cluster_and_at_least_64_kib(agent, disk, targets, cluster, unit):
    """13"""
    target = create(targets / "t.qcow2", SIZE, options=f"cluster_size={cluster}")
    guest = Guest(agent, "vm1")
    before = disk.read_bytes()
    agent.slow_job("vm1", target, "--mode", "existing", speed="1")
    stream = agent.stream("job", "watch", "vm1")
    first = stream.until(lambda event: event.get("progress", {}).get("current", 0) > 0)["progress"]["current"]
    assert first % unit == 0
    guest.does(f"write -P 9 {6 * MiB + 5 * KiB} 512")
    finish(agent)
    assert content(target, "qcow2", targets) == before


def test_nothing_of_what_an_existing_target_held_shines_through(start_agent, images, targets):
    """17"""
    path = raw(images / "vm1.raw", SIZE, [(MiB, MiB), (5 * MiB, 100)])
    agent = start_agent(f"id=vm1,file={path},format=raw")
    for target_format in ("raw", "qcow2"):
        target = create(targets / target_format, SIZE, target_format)
        qemu_io(target, target_format, f"write -P 0xaa 0 {SIZE}")
        agent.backup("vm1", target, "--mode", "existing", "--format", target_format)
        same(path, "raw", target, target_format)


# Parameters and start errors.


def test_every_late_start_error_leaves_the_target_path_as_it_was(agent, targets, images):
    """41"""
    precious = targets / "precious"
    precious.write_bytes(b"precious" * 1000)
    wrong = (["--job-id", "-bad-"], ["--speed", "-1"], ["--job-id", "9"], ["--cbw-timeout", "-3"])
    with untouched(targets, images):
        for options in wrong:
            for target in (precious, targets / "absent"):
                agent.refused("start", "vm1", target, "--overwrite", *options, code=(1, 64))
    agent.slow_job("vm1", targets / "t", "--job-id", "taken", speed="1")
    with untouched(images):
        agent.refused("start", "vm1", precious, "--overwrite", "--job-id", "taken", says="taken")
    assert precious.read_bytes() == b"precious" * 1000


def test_a_raw_disk_whose_guest_wrote_a_qcow2_header_is_served_and_backed_up_as_raw(start_agent, images, targets):
    """44"""
    disk = raw(images / "vm1.raw", SIZE, [(0, SIZE)])
    agent = start_agent(f"id=vm1,file={disk},format=raw")
    guest = Guest(agent, "vm1")
    header = create(images / "header.qcow2", MiB).read_bytes()[:512]
    (images / "header").write_bytes(header)
    guest.does(f"write -s {images / 'header'} 0 512")
    agent.restart()
    assert agent.ok("drive", "show", "vm1").object["format"] == "raw"
    agent.backup("vm1", targets / "t")
    assert (targets / "t").read_bytes() == disk.read_bytes()
    assert disk.read_bytes()[:512] == header


# Job control.


def test_a_plain_job_has_every_state_in_order_and_one_end(agent, targets):
    """46"""
    events = agent.backup("vm1", targets / "t")
    after = agent.ok("events").objects
    states = [event["state_changed"]["state"] for event in after if kind(event) == "state_changed"]
    assert states == ["created", "running", "waiting", "pending", "concluded"], after
    assert [kind(event) for event in after if kind(event) in END_EVENTS] == ["completed"]
    assert events[-1]["completed"]["progress"] == {"current": SIZE, "total": SIZE}


def test_without_auto_finalize_a_job_waits_in_pending_and_protects_the_drive(agent, disk, targets):
    """47"""
    before = disk.read_bytes()
    guest = Guest(agent, "vm1")
    agent.slow_job("vm1", targets / "t", "--manual-finalize", speed="0")
    stream = agent.stream("job", "watch", "vm1")
    stream.until_kind("pending")
    for verb in (["pause"], ["resume"], ["dismiss"], ["set-speed"]):
        agent.refused("job", *verb, "vm1", *(["1M"] if verb == ["set-speed"] else []))
    view = f"unix:{agent.directory}/view.sock"
    agent.ok("export", "add", "--snapshot-of", "vm1", view)
    guest.does("write -P 1 0 1M")
    run("nbdcopy", uri(view), targets / "view")
    assert (targets / "view").read_bytes() == before
    agent.ok("job", "finalize", "vm1")
    assert stream.end() == 0
    assert (targets / "t").read_bytes() == before


def test_a_concluded_job_that_is_kept_holds_its_id_until_it_is_dismissed(agent, targets):
    """48"""
    agent.slow_job("vm1", targets / "t", "--manual-dismiss", "--job-id", "nightly", speed="0")
    assert agent.stream("job", "watch", "nightly").end() == 0
    assert agent.job("nightly")["state"] == "concluded"
    agent.refused("start", "vm1", targets / "u", "--job-id", "nightly", says="nightly")
    for verb in (["pause"], ["resume"], ["cancel"], ["finalize"]):
        agent.refused("job", *verb, "nightly")
    agent.ok("job", "dismiss", "nightly")
    agent.backup("vm1", targets / "u", "--job-id", "nightly")


def test_a_paused_job_stands_still_and_protects_the_drive(agent, disk, targets):
    """50, 51"""
    before = disk.read_bytes()
    guest = Guest(agent, "vm1")
    agent.slow_job("vm1", targets / "t", speed="1M")
    stream = agent.stream("job", "watch", "vm1")
    agent.ok("job", "pause", "vm1")
    stream.until_state("paused")
    held = agent.job("vm1")
    assert held["pause_reason"] == "user"
    agent.refused("job", "pause", "vm1", says="paused")
    guest.does("write -P 3 0 8M")
    assert agent.job("vm1")["progress"]["current"] == held["progress"]["current"]
    agent.ok("job", "resume", "vm1")
    agent.refused("job", "resume", "vm1")
    agent.ok("job", "set-speed", "vm1", 0)
    assert stream.end() == 0
    assert (targets / "t").read_bytes() == before


def test_a_negative_speed_is_refused_at_the_start_and_later_and_harms_nothing(agent, disk, targets):
    """52"""
    with untouched(targets):
        agent.refused("start", "vm1", targets / "t", "--speed", "-1", code=64)
    agent.slow_job("vm1", targets / "t", speed="8M")
    assert agent.job("vm1")["speed"] == 8 * MiB
    agent.refused("job", "set-speed", "vm1", "--", "-1", code=64)
    assert agent.job("vm1")["speed"] == 8 * MiB
    finish(agent)
    assert (targets / "t").read_bytes() == disk.read_bytes()


def test_guests_are_not_delayed_by_the_speed_limit(agent, disk, targets):
    """53"""
    before = disk.read_bytes()
    guest = Guest(agent, "vm1")
    agent.slow_job("vm1", targets / "t", speed="1")
    # At a byte a second the copy would take months for what the guest overwrites here.
    guest.does("write -P 3 0 8M")
    finish(agent)
    assert (targets / "t").read_bytes() == before


def test_after_a_cancel_the_drive_is_free_at_once_and_nothing_is_saved(agent, disk, targets):
    """54"""
    guest = Guest(agent, "vm1")
    agent.slow_job("vm1", targets / "t", speed="1")
    stream = agent.stream("job", "watch", "vm1")
    agent.ok("job", "cancel", "vm1")
    assert stream.end() == 4
    guest.does("write -P 3 0 8M")
    assert list(targets.iterdir()) == []
    agent.backup("vm1", targets / "t")
    assert (targets / "t").read_bytes() == disk.read_bytes()


# Groups, views, formats.


def test_independent_jobs_of_a_group_end_each_for_itself(start_agent, images, targets):
    """63"""
    disks = {name: raw(images / f"{name}.raw", SIZE, [(0, SIZE)]) for name in ("a", "b")}
    agent = start_agent(*[f"id={name},file={disk},format=raw" for name, disk in disks.items()])
    agent.ok("start-group", f"a={targets}/a", f"b={targets}/b", "--speed", "1", "--detach")
    agent.ok("job", "cancel", "a")
    assert agent.stream("job", "watch", "a").end() == 4
    finish(agent, "b")
    assert (targets / "b").read_bytes() == disks["b"].read_bytes() and not (targets / "a").exists()


def test_in_a_grouped_completion_one_that_fails_ends_all(start_agent, images, targets, tmp_path):
    """62"""
    disks = {name: raw(images / f"{name}.raw", SIZE, [(0, SIZE)]) for name in ("a", "b")}
    with failing(tmp_path / "mount", disks["b"], read="EIO") as failing_disk:
        agent = start_agent(f"id=a,file={disks['a']},format=raw", f"id=b,file={failing_disk},format=raw,read-only=on")
        pairs = [f"{name}={targets}/{name}" for name in disks]
        agent.ok("start-group", *pairs, "--completion", "grouped", "--speed", "1", "--detach")
        streams = {name: agent.stream("job", "watch", name) for name in disks}
        agent.ok("job", "set-speed", "a", 0)
        streams["a"].until_state("waiting")
        (tmp_path / "mount.trigger").touch()
        agent.ok("job", "set-speed", "b", 0)
        assert {name: stream.end() for name, stream in streams.items()} == {"a": 4, "b": 1}
        error = next(event["failed"]["error"] for event in streams["b"].events if kind(event) == "failed")
        assert error["reason"] == "IO_ERROR", error
        assert [kind(event) for event in streams["a"].events if kind(event) in END_EVENTS] == ["cancelled"]
        assert list(targets.iterdir()) == []
        (tmp_path / "mount.trigger").unlink()
        agent.ok("start-group", *pairs, "--completion", "grouped")
    for name, disk in disks.items():
        assert (targets / name).read_bytes() == disk.read_bytes()


def test_in_a_grouped_completion_one_that_is_cancelled_cancels_all(start_agent, images, targets):
    """63"""
    disks = {name: raw(images / f"{name}.raw", SIZE, [(0, SIZE)]) for name in ("a", "b")}
    agent = start_agent(*[f"id={name},file={disk},format=raw" for name, disk in disks.items()])
    agent.ok(
        "start-group", *[f"{name}={targets}/{name}" for name in disks], "--completion", "grouped", "--speed", "1",
        "--detach")
    streams = [agent.stream("job", "watch", name) for name in disks]
    agent.ok("job", "cancel", "b")
    assert [stream.end() for stream in streams] == [4, 4]
    assert list(targets.iterdir()) == []


def test_if_one_of_a_group_cannot_start_none_does_and_nothing_is_left(start_agent, images, targets):
    """64"""
    disks = {name: raw(images / f"{name}.raw", SIZE) for name in ("a", "b")}
    agent = start_agent(*[f"id={name},file={disk},format=raw" for name, disk in disks.items()])
    (targets / "b").write_bytes(b"here first")
    with untouched(targets, images):
        agent.refused("start-group", f"a={targets}/a", f"b={targets}/b", says="b")
    assert agent.ok("job", "list").objects == [] and agent.ok("events").objects == []


def test_two_backups_of_one_drive_in_a_group_are_refused(agent, targets, images):
    """65"""
    with untouched(targets, images):
        agent.refused("start-group", f"vm1={targets}/a", f"vm1={targets}/b", code=(1, 64))
    assert agent.ok("job", "list").objects == []


def test_a_view_is_the_start_for_reads_across_what_was_and_was_not_overwritten(agent, disk, targets):
    """66"""
    before = disk.read_bytes()
    guest = Guest(agent, "vm1")
    agent.slow_job("vm1", targets / "t", speed="1")
    view = f"unix:{agent.directory}/view.sock"
    agent.ok("export", "add", "--snapshot-of", "vm1", view)
    guest.does(
        "write -P 1 64k 64k", "write -P 2 192k 32k", "write -P 3 290k 30k", "write -z 384k 64k", "write -P 4 448k 64k",
        "write -P 5 4095k 2k", "discard 5M 128k")
    script = """
import sys, random
h.connect_uri(sys.argv[1])
chance = random.Random(66)
before = open(sys.argv[2], "rb").read()
for turn in range(300):
    offset = chance.randrange(0, len(before) - 1)
    length = min(chance.choice((1, 512, 4096, 65536, 131072, 400000)), len(before) - offset)
    if turn < 4:
        offset, length = turn * 32768, 512 * 1024
    assert h.pread(length, offset) == before[offset:offset + length], (offset, length)
"""
    (targets / "before").write_bytes(before)
    done = subprocess.run(
        ["/usr/bin/python3", "-c", "import nbd\nh = nbd.NBD()\n" + script, uri(view), str(targets / "before")],
        capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert disk.read_bytes()[64 * KiB:128 * KiB] == b"\x01" * CLUSTER


def test_a_view_refuses_writes_and_discards(agent, targets):
    """68"""
    agent.slow_job("vm1", targets / "t", speed="1")
    view = f"unix:{agent.directory}/view.sock"
    agent.ok("export", "add", "--snapshot-of", "vm1", view)
    facts = json.loads(run("nbdinfo", "--json", uri(view)).stdout)["exports"][0]
    assert facts["is_read_only"]
    for command in ("write 0 4k", "discard 0 64k", "write -z 0 64k"):
        done = run("qemu-io", "-f", "raw", "-c", command, uri(view), check=False)
        assert done.returncode != 0 or "failed" in done.stdout, done.stdout


def test_block_status_is_the_map_of_the_image(start_agent, images):
    """69"""
    path = create(images / "vm1.qcow2", SIZE)
    qemu_io(path, "qcow2", "write -P 1 0 64k", "write -z 1M 128k", "write -P 2 3M 300k", f"write -P 3 {SIZE - 4096} 4k")
    wanted = [
        (entry["start"], entry["length"], entry["data"] and not entry["zero"])
        for entry in json.loads(qemu_img("map", "--output=json", "-f", "qcow2", path).stdout)]
    agent = start_agent(f"id=vm1,file={path},format=qcow2")
    guest = Guest(agent, "vm1")
    told = json.loads(run("nbdinfo", "--map", "--json", uri(guest.address)).stdout)
    found = [(entry["offset"], entry["length"], entry["type"] & 2 == 0) for entry in told]
    assert merged(found) == merged(wanted)


def merged(runs):
    """Neighbours that are alike as one."""
    result = []
    for offset, length, is_data in runs:
        if result and result[-1][2] == is_data and result[-1][0] + result[-1][1] == offset:
            result[-1] = (result[-1][0], result[-1][1] + length, is_data)
        else:
            result.append((offset, length, is_data))
    return result
