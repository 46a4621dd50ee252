"""Exports asked by others' clients: nbdinfo, qemu-io, nbdcopy."""

import json
import subprocess

import pytest

from harness import Agent, kind
from images import MiB, qemu_img, raw, run

SIZE = 8 * MiB


@pytest.fixture
def disk(images):
    return raw(images / "vm1.raw", SIZE, [(0, 3 * MiB)])


@pytest.fixture
def agent(start_agent, images, disk):
    other = raw(images / "vm2.raw", SIZE, [(MiB, MiB)])
    return start_agent(f"id=vm1,file={disk},format=raw", f"id=vm2,file={other},format=raw")


def uri(address, name=""):
    if address.startswith("unix:"):
        return f"nbd+unix:///{name}?socket={address.removeprefix('unix:')}"
    return f"nbd://{address.removeprefix('tcp://')}/{name}"


def facts(address, name=""):
    return json.loads(run("nbdinfo", "--json", uri(address, name)).stdout)["exports"][0]


def io(address, *commands, name="", read_only=False):
    arguments = ["qemu-io", *(["-r"] if read_only else []), "-f", "raw"]
    for command in commands:
        arguments += ["-c", command]
    return run(*arguments, uri(address, name), check=False)


def test_an_export_answers_to_its_name_and_the_first_to_none(agent):
    address = f"unix:{agent.directory}/x.sock"
    agent.ok("export", "add", "vm1", address)
    agent.ok("export", "add", "vm2", address, "--name", "two", "--read-only")
    for name in ("", "vm1"):
        assert facts(address, name)["export-size"] == SIZE and not facts(address, name)["is_read_only"]
    assert facts(address, "two")["is_read_only"]
    listed = json.loads(run("nbdinfo", "--json", "--list", uri(address)).stdout)["exports"]
    assert {export["export-name"] for export in listed} == {"vm1", "two"}
    assert run("nbdinfo", uri(address, "nobody"), check=False).returncode != 0
    agent.ok("export", "remove", "vm1")
    assert run("nbdinfo", uri(address, "vm1"), check=False).returncode != 0
    assert facts(address, "two")["export-size"] == SIZE
    agent.ok("export", "remove", "two")
    assert not (agent.directory / "x.sock").exists()


def test_a_port_that_the_system_chose_is_the_same_after_a_restart(agent):
    address = agent.ok("export", "add", "vm1", "tcp://127.0.0.1:0").object["address"]
    assert facts(address)["export-size"] == SIZE
    agent.restart()
    assert agent.ok("export", "list").object["address"] == address
    assert facts(address)["export-size"] == SIZE


def test_what_a_guest_wrote_is_there_after_a_restart_and_after_a_kill(agent, disk):
    address = f"unix:{agent.directory}/x.sock"
    agent.ok("export", "add", "vm1", address)
    assert "failed" not in io(address, "write -P 17 64k 64k", "flush").stdout
    agent.restart()
    assert io(address, "read -P 17 64k 64k", "write -P 18 128k 4k").returncode == 0
    agent.kill()
    agent.start()
    result = io(address, "read -P 17 64k 64k", "read -P 18 128k 4k")
    assert result.returncode == 0 and "failed" not in result.stdout, result.stdout
    assert disk.read_bytes()[65536:131072] == bytes([17]) * 65536


def test_a_read_only_export_refuses_writes(agent):
    address = f"unix:{agent.directory}/x.sock"
    agent.ok("export", "add", "vm1", address, "--read-only")
    assert io(address, "read 0 4k", read_only=True).returncode == 0
    assert io(address, "write 0 4k").returncode != 0


def test_clients_are_counted_and_disconnected(agent):
    address = f"unix:{agent.directory}/x.sock"
    agent.ok("export", "add", "vm1", address)
    assert agent.ok("export", "list").object["clients"] == 0
    client = subprocess.Popen(
        ["qemu-io", "-f", "raw", uri(address)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        client.stdin.write("read 0 512\n")
        client.stdin.flush()
        while "ops" not in client.stdout.readline():
            pass
        assert agent.ok("export", "list").object["clients"] == 1
        agent.ok("export", "remove", "vm1")
        assert agent.ok("export", "list").objects == []
    finally:
        client.kill()
        client.wait()


def test_an_address_that_somebody_else_has_is_refused(agent):
    agent.refused("export", "add", "vm1", agent.address, says="agent.sock")
    assert agent.ok("export", "list").objects == []
    (agent.directory / "file.sock").write_text("not a socket")
    agent.refused("export", "add", "vm1", f"unix:{agent.directory}/file.sock", says="file.sock")
    assert (agent.directory / "file.sock").read_text() == "not a socket"


def test_the_view_is_the_drive_as_it_was_and_ends_with_the_job(agent, disk, targets, tmp_path):
    live, view = f"unix:{agent.directory}/x.sock", f"unix:{agent.directory}/v.sock"
    agent.ok("export", "add", "vm1", live)
    before = disk.read_bytes()
    agent.slow_job("vm1", targets / "t")
    agent.ok("export", "add", "--snapshot-of", "vm1", view)
    assert io(live, "write -P 99 0 1M", "write -P 98 5M 1M", "write -z 2M 1M").returncode == 0
    run("nbdcopy", uri(view), tmp_path / "pulled")
    assert (tmp_path / "pulled").read_bytes() == before
    assert agent.job("vm1")["staging"]["used"] > 0
    agent.ok("job", "cancel", "vm1")
    assert agent.stream("job", "watch", "vm1").end() == 4
    assert run("nbdinfo", uri(view), check=False).returncode != 0
    assert io(live, "read -P 99 0 1M", "read -P 98 5M 1M", "read -P 0 2M 1M").returncode == 0


def test_full_and_none_hold_the_drive_as_it_was(agent, disk, targets):
    live = f"unix:{agent.directory}/x.sock"
    agent.ok("export", "add", "vm1", live)
    before = disk.read_bytes()
    for sync, target in (("full", targets / "full.qcow2"), ("none", targets / "none.qcow2")):
        agent.slow_job("vm1", target, "--format", "qcow2", sync=sync)
        assert io(live, f"write -P {len(sync)} 512 1M", "write -z 3M 64k", "write -P 5 7M 512", "flush").returncode == 0
        if sync == "full":
            agent.ok("job", "set-speed", "vm1", 0)
        else:
            before_none = before
            agent.ok("job", "cancel", "vm1")
        assert agent.stream("job", "watch", "vm1").end() == 0
        if sync == "full":
            qemu_img("convert", "-f", "qcow2", "-O", "raw", target, targets / "full.raw")
            assert (targets / "full.raw").read_bytes() == before
            before = disk.read_bytes()
    agent.terminate()
    qemu_img("convert", "-f", "qcow2", "-O", "raw", targets / "none.qcow2", targets / "none.raw")
    assert (targets / "none.raw").read_bytes() == before_none


def test_a_group_is_one_instant(agent, images, targets):
    addresses = {}
    for name in ("vm1", "vm2"):
        addresses[name] = f"unix:{agent.directory}/{name}.sock"
        agent.ok("export", "add", name, addresses[name])
    before = {name: (images / f"{name}.raw").read_bytes() for name in addresses}
    started = agent.ok(
        "start-group", *[f"{name}={targets}/{name}" for name in addresses], "--speed", "64K", "--detach").objects
    assert len({event["started"]["point_in_time"] for event in started if kind(event) == "started"}) == 1
    for name, address in addresses.items():
        assert io(address, "write -P 3 0 4M").returncode == 0
        agent.ok("job", "set-speed", name, 0)
    for name in addresses:
        assert agent.stream("job", "watch", name).end() == 0
        assert (targets / name).read_bytes() == before[name]


def test_sigterm_ends_exports_in_time_and_leaves_no_socket(disk):
    agent = Agent([f"id=vm1,file={disk},format=raw"], arguments=["--export", "drive=vm1,listen=unix:x.sock"])
    try:
        agent.start()
        path = agent.directory / "x.sock"
        assert facts(f"unix:{path}")["export-size"] == SIZE
        code, seconds = agent.terminate()
        assert code == 0 and seconds < 5 and not path.exists()
    finally:
        agent.close()


# Staging.


@pytest.fixture
def small(start_agent, images, tmp_path):
    """An agent whose jobs may stage 1 MiB, and an export of its full 8-MiB drive."""
    disk = raw(images / "vm1.raw", SIZE, [(0, SIZE)])
    agent = start_agent(
        f"id=vm1,file={disk},format=raw", arguments=["--staging", f"{tmp_path}/staging,size=1M"])
    agent.live = f"unix:{agent.directory}/x.sock"
    agent.ok("export", "add", "vm1", agent.live)
    agent.disk = disk
    return agent


def test_full_staging_fails_the_job_and_not_the_guest(small, targets):
    small.slow_job("vm1", targets / "t")
    stream = small.stream("job", "watch", "vm1")
    # From the end, where the copy comes last.
    result = io(small.live, *[f"write -P 7 {offset}M 1M" for offset in (7, 6, 5, 4)])
    assert result.returncode == 0 and "failed" not in result.stdout, result.stdout
    assert stream.end() == 1
    error = stream.events[-1]["failed"]["error"]
    assert error["reason"] == "STAGING_FULL" and "vm1" in error["message"], error
    events = [event["io_error"] for event in stream.events if kind(event) == "io_error"]
    assert [event["side"] for event in events][-1] == "staging" and events[-1]["action"] == "report", events
    assert all(event["action"] == "warn" for event in events[:-1]), events
    assert not (targets / "t").exists() and not (targets / "t.partial").exists()
    assert small.disk.read_bytes()[4 * MiB:] == bytes([7]) * 4 * MiB
    # The next backup is right.
    small.backup("vm1", targets / "t")
    assert (targets / "t").read_bytes() == small.disk.read_bytes()


def test_full_staging_makes_the_guest_wait_if_that_was_asked_for(small, targets):
    before = small.disk.read_bytes()
    small.slow_job("vm1", targets / "t", "--staging-full", "stall")
    guest = subprocess.Popen(
        ["qemu-io", "-f", "raw", *[word for offset in (7, 6, 5, 4) for word in ("-c", f"write -P 7 {offset}M 1M")],
         uri(small.live)], stdout=subprocess.PIPE, text=True)
    try:
        stream = small.stream("job", "watch", "vm1")
        # Staging is about to be full, and the guest is on its way to wait.
        stream.until(lambda event: event.get("io_error", {}).get("action") == "warn")
        usage = small.job("vm1")["staging"]
        assert 0 < usage["used"] <= usage["limit"] == MiB, usage
        small.ok("job", "set-speed", "vm1", 0)
        assert stream.end() == 0
        out, _ = guest.communicate(timeout=60)
        assert guest.returncode == 0 and out.count("wrote") == 4, out
    finally:
        guest.kill()
        guest.wait()
    assert (targets / "t").read_bytes() == before


def test_a_cancel_lets_waiting_guests_go(small, targets):
    small.slow_job("vm1", targets / "t", "--staging-full", "stall")
    stream = small.stream("job", "watch", "vm1")
    guest = subprocess.Popen(
        ["qemu-io", "-f", "raw", "-c", "write -P 7 4M 4M", uri(small.live)], stdout=subprocess.PIPE, text=True)
    try:
        stream.until(lambda event: event.get("io_error", {}).get("action") == "warn")
        small.ok("job", "cancel", "vm1")
        assert stream.end() == 4
        out, _ = guest.communicate(timeout=60)
        assert guest.returncode == 0 and "wrote" in out, out
    finally:
        guest.kill()
        guest.wait()
    assert small.disk.read_bytes()[4 * MiB:] == bytes([7]) * 4 * MiB
