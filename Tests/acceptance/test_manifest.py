"""Manifests, `verify` and `restore`: what is written beside a backup, and what it is good for."""

import json
import os
import subprocess

import manifests
import pytest
from harness import kind, untouched
from images import KiB, MiB, check, create, qemu_img, qemu_io, raw, same

SIZE = 12 * MiB + 3 * 512
DATA = [(0, 100 * KiB), (MiB, MiB), (5 * MiB + 4096, 64 * KiB), (SIZE - 4096, 4096)]


@pytest.fixture
def disk(images):
    return raw(images / "d.raw", SIZE, DATA)


@pytest.fixture
def agent(start_agent, disk, images):
    return start_agent(("vm1", disk), ("spare", raw(images / "spare.raw", SIZE, [(3 * MiB, MiB)])))


def damage(result):
    """What a verify has reported: operation and range."""
    errors = [event["io_error"] for event in result.objects if kind(event) == "io_error"]
    return [(error["operation"], error.get("offset", 0), error["length"]) for error in errors]


def failed(agent, *arguments, reason):
    result = agent.run(*arguments)
    assert result.code == 1, f"{result}\n{agent.log()}"
    ends = [event["failed"] for event in result.objects if kind(event) == "failed"]
    assert [end["error"]["reason"] for end in ends] == [reason], result
    agent.is_well()
    return result


@pytest.mark.parametrize("format", ["raw", "qcow2"])
@pytest.mark.parametrize("checksum", ["xxh3-128", "sha-256"])
def test_a_manifest_is_what_its_page_says(agent, disk, targets, format, checksum):
    target = targets / "t"
    agent.backup("vm1", target, "--format", format, "--checksum", checksum)
    manifest = manifests.load(target)
    covered = manifests.judge(manifest, disk.read_bytes())
    assert covered == list(range(-(-SIZE // (64 * KiB))))
    assert manifest["checksum"] == checksum and manifest["format"] == format and manifest["sync"] == "full"
    assert manifest["drive"] == manifest["job"] == "vm1" and manifest["target"] == str(target)
    assert agent.job("vm1")["manifest"] == str(manifests.path_of(target))
    assert sorted(path.name for path in targets.iterdir()) == ["t", "t.manifest.json"]
    result = agent.ok("verify", target)
    assert kind(result.objects[-1]) == "completed" and damage(result) == []
    assert agent.job("verify-t")["type"] == "verify"


@pytest.mark.parametrize("place", [0, MiB + 70 * KiB, 3 * MiB, SIZE - 1])
def test_one_changed_byte_of_a_raw_backup_is_found_where_it_is(agent, targets, place):
    target = targets / "t.raw"
    agent.backup("vm1", target, "--format", "raw")
    with open(target, "r+b") as file:
        file.seek(place)
        byte = file.read(1)
        file.seek(place)
        file.write(bytes([byte[0] ^ 1]))
    result = failed(agent, "verify", target, reason="BACKUP_DAMAGED")
    start = place // MiB * MiB
    assert damage(result) == [("verify", start, min(MiB, SIZE - start))]
    assert f"offset {start}" in result.err
    said = agent.run("verify", target, as_json=False)
    assert said.code == 1 and f"{min(MiB, SIZE - start)} bytes at offset {start}" in said.err, said


def test_changed_data_of_a_qcow2_backup_is_found_where_it_is(agent, targets):
    target = targets / "t.qcow2"
    agent.backup("vm1", target, "--format", "qcow2")
    agent.ok("verify", target)
    qemu_io(target, "qcow2", f"write -P 0x77 {5 * MiB} 512", f"write -P 1 {7 * MiB} 512", f"write -P 1 {8 * MiB} 512")
    result = failed(agent, "verify", target, reason="BACKUP_DAMAGED")
    assert damage(result) == [("verify", 5 * MiB, MiB), ("verify", 7 * MiB, 2 * MiB)]


def test_a_restore_of_a_damaged_backup_makes_nothing_and_says_where(agent, targets):
    target = targets / "t.raw"
    agent.backup("vm1", target, "--format", "raw")
    with open(target, "r+b") as file:
        file.seek(2 * MiB)
        file.write(b"x")
    result = failed(agent, "restore", target, targets / "new.raw", reason="BACKUP_DAMAGED")
    assert damage(result) == [("verify", 2 * MiB, MiB)]
    assert sorted(path.name for path in targets.iterdir()) == ["t.raw", "t.raw.manifest.json"]
    result = failed(agent, "restore", target, "spare", reason="BACKUP_DAMAGED")
    assert "spare holds partly restored content" in result.err


def test_a_backup_that_was_cut_off_is_refused(agent, targets):
    target = targets / "t.raw"
    agent.backup("vm1", target, "--format", "raw")
    os.truncate(target, SIZE - 512)
    agent.refused("verify", target, says=[str(SIZE), str(SIZE - 512)])
    agent.refused("restore", target, targets / "new.raw", says=str(SIZE))


def test_a_damaged_qcow2_table_is_damage_or_a_refusal_never_a_success(agent, targets):
    target = targets / "t.qcow2"
    agent.backup("vm1", target, "--format", "qcow2")
    content = bytearray(target.read_bytes())
    for place in range(0, 512 * KiB, 32 * KiB):
        changed = bytearray(content)
        changed[place + 7] ^= 0x10
        target.write_bytes(changed)
        ended = subprocess.run(
            ["qemu-img", "compare", "-f", "raw", "-F", "qcow2", agent_disk(agent), str(target)], capture_output=True)
        result = agent.run("verify", target)
        assert result.code in (0, 1), f"byte {place + 7}: {result}"
        if ended.returncode != 0:
            assert result.code == 1, f"byte {place + 7} was not noticed"
    agent.is_well()


def agent_disk(agent):
    return agent.ok("drive", "show", "vm1").object["file"]


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_a_restored_file_is_the_drive_as_it_was(agent, disk, targets, format):
    agent.backup("vm1", targets / "t.qcow2", "--format", "qcow2")
    new = targets / f"new.{format}"
    events = agent.ok("restore", targets / "t.qcow2", new, "--format", format).objects
    assert kind(events[0]) == "started" and kind(events[-1]) == "completed"
    check(new) if format == "qcow2" else None
    same(disk, "raw", new, format)
    if format == "raw":
        assert new.read_bytes() == disk.read_bytes()
    assert not manifests.path_of(new).exists()
    with untouched(targets):
        agent.refused("restore", targets / "t.qcow2", new, says="exists")
    agent.ok("restore", targets / "t.qcow2", new, "--format", format, "--overwrite")


def test_a_restored_drive_is_the_drive_as_it_was(agent, disk, images, targets):
    agent.backup("vm1", targets / "t.qcow2", "--format", "qcow2")
    agent.ok("restore", targets / "t.qcow2", "spare")
    assert (images / "spare.raw").read_bytes() == disk.read_bytes()
    job = agent.job("restore-t.qcow2")
    assert job["drive"] == "spare" and job["target"] == str(images / "spare.raw") and job["type"] == "restore"
    # It can be used again.
    agent.backup("spare", targets / "s.raw", "--format", "raw")


def test_a_drive_that_somebody_has_open_is_not_restored_to(agent, images, targets):
    agent.backup("vm1", targets / "t.qcow2", "--format", "qcow2")
    agent.ok("export", "add", "spare", f"unix:{agent.directory}/nbd")
    with untouched(images):
        agent.refused("restore", targets / "t.qcow2", "spare", says="export")
    agent.ok("export", "remove", "spare")
    agent.refused("restore", targets / "t.qcow2", "nobody", says="nobody")
    agent.slow_job("spare", targets / "slow.raw", speed="1")
    agent.refused("restore", targets / "t.qcow2", "spare", says="busy")
    agent.ok("job", "cancel", "spare")


@pytest.mark.parametrize("written", [False, True])
def test_a_backup_that_lies_on_a_drive_is_not_restored_to_it(agent, images, targets, written):
    if written:
        agent.ok("export", "add", "vm1", f"unix:{agent.directory}/nbd")
        agent.ok("export", "remove", "vm1")
    target = targets / "t.qcow2"
    agent.slow_job("vm1", target, "--format", "qcow2", sync="none", speed="0")
    agent.ok("job", "cancel", "vm1")
    assert agent.run("job", "watch", "vm1").code == 0
    with untouched(images), untouched(targets):
        agent.refused("restore", target, "vm1", says=[str(target), "lies on", str(images / "d.raw"), "vm1"])
    if not written:
        agent.ok("restore", target, "spare")
        assert (images / "spare.raw").read_bytes() == (images / "d.raw").read_bytes()


def test_a_backup_is_not_restored_over_itself(agent, targets):
    target = targets / "t.raw"
    agent.backup("vm1", target, "--format", "raw")
    os.link(target, targets / "link.raw")
    with untouched(targets):
        for name in ("t.raw", "link.raw"):
            for more in ([], ["--overwrite"]):
                agent.refused("restore", target, targets / name, *more, says=[str(targets / name), "the backup itself"])


def test_a_drive_of_another_size_is_not_restored_to(start_agent, disk, images, targets):
    agent = start_agent(("vm1", disk), ("other", raw(images / "other.raw", SIZE + 512)))
    agent.backup("vm1", targets / "t.qcow2", "--format", "qcow2")
    with untouched(images):
        agent.refused("restore", targets / "t.qcow2", "other", says=[str(SIZE), str(SIZE + 512)])


def test_while_a_drive_is_restored_nobody_gets_it_and_a_cancel_says_what_is_left(agent, targets):
    agent.backup("vm1", targets / "t.raw", "--format", "raw")
    agent.ok("restore", targets / "t.raw", "spare", "--speed", "1", "--detach", "--job-id", "r")
    agent.refused("export", "add", "spare", f"unix:{agent.directory}/nbd", says="busy")
    agent.refused("start", "spare", targets / "x.raw", says="busy")
    stream = agent.stream("job", "watch", "r")
    agent.ok("job", "pause", "r")
    agent.ok("job", "resume", "r")
    agent.ok("job", "cancel", "r")
    stream.until_kind("cancelled")
    assert any("partly restored" in event.get("io_error", {}).get("message", "") for event in stream.events)
    agent.ok("restore", targets / "t.raw", "spare")


def test_people_are_told_what_was_verified(agent, targets):
    agent.backup("vm1", targets / "t.raw", "--format", "raw")
    said = agent.ok("verify", targets / "t.raw", as_json=False)
    assert "verified" in said.err and "it is whole" in said.err, said
    shown = agent.ok("job", "show", "verify-t.raw", as_json=False).out
    assert "verify of" in shown and "full" not in shown and "instant" not in shown, shown
    assert f"started: {targets / 't.raw'} (raw)" in agent.ok("events", as_json=False).out


def test_a_verify_can_be_cancelled(agent, targets):
    agent.backup("vm1", targets / "t.raw", "--format", "raw")
    agent.ok("verify", targets / "t.raw", "--speed", "1", "--detach", "--job-id", "v")
    agent.ok("job", "cancel", "v")
    result = agent.run("job", "watch", "v")
    assert result.code == 4, result
    agent.ok("verify", targets / "t.raw", "--job-id", "v")


def test_a_layer_is_verified_and_restored_with_what_it_lies_on(start_agent, images, targets):
    base = raw(images / "base.raw", 8 * MiB, [(0, 4 * MiB)])
    top = create(images / "top.qcow2", None, backing=(base, "raw"))
    qemu_io(top, "qcow2", f"write -P 5 {MiB} 200k", f"write -P 6 {7 * MiB} 64k", f"write -z {2 * MiB} 64k")
    agent = start_agent(f"id=vm1,file={top},format=qcow2")
    target = targets / "t.qcow2"
    agent.backup("vm1", target, sync="top")
    manifest = manifests.load(target)
    whole = targets / "whole.raw"
    qemu_img("convert", "-U", "-O", "raw", top, whole)
    covered = manifests.judge(manifest, whole.read_bytes())
    assert covered == [16, 17, 18, 19, 32, 112]
    assert manifest["parent"] == {"path": str(base), "format": "raw"}
    agent.ok("verify", target)
    agent.ok("restore", target, targets / "new.raw", "--format", "raw")
    assert (targets / "new.raw").read_bytes() == whole.read_bytes()
    # What lies below is not the layer's; what is in it is.
    qemu_io(target, "qcow2", f"write -P 9 {3 * MiB} 64k")
    agent.ok("verify", target)
    qemu_io(target, "qcow2", f"write -P 9 {7 * MiB} 1")
    assert damage(failed(agent, "verify", target, reason="BACKUP_DAMAGED")) == [("verify", 7 * MiB, MiB)]


def test_what_was_overwritten_is_what_the_manifest_of_sync_none_covers(agent, disk, targets):
    before = disk.read_bytes()
    agent.ok("export", "add", "vm1", f"unix:{agent.directory}/nbd")
    target = targets / "t.qcow2"
    agent.slow_job("vm1", target, "--format", "qcow2", sync="none", speed="0")
    qemu_io(f"nbd+unix:///vm1?socket={agent.directory}/nbd", "raw", f"write -P 1 {MiB} 4k", f"write -P 1 {6 * MiB} 64k")
    agent.ok("job", "cancel", "vm1")
    assert agent.run("job", "watch", "vm1").code == 0
    manifest = manifests.load(target)
    assert manifests.judge(manifest, before) == [16, 96]
    assert manifest["parent"]["path"] == str(disk)
    agent.ok("verify", target)


def test_the_manifest_is_of_the_point_in_time_whatever_the_guest_writes(agent, disk, targets):
    before = disk.read_bytes()
    agent.ok("export", "add", "vm1", f"unix:{agent.directory}/nbd")
    target = targets / "t.qcow2"
    agent.slow_job("vm1", target, "--format", "qcow2", speed="1")
    qemu_io(
        f"nbd+unix:///vm1?socket={agent.directory}/nbd", "raw", f"write -P 1 0 {MiB}", f"write -P 2 {5 * MiB} {2 * MiB}")
    agent.ok("job", "set-speed", "vm1", "0")
    assert agent.run("job", "watch", "vm1").code == 0
    manifests.judge(manifests.load(target), before)
    agent.ok("verify", target)


def test_an_existing_target_is_partial_until_it_is_whole(agent, disk, targets):
    target = raw(targets / "t.raw", SIZE)
    agent.slow_job("vm1", target, "--mode", "existing", "--format", "raw", speed="1")
    stream = agent.stream("job", "watch", "vm1")
    stream.until_state("running")
    while not manifests.path_of(target).exists():
        assert agent.job("vm1")["state"] == "running"
    assert manifests.load(target)["state"] == "partial" and "extents" not in manifests.load(target)
    agent.ok("job", "cancel", "vm1")
    stream.until_kind("cancelled")
    assert manifests.load(target)["state"] == "partial"
    agent.refused("verify", target, says="partial")
    agent.refused("restore", target, targets / "new.raw", says="partial")
    agent.backup("vm1", target, "--mode", "existing", "--format", "raw")
    manifests.judge(manifests.load(target), disk.read_bytes())
    agent.ok("verify", target)
    assert sorted(path.name for path in targets.iterdir()) == ["t.raw", "t.raw.manifest.json"]


@pytest.mark.parametrize("name", ["t.raw.manifest.json", "t.raw.manifest.json.partial"])
def test_somebody_elses_file_is_no_manifest_and_stays(agent, targets, name):
    (targets / name).write_text('{"mine": true}\n')
    with untouched(targets):
        agent.refused("start", "vm1", targets / "t.raw", "--format", "raw", says=[name, "no manifest"])
        agent.refused("start", "vm1", targets / "t.raw", "--format", "raw", "--overwrite", says=[name, "no manifest"])
    target = raw(targets / "t.raw", SIZE)
    with untouched(targets):
        agent.refused("start", "vm1", target, "--format", "raw", "--mode", "existing", says=[name, "no manifest"])


def test_a_cancelled_backup_leaves_no_manifest_and_an_old_one_stays_with_its_target(agent, targets):
    target = targets / "t.raw"
    agent.slow_job("vm1", target, "--format", "raw", speed="1")
    assert agent.job("vm1")["manifest"] == f"{target}.manifest.json"
    agent.ok("job", "cancel", "vm1")
    assert agent.run("job", "watch", "vm1").code == 4
    assert list(targets.iterdir()) == []
    assert agent.job("vm1")["manifest"] == ""
    agent.backup("vm1", target, "--format", "raw")
    old = manifests.load(target)
    agent.slow_job("vm1", target, "--format", "raw", "--overwrite", speed="1")
    agent.ok("job", "cancel", "vm1")
    assert agent.run("job", "watch", "vm1").code == 4
    assert manifests.load(target) == old
    assert sorted(path.name for path in targets.iterdir()) == ["t.raw", "t.raw.manifest.json"]
    agent.ok("verify", target)
    agent.backup("vm1", target, "--format", "raw", "--overwrite")
    assert manifests.load(target)["id"] != old["id"]
    agent.ok("verify", target)


def test_a_manifest_without_target_is_replaced(agent, targets):
    target = targets / "t.raw"
    agent.backup("vm1", target, "--format", "raw")
    old = manifests.load(target)["id"]
    target.unlink()
    agent.backup("vm1", target, "--format", "raw")
    assert manifests.load(target)["id"] != old


def test_without_a_manifest_nothing_is_verified(agent, disk, targets):
    qemu_img("convert", "-U", "-O", "qcow2", disk, targets / "t.qcow2")
    agent.refused("verify", targets / "t.qcow2", says="t.qcow2.manifest.json")
    agent.refused("restore", targets / "t.qcow2", targets / "new.raw", says="t.qcow2.manifest.json")
    agent.refused("verify", targets / "nothing", says="no such file")


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"manifest":"drive-backup","version":9}', "null"])
def test_a_manifest_that_is_none_is_refused(agent, targets, text):
    target = targets / "t.raw"
    agent.backup("vm1", target, "--format", "raw")
    manifests.path_of(target).write_text(text)
    agent.refused("verify", target, says="manifest")


def test_a_full_backup_is_not_whole_without_its_digests(agent, targets):
    target = targets / "t.raw"
    agent.backup("vm1", target, "--format", "raw")
    path = manifests.path_of(target)
    manifest = json.loads(path.read_text())
    for extents in [], manifest["extents"][1:], manifest["extents"][:-1]:
        path.write_text(json.dumps(manifest | {"extents": extents}))
        agent.refused("verify", target, says=str(path))
    path.write_text(json.dumps(manifest))
    agent.ok("verify", target)


def test_an_extent_as_large_as_a_large_drive_is_refused(agent, targets):
    target = targets / "t.raw"
    agent.backup("vm1", target, "--format", "raw")
    path = manifests.path_of(target)
    manifest = json.loads(path.read_text())
    size = 15 << 40
    os.truncate(target, size)
    extent = {"offset": 0, "digest": "00" * 16}
    path.write_text(json.dumps(manifest | {"size": size, "extent_size": 16 << 40, "extents": [extent]}))
    agent.refused("verify", target, says=str(path))
    agent.is_well()


def test_a_backup_can_be_moved_with_its_manifest(agent, targets):
    agent.backup("vm1", targets / "t.raw", "--format", "raw")
    os.rename(targets / "t.raw", targets / "moved")
    os.rename(targets / "t.raw.manifest.json", targets / "moved.manifest.json")
    agent.ok("verify", targets / "moved")


def test_only_allowed_directories_are_read(start_agent, disk, images, targets, tmp_path):
    agent = start_agent(("vm1", disk), allow=[targets])
    agent.backup("vm1", targets / "t.raw", "--format", "raw")
    agent.ok("verify", targets / "t.raw")
    agent.refused("verify", disk, code=77, says="not below")
    agent.refused("restore", targets / "t.raw", tmp_path / "new.raw", code=77, says="not below")
    os.symlink(disk, targets / "link")
    agent.refused("verify", targets / "link", code=77, says="not below")


def test_a_device_has_its_manifest_in_the_state_directory(agent, disk, tmp_path):
    backing = tmp_path / "device.raw"
    backing.write_bytes(bytes(SIZE))
    made = subprocess.run(["losetup", "--find", "--show", str(backing)], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no loop device can be made here: {made.stderr.strip()}")
    device = made.stdout.strip()
    try:
        agent.backup("vm1", device, "--mode", "existing", "--format", "raw")
        path = agent.job("vm1")["manifest"]
        assert path == f"{agent.directory}/state/manifests/{device[1:].replace('/', '%2F')}.manifest.json"
        with open(path) as file:
            manifests.judge(json.load(file), disk.read_bytes())
        agent.ok("verify", device)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
