"""How the agent comes and goes, as its sockets see it."""

import os
import socket
import stat
import subprocess

import pytest
from conftest import Agent, agent_binary
from drivebackup_client import OK, UNAVAILABLE, Client, StatusError, Wire, call, frame, hello, v1


def test_the_socket_has_mode_0660(agent):
    status = os.stat(agent.path)
    assert stat.S_ISSOCK(status.st_mode) and stat.S_IMODE(status.st_mode) == 0o660


def test_sigterm_says_goodbye_and_ends_within_five_seconds(own_agent):
    with Client(own_agent.unix) as client, Client(own_agent.tcp) as other:
        watch = client.start("Agent/WatchEvents")
        assert client.ping()
        own_agent.terminate()
        with pytest.raises(StatusError) as caught:
            list(watch)
        assert caught.value.code == UNAVAILABLE
        assert own_agent.process.wait(5) == 0
        for one in (client, other):
            one.reader.join(5)
            assert one.goaway is not None and one.goaway.status.code == UNAVAILABLE
        assert client.goaway.last_stream == 1
    assert not own_agent.path.exists()


def test_sigterm_does_not_wait_for_those_who_never_read(own_agent):
    wires = [Wire(own_agent.unix, hello(initial_credit=0) + call(1, "Agent/WatchEvents") + call(3, "Agent/GetInfo"))
             for _ in range(50)]
    own_agent.check()
    own_agent.terminate()
    assert own_agent.process.wait(5) == 0
    for wire in wires:
        wire.close()


def test_a_stale_socket_is_replaced(own_agent):
    own_agent.process.kill()
    own_agent.process.wait()
    assert own_agent.path.exists()
    own_agent.start().check()


def test_a_socket_that_answers_is_an_error(agent, tmp_path):
    second = subprocess.run(
        [agent_binary(), "--listen", agent.unix, "--state-directory", str(tmp_path / "state"),
         "--runtime-directory", str(tmp_path / "run")],
        capture_output=True, text=True, timeout=60)
    assert second.returncode == 1
    assert str(agent.path) in second.stderr
    assert agent.path.exists()


def test_a_file_that_is_no_socket_is_left_alone(tmp_path):
    path = tmp_path / "agent.sock"
    path.write_text("precious")
    done = subprocess.run(
        [agent_binary(), "--listen", f"unix:{path}", "--state-directory", str(tmp_path / "state"),
         "--runtime-directory", str(tmp_path / "run")],
        capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert path.read_text() == "precious"


def test_tcp_is_for_loopback_only_and_tls_is_not_there_yet(tmp_path):
    for address, word in (("tcp://0.0.0.0:0", "loopback"), ("tls://127.0.0.1:7000", "TLS")):
        done = subprocess.run(
            [agent_binary(), "--listen", address, "--state-directory", str(tmp_path / "state"),
             "--runtime-directory", str(tmp_path / "run")],
            capture_output=True, text=True, timeout=60)
        assert done.returncode not in (0, None)
        assert word in done.stderr


def test_another_socket_in_its_place_is_not_removed(own_agent):
    own_agent.path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(own_agent.path))
        own_agent.terminate()
        assert own_agent.process.wait(5) == 0
    assert own_agent.path.exists()
