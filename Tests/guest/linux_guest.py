"""A Linux guest under QEMU whose disk is an NBD export: Debian's cloud kernel, a static busybox, one /init.

The kernel's package is fetched with apt-get and unpacked, not installed. The serial console is the control channel:
a line sent to the guest is a shell command, a line that begins with "@@ " is said by the guest.
"""

import fcntl
import os
import platform
import queue
import re
import shutil
import subprocess
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
CACHE = Path(os.environ.get("DRIVE_BACKUP_GUEST_CACHE", ROOT / ".build-guest"))
MODULES = ("virtio_pci", "virtio_blk")
# It ends what hangs, emulation included.
PATIENCE = 180
# A guest boots in two seconds with KVM, or not at all.
KVM_PATIENCE = 30

INIT = r"""#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
for module in $(cat /modules/order); do insmod /modules/$module; done
mkdir -p /m
stty -echo < /dev/ttyS0
echo before > /tmp/phase
exec < /dev/ttyS0 > /dev/ttyS0 2> /tmp/errors
echo "@@ booted $(uname -r)"
while read -r line; do
    eval "$line"
    echo "@@ done $?"
done
"""

# Goes round over a few slots, which it overwrites in place, and makes new files, of names that say the phase; after
# each sync it says how far it has come. What a file holds is told by its name, or by its first line.
WRITER = r"""#!/bin/busybox sh
n=$1
while [ ! -e /tmp/stop ]; do
    phase=$(cat /tmp/phase)
    n=$((n + 1))
    yes "$phase $n" | head -c $((4000 + n * 777 % 90000)) > /m/$phase.$n
    { echo "$phase $n"; yes "slot $phase $n" | head -c 65536; } | dd of=/m/slot$((n % 8)) conv=notrunc bs=64k 2>/dev/null
    [ $((n % 5)) = 0 ] && [ $n -gt 60 ] && rm -f /m/*.$((n - 60))
    sync
    echo "@@ synced $phase $n"
done
rm /tmp/stop
echo "@@ stopped $n"
"""


def content(phase, number):
    """What the writer puts into the file of this name."""
    line = f"{phase} {number}\n".encode()
    length = 4000 + number * 777 % 90000
    return (line * (length // len(line) + 1))[:length]


class kvm:
    """Whether KVM works here; known after the first boot. DRIVE_BACKUP_GUEST_KVM=off has guests emulated."""

    usable = os.environ.get("DRIVE_BACKUP_GUEST_KVM") != "off" and os.access("/dev/kvm", os.R_OK | os.W_OK)


def run(*command, **options):
    done = subprocess.run(
        [str(part) for part in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, timeout=300, **options)
    assert done.returncode == 0, f"{command}: {done.returncode}: {done.stdout}"
    return done.stdout


def kernel_package():
    """The name of the package that the cloud kernel's own package depends on."""
    suffix = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
    found = re.search(
        rf"Depends: (linux-image-\S+-cloud-{suffix})\n", run("apt-cache", "depends", f"linux-image-cloud-{suffix}"))
    assert found, "apt knows no cloud kernel: apt-get update?"
    return found.group(1)


def fetch():
    """The kernel and its modules, below the cache folder; returns the folder they were unpacked to."""
    CACHE.mkdir(exist_ok=True)
    with open(CACHE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        unpacked = CACHE / "kernel"
        if unpacked.is_dir():
            return unpacked
        download = CACHE / "download"
        shutil.rmtree(download, ignore_errors=True)
        download.mkdir()
        # What apt-get download takes must be of the lists as they are: old ones name what is gone.
        try:
            run("apt-get", "download", kernel_package(), cwd=download)
        except AssertionError:
            run("apt-get", "update")
            run("apt-get", "download", kernel_package(), cwd=download)
        package = next(download.glob("*.deb"))
        run("dpkg-deb", "-x", package, download / "tree")
        (download / "tree").rename(unpacked)
        shutil.rmtree(download)
        return unpacked


def module_files(unpacked):
    """The module files, each after those it needs. What is built in is none."""
    folder = next((unpacked / "lib/modules").iterdir())
    files = {path.name[:-3].replace("-", "_"): path for path in folder.rglob("*.ko")}
    builtin = {
        Path(line).name[:-3].replace("-", "_") for line in (folder / "modules.builtin").read_text().splitlines()}
    order = []

    def add(name):
        if name in builtin or any(path.name[:-3].replace("-", "_") == name for path in order):
            return
        assert name in files, f"the kernel has no module {name}"
        needs = re.search(rb"\0depends=([^\0]*)\0", b"\0" + files[name].read_bytes()).group(1).decode()
        for other in filter(None, needs.split(",")):
            add(other.replace("-", "_"))
        order.append(files[name])

    # The file system's own, too, where it is one.
    for name in (*MODULES, "ext4"):
        add(name)
    return order


def busybox():
    """Debian's static one: /bin/busybox of the package busybox-static."""
    path = shutil.which("busybox", path="/bin:/usr/bin")
    assert path, "there is no busybox: install busybox-static"
    told = subprocess.run(["ldd", path], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout
    assert "=>" not in told, f"{path} is not static: install busybox-static"
    return path


def make_initramfs(unpacked, folder):
    tree = folder / "initramfs"
    for name in ("bin", "dev", "proc", "sys", "tmp", "modules"):
        (tree / name).mkdir(parents=True)
    shutil.copy(busybox(), tree / "bin/busybox")
    modules = module_files(unpacked)
    for path in modules:
        shutil.copy(path, tree / "modules")
    (tree / "modules/order").write_text("".join(f"{path.name}\n" for path in modules))
    for name, text in (("init", INIT), ("writer", WRITER)):
        (tree / name).write_text(text)
        (tree / name).chmod(0o755)
    image = folder / "initramfs.cpio"
    names = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
    with open(image, "wb") as out:
        subprocess.run(["cpio", "--quiet", "-o", "-H", "newc"], cwd=tree, input=names.encode(), stdout=out, check=True)
    return image


class LinuxGuest:
    def __init__(self, endpoint, folder):
        unpacked = fetch()
        self.log = folder / "console.log"
        self.kernel, self.initramfs = next((unpacked / "boot").glob("vmlinuz-*")), make_initramfs(unpacked, folder)
        self.endpoint = endpoint
        if kvm.usable:
            try:
                self.boot("kvm", KVM_PATIENCE)
                return
            except AssertionError as error:
                # A /dev/kvm that is there and does not work, as it happens inside other virtual machines.
                kvm.usable = False
                self.kill()
                print(f"KVM does not work here, so that the guest is emulated: {error}")
        self.boot("tcg", PATIENCE)

    def boot(self, accelerator, patience):
        x86 = platform.machine() == "x86_64"
        processor = "host" if accelerator == "kvm" else "max"
        command = [
            "qemu-system-x86_64" if x86 else "qemu-system-aarch64", "-nodefaults", "-no-user-config", "-display", "none",
            "-machine", "q35" if x86 else "virt", "-accel", accelerator, "-cpu", processor, "-m", "256", "-smp", "1",
            "-no-reboot", "-kernel", self.kernel, "-initrd", self.initramfs,
            "-append", f"console={'ttyS0' if x86 else 'ttyAMA0'} quiet panic=-1 loglevel=3",
            "-serial", "stdio",
            "-blockdev", f"driver=nbd,node-name=disk,server.type=unix,server.path={self.endpoint.socket},"
            f"export={self.endpoint.name},reconnect-delay={PATIENCE},discard=unmap",
            "-device", "virtio-blk-pci,drive=disk,discard=on,write-zeroes=on"]
        self.process = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            bufsize=0)
        self.said = queue.Queue()
        self.history = []
        self.reader = threading.Thread(target=self.read, args=(self.process, self.said), daemon=True)
        self.reader.start()
        self.until("booted", patience)

    def read(self, process, said):
        """Keeps what the process prints; it is told its queue, for a process of before may end while another boots."""
        with open(self.log, "wb") as log:
            for line in process.stdout:
                log.write(line)
                log.flush()
                text = line.decode(errors="replace").strip()
                if text.startswith("@@ "):
                    said.put(text[3:])
        said.put(None)

    def next(self, patience):
        try:
            line = self.said.get(timeout=max(patience, 0.001))
        except queue.Empty:
            raise AssertionError(f"the guest says nothing; its console: {self.console()}")
        assert line is not None, f"the guest has ended; its console: {self.console()}"
        self.history.append(line)
        return line

    def until(self, word, patience=PATIENCE):
        """Reads on until the guest says a line with this first word; returns the others."""
        deadline = time.monotonic() + patience
        while True:
            line = self.next(deadline - time.monotonic()).split()
            if line[0] == word:
                return line[1:]

    def seen(self):
        """Takes what was said until now."""
        while not self.said.empty():
            self.next(1)
        return self.history

    def console(self):
        return self.log.read_text(errors="replace")[-3000:]

    def send(self, command):
        self.process.stdin.write(command.encode() + b"\n")

    def command(self, command):
        """Runs it in the guest, where it must succeed."""
        self.send(command)
        code = self.until("done")[0]
        assert code == "0", f"{command!r} in the guest: {code}; its console: {self.console()}"

    def write(self, start=0):
        self.command(f"/writer {start} < /dev/null &")

    def stop_writing(self):
        self.command("touch /tmp/stop")
        return int(self.until("stopped")[0])

    def synced(self):
        """The phase and number of the last file that is known to be on the disk."""
        last = [line.split() for line in self.seen() if line.startswith("synced ")][-1]
        return last[1], int(last[2])

    def until_synced(self, more):
        """Waits until so many more rounds are on the disk."""
        for _ in range(more):
            self.until("synced")

    def off(self):
        self.send("umount /m; sync; echo '@@ off'; poweroff -f")
        self.until("off")
        assert self.process.wait(PATIENCE) == 0

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.reader.join()
