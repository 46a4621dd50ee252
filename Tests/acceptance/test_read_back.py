"""Backups that lack something, and backups that lie on others: what verify and restore say of them."""

import shutil

from faults import mounted, with_bad_sectors, with_protected
from harness import kind
from images import KiB, MiB, create, qemu_io, raw, same

SIZE = 8 * MiB


def warnings(events):
    return [event["io_error"]["message"] for event in events if event.get("io_error", {}).get("action") == "warn"]


def test_what_a_backup_lacks_is_told_by_verify_and_zero_after_a_restore(start_agent, images, targets, tmp_path):
    disk = raw(images / "d.raw", SIZE, [(0, SIZE)])
    # What the target held before must not come back as the drive's content.
    store = raw(tmp_path / "store.raw", SIZE, [(0, SIZE)], seed="old")
    with with_protected(tmp_path / "mount", store, 3 * MiB + 100 * KiB, 4 * KiB) as target:
        agent = start_agent(("vm1", disk))
        agent.ok("drive", "add", "blank", raw(images / "blank.raw", SIZE), "--format", "raw")
        assert agent.run(
            "start", "vm1", target, "--mode", "existing", "--format", "raw", "--on-target-error", "ignore").code == 3
        verified = agent.run("verify", target)
        assert verified.code == 3, verified
        completed = verified.objects[-1]["completed"]
        assert completed["result"] == "completed_with_errors" and completed["missing_bytes"] == 64 * KiB, completed
        assert completed["missing"] == [{"offset": 3 * MiB + 64 * KiB, "length": 64 * KiB}], completed
        assert any("lacks 65536 bytes" in warning for warning in warnings(verified.objects)), verified
        people = agent.run("verify", target, as_json=False)
        assert people.code == 3 and "whole" not in people.err and "missing" in people.err, people
        expected = bytearray(disk.read_bytes())
        expected[3 * MiB + 64 * KiB:3 * MiB + 128 * KiB] = bytes(64 * KiB)
        for destination, file in ((targets / "r.raw", targets / "r.raw"), ("blank", images / "blank.raw")):
            restored = agent.run("restore", target, destination)
            assert restored.code == 3, restored
            assert any("zeroes" in warning for warning in warnings(restored.objects)), restored
            assert file.read_bytes() == bytes(expected)
        manifest = target.with_name(f"{target.name}.manifest.json").read_bytes()
    # Since then more of it has gone bad: both lack.
    with with_bad_sectors(tmp_path / "later", store, (3 * MiB + 124 * KiB, 8 * KiB), (6 * MiB, 4 * KiB)) as target:
        target.with_name(f"{target.name}.manifest.json").write_bytes(manifest)
        restored = agent.run("restore", target, targets / "s.raw", "--on-source-error", "ignore")
        assert restored.code == 3, restored
        completed = restored.objects[-1]["completed"]
        assert completed["missing_bytes"] == 72 * KiB and completed["missing"] == [
            {"offset": 3 * MiB + 64 * KiB, "length": 68 * KiB}, {"offset": 6 * MiB, "length": 4 * KiB}], completed
        expected[3 * MiB + 128 * KiB:3 * MiB + 132 * KiB] = bytes(4 * KiB)
        expected[6 * MiB:6 * MiB + 4 * KiB] = bytes(4 * KiB)
        assert (targets / "s.raw").read_bytes() == bytes(expected)


def test_a_layer_is_restored_on_the_backup_it_was_made_on_and_on_no_other(start_agent, images, targets):
    base = raw(images / "base.raw", SIZE, [(0, SIZE)])
    agent = start_agent(f"id=vm0,file={base},format=raw,read-only=on")
    bottom = targets / "bottom.qcow2"
    agent.backup("vm0", bottom, "--format", "qcow2")
    top = create(images / "top.qcow2", SIZE, backing=(bottom, "qcow2"))
    qemu_io(top, "qcow2", "write -P 7 1M 300k")
    agent.ok("drive", "add", "vm1", top, "--format", "qcow2")
    layer = targets / "layer.qcow2"
    agent.backup("vm1", layer, sync="top")
    restored = agent.ok("restore", layer, targets / "r.raw", "--format", "raw")
    assert any(f"comes from {bottom}" in warning for warning in warnings(restored.objects)), restored
    same(top, "qcow2", targets / "r.raw", "raw")
    # Another backup, of the same drive even, has taken its place.
    agent.ok("drive", "remove", "vm1")
    manifest = targets / "bottom.qcow2.manifest.json"
    shutil.move(manifest, targets / "kept.json")
    agent.refused("restore", layer, targets / "s.raw", says="bottom.qcow2.manifest.json")
    agent.backup("vm0", bottom, "--format", "qcow2", "--overwrite")
    agent.refused("restore", layer, targets / "s.raw", says="another one")
    assert agent.run("verify", layer).code == 0
    shutil.move(targets / "kept.json", manifest)
    assert agent.run("restore", layer, targets / "s.raw").code == 0


def test_all_that_a_backup_lies_on_must_be_what_it_was_made_on(start_agent, images, targets):
    base = raw(images / "base.raw", SIZE, [(0, SIZE)])
    agent = start_agent(f"id=vm0,file={base},format=raw,read-only=on")
    below, layers = targets / "full.qcow2", []
    agent.backup("vm0", below, "--format", "qcow2")
    for number in (1, 2):
        top = create(images / f"top{number}.qcow2", SIZE, backing=(below, "qcow2"))
        qemu_io(top, "qcow2", f"write -P {number} {number}M 300k")
        agent.ok("drive", "add", f"vm{number}", top, "--format", "qcow2")
        below = targets / f"layer{number}.qcow2"
        agent.backup(f"vm{number}", below, sync="top")
        layers.append(below)
    # One that has a place for all of the disk, and holds what was there before where it holds nothing of its own.
    alone = raw(targets / "alone.raw", SIZE)
    agent.backup("vm2", alone, "--mode", "existing", "--format", "raw", sync="top")
    for number in (1, 2):
        agent.ok("drive", "remove", f"vm{number}")
    restored = agent.ok("restore", layers[1], targets / "r.raw", "--format", "raw")
    said = warnings(restored.objects)
    assert [path.name for path in (layers[0], targets / "full.qcow2") if any(f"comes from {path}" in word for word in said)] == [
        "layer1.qcow2", "full.qcow2"], said
    same(images / "top2.qcow2", "qcow2", targets / "r.raw", "raw")
    restored = agent.ok("restore", alone, targets / "a.raw")
    assert any("lies on no other image" in word for word in warnings(restored.objects)), restored
    # What lies at the very bottom is another backup now.
    agent.backup("vm0", targets / "full.qcow2", "--format", "qcow2", "--overwrite")
    for layer in layers:
        agent.refused("restore", layer, targets / "s.raw", says="another one")


def test_what_a_restore_could_not_write_is_no_damage_of_the_backup(start_agent, images, targets, tmp_path):
    disk = raw(images / "d.raw", SIZE, [(0, SIZE)])
    agent = start_agent(("vm1", disk))
    agent.backup("vm1", targets / "t.raw", "--format", "raw")
    store = raw(tmp_path / "store.raw", SIZE)
    with with_protected(tmp_path / "mount", store, 3 * MiB + 100 * KiB, 4 * KiB) as place:
        agent.ok("drive", "add", "bad", place, "--format", "raw")
        restored = agent.run("restore", targets / "t.raw", "bad", "--on-target-error", "ignore")
        assert restored.code == 3, restored
        assert restored.objects[-1]["completed"]["missing"] == [{"offset": 3 * MiB + 64 * KiB, "length": 64 * KiB}]
        agent.ok("drive", "remove", "bad")


def test_what_is_damaged_is_counted(start_agent, images, targets):
    disk = raw(images / "d.raw", SIZE, [(0, SIZE)])
    agent = start_agent(("vm1", disk))
    agent.backup("vm1", targets / "t.raw", "--format", "raw")
    with open(targets / "t.raw", "r+b") as file:
        for offset in (MiB + 5, 5 * MiB):
            file.seek(offset)
            file.write(b"damage")
    result = agent.run("verify", targets / "t.raw")
    assert result.code == 1, result
    found = [event["io_error"] for event in result.objects if kind(event) == "io_error"]
    assert [(error["operation"], error.get("offset", 0)) for error in found] == [("verify", MiB), ("verify", 5 * MiB)]
    job = agent.job("verify-t.raw")
    assert job["error_count"] == 2 and len(job["errors"]) == 2, job


def test_a_restore_takes_the_policies_of_a_backup(start_agent, images, targets):
    disk = raw(images / "d.raw", SIZE, [(0, SIZE)])
    agent = start_agent(("vm1", disk))
    agent.backup("vm1", targets / "t.raw", "--format", "raw")
    agent.ok(
        "restore", targets / "t.raw", targets / "r.raw", "--on-source-error", "ignore", "--on-target-error", "stop")
    job = agent.job("restore-t.raw")
    assert (job["on_source_error"], job["on_target_error"]) == ("ignore", "stop"), job
    agent.refused("restore", targets / "t.raw", targets / "s.raw", "--on-source-error", "perhaps", code=64)


def test_a_target_whose_directory_takes_no_other_file_has_its_manifest_in_the_state_directory(
        start_agent, images, tmp_path):
    disk = raw(images / "d.raw", SIZE, [(0, SIZE)])
    agent = start_agent(("vm1", disk))
    with mounted(tmp_path / "mount", "memory", SIZE):
        target = tmp_path / "mount" / "disk"
        agent.backup("vm1", target, "--mode", "existing", "--format", "raw")
        manifest = agent.job("vm1")["manifest"]
        assert manifest.startswith(str(agent.directory / "state" / "manifests")), manifest
        assert [path.name for path in target.parent.iterdir()] == ["disk"]
        assert agent.run("verify", target).code == 0
        assert target.read_bytes() == disk.read_bytes()
