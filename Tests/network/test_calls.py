"""Calls as a well-behaved client makes them."""

import threading

import pytest
from drivebackup_client import (
    CANCELLED, CREDIT, DEADLINE_EXCEEDED, END, FAILED_PRECONDITION, INVALID_ARGUMENT, MESSAGE, NOT_FOUND, OK,
    PERMISSION_DENIED, STATUS, UNIMPLEMENTED, Client, StatusError, Wire, call, credit, frame, hello, rpc, v1)


def start_backup(client, agent, name, **fields):
    return client.start("Backups/Start", v1(
        "BackupRequest", drive="vm1", target=str(agent.targets / name), sync=1, format="raw", **fields))


def finish_backup(responses):
    """Reads a backup's events to the end and returns the last one's name."""
    return [event.WhichOneof("event") for event in responses][-1]


def test_hello_is_sent_at_once_and_says_what_the_agent_takes(agent):
    with Wire(agent.unix) as wire:
        message = wire.receive_hello()
        assert message.max_payload == 4 << 20
        assert message.initial_credit > 0
        assert message.software


def test_a_call_may_follow_hello_at_once(address):
    with Wire(address, hello() + call(1, "Drives/Get", v1("GetDriveRequest", id="vm1"))) as wire:
        wire.receive_hello()
        status, messages = wire.receive_status(1)
        assert status.code == OK
        assert v1("Drive").FromString(messages[0]).size == 32 << 20


def test_frames_may_arrive_byte_by_byte(address):
    with Wire(address) as wire:
        for byte in hello() + call(1, "Drives/Get", v1("GetDriveRequest", id="vm1")):
            wire.send(bytes([byte]))
        status, messages = wire.receive_status(1)
        assert status.code == OK and len(messages) == 1


def test_the_request_may_come_in_a_message(wire):
    request = v1("GetDriveRequest", id="vm1").SerializeToString()
    wire.send(call(1, "Drives/Get", flags=0) + frame(MESSAGE, 1, request, END))
    status, messages = wire.receive_status(1)
    assert status.code == OK and v1("Drive").FromString(messages[0]).id == "vm1"


def test_streams_may_leave_gaps(wire):
    for stream in (5, 101, 0xFFFFFFFD, 0xFFFFFFFF):
        wire.send(call(stream, "Agent/GetInfo"))
        status, messages = wire.receive_status(stream)
        assert status.code == OK and len(messages) == 1


def test_an_error_has_code_sentence_and_reason(client):
    with pytest.raises(StatusError) as caught:
        client.call("Drives/Get", v1("GetDriveRequest", id="nobody"))
    assert (caught.value.code, caught.value.reason, caught.value.subject) == (NOT_FOUND, "DRIVE_NOT_FOUND", "nobody")
    assert "nobody" in caught.value.message


def test_an_unknown_method_is_unimplemented(wire):
    for stream, method in ((1, "Drives/Paint"), (3, "Nothing/Get"), (5, "")):
        wire.send(call(stream, method))
        assert wire.receive_status(stream)[0].code == UNIMPLEMENTED
    assert wire.is_alive()


def test_unknown_fields_are_skipped(wire):
    unknown = bytes([0xFA, 0x3E, 3, 1, 2, 3, 0xF8, 0x3E, 7])  # field 1007 with bytes and with a number
    request = v1("GetDriveRequest", id="vm1").SerializeToString()
    wire.send(call(1, "Drives/Get", request + unknown))
    assert wire.receive_status(1)[0].code == OK


@pytest.mark.parametrize("payload,word", [
    (b"\x0a\x03v\x001", "id"), (b"\x0a\x03v\xff1", "id"), (b"\x0a\x02\xc3\x28", "id"), (b"\x0a\x03\xed\xa0\x80", "id"),
    (b"\x0a\x7fshort", ""), (b"\x08\x01", "id"), (b"\x0b", ""), (b"\xff" * 11, ""), (b"\x00", "")])
def test_what_cannot_be_decoded_ends_its_call_only(wire, payload, word):
    wire.send(call(1, "Drives/Get", payload) + call(3, "Agent/GetInfo"))
    results = {}
    while len(results) < 2:
        received = wire.receive()
        if received.kind == STATUS:
            results[received.stream] = rpc("Status").FromString(received.payload)
    assert results[1].code == INVALID_ARGUMENT and word in results[1].message
    assert results[3].code == OK


def test_an_unknown_enum_value_is_named(wire):
    for stream, (field, number) in enumerate((("sync", 3), ("mode", 5), ("on_target_error", 14))):
        request = v1("BackupRequest", drive="vm1", target="/nowhere").SerializeToString()
        wire.send(call(2 * stream + 1, "Backups/Start", request + bytes([number << 3, 77])))
        status, messages = wire.receive_status(2 * stream + 1)
        assert status.code == INVALID_ARGUMENT and field in status.message and not messages
    assert wire.is_alive()


def test_metadata_is_taken_and_its_keys_are_checked(wire):
    wire.send(call(1, "Agent/GetInfo", metadata=[rpc("Metadata", key="trace-id_1.x", value=b"\0\xff")]))
    assert wire.receive_status(1)[0].code == OK
    wire.send(call(3, "Agent/GetInfo", metadata=[rpc("Metadata", key="Trace Id", value=b"x")]))
    assert wire.receive_status(3)[0].code == INVALID_ARGUMENT


def test_200_calls_at_once_get_each_its_own_answer(address):
    with Client(address) as client:
        calls = []
        for number in range(200):
            calls.append((number, client.start("Drives/Get", v1("GetDriveRequest", id=f"drive-{number}"))))
        for number, started in calls:
            with pytest.raises(StatusError) as caught:
                next(started)
            assert caught.value.subject == f"drive-{number}"


def test_calls_from_many_threads_are_interleaved(address):
    failures = []
    with Client(address) as client:
        def work(number):
            try:
                for _ in range(50):
                    assert client.call("Drives/Get", v1("GetDriveRequest", id="vm1")).id == "vm1"
                    assert len(client.call("Drives/List").drives) == 1
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures


def test_a_backup_streams_its_events_to_the_end(address, agent):
    target = f"stream-{address[:3]}.raw"
    with Client(address) as client:
        events = list(start_backup(client, agent, target))
    kinds = [event.WhichOneof("event") for event in events]
    assert "started" in kinds and kinds.count("completed") == 1
    numbers = [event.sequence for event in events]
    assert numbers == sorted(set(numbers))
    assert (agent.targets / target).read_bytes() == agent.drive.read_bytes()


def test_a_watch_goes_on_where_it_left_off(client, agent):
    events = list(start_backup(client, agent, "resume.raw"))
    watched = list(client.start("Jobs/Watch", v1("WatchJobRequest", job_id="vm1")))
    assert [event.sequence for event in watched if event.WhichOneof("event") != "progress"] == [
        event.sequence for event in events if event.WhichOneof("event") != "progress"][-len(watched):] or watched
    middle = watched[len(watched) // 2].sequence
    rest = list(client.start("Jobs/Watch", v1("WatchJobRequest", job_id="vm1", after_sequence=middle)))
    assert [event.sequence for event in rest] == [event.sequence for event in watched if event.sequence > middle]
    assert rest[-1].sequence == watched[-1].sequence


def test_a_deadline_ends_its_call_and_not_the_job(client, agent):
    with pytest.raises(StatusError) as caught:
        list(client.start("Agent/WatchEvents", timeout=0.05))
    assert caught.value.code == DEADLINE_EXCEEDED
    started = client.start("Backups/Start", v1(
        "BackupRequest", drive="vm1", target=str(agent.targets / "deadline.raw"), sync=1, speed=1 << 20,
        job_id="deadline"), timeout=0.5)
    with pytest.raises(StatusError) as caught:
        list(started)
    assert caught.value.code == DEADLINE_EXCEEDED
    job = client.call("Jobs/Get", v1("GetJobRequest", job_id="deadline"))
    assert v1("Job").DESCRIPTOR.fields_by_name["state"].enum_type.values_by_number[job.state].name == "JOB_STATE_RUNNING"
    client.call("Jobs/SetSpeed", v1("SetSpeedRequest", job_id="deadline", speed=0))
    assert finish_backup(client.start("Jobs/Watch", v1("WatchJobRequest", job_id="deadline"))) is not None
    assert (agent.targets / "deadline.raw").exists()


def test_cancel_ends_its_call_only(client, agent):
    watch = client.start("Agent/WatchEvents")
    other = client.start("Agent/WatchEvents")
    watch.cancel("enough")
    with pytest.raises(StatusError) as caught:
        list(watch)
    assert caught.value.code == CANCELLED
    assert client.ping()
    other.cancel()
    with pytest.raises(StatusError):
        list(other)


def test_a_lost_connection_ends_no_job(agent):
    with Client(agent.unix) as client:
        events = client.start("Backups/Start", v1(
            "BackupRequest", drive="vm1", target=str(agent.targets / "lost.raw"), sync=1, speed=1 << 20,
            job_id="lost"))
        while next(events).WhichOneof("event") != "started":
            pass
    with Client(agent.unix) as client:
        client.call("Jobs/SetSpeed", v1("SetSpeedRequest", job_id="lost", speed=0))
        list(client.start("Jobs/Watch", v1("WatchJobRequest", job_id="lost")))
    assert (agent.targets / "lost.raw").read_bytes() == agent.drive.read_bytes()


def test_without_credit_a_call_waits_and_others_go_on(agent):
    with Wire(agent.unix, hello(initial_credit=0)) as wire:
        wire.receive_hello()
        wire.send(call(1, "Drives/Get", v1("GetDriveRequest", id="vm1")))
        wire.send(call(3, "Drives/Get", v1("GetDriveRequest", id="nobody")))
        # An error needs no credit; the answer of stream 1 would have come before it.
        status, _ = wire.receive_status(3)
        assert status.code == NOT_FOUND
        assert wire.is_alive()
        wire.send(credit(1, 1))
        status, messages = wire.receive_status(1)
        assert status.code == OK and len(messages) == 1


def test_credit_is_kept_to_the_byte(agent):
    with Client(agent.unix) as client:
        list(start_backup(client, agent, "credit.raw"))
    with Wire(agent.unix, hello(initial_credit=1)) as wire:
        wire.receive_hello()
        wire.send(call(1, "Jobs/Watch", v1("WatchJobRequest", job_id="vm1")))
        # One byte of credit lets one message go, whatever its length.
        first, _ = wire.receive_until(MESSAGE, 1)
        owed = len(first.payload) - 1
        wire.send(credit(1, owed))
        assert wire.is_alive(1)
        wire.send(frame(CREDIT, 1, rpc("Credit", bytes=0).SerializeToString()))
        assert wire.is_alive(2)
        wire.send(credit(1, 1))
        second, between = wire.receive_until(MESSAGE, 1)
        assert not between
        wire.send(credit(1, 2 ** 64 - 1))
        wire.send(credit(1, 2 ** 64 - 1))
        status, messages = wire.receive_status(1)
        assert status.code == OK and messages


def test_paths_outside_the_allowed_directories_are_refused(client):
    with pytest.raises(StatusError) as caught:
        list(client.start("Backups/Start", v1(
            "BackupRequest", drive="vm1", target="/var/tmp/drive-backup-outside.raw", sync=1)))
    assert (caught.value.code, caught.value.reason) == (PERMISSION_DENIED, "PATH_NOT_ALLOWED")


def test_an_ended_job_cannot_be_paused(client, agent):
    list(start_backup(client, agent, "ended.raw"))
    with pytest.raises(StatusError) as caught:
        client.call("Jobs/Pause", v1("PauseJobRequest", job_id="vm1"))
    assert caught.value.code in (FAILED_PRECONDITION, NOT_FOUND)
