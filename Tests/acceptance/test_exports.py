"""Exports as far as they are said and kept; test_served.py asks the exports themselves."""

import sqlite3

import pytest

from harness import Agent, free_port, untouched
from images import MiB, raw

SIZE = 8 * MiB


@pytest.fixture
def disk(images):
    return raw(images / "vm1.raw", SIZE, [(0, 3 * MiB)])


@pytest.fixture
def agent(start_agent, images, disk):
    other = raw(images / "vm2.raw", SIZE, [(MiB, MiB)])
    return start_agent(f"id=vm1,file={disk},format=raw", f"id=vm2,file={other},format=raw,read-only=on")


def names(agent):
    return [export["name"] for export in agent.ok("export", "list").objects]


def test_an_export_is_told(agent):
    address = f"unix:{agent.directory}/vm1.sock"
    export = agent.ok("export", "add", "vm1", address).object
    assert export == {
        "name": "vm1", "drive": "vm1", "address": address, "read_only": False, "snapshot_of": "", "clients": 0,
        "from_command_line": False, "problem": ""}
    assert agent.ok("export", "list").objects == [export]
    assert agent.ok("drive", "show", "vm1").object["exports"] == ["vm1"]
    assert "vm1.sock" in agent.ok("export", "list", as_json=False).out
    assert "vm1" in agent.ok("drive", "show", "vm1", as_json=False).out
    agent.ok("export", "remove", "vm1")
    assert agent.ok("export", "list").objects == []
    assert "no exports" in agent.ok("export", "list", as_json=False).err


def test_a_relative_socket_is_the_callers(agent, tmp_path):
    export = agent.ok("export", "add", "vm1", "unix:here.sock", cwd=tmp_path).object
    assert export["address"] == f"unix:{tmp_path}/here.sock"


def test_exports_share_an_address_and_not_a_name(agent):
    address = f"unix:{agent.directory}/x.sock"
    agent.ok("export", "add", "vm1", address)
    assert agent.ok("export", "add", "vm2", address, "--name", "the other disk").object["read_only"]
    agent.refused("export", "add", "vm2", address, "--name", "vm1", says="vm1")
    assert names(agent) == ["the other disk", "vm1"]


def test_a_port_is_an_address(agent):
    export = agent.ok("export", "add", "vm1", "tcp://127.0.0.1:0").object
    assert export["address"].startswith("tcp://127.0.0.1:")
    agent.refused("export", "add", "vm2", "tcp://192.0.2.7:10809", code=64, says="loopback")
    agent.refused("export", "add", "vm2", "tls://127.0.0.1:10809", says="tls")


def test_what_makes_no_sense_is_refused(agent):
    with untouched(agent.directory / "run"):
        agent.refused("export", "add", "vm9", f"unix:{agent.directory}/x.sock", says="vm9")
        agent.refused("export", "add", "vm1", f"unix:{agent.directory}/no/x.sock", says="no/")
        agent.refused("export", "add", "vm1", "udp://127.0.0.1:1", code=64)
        agent.refused("export", "add", "vm1", f"unix:/{'x' * 200}", code=64)
        agent.refused("export", "add", "vm1", f"unix:{agent.directory}/x.sock", "--name", "", "--read-only", "x", code=64)
        agent.refused("export", "add", "--snapshot-of", "vm1", f"unix:{agent.directory}/x.sock", says="vm1")
        agent.refused("export", "remove", "vm1", says="vm1")
    assert names(agent) == []


def test_a_drive_with_an_export_stays(agent, images):
    agent.ok("drive", "add", "vm3", raw(images / "vm3.raw", SIZE), "--format", "raw")
    agent.ok("export", "add", "vm3", f"unix:{agent.directory}/vm3.sock", "--name", "disk-of-3")
    agent.refused("drive", "remove", "vm3", says="disk-of-3")
    agent.ok("export", "remove", "disk-of-3")
    agent.ok("drive", "remove", "vm3")


def test_exports_are_kept_and_the_command_line_wins(images, disk, tmp_path):
    agent = Agent([f"id=vm1,file={disk},format=raw"], arguments=["--export", f"drive=vm1,listen=unix:{tmp_path}/c.sock"])
    try:
        agent.start()
        assert agent.ok("export", "list").object["from_command_line"]
        agent.refused("export", "remove", "vm1", says="command line")
        agent.ok("export", "add", "vm1", f"unix:{tmp_path}/a.sock", "--name", "more", "--read-only")
        agent.restart()
        assert names(agent) == ["more", "vm1"]
        agent.arguments = ["--export", f"drive=vm1,listen=unix:{tmp_path}/b.sock,name=more,writable=off"]
        agent.restart()
        export = agent.ok("export", "list").object
        assert export["address"] == f"unix:{tmp_path}/b.sock" and export["from_command_line"]
        agent.arguments = []
        agent.restart()
        assert agent.ok("export", "list").object["address"] == f"unix:{tmp_path}/a.sock"
    finally:
        agent.close()


def test_an_export_whose_drive_is_gone_says_so(images, disk, tmp_path):
    agent = Agent([f"id=vm1,file={disk},format=raw"])
    try:
        agent.start()
        agent.ok("drive", "add", "vm2", raw(images / "vm2.raw", SIZE), "--format", "raw")
        agent.ok("export", "add", "vm2", f"unix:{tmp_path}/vm2.sock")
        (images / "vm2.raw").unlink()
        agent.restart()
        export = agent.ok("export", "list").object
        assert "vm2" in export["problem"] and export["problem"] in agent.log()
        assert "not served" in agent.ok("export", "list", as_json=False).out
        agent.refused("drive", "remove", "vm2", says="vm2")
        agent.ok("export", "remove", "vm2")
        agent.ok("drive", "remove", "vm2")
    finally:
        agent.close()


@pytest.mark.parametrize("option", [
    "drive=vm9,listen=unix:x.sock", "drive=vm1,listen=unix:/no/such/directory/x.sock",
    "drive=vm1,listen=tcp://192.0.2.7:1"])
def test_an_export_of_the_command_line_that_cannot_be_ends_the_start(disk, option):
    agent = Agent([f"id=vm1,file={disk},format=raw"], arguments=["--export", option])
    try:
        result = agent.start_refused()
        assert result.code == 1 and len(result.err.splitlines()) == 1 and "Export" in result.err, result
    finally:
        agent.close()


def test_sockets_are_made_below_allowed_directories_only(start_agent, disk, targets, tmp_path):
    agent = start_agent(f"id=vm1,file={disk},format=raw", allow=[targets])
    (targets / "out").symlink_to(tmp_path)
    with untouched(tmp_path):
        for path in (tmp_path / "x.sock", targets / "out" / "x.sock", targets / ".." / "x.sock"):
            agent.refused("export", "add", "vm1", f"unix:{path}", code=77, says="allowed")
    agent.ok("export", "add", "vm1", f"unix:{targets}/x.sock")


def test_who_may_use_no_files_may_add_no_exports(disk):
    port = free_port()
    agent = Agent([f"id=vm1,file={disk},format=raw"], listen=[f"tcp://127.0.0.1:{port}"])
    agent.address = f"tcp://127.0.0.1:{port}"
    try:
        agent.start()
        for address in ("tcp://127.0.0.1:0", f"unix:{agent.directory}/x.sock"):
            agent.refused("export", "add", "vm1", address, code=77, says="--allow-directory")
        assert agent.ok("export", "list").objects == []
    finally:
        agent.close()


def test_the_point_in_time_of_a_job_is_an_export_until_the_job_ends(agent, targets):
    agent.slow_job("vm1", targets / "t")
    address = f"unix:{agent.directory}/view.sock"
    export = agent.ok("export", "add", "--snapshot-of", "vm1", address).object
    assert export["name"] == "vm1-snapshot" and export["snapshot_of"] == "vm1" and export["read_only"], export
    assert agent.ok("export", "add", "--snapshot-of", "vm1", address, "--name", "then").object["drive"] == "vm1"
    assert names(agent) == ["then", "vm1-snapshot"]
    staging = agent.job("vm1")["staging"]
    assert set(staging) == {"used", "limit"}
    agent.ok("job", "cancel", "vm1")
    assert agent.stream("job", "watch", "vm1").end() == 4
    assert names(agent) == []
    agent.refused("export", "add", "--snapshot-of", "vm1", address, says="vm1")
    agent.restart()
    assert names(agent) == []


def test_the_state_of_an_earlier_version_is_taken_over(start_agent, images):
    agent = start_agent()
    agent.ok("drive", "add", "vm1", raw(images / "vm1.raw", SIZE), "--format", "raw")
    agent.terminate()
    with sqlite3.connect(agent.directory / "state" / "state.sqlite") as database:
        database.execute("DROP TABLE export")
        database.execute("ALTER TABLE drive DROP COLUMN probedRaw")
        database.execute("DELETE FROM grdb_migrations WHERE identifier LIKE '2:%'")
    database.close()
    agent.start()
    assert [drive["id"] for drive in agent.ok("drive", "list").objects] == ["vm1"]
    agent.ok("export", "add", "vm1", f"unix:{agent.directory}/x.sock")
    agent.restart()
    assert names(agent) == ["vm1"]
