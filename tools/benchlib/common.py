"""What all rows share: the build, the work directory, files, processor time, memory, and the watch for noise."""

import contextlib
import ctypes
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
KiB, MiB, GiB, TiB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
PATIENCE = 60  # seconds for what does not take one
TICK = os.sysconf("SC_CLK_TCK")
CORES = len(os.sched_getaffinity(0))
PAGE = os.sysconf("SC_PAGE_SIZE")
LIBC, CACHESTAT = ctypes.CDLL(None), 451  # the system call's number, the same on all machines but old Alphas

BUILD = """
set -e
source tools/lib.sh
need build demo bench
need_swift
for product in drive-backup-agent drive-backup; do
    swift build --scratch-path "$scratch" "${release_flags[@]}" --product $product >&2
done
swift build --scratch-path "$scratch" "${release_flags[@]}" --show-bin-path
"""


class Unavailable(Exception):
    """This machine cannot do it; the text says what and why. The row goes on without."""


def build():
    """Installs what is missing, builds for release, and returns the directory of the binaries."""
    done = subprocess.run(["bash", "-c", BUILD], cwd=TOP, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.splitlines()[-1]


def parse_size(text):
    """`4G` in bytes."""
    units = {"K": 10, "M": 20, "G": 30, "T": 40}
    if text[-1:].upper() in units:
        return int(float(text[:-1]) * (1 << units[text[-1].upper()]))
    return int(text)


def size_text(size):
    for unit, bits in (("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >= 1 << bits:
            return f"{size / (1 << bits):g} {unit}"
    return f"{size} bytes"


def run(*command, **options):
    """Runs a command to its end; one that fails says its own words."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def wait(condition, what, patience=PATIENCE, pause=0.02):
    """Until the condition holds; returns its value."""
    deadline = time.monotonic() + patience
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what} did not come in {patience} s")
        time.sleep(pause)
    return value


def remove(*paths):
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def flush(path):
    """The file's data and metadata are on its disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fill_cache(*paths, small=False):
    """Reads what the page cache lacks of the files: what is read afterwards comes from there. With `small` in folios of one page."""
    buffer = bytearray(4 * MiB)
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            descriptor, position, end = file.fileno(), 0, os.fstat(file.fileno()).st_size
            while position < end:
                try:
                    position = os.lseek(descriptor, position, os.SEEK_DATA)
                except OSError:
                    break
                length = min(len(buffer), end - position)
                if not is_cached(descriptor, position, length):
                    # The kernel reads what it is told will be needed page by page.
                    for start in range(position, position + length if small else position, MiB):
                        os.posix_fadvise(descriptor, start, MiB, os.POSIX_FADV_WILLNEED)
                    length = os.preadv(descriptor, [buffer], position) or length
                position += length


def is_cached(descriptor, position, length):
    """Whether the page cache has all of these bytes; false where the system cannot tell (Linux before 6.5)."""
    window, answer = (ctypes.c_uint64 * 2)(position, length), (ctypes.c_uint64 * 5)()
    failed = LIBC.syscall(CACHESTAT, descriptor, window, answer, 0)
    return not failed and answer[0] * PAGE >= length


def file_system(path):
    """`ext4 (/dev/vda)`."""
    try:
        kind, source = run("findmnt", "-n", "-o", "FSTYPE,SOURCE", "--target", path).split()[:2]
        return f"{kind} ({source})"
    except (RuntimeError, ValueError, FileNotFoundError):
        return run("stat", "-f", "-c", "%T", path).strip()


def listens(path):
    """Whether somebody accepts connections at a Unix socket; asked of the kernel, so that no server has to greet."""
    with open("/proc/net/unix") as file:
        return any(fields[3] == "00010000" and fields[-1] == path for fields in map(str.split, file))


class Processes:
    """One look at /proc: who is whose child, and how much processor time each has had, in seconds."""

    def __init__(self):
        self.parent, self.own, self.reaped = {}, {}, {}
        for name in os.listdir("/proc"):
            if not name.isdigit():
                continue
            try:
                with open(f"/proc/{name}/stat") as file:
                    fields = file.read().rsplit(")", 1)[1].split()
            except OSError:
                continue
            pid = int(name)
            self.parent[pid] = int(fields[1])
            self.own[pid] = (int(fields[11]) + int(fields[12])) / TICK
            self.reaped[pid] = (int(fields[13]) + int(fields[14])) / TICK

    def tree(self, root):
        """The process and what descends from it."""
        children = {}
        for pid, parent in self.parent.items():
            children.setdefault(parent, []).append(pid)
        found, left = [], [root]
        while left:
            pid = left.pop()
            found.append(pid)
            left += children.get(pid, [])
        return found

    def seconds(self, *roots):
        """Of the processes, their descendants, and those of their descendants that have ended and were waited for."""
        pids = {pid for root in roots for pid in self.tree(root)}
        return sum(self.own.get(pid, 0) + self.reaped.get(pid, 0) for pid in pids)


def cpu_seconds(*roots):
    return Processes().seconds(*roots)


def memory(pid):
    """Fields of /proc/PID/status in bytes, such as VmHWM (peak), VmRSS, RssAnon; empty when it has ended."""
    found = {}
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status") as file:
        for line in file:
            name, _, value = line.partition(":")
            if value.rstrip().endswith("kB"):
                found[name] = int(value.split()[0]) << 10
    return found


class Noise:
    """How much of the machine others have: processor time that went neither to this run nor to the kernel's threads.

    The kernel's threads write back what we wrote, and drive our loop devices.
    """

    def __enter__(self):
        self.begun = time.monotonic()
        self.machine, self.ours, self.kernel = self.look()
        return self

    @staticmethod
    def look():
        with open("/proc/stat") as file:
            user, nice, system, _, _, _, _, steal = (int(field) for field in file.readline().split()[1:9])
        processes = Processes()
        kernel = {pid: processes.own[pid] for pid in processes.tree(2) if pid in processes.own}
        return (user + nice + system + steal) / TICK, processes.seconds(os.getpid()), kernel

    def __exit__(self, *_):
        machine, ours, kernel = self.look()
        self.seconds = time.monotonic() - self.begun
        # Thread by thread: one that ends takes all that it has ever had with it.
        worked = sum(seconds - self.kernel.get(pid, 0) for pid, seconds in kernel.items())
        others = (machine - self.machine) - (ours - self.ours) - worked
        # A tick or two more or less on each core is how the kernel counts.
        others -= 2 * CORES / TICK
        self.share = max(0.0, others / (self.seconds * CORES))
        self.busy = min(1.0, (machine - self.machine) / (self.seconds * CORES))


class Bench:
    """One run of tools/bench: its options, directories, and what rows share. A context; all is gone after it."""

    def __init__(self, options):
        self.options = options
        self.binaries = options.binaries
        self.shared, self.folios = {}, {}  # see images.drive for the latter
        self.exits = contextlib.ExitStack()

    def __enter__(self):
        # Processes whose parents end stay ours: their time is not others'.
        LIBC.prctl(36, 1)
        # For a thousand watchers, on both sides; what we start inherits it.
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        self.work = self.exits.enter_context(
            tempfile.TemporaryDirectory(prefix="drive-backup-bench-", dir=self.options.directory))
        return self

    def __exit__(self, *failure):
        return self.exits.__exit__(*failure)

    def say(self, text):
        """Progress, for people that wait."""
        if self.options.verbose:
            print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def directory(self, name):
        """An empty directory in the work directory, removed afterwards."""
        path = os.path.join(self.work, name)
        os.makedirs(path)
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def share(self, key, make):
        """What several rows use, made once."""
        if key not in self.shared:
            self.say(f"making {key}")
            self.shared[key] = make()
        return self.shared[key]


class Turns:
    """Contestants that take turns, A B C A B C: one value of each a round, and the noise of each round."""

    def __init__(self):
        self.values, self.noise, self.left_out = {}, [], []

    @classmethod
    def take(cls, bench, contestants, rounds, warm_up=True, cost="s"):
        """Each contestant is a function that does it once and returns {quantity: value}.

        A name is `TOOL` or `TOOL, OPTIONS`. After the warm-up only those options of a tool go on whose `cost`, a
        quantity of which less is better, was within a sixth of the tool's best.
        """
        turns = cls()
        if warm_up:
            first = {}
            for name in list(contestants):
                if (value := turns.once(bench, contestants, name)) is not None:
                    first[name] = value
            contestants = turns.choose(contestants, first, cost)
        for turn in range(rounds):
            bench.say(f"round {turn + 1} of {rounds}")
            with Noise() as noise:
                for name in list(contestants):
                    if (value := turns.once(bench, contestants, name)) is not None:
                        turns.values.setdefault(name, []).append(value)
            turns.noise.append(noise.share)
        return turns

    def once(self, bench, contestants, name):
        """None when this machine cannot do it, or a peer fails at it; the contestant is out then."""
        try:
            return contestants[name]()
        except (Unavailable, RuntimeError) as reason:
            if name == "us" and not isinstance(reason, Unavailable):
                raise
            self.left_out.append(f"without {name}: {reason}")
            bench.say(self.left_out[-1])
            del contestants[name]
            return None

    @staticmethod
    def choose(contestants, first, quantity):
        best = {}
        for name, value in first.items():
            tool = name.partition(",")[0]
            best[tool] = min(best.get(tool, value[quantity]), value[quantity])
        return {name: work for name, work in contestants.items()
                if name in first and first[name][quantity] <= best[name.partition(",")[0]] * 7 / 6}

    def of(self, name, quantity):
        """Its values, one a round."""
        return [value[quantity] for value in self.values.get(name, []) if quantity in value]

    def peers(self, quantity, us="us"):
        return {name: self.of(name, quantity) for name in self.values if name != us and self.of(name, quantity)}
