"""Starts nbd_client.py with the Python that has libnbd, and talks to it."""

import json
import os
import queue
import subprocess
import threading
import time
from functools import cache
from pathlib import Path

from harness import PATIENCE
from servers import IS_PEER

CLIENT = Path(__file__).parent / "nbd_client.py"


@cache
def libnbd_python():
    """An interpreter that can import nbd: libnbd's module comes from the distribution, not from PyPI."""
    candidates = [os.environ.get("DRIVE_BACKUP_LIBNBD_PYTHON"), "/usr/bin/python3", "/usr/local/bin/python3", "python3"]
    for candidate in filter(None, candidates):
        try:
            done = subprocess.run([candidate, "-c", "import nbd"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        except OSError:
            continue
        if done.returncode == 0:
            return candidate
    raise RuntimeError(
        "no Python here can import libnbd's module 'nbd': install python3-libnbd (tools/test does), or name an "
        "interpreter that can in DRIVE_BACKUP_LIBNBD_PYTHON")


class Remote:
    """One nbd_client.py process."""

    def __init__(self, role, endpoints, seed=0, **options):
        self.role, self.seed = role, seed
        command = [libnbd_python(), str(CLIENT), role, "--seed", str(seed)]
        for endpoint in endpoints:
            command += ["--socket", str(endpoint.socket), "--export", endpoint.name]
        for name, value in options.items():
            command += [f"--{name}"] if value is True else [f"--{name}", str(value)] if value else []
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.lines, self.errors = queue.Queue(), []
        threading.Thread(target=self.read, args=(self.process.stdout, self.lines.put), daemon=True).start()
        threading.Thread(target=self.read, args=(self.process.stderr, self.errors.append), daemon=True).start()
        self.hello = self.answer()

    def read(self, stream, take):
        for line in stream:
            take(line)
        take(None)

    def answer(self, patience=PATIENCE * 3):
        try:
            line = self.lines.get(timeout=patience)
        except queue.Empty:
            raise AssertionError(f"{self.role} (seed {self.seed}): no answer in {patience} s")
        if line is None:
            code = self.process.wait(PATIENCE)
            raise AssertionError(
                f"{self.role} (seed {self.seed}) ended with {code}: {''.join(filter(None, self.errors))}")
        value = json.loads(line)
        assert "failure" not in value, f"{self.role} (seed {self.seed}): {value['failure']}"
        return value

    def send(self, do, **arguments):
        try:
            self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # The answer says why it has ended.

    def ask(self, do, **arguments):
        self.send(do, **arguments)
        return self.answer()

    def end(self):
        self.send("end")
        code = self.process.wait(PATIENCE)
        assert code == 0, f"{self.role} (seed {self.seed}) ended with {code}: {''.join(filter(None, self.errors))}"

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


class Guest(Remote):
    """Random requests on a drive, checked against a model: see nbd_client.py."""

    def __init__(self, endpoint, seed, **options):
        if IS_PEER:
            # The peer's qcow2 loses one of two requests to one cluster when one of them zeroes (7.2; never for raw).
            options["apart"] = 2 << 20
        super().__init__("guest", [endpoint], seed, **options)

    def run(self):
        self.ask("run")

    def quiesce(self):
        return self.ask("quiesce")

    def truth(self, path):
        self.ask("truth", path=str(path))
        return Truth(path)

    def mark(self):
        self.ask("mark")

    def release(self, path):
        self.ask("release", path=str(path))
        return Truth(path)

    def requests(self):
        counts = self.ask("counts")
        return sum(value for key, value in counts.items() if key not in ("ok", "connected"))

    def go_on(self, requests):
        """Lets it run until so many more requests have been answered."""
        self.ask("until", requests=self.requests() + requests)


class View(Remote):
    def __init__(self, endpoint, seed, truth):
        super().__init__("view", [endpoint], seed, truth=truth.path)

    def reads(self):
        return self.ask("counts")["reads"]

    def stop(self):
        reads = self.ask("end")["reads"]
        assert self.process.wait(PATIENCE) == 0
        return reads


class Truth:
    """What an image must hold: bytes, and where they may differ, and how."""

    def __init__(self, path):
        self.path = str(path)
        self.data = Path(f"{path}.data").read_bytes()
        facts = json.loads(Path(f"{path}.json").read_text())
        self.floating = bytearray(len(self.data))
        for start, end in facts["floating"]:
            self.floating[start:end] = b"\1" * (end - start)
        self.overwritten = facts["overwritten"]
        blobs = Path(f"{path}.pieces").read_bytes()
        self.pieces = [
            Piece(start, end, kind, blobs[at:at + end - start] if kind == "write" else bytes(end - start), issued,
                  completed)
            for start, end, kind, at, issued, completed in facts["pieces"]]

    def through(self, later):
        """The same for a target of sync `none`, which holds what was overwritten and lies on the drive: what was only
        trimmed until `later`, the next one, may be as the drive has it."""
        floating = bytearray(later.floating)
        for start, end in later.overwritten:
            floating[start:end] = bytes(end - start)
        both = int.from_bytes(self.floating, "little") | int.from_bytes(floating, "little")
        self.floating = bytearray(both.to_bytes(len(floating), "little"))
        return self

    def check(self, path, what, instant=False):
        """The raw file has this content. `instant`: each of the requests is in it as a whole or not at all, and all
        that are in it were sent before any of those that are not was answered."""
        got = Path(path).read_bytes()
        assert len(got) == len(self.data), f"{what}: {len(got)} bytes, not {len(self.data)}"
        for start in range(0, len(got), 4096):
            if got[start:start + 4096] != self.data[start:start + 4096]:
                self.explain(got, start, min(start + 4096, len(got)), what)
        if instant:
            self.check_instant(got, what)

    def explain(self, got, start, end, what):
        pieces = [piece for piece in self.pieces if piece.start < end and start < piece.end]
        for index in range(start, end):
            value = got[index]
            if value == self.data[index] or (self.floating[index] and value == 0):
                continue
            if any(piece.start <= index < piece.end and piece.content[index - piece.start] == value for piece in pieces):
                continue
            raise AssertionError(
                f"{what}: byte {index} (block {index // 4096}, cluster {index // 65536} of 64 KiB) is {value}, not "
                f"{self.data[index]}; around it {got[index:index + 8].hex()}, not {self.data[index:index + 8].hex()}")

    def check_instant(self, got, what):
        inside, outside = [], []
        for piece in self.pieces:
            old, now = self.data[piece.start:piece.end], got[piece.start:piece.end]
            alone = not any(
                other is not piece and other.start < piece.end and piece.start < other.end for other in self.pieces)
            if piece.kind == "trim" or not alone or any(self.floating[piece.start:piece.end]) or old == piece.content:
                continue
            assert now in (old, piece.content), f"{what}: {piece} is in it in part"
            (inside if now == piece.content else outside).append(piece)
        if inside and outside:
            last = max(inside, key=lambda piece: piece.issued)
            first = min(outside, key=lambda piece: piece.completed or float("inf"))
            assert last.issued <= (first.completed or float("inf")), (
                f"{what}: not one instant: {last} is in it, and {first}, answered before that was sent, is not")
        return len(inside), len(outside)


class Piece:
    def __init__(self, start, end, kind, content, issued, completed):
        self.start, self.end, self.kind, self.content = start, end, kind, content
        self.issued, self.completed = issued, completed

    def __repr__(self):
        return (f"the {self.kind} of {self.end - self.start} bytes at {self.start} (sent at step {self.issued}, "
                f"answered at {self.completed})")


def wait_until(condition, what, patience=PATIENCE):
    """For what no event tells: asks again and again."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not in {patience} s"
        time.sleep(0.01)
