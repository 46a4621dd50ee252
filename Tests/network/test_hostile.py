"""Connections that mean no good, or break."""

import os
import random
import threading
import time

import pytest
from drivebackup_client import (
    CALL, CANCEL, CREDIT, DEADLINE_EXCEEDED, END, FAILED_PRECONDITION, GOAWAY, HELLO, INVALID_ARGUMENT, MESSAGE,
    PATIENCE, PING, PONG, STATUS, Client, Closed, Wire, call, credit, frame, hello, ping, rpc, v1)

GET_INFO = call(1, "Agent/GetInfo")

UNTRUSTED = {
    "no HELLO": GET_INFO,
    "PING first": ping(1),
    "a HELLO that is none": frame(HELLO, payload=b"\xff"),
    "a HELLO of 64 KiB and a byte": frame(HELLO, payload=b"\0" * 65537),
    "no version": frame(HELLO),
    "a max_payload of 1": hello(max_payload=1),
    "two HELLOs": hello() + hello(),
    "type 0": hello() + frame(0),
    "type 10": hello() + frame(10),
    "type 255 on a stream": hello() + frame(255, 1),
    "flags": hello() + frame(PING, flags=2),
    "all flags": hello() + frame(CALL, 1, flags=0xFF),
    "reserved": hello() + frame(PING, reserved=1),
    "CALL on stream 0": hello() + frame(CALL, 0),
    "PING on stream 1": hello() + frame(PING, 1),
    "CREDIT on stream 0": hello() + frame(CREDIT, 0),
    "an even stream": hello() + call(2, "Agent/GetInfo"),
    "an old stream": hello() + call(5, "Agent/GetInfo") + call(3, "Agent/GetInfo"),
    "the same stream": hello() + call(5, "Agent/WatchEvents") + call(5, "Agent/WatchEvents"),
    "MESSAGE on nothing": hello() + frame(MESSAGE, 1),
    "CANCEL on nothing": hello() + GET_INFO + frame(CANCEL, 3),
    "CREDIT on nothing": hello() + GET_INFO + credit(2, 5),
    "STATUS from a client": hello() + GET_INFO + frame(STATUS, 1),
    "a length beyond reason": hello() + frame(CALL, 1, length=0xFFFFFFFF),
    "an oversize PING": hello() + frame(PING, length=5 << 20),
    "HTTP": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "TLS": bytes.fromhex("16030102000100 01fc0303".replace(" ", "")) + bytes(range(200)),
    "zeroes": bytes(1000),
    "ones": b"\xff" * 1000,
}


@pytest.mark.parametrize("what", UNTRUSTED)
def test_framing_that_cannot_be_trusted_ends_the_connection_with_a_reason(address, what):
    with Wire(address) as wire:
        wire.send(UNTRUSTED[what])
        wire.receive_hello()
        goaway = wire.receive_goaway()
        assert goaway.status.code == INVALID_ARGUMENT or what == "no version"
        assert goaway.status.message
        wire.receive_end()


def test_another_version_is_refused(address):
    with Wire(address, hello(version=2)) as wire:
        wire.receive_hello()
        assert wire.receive_goaway().status.code == FAILED_PRECONDITION
        wire.receive_end()


def test_undecodable_control_frames_are_harmless(wire):
    wire.send(frame(PING, payload=b"\xff") + frame(8, payload=b"\xff") + frame(GOAWAY, payload=b"\xff"))
    assert wire.is_alive()


def test_a_session_may_be_cut_at_every_byte(agent):
    session = (hello() + ping(7) + call(1, "Drives/Get", v1("GetDriveRequest", id="vm1"))
               + call(3, "Agent/WatchEvents", flags=0) + frame(MESSAGE, 3, b"", END) + credit(3, 1000)
               + frame(CANCEL, 3, rpc("Cancel", reason="no").SerializeToString()))
    sockets = agent.sockets
    for cut in range(len(session) + 1):
        with Wire(agent.unix if cut % 2 else agent.tcp) as wire:
            wire.send(session[:cut])
            if cut % 3 == 0:
                wire.receive_hello()
    wait_for_sockets(agent, sockets)


def wait_for_sockets(agent, count):
    """Until the agent has closed what it had open for us."""
    end = time.monotonic() + PATIENCE
    while agent.sockets > count:
        assert time.monotonic() < end, f"{agent.sockets} sockets, {count} before"


def test_hundreds_of_hostile_connections_while_a_backup_runs(agent):
    seed = int(os.environ.get("DRIVE_BACKUP_SEED") or random.randrange(1 << 32))
    print(f"DRIVE_BACKUP_SEED={seed}")
    chance = random.Random(seed)
    sockets, before = agent.sockets, agent.status("VmRSS")

    def misbehave(number):
        session = hello() + call(1, "Agent/GetInfo") + call(3, "Agent/WatchEvents") + ping(1)
        kind = number % 6
        if kind == 0:
            return chance.randbytes(chance.randrange(1, 5000))
        if kind == 1:
            return session[:chance.randrange(len(session))]
        if kind == 2:
            return hello() + frame(CALL, 1, length=4 << 20, flags=END) + bytes(chance.randrange(1 << 16))
        if kind == 3:
            return b""
        if kind == 4:
            broken = bytearray(session)
            for _ in range(chance.randrange(1, 10)):
                broken[chance.randrange(len(broken))] = chance.randrange(256)
            return bytes(broken)
        return hello() + frame(CALL, 1, length=chance.randrange(1 << 32), flags=END) + bytes(1 << 16)

    with Client(agent.unix) as client:
        events = client.start("Backups/Start", v1(
            "BackupRequest", drive="vm1", target=str(agent.targets / "hostile.raw"), sync=1, speed=8 << 20,
            job_id="hostile"))
        while next(events).WhichOneof("event") != "started":
            pass
        wires = []
        for number in range(400):
            wire = Wire(agent.unix if number % 2 else agent.tcp)
            wires.append(wire)
            try:
                wire.send(misbehave(number))
            except OSError:
                pass  # The agent had seen enough.
            if number % 20 == 0:
                assert client.call("Agent/GetInfo").pid
        grown = agent.status("VmRSS") - before
        assert grown < 160 << 10, f"{grown} KiB more"
        assert client.call("Jobs/Get", v1("GetJobRequest", job_id="hostile")).progress.total == 32 << 20
        client.call("Jobs/SetSpeed", v1("SetSpeedRequest", job_id="hostile", speed=0))
        assert [event.WhichOneof("event") for event in events if event.WhichOneof("event") == "completed"]
        for wire in wires:
            wire.close()
    assert (agent.targets / "hostile.raw").read_bytes() == agent.drive.read_bytes()
    wait_for_sockets(agent, sockets)


def test_random_frames_never_hurt_the_agent(agent):
    seed = int(os.environ.get("DRIVE_BACKUP_SEED") or random.randrange(1 << 32))
    print(f"DRIVE_BACKUP_SEED={seed}")
    chance = random.Random(seed)
    methods = ["Agent/GetInfo", "Agent/WatchEvents", "Drives/List", "Drives/Get", "Jobs/List", "Jobs/Watch", "Nothing/X"]
    for _ in range(100):
        with Wire(agent.unix, hello(initial_credit=chance.choice([0, 1, 1000, 1 << 40]))) as wire:
            stream = 1
            try:
                for _ in range(chance.randrange(1, 100)):
                    other = chance.randrange(1, stream + 2) | 1
                    if other > stream - 2:
                        other = max(1, stream - 2)
                    kind = chance.randrange(6) if stream > 1 else 0
                    if kind <= 1:
                        wire.send(call(stream, chance.choice(methods), chance.choice([b"", b"\x0a\x03vm1", b"\xff"]),
                                       chance.choice([0, 1, 10 ** 6, 2 ** 64 - 1]), flags=chance.choice([0, END])))
                        stream += 2
                    elif kind == 2:
                        wire.send(frame(CANCEL, other))
                    elif kind == 3:
                        wire.send(credit(other, chance.choice([0, 1, 1 << 20, 2 ** 64 - 1])))
                    elif kind == 4:
                        wire.send(frame(MESSAGE, other, chance.randbytes(chance.randrange(50)), chance.choice([0, END])))
                    else:
                        wire.send(ping(chance.randrange(1 << 64)))
                assert wire.is_alive(9)
            except (OSError, Closed):
                raise AssertionError("legal frames ended the connection")


def test_a_silent_connection_is_sent_away(agent):
    with Wire(agent.unix) as wire:
        wire.receive_hello()
        goaway = wire.receive_goaway()
        assert goaway.status.code == DEADLINE_EXCEEDED
        wire.receive_end()


def test_connections_come_and_go_by_the_thousand(agent):
    sockets = agent.sockets
    failures = []

    def work():
        try:
            for _ in range(250):
                with Client(agent.unix) as client:
                    assert client.call("Agent/GetInfo").pid == agent.process.pid
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    wait_for_sockets(agent, sockets)


def test_requests_that_are_promised_and_not_sent_take_nothing_from_others(own_agent):
    # Down to the last KiB of what all requests may hold together.
    promised = [4 << 20] * 16 + [1 << bits for bits in range(21, 5, -1)] * 2
    wires = []
    for length in promised:
        wire = Wire(own_agent.unix, hello())
        wire.receive_hello()
        # Both arrive at once: when the PING is answered the rest has been looked at.
        wire.send(ping(1) + frame(CALL, 1, payload=b"\x0a", length=length))
        wire.receive_until(PONG)
        wires.append(wire)
    with Client(own_agent.unix) as client:
        client.call("Agent/GetInfo")
    for wire in wires:
        wire.close()
    own_agent.check()
