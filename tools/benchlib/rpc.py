"""Calls and streams of events on one Unix socket, beside gRPC and beside the bare bytes."""

import contextlib
import json
import os
import subprocess
import tempfile

from .common import Noise, Turns, Unavailable, cpu_seconds
from .nbd import process
from .peers import MAKE, built
from .results import Figure, Goal

ROWS = {
    "rpc-unary": "calls of one answer, 1, 16 and 64 at once, on one connection",
    "rpc-stream": "100,000 events to each of ten watchers of one connection, one of them slow",
}
CPP, SWIFT, FLOOR = "gRPC C++", "grpc-swift-2", "ping-pong"
AHEAD = (Goal.ratio_at_least(2, CPP), Goal.ratio_at_least(10, SWIFT))
EVENTS, WATCHERS = 100_000, 10

# What makes each contestant, in its directory below tools/peers, and the program that comes of it.
SWIFT_BUILD = 'source ../../lib.sh; need build; need_swift; swift build "${release_flags[@]}" --scratch-path .build-peer '
MAKERS = {
    "us": ("drive-backup-rpc", SWIFT_BUILD + "--product drive-backup-rpc", ".build-peer/release/drive-backup-rpc"),
    CPP: ("grpc-cpp", "source ../../lib.sh; need peers; make", ".build-peer/grpc-cpp"),
    SWIFT: ("grpc-swift", SWIFT_BUILD + "--product grpc-swift-peer", ".build-peer/release/grpc-swift-peer"),
    FLOOR: ("ping-pong", MAKE, ".build-peer/ping-pong"),
}


def program(bench, name):
    """The contestant's program."""
    directory, command, path = MAKERS[name]
    try:
        return built(bench, directory, path, command)
    except Unavailable as problem:
        raise (RuntimeError(str(problem)) if name == "us" else problem) from None


def once(bench, name, *work):
    """One server, one client that does the work, and what it says of it, with the processor time of both."""
    path = program(bench, name)
    with tempfile.TemporaryDirectory(dir=bench.work) as directory:
        socket = os.path.join(directory, "s")
        with process(socket, path, "serve", socket) as pid:
            before = cpu_seconds(pid)
            with Noise() as noise:
                client = subprocess.Popen(
                    [path, work[0], socket, *map(str, work[1:])], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
                out = client.stdout.read()
                _, status, used = os.wait4(client.pid, 0)
                client.returncode = os.waitstatus_to_exitcode(status)
            server = cpu_seconds(pid) - before
    if client.returncode:
        raise RuntimeError(f"{' '.join(map(str, work))} of {name} ended with {client.returncode}")
    found = json.loads(out)
    return found | {"server": server, "client": used.ru_utime + used.ru_stime, "wall": noise.seconds, "busy": noise.busy}


def turns(bench, names, work, derive):
    def contestant(name):
        def take():
            found = once(bench, name, *work)
            return derive(found) | {
                "client_cores": found["client"] / found["wall"], "server_cores": found["server"] / found["wall"],
                "busy": found["busy"]}
        return take

    if not bench.options.peers:
        names = [name for name in names if name == "us"]
    for name in names:
        bench.say(f"{name} is made where it is not there yet, which may take minutes")
        with contextlib.suppress(Unavailable):  # Its turn says so.
            program(bench, name)
    return Turns.take(
        bench, {name: contestant(name) for name in names}, bench.options.rounds, warm_up=not bench.options.quick)


def limit(taken):
    """Why the client, and not the server, is the limit; None when it isn't."""
    rounds = taken.values.get("us", [])
    if rounds and all(one["client_cores"] >= 0.95 and one["client_cores"] > one["server_cores"] for one in rounds):
        return "our client is the limit: it uses a core, the server less"
    return None


def unary(row, bench, calls):
    seconds = max(1, round(bench.options.seconds))

    def derive(found):
        # The client's and the server's time are those of the whole run, warm-up included.
        whole = found["calls"] * found["wall"] / found["seconds"]
        rate = found["calls"] / found["seconds"]
        return {"s": 1 / rate, "rate": rate, "p50": found["p50_us"], "p99": found["p99_us"],
                "server_us": found["server"] * 1e6 / whole, "client_us": found["client"] * 1e6 / whole}

    taken = turns(bench, ["us", CPP, SWIFT, FLOOR], ("unary", calls, seconds), derive)

    def peers(quantity, floor=False):
        return {name: values for name, values in taken.peers(quantity).items() if floor or name != FLOOR}

    case = f"{calls} at once"
    goals = AHEAD + ((Goal.at_least(120_000),) if calls == 64 else ())
    rest = {"noise": taken.noise}
    yield Figure(row, case, "calls/s", taken.of("us", "rate"), peers("rate"), goals, notes=taken.left_out,
                 limit=limit(taken), **rest)
    goals = (Goal.ratio_at_most(1.5, FLOOR),) if calls == 1 else ()
    yield Figure(row, f"{case}: p50", "us", taken.of("us", "p50"), peers("p50", floor=calls == 1), goals, **rest)
    yield Figure(row, f"{case}: p99", "us", taken.of("us", "p99"), peers("p99", floor=calls == 1), **rest)
    for side in ("server", "client"):
        yield Figure(row, f"{case}: {side}'s processor time", "us CPU/request", taken.of("us", f"{side}_us"),
                     peers(f"{side}_us"), **rest)


def stream(row, bench):
    events = EVENTS // 10 if bench.options.quick else EVENTS

    def derive(found):
        rate = found["events"] / found["seconds"]
        return {"s": 1 / rate, "rate": rate, "server_us": found["server"] * 1e6 / found["events"]}

    taken = turns(bench, ["us", CPP, SWIFT], ("stream", events, WATCHERS), derive)
    case = f"{events:,} events to each of nine fast watchers"
    yield Figure(row, case, "events/s", taken.of("us", "rate"), taken.peers("rate"), AHEAD, notes=taken.left_out,
                 noise=taken.noise, limit=limit(taken))
    yield Figure(row, f"{case}: server's processor time", "us CPU/request", taken.of("us", "server_us"),
                 taken.peers("server_us"), noise=taken.noise)


def measure(row, bench):
    if row == "rpc-stream":
        yield from stream(row, bench)
        return
    for calls in (1, 64) if bench.options.quick else (1, 16, 64):
        yield from unary(row, bench, calls)
