import sys
from pathlib import Path

import pytest

for name in ("guest", "live", "acceptance"):
    sys.path.insert(0, str(Path(__file__).parent.parent / name))

from linux_guest import LinuxGuest  # noqa: E402
from servers import serve  # noqa: E402


@pytest.fixture
def served():
    """Starts servers that end with the test."""
    servers = []

    def start(*drives):
        server = serve(*drives)
        servers.append(server)
        return server.start()

    yield start
    for server in servers:
        print(server.log()[-2000:])
        server.close()


@pytest.fixture
def boot(tmp_path, served):
    """Boots guests that end with the test, before their server does."""
    guests = []

    def start(endpoint):
        folder = tmp_path / f"guest-{len(guests)}"
        folder.mkdir()
        guest = LinuxGuest(endpoint, folder)
        guests.append(guest)
        return guest

    yield start
    for guest in guests:
        guest.kill()
