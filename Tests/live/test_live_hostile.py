"""Hostile NBD clients, while a well-behaved one works on the same drive and must notice nothing.

Each test runs beside a guest of nbd_client.py, of which every request must succeed and every byte be right.
"""

import os
import random
import resource
import socket
import struct
import threading

import pytest
import rawnbd
from drives import SIZE, make
from images import KiB, MiB
from rawnbd import RawClient, garbage
from remote import wait_until
from servers import IS_PEER


@pytest.fixture
def chance(seed):
    return random.Random(seed)


@pytest.fixture
def scene(served, clients, images, tmp_path, seed):
    """A drive of which the last MiB is the hostile clients', and a well-behaved guest on another one, both of one
    server at one address where it can be."""
    drive, victim = make(images, "raw", seed, "vm1"), make(images, "raw", seed + 1, "vm2")
    server = served(drive, victim)
    guest = clients.guest(server.endpoint(drive), seed, depth=8)
    guest.run()

    class Scene:
        pass

    scene = Scene()
    scene.server, scene.guest, scene.drive, scene.victim = server, guest, drive, victim
    # The same address as the good guest's; and the other drive, to write to.
    scene.endpoint, scene.other = server.endpoint(drive), server.endpoint(victim)
    yield scene
    guest.go_on(200)
    guest.quiesce()
    guest.truth(tmp_path / "after")
    guest.end()
    server.is_well()
    # New clients are still served.
    late = clients.guest(server.endpoint(drive), seed)
    late.run()
    late.go_on(50)
    late.quiesce()
    late.end()


def test_garbage_instead_of_a_handshake(scene, chance):
    for _ in range(60):
        with RawClient(scene.endpoint, transmission=False) as client:
            try:
                client.send(garbage(chance))
                client.socket.shutdown(socket.SHUT_WR)
            except ConnectionError:
                continue
            assert client.ended()


def test_garbage_after_the_greeting(scene, chance):
    for _ in range(60):
        with RawClient(scene.endpoint, transmission=False) as client:
            client.greet()
            try:
                client.send(garbage(chance))
                client.socket.shutdown(socket.SHUT_WR)
            except ConnectionError:
                continue
            assert client.ended()


def test_garbage_instead_of_requests(scene, chance):
    for _ in range(60):
        with RawClient(scene.endpoint) as client:
            try:
                client.send(garbage(chance))
                client.socket.shutdown(socket.SHUT_WR)
            except ConnectionError:
                continue
            assert client.ended()


def test_options_of_absurd_length(scene):
    for length in (0xFFFFFFFF, 0x7FFFFFFF, 64 * MiB):
        for option in (rawnbd.OPT_GO, rawnbd.OPT_INFO, rawnbd.OPT_LIST, rawnbd.OPT_EXPORT_NAME, 99):
            with RawClient(scene.endpoint, transmission=False) as client:
                client.greet()
                client.option(option, b"x" * 100, length=length)
                client.socket.shutdown(socket.SHUT_WR)
                assert client.ended()


def test_unknown_options_are_refused_and_the_handshake_goes_on(scene):
    with RawClient(scene.endpoint, transmission=False) as client:
        client.greet()
        for option in (9, 11, 99, 0x7FFFFFFF):
            client.option(option, b"abc")
            while True:
                number, kind, _ = client.option_reply()
                assert number == option and kind & (1 << 31), (number, hex(kind))
                break
        client.go()
        client.request(rawnbd.READ, 0, 512)
        assert client.reply(512)[:2] == (0, 1)


def test_names_that_do_not_fit_their_length(scene):
    for claimed, given in ((1000, b"vm1"), (0xFFFFFFFF, b"vm1"), (0, b"vm1vm1")):
        with RawClient(scene.endpoint, transmission=False) as client:
            client.greet()
            client.option(rawnbd.OPT_GO, struct.pack(">I", claimed) + given + struct.pack(">H", 0))
            _, kind, _ = client.option_reply()
            assert kind & (1 << 31), hex(kind)
            client.go()


def test_handshakes_cut_at_every_byte(scene):
    name = scene.endpoint.name.encode()
    whole = struct.pack(">I", 3)
    for option in (rawnbd.OPT_STRUCTURED, rawnbd.OPT_GO):
        data = b"" if option == rawnbd.OPT_STRUCTURED else struct.pack(">I", len(name)) + name + struct.pack(">H", 0)
        whole += struct.pack(">QII", rawnbd.OPTION_MAGIC, option, len(data)) + data
    whole += struct.pack(">IHHQQI", rawnbd.REQUEST_MAGIC, 0, rawnbd.READ, 1, 0, 512)
    for length in range(len(whole)):
        with RawClient(scene.endpoint, transmission=False) as client:
            client.send(whole[:length])


def test_handshakes_of_one_byte_at_a_time(scene):
    name = scene.endpoint.name.encode()
    with RawClient(scene.endpoint, transmission=False) as client:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        client.receive(18)
        data = struct.pack(">I", len(name)) + name + struct.pack(">H", 0)
        for byte in struct.pack(">I", 3) + struct.pack(">QII", rawnbd.OPTION_MAGIC, rawnbd.OPT_GO, len(data)) + data:
            client.send(bytes([byte]))
        while client.option_reply()[1] != rawnbd.REP_ACK:
            pass
        for byte in struct.pack(">IHHQQI", rawnbd.REQUEST_MAGIC, 0, rawnbd.READ, 7, 0, 4096):
            client.send(bytes([byte]))
        assert client.reply(4096)[:2] == (0, 7)


def test_connections_that_end_in_the_middle_of_a_write(scene, chance):
    for _ in range(100):
        client = RawClient(scene.other)
        length = chance.randrange(1, 512 * KiB)
        offset = chance.randrange(SIZE - length)
        try:
            for _ in range(chance.randrange(3)):
                client.request(rawnbd.WRITE, offset, length, os.urandom(length))
            client.request(rawnbd.WRITE, offset, length, os.urandom(chance.randrange(length)))
            if chance.random() < 0.5:
                # With RST, not FIN.
                client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except ConnectionError:
            pass
        client.close()


def test_a_half_write_changes_nothing_beyond_what_it_sent(scene, chance):
    """Of a write that never came whole, the server may have written what came, and nothing else."""
    with RawClient(scene.other) as client:
        client.request(rawnbd.WRITE, 0, MiB, b"\xaa" * MiB)
        assert client.reply()[0] == 0
    client = RawClient(scene.other)
    client.request(rawnbd.WRITE, 0, MiB, b"\xbb" * (300 * KiB))
    client.close()
    with RawClient(scene.other) as client:
        client.request(rawnbd.READ, 0, MiB)
        error, _, data = client.reply(MiB)
        assert error == 0
        assert data[300 * KiB:] == b"\xaa" * (MiB - 300 * KiB)
        assert set(data[:300 * KiB]) <= {0xAA, 0xBB}


def test_requests_beyond_the_end_get_errors_and_the_connection_lives(scene):
    with RawClient(scene.other) as client:
        size, big = client.size, 1 << 63
        for command, offset, length in (
                (rawnbd.READ, size, 1), (rawnbd.READ, size - 1, 2), (rawnbd.READ, big, 512),
                (rawnbd.READ, (1 << 64) - 512, 512), (rawnbd.READ, (1 << 64) - 1, 0xFFFFFFFF),
                (rawnbd.TRIM, size - 10, 100), (rawnbd.ZEROES, size - 10, 100), (rawnbd.ZEROES, big, 0xFFFFFFFF)):
            client.request(command, offset, length, cookie=offset)
            error, cookie, _ = client.reply()
            assert error != 0 and cookie == offset, (command, offset, length)
        client.request(rawnbd.WRITE, size - 1, 2, b"ab", cookie=5)
        # ENOSPC, as the specification says for writes beyond the end.
        assert client.reply()[0] in ((28, 22) if IS_PEER else (28,))
        client.request(99, 0, 0, cookie=6)
        assert client.reply()[:2] == (22, 6)
        client.request(rawnbd.READ, 0, 512, cookie=7)
        assert client.reply(512)[:2] == (0, 7)


def test_a_request_larger_than_allowed_ends_at_most_its_own_connection(scene):
    for command in (rawnbd.READ, rawnbd.WRITE):
        with RawClient(scene.other) as client:
            client.request(command, 0, 0xFFFFFFFF)
            try:
                client.request(rawnbd.READ, 0, 512)
                client.socket.shutdown(socket.SHUT_WR)
                client.ended()
            except ConnectionError:
                pass


def test_a_wrong_request_magic_ends_the_connection(scene):
    with RawClient(scene.other) as client:
        client.request(rawnbd.READ, 0, 512, magic=0x12345678)
        assert client.ended()


def test_sixteen_connections_that_never_read_their_replies(scene, chance):
    """Each sends reads, of gigabytes in all, until the server takes no more; the good guest must go on."""
    clients, sent = [], 0
    for _ in range(16):
        client = RawClient(scene.endpoint)
        client.socket.settimeout(0)
        clients.append(client)
    request = struct.pack(">IHHQQI", rawnbd.REQUEST_MAGIC, 0, rawnbd.READ, 1, 0, MiB)
    memory_before = resident(scene.server.process.pid)
    scene.guest.go_on(100)
    for _ in range(40):
        for client in clients:
            try:
                for _ in range(50):
                    sent += client.socket.send(request)
            except BlockingIOError:
                pass
            except ConnectionError:
                pass  # Throwing such a client out is allowed.
        scene.guest.go_on(20)
    grown = resident(scene.server.process.pid) - memory_before
    print(f"{sent // len(request)} reads of 1 MiB sent; {grown >> 20} MiB more resident")
    scene.guest.go_on(500)
    # Replies that nobody takes are bounded in bytes, whatever is asked for.
    if not IS_PEER:
        assert grown < 256 * MiB, f"{grown >> 20} MiB"
    for client in clients:
        client.close()


def test_clients_that_send_writes_and_never_read_replies(scene, chance):
    clients = [RawClient(scene.other) for _ in range(16)]
    piece = struct.pack(">IHHQQI", rawnbd.REQUEST_MAGIC, 0, rawnbd.WRITE, 1, 4 * MiB, 4096) + bytes(4096)
    for client in clients:
        client.socket.settimeout(0)
    for _ in range(20):
        for client in clients:
            try:
                for _ in range(50):
                    client.socket.send(piece)
            except (BlockingIOError, ConnectionError):
                pass
        scene.guest.go_on(20)
    for client in clients:
        client.close()


def test_thousands_of_connects(scene):
    """One after the other, some of them to the end of the handshake."""
    descriptors = open_descriptors(scene.server.process.pid)
    for number in range(2000):
        RawClient(scene.endpoint, transmission=number % 4 == 0).close()
    scene.guest.go_on(200)
    wait_until(
        lambda: open_descriptors(scene.server.process.pid) <= descriptors + 8,
        "the server closes what its clients have closed")


def test_hundreds_of_connections_at_once_that_say_nothing(scene):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    silent = []
    try:
        for _ in range(900):
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(1)
            try:
                connection.connect(str(scene.endpoint.socket))
            except OSError:
                connection.close()
                break  # Refusing more is allowed.
            silent.append(connection)
        scene.guest.go_on(500)
    finally:
        for connection in silent:
            connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    print(f"{len(silent)} silent connections")


def test_a_storm_of_all_at_once(scene, seed):
    """Several threads of bad clients at a time."""
    failures = []

    def storm(number):
        chance = random.Random(seed + number)
        try:
            for _ in range(60):
                shape = chance.randrange(4)
                try:
                    client = RawClient(scene.other, transmission=shape > 0)
                    if shape == 0:
                        client.send(garbage(chance))
                    elif shape == 1:
                        length = chance.randrange(1, 64 * KiB)
                        client.request(rawnbd.WRITE, chance.randrange(SIZE), length, bytes(length // 2))
                    elif shape == 2:
                        for _ in range(20):
                            client.request(rawnbd.READ, 0, 64 * KiB)
                    else:
                        client.request(rawnbd.READ, chance.randrange(1 << 40), chance.randrange(1 << 20))
                        client.request(rawnbd.DISCONNECT)
                    client.close()
                except (ConnectionError, EOFError):
                    pass
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=storm, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures


def resident(pid):
    with open(f"/proc/{pid}/status") as file:
        for line in file:
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * KiB
    raise AssertionError("no VmRSS")


def open_descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))
