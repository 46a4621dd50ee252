"""File systems on which files can share blocks."""

import subprocess

from target_processes import until

TYPES = ("xfs", "btrfs")


class SharingFileSystem:
    """One of its own, on a loop device."""

    def __init__(self, directory, type_, size=512 << 20):
        self.type, self.size = type_, size
        self.needs = f"root, loop devices and mkfs.{type_} are needed"
        self.path = directory / "sharing"
        self.image = directory / "sharing.img"
        self.is_mounted = False

    def mount(self):
        """False where that is not possible here."""
        self.path.mkdir()
        with open(self.image, "wb") as file:
            file.truncate(self.size)
        for command in ([f"mkfs.{self.type}", "-q", "-f", str(self.image)],
                        ["mount", "-o", "loop", str(self.image), str(self.path)]):
            try:
                done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            except FileNotFoundError:
                return False
            if done.returncode:
                return False
        self.is_mounted = True
        return True

    def close(self):
        if self.is_mounted:
            # Processes of targets may need a moment to go.
            until(lambda: subprocess.run(["umount", str(self.path)], stderr=subprocess.DEVNULL).returncode == 0,
                  f"{self.path} is unmounted")
        self.image.unlink()


def shares_blocks(path):
    """Whether any block of the file is another file's, too."""
    subprocess.run(["sync", str(path)], check=True)
    listed = subprocess.run(["filefrag", "-v", str(path)], check=True, capture_output=True, text=True).stdout
    return "shared" in listed
