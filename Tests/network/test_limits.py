"""What is too much, and what becomes of it."""

import select
import socket

from drivebackup_client import (
    CALL, CANCEL, CREDIT, END, INVALID_ARGUMENT, MESSAGE, OK, RESOURCE_EXHAUSTED, STATUS, Client, Wire, call, credit,
    frame, hello, ping, rpc, v1)

BIG = 5 << 20


def test_an_oversize_call_fails_alone(wire):
    wire.send(frame(CALL, 1, b"\0" * BIG, END) + call(3, "Agent/GetInfo"))
    assert wire.receive_status(1)[0].code == RESOURCE_EXHAUSTED
    assert wire.receive_status(3)[0].code == OK


def test_an_oversize_message_fails_alone(wire):
    wire.send(call(1, "Drives/Get", flags=0) + frame(MESSAGE, 1, b"\0" * BIG, END) + call(3, "Agent/GetInfo"))
    assert wire.receive_status(1)[0].code == RESOURCE_EXHAUSTED
    assert wire.receive_status(3)[0].code == OK


def test_an_oversize_payload_is_answered_before_it_has_arrived_and_takes_no_memory(agent, wire):
    before = agent.status("VmRSS")
    wire.send(frame(CALL, 1, length=200 << 20, flags=END))
    assert wire.receive_status(1)[0].code == RESOURCE_EXHAUSTED
    for _ in range(200):
        wire.send(b"\0" * (1 << 20))
    wire.send(call(3, "Agent/GetInfo"))
    assert wire.receive_status(3)[0].code == OK
    assert agent.status("VmRSS") - before < 32 << 10


def test_the_largest_payload_is_taken(wire):
    # 4 MiB exactly, made of an unknown field.
    request = v1("GetDriveRequest", id="vm1").SerializeToString()
    for size in range((4 << 20) - 100, 4 << 20):
        payload = rpc("Call", method="drivebackup.v1.Drives/Get", message=(
            request + b"\xfa\x3e" + bytes([size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14 & 0x7F | 0x80,
                                           size >> 21]) + b"\1" * size)).SerializeToString()
        if len(payload) == 4 << 20:
            break
    wire.send(frame(CALL, 1, payload, END))
    assert wire.receive_status(1)[0].code == OK
    wire.send(frame(CALL, 3, payload + b"\0", END))
    assert wire.receive_status(3)[0].code == RESOURCE_EXHAUSTED


def test_the_agent_keeps_to_what_the_client_takes(agent):
    with Wire(agent.unix, hello(max_payload=64)) as wire:
        wire.receive_hello()
        wire.send(call(1, "Agent/GetInfo"))
        status, messages = wire.receive_status(1)
        assert status.code == RESOURCE_EXHAUSTED and not messages
        wire.send(call(3, "Nothing/" + "x" * 5000))
        received, _ = wire.receive_until(STATUS, 3)
        assert len(received.payload) <= 64


def test_calls_beyond_1024_are_refused(wire):
    streams = range(1, 2 * 1024, 2)
    wire.send(b"".join(call(stream, "Agent/WatchEvents") for stream in streams))
    wire.send(call(2049, "Agent/GetInfo"))
    assert wire.receive_status(2049)[0].code == RESOURCE_EXHAUSTED
    wire.send(frame(CANCEL, 1))
    wire.receive_until(STATUS, 1)
    # The handler needs a moment to notice that it was cancelled.
    stream = 2051
    while True:
        wire.send(call(stream, "Agent/GetInfo"))
        status, _ = wire.receive_status(stream)
        if status.code == OK:
            break
        assert status.code == RESOURCE_EXHAUSTED
        stream += 2


def test_a_second_request_fails_alone(wire):
    wire.send(call(1, "Agent/WatchEvents", flags=0) + frame(MESSAGE, 1) + frame(MESSAGE, 1, b"", END)
              + frame(MESSAGE, 1, b"", END))
    assert wire.receive_status(1)[0].code == INVALID_ARGUMENT
    assert wire.is_alive()


def test_frames_about_ended_calls_are_ignored(wire):
    wire.send(call(1, "Agent/GetInfo"))
    wire.receive_status(1)
    wire.send(frame(CANCEL, 1) + credit(1, 100) + frame(MESSAGE, 1, b"x") + frame(MESSAGE, 1, b"\0" * BIG)
              + frame(CREDIT, 1, b"\xff"))
    assert wire.is_alive()


def test_a_watcher_that_never_reads_harms_nobody(agent):
    before = agent.status("VmRSS")
    with Client(agent.unix) as other:
        watchers = []
        for _ in range(20):
            wire = Wire(agent.unix)
            wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            wire.send(hello(initial_credit=1 << 40))
            wire.send(b"".join(call(stream, "Agent/WatchEvents") for stream in range(1, 200, 2)))
            watchers.append(wire)
        for round in range(3):
            events = list(other.start("Backups/Start", v1(
                "BackupRequest", drive="vm1", target=str(agent.targets / f"watched-{round}.raw"), sync=1)))
            assert events[-1].WhichOneof("event") != "failed"
            assert other.ping()
        assert agent.status("VmRSS") - before < 128 << 10
        for wire in watchers:
            wire.close()


def test_a_client_that_asks_and_never_reads_is_read_no_more(agent):
    before = agent.status("VmRSS")
    with Wire(agent.unix, hello()) as wire:
        wire.socket.setblocking(False)
        sent = 0
        data = ping(1) * 1000
        # Until neither the agent nor the system takes more.
        while select.select([], [wire.socket], [], 2)[1] and sent < 1 << 30:
            try:
                sent += wire.socket.send(data)
            except BlockingIOError:
                pass
        assert sent < 256 << 20
        assert agent.status("VmRSS") - before < 64 << 10
        # It is not lost: whoever reads gets the answers.
        agent.check()


def test_connections_are_counted(own_agent):
    sockets = own_agent.sockets
    wires = [Wire(own_agent.unix) for _ in range(1024)]
    for wire in wires:
        wire.receive_hello()
    with Wire(own_agent.unix) as one_more:
        one_more.receive_hello()
        assert one_more.receive_goaway().status.code == RESOURCE_EXHAUSTED
        one_more.receive_end()
    for wire in wires:
        wire.close()
    while own_agent.sockets > sockets:
        pass
    own_agent.check()
