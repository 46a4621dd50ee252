"""What is refused: with the right exit code, one line, nothing made or changed, and the agent well."""

import os
import shutil

import pytest
from harness import free_port, run_client, untouched
from images import KiB, MiB, create, held_for_writing, qemu_img, qemu_io, raw, same

SIZE = 2 * MiB


@pytest.fixture
def chained(start_agent, images):
    """An agent with a drive of two layers and another of one."""
    base = raw(images / "base.raw", SIZE, [(0, SIZE)])
    disk = create(images / "d.qcow2", SIZE, backing=(base, "raw"))
    qemu_io(disk, "qcow2", "write -P 0x41 1M 100k")
    other = raw(images / "other.raw", SIZE, [(0, SIZE)])
    agent = start_agent(("vm1", disk), ("vm2", other))
    agent.base, agent.disk, agent.other = base, disk, other
    return agent


def test_words_that_do_not_exist(chained, images, targets):
    target = targets / "t"
    with untouched(targets, images):
        for options in (
            ["--sync", "everything"], ["--sync", ""], ["--sync", "FULL"], ["--mode", "sometimes"], ["--format", "spaghetti"],
            ["--format", "vmdk"], ["--speed", "-1"], ["--speed", "fast"], ["--speed", "1X"],
            ["--speed", "99999999999999999999"], ["--speed", "9000000T"], ["--job-id", "9lives"], ["--job-id", "a/b"],
            ["--job-id", "a b"], ["--job-id", "a" * 300], ["--job-id", "-x"], ["--no-such-option"], ["--compress"],
            ["--on-source-error", "skip"], ["--on-target-error", "pause"], ["surplus"],
            ["--on-cbw-error", "ignore"], ["--cbw-timeout", "-1"], ["--cbw-timeout", "soon"], ["--staging-full", "wait"],
        ):
            chained.refused("start", "vm1", target, *options, code=64)
        chained.refused("start", "vm1", code=64)
        chained.refused("start", code=64)
        chained.refused("start-group", f"vm1={target}", "--completion", "sometimes", code=64)
        chained.refused("start-group", f"vm1={target}", "--job-id", "j", code=64)
        chained.refused(
            "start-group", f"vm1={target}", "--completion", "grouped", "--sync", "none", code=64, says="grouped")
        chained.refused("start", "vm1", target, "--sync", "none", "--rebase", says="rebase")
        chained.refused("verify", code=64)
        chained.refused("verify", target, says="no such file")
        chained.refused("no-such-command", code=64)


@pytest.mark.parametrize("sync", ["incremental", "bitmap"])
def test_modes_of_later(chained, images, targets, sync):
    with untouched(targets, images):
        chained.refused("start", "vm1", targets / "t", "--sync", sync, code=(1, 64))


def test_a_drive_that_does_not_exist(chained, images, targets):
    with untouched(targets, images):
        chained.refused("start", "vm9", targets / "t", says="vm9")
        chained.refused("start", "vm9", targets / "t", "--overwrite", says="vm9")
        chained.refused("drive", "show", "vm9", says="vm9")
        chained.refused("drive", "remove", "vm9", says="vm9")
        for verb in (["show"], ["watch"], ["pause"], ["resume"], ["cancel"], ["finalize"], ["dismiss"]):
            chained.refused("job", *verb, "vm9", says="vm9")
        chained.refused("job", "set-speed", "vm9", "1M", says="vm9")


def test_a_directory_that_does_not_exist(chained, images, targets):
    (targets / "file").write_text("x")
    with untouched(targets, images):
        chained.refused("start", "vm1", targets / "no" / "t", says="no")
        chained.refused("start", "vm1", targets / "file" / "t")
        chained.refused("start", "vm1", targets, code=(1, 64))
        chained.refused("start", "vm1", f"{targets}/t/", code=(1, 64))
        chained.refused("start", "vm1", "/", code=(1, 64, 77))
        chained.refused("start", "vm1", f"{targets}/..", code=(1, 64, 77))
        chained.refused("start", "vm1", targets / ("n" * 256), code=(1, 64))
        chained.refused("start", "vm1", targets / ("n" * 250), code=(1, 64))


@pytest.mark.parametrize("mode", ["absolute-paths", "existing"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_source_as_target(chained, images, targets, mode, overwrite):
    """SEMANTICS 7.37 and 8.9: by every name, every file of every chain."""
    names = []
    for number, source in enumerate((chained.disk, chained.base, chained.other)):
        (targets / f"symbolic{number}").symlink_to(source)
        os.link(source, targets / f"hard{number}")
        names += [source, targets / f"symbolic{number}", targets / f"hard{number}",
                  f"{images}/../{images.name}/./{source.name}"]
    (targets / "directory").symlink_to(images)
    names.append(targets / "directory" / chained.base.name)
    options = ["--mode", mode] + (["--overwrite"] if overwrite and mode != "existing" else [])
    with untouched(targets, images):
        for drive in ("vm1", "vm2"):
            for name in names:
                for target_format in ("raw", "qcow2"):
                    chained.refused("start", drive, name, *options, "--format", target_format)
            for name in names:
                chained.refused("start", drive, name, *options)


@pytest.mark.parametrize("file_format", ["raw", "qcow2"])
def test_a_partial_that_is_a_link_to_a_source_is_not_followed(chained, images, targets, file_format):
    source = chained.other
    content = source.read_bytes()
    (targets / "a.partial").symlink_to(source)
    os.link(source, targets / "b.partial")
    (targets / "c.partial").symlink_to(targets / "nowhere")
    with untouched(targets, images):
        for name in "abc":
            chained.refused("start", "vm2", targets / name, "--format", file_format)
    for name in "abc":
        chained.run("start", "vm2", targets / name, "--overwrite", "--format", file_format)
        assert source.read_bytes() == content
        assert not (targets / "nowhere").exists()
    chained.is_well()


def test_an_existing_file_is_kept(chained, images, targets):
    target = targets / "t"
    target.write_bytes(b"precious")
    with untouched(targets, images):
        for target_format in ("raw", "qcow2"):
            chained.refused("start", "vm1", target, "--format", target_format, says="t")


def test_a_dangling_link_is_not_followed(chained, images, targets):
    (targets / "t").symlink_to(targets / "elsewhere")
    with untouched(targets, images):
        chained.refused("start", "vm1", targets / "t")


def test_what_is_no_regular_file_is_not_replaced(chained, images, targets):
    (targets / "directory").mkdir()
    os.mkfifo(targets / "fifo")
    with untouched(targets, images):
        for name in ("directory", "fifo"):
            chained.refused("start", "vm1", targets / name)
            chained.refused("start", "vm1", targets / name, "--overwrite")
        chained.refused("start", "vm1", "/dev/null")
        chained.refused("start", "vm1", "/dev/null", "--overwrite")


def test_overwrite_replaces_the_file_at_the_end(chained, targets):
    target = targets / "t.qcow2"
    target.write_bytes(b"precious")
    inode = target.stat().st_ino
    chained.slow_job("vm1", target, "--overwrite", "--manual-finalize", speed="0")
    watch = chained.stream("job", "watch", "vm1")
    watch.until_kind("pending")
    assert target.read_bytes() == b"precious" and target.stat().st_ino == inode
    chained.ok("job", "finalize", "vm1")
    assert watch.end() == 0
    assert target.stat().st_ino != inode
    same(chained.disk, "qcow2", target, "qcow2")
    assert sorted(path.name for path in targets.iterdir()) == ["t.qcow2", "t.qcow2.manifest.json"]


def test_overwrite_cancelled_keeps_the_old_file(chained, targets):
    target = targets / "t.qcow2"
    target.write_bytes(b"precious")
    chained.slow_job("vm1", target, "--overwrite")
    chained.ok("job", "cancel", "vm1")
    assert chained.stream("job", "watch", "vm1").end() == 4
    assert target.read_bytes() == b"precious"
    assert [path.name for path in targets.iterdir()] == ["t.qcow2"]


def test_overwrite_does_not_replace_what_another_process_writes(chained, images, targets):
    target = create(targets / "t.qcow2", SIZE)
    with held_for_writing(target, "qcow2"), untouched(targets, images):
        chained.refused("start", "vm1", target, "--overwrite", says="lock")
    chained.backup("vm1", target, "--overwrite")


def test_an_orphaned_partial_is_named_and_replaced_only_under_overwrite(chained, images, targets):
    target, partial = targets / "t.qcow2", targets / "t.qcow2.partial"
    partial.write_bytes(b"half")
    with untouched(targets, images):
        chained.refused("start", "vm1", target, says=["t.qcow2.partial", "--overwrite"])
    chained.backup("vm1", target, "--overwrite")
    same(chained.disk, "qcow2", target, "qcow2")


def test_a_partial_that_another_process_writes_is_never_touched(chained, images, targets):
    target, partial = targets / "t.qcow2", create(targets / "t.qcow2.partial", SIZE)
    with held_for_writing(partial, "qcow2"), untouched(targets, images):
        chained.refused("start", "vm1", target, "--overwrite", says="t.qcow2.partial")
        chained.refused("start", "vm1", target, says="t.qcow2.partial")


def test_a_file_that_appears_under_the_name_meanwhile_is_kept(chained, targets):
    target = targets / "t.qcow2"
    chained.slow_job("vm1", target)
    target.write_bytes(b"somebody else's")
    watch = chained.stream("job", "watch", "vm1")
    chained.ok("job", "set-speed", "vm1", "0")
    assert watch.end() == 1, watch.events
    assert target.read_bytes() == b"somebody else's"
    assert [path.name for path in targets.iterdir()] == ["t.qcow2"]
    job = chained.job("vm1")
    assert (job["state"], job["result"]) == ("concluded", "failed")
    assert str(target) in job["error"]["message"]
    chained.is_well()


def test_a_drive_that_is_being_backed_up(chained, images, targets):
    chained.slow_job("vm1", targets / "first")
    before = sorted(path.name for path in targets.iterdir())
    chained.refused("start", "vm1", targets / "second", "--job-id", "another", says="vm1")
    chained.refused("start", "vm2", targets / "second", "--job-id", "vm1", says="vm1")
    chained.refused("start", "vm2", targets / "first")
    chained.refused("start", "vm2", targets / "first", "--overwrite")
    chained.refused("start", "vm2", targets / "first.partial", "--overwrite")
    chained.refused("start", "vm2", targets / "first.partial", "--mode", "existing", "--format", "raw")
    assert sorted(path.name for path in targets.iterdir()) == before == ["first.partial"]
    chained.ok("job", "set-speed", "vm1", "0")
    assert chained.stream("job", "watch", "vm1").end() == 0
    same(chained.disk, "qcow2", targets / "first", "qcow2")


def test_one_target_for_two_jobs_in_existing_mode(chained, targets):
    target = raw(targets / "t", SIZE)
    chained.slow_job("vm1", target, "--mode", "existing", "--format", "raw")
    os.link(target, targets / "hard")
    for name in ("t", "hard"):
        chained.refused("start", "vm2", targets / name, "--mode", "existing", "--format", "raw")
        chained.refused("start", "vm2", targets / name, "--overwrite")
    chained.ok("job", "cancel", "vm1")
    assert chained.stream("job", "watch", "vm1").end() == 4
    chained.backup("vm2", target, "--mode", "existing", "--format", "raw")
    same(chained.other, "raw", target, "raw")


def test_top_into_raw_has_no_place_for_the_backing_file(chained, images, targets):
    with untouched(targets, images):
        chained.refused("start", "vm1", targets / "t", "--sync", "top", "--format", "raw", says="backing")


# The directories that are allowed.


@pytest.fixture
def fenced(start_agent, tmp_path):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    evil = tmp_path / "inside-not"
    for directory in (inside, outside, evil):
        directory.mkdir()
    disk = raw(inside / "d.raw", SIZE, [(0, SIZE)])
    raw(outside / "o.raw", SIZE, [(0, SIZE)])
    (inside / "out").symlink_to(outside)
    (inside / "up").symlink_to("..")
    (inside / "o.raw").symlink_to(outside / "o.raw")
    (inside / "new").symlink_to(outside / "new")
    (inside / "loop").symlink_to("loop")
    agent = start_agent(("vm1", disk), allow=[inside])
    agent.inside, agent.outside, agent.evil, agent.disk = inside, outside, evil, disk
    return agent


def test_targets_outside_the_allowed_directories(fenced):
    inside, outside = fenced.inside, fenced.outside
    # A slash is a slash, whatever character the mark behind it, or before it, makes of it.
    (inside / "A\u0600").symlink_to(outside)
    with untouched(inside, outside, fenced.evil):
        for name in (
            f"{inside}/A\u0600/t", f"{inside}/A\u0600/o.raw", f"{inside}/out/\u0301t",
            outside / "t", fenced.evil / "t", f"{inside}/../outside/t", inside / "out" / "t", inside / "up" / "t",
            inside / "up" / "outside" / "t", "/tmp/t-of-drive-backup", inside.parent / "t",
        ):
            fenced.refused("start", "vm1", name, code=77)
            fenced.refused("start", "vm1", name, "--overwrite", code=77)
            fenced.refused("export", "add", "vm1", f"unix:{name}", code=77)
        for name in (outside / "o.raw", inside / "o.raw", inside / "out" / "o.raw"):
            fenced.refused("start", "vm1", name, "--mode", "existing", "--format", "raw", code=77)
            fenced.refused("start", "vm1", name, "--overwrite", code=(1, 77))
        for name in (inside / "new", inside / "loop", inside / "loop" / "t"):
            fenced.refused("start", "vm1", name, code=(1, 64, 77))
            fenced.refused("start", "vm1", name, "--mode", "existing", code=(1, 64, 77))


def test_targets_inside_the_allowed_directories(fenced):
    (fenced.inside / "deeper").mkdir()
    (fenced.inside / "link").symlink_to("deeper")
    fenced.backup("vm1", fenced.inside / "t")
    fenced.backup("vm1", fenced.inside / "deeper" / "t")
    fenced.backup("vm1", f"{fenced.inside}/deeper/../u")
    fenced.ok("start", "vm1", fenced.inside / "link" / "v")
    for name in ("t", "deeper/t", "u", "deeper/v"):
        same(fenced.disk, "raw", fenced.inside / name, "raw")


def test_drives_outside_the_allowed_directories(fenced):
    inside, outside = fenced.inside, fenced.outside
    overlay = create(inside / "overlay.qcow2", None, backing=(outside / "o.raw", "raw"))
    with untouched(inside, outside):
        for name in (outside / "o.raw", inside / "o.raw", inside / "out" / "o.raw", f"{inside}/../outside/o.raw", overlay):
            fenced.refused("drive", "add", "vm2", name, code=77)
    assert [drive["id"] for drive in fenced.ok("drive", "list").objects] == ["vm1"]


def test_an_allowed_directory_that_does_not_exist_is_said_at_the_start(start_agent, tmp_path, images):
    from harness import Agent

    agent = Agent([("vm1", raw(images / "d.raw", SIZE))], allow=[tmp_path / "nowhere"])
    try:
        result = agent.start_refused()
        assert "nowhere" in result.err
    finally:
        agent.close()


def test_the_network_may_go_nowhere_when_no_directory_is_allowed(start_agent, images, targets):
    from harness import Agent

    port = free_port()
    agent = Agent([("vm1", raw(images / "d.raw", SIZE, [(0, SIZE)]))])
    agent.listen.append(f"tcp://127.0.0.1:{port}")
    with agent, untouched(targets, images):
        remote = f"tcp://127.0.0.1:{port}"
        assert run_client("agent", "ping", agent=remote).code == 0
        assert run_client("drive", "list", agent=remote).object["id"] == "vm1"
        for command in (["start", "vm1", targets / "t"], ["drive", "add", "vm2", images / "d.raw"]):
            result = run_client(*command, agent=remote)
            assert result.code == 77 and len(result.err.splitlines()) == 1, result
        agent.is_well()


def test_the_network_may_use_allowed_directories(start_agent, images, targets):
    from harness import Agent

    port = free_port()
    disk = raw(images / "d.raw", SIZE, [(0, SIZE)])
    agent = Agent([("vm1", disk)], allow=[targets])
    agent.listen.append(f"tcp://127.0.0.1:{port}")
    with agent:
        result = run_client("start", "vm1", targets / "t", agent=f"tcp://127.0.0.1:{port}")
        assert result.code == 0, result
        same(disk, "raw", targets / "t", "raw")
