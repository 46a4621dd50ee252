import os
import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "acceptance"))

from remote import Guest, Remote, View  # noqa: E402
from servers import serve  # noqa: E402


@pytest.fixture
def images(tmp_path):
    """A directory for drives."""
    directory = tmp_path / "images"
    directory.mkdir()
    return directory


@pytest.fixture
def targets(tmp_path):
    """A directory for targets."""
    directory = tmp_path / "targets"
    directory.mkdir()
    return directory


@pytest.fixture
def seed():
    """The seed of everything random in the test; DRIVE_BACKUP_SEED repeats a run."""
    value = int(os.environ.get("DRIVE_BACKUP_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"DRIVE_BACKUP_SEED={value}")
    return value


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
def clients():
    """Starts libnbd clients that end with the test, before their server does."""
    running = []

    class Clients:
        def guest(self, endpoint, seed, **options):
            return self.keep(Guest(endpoint, seed, **options))

        def view(self, endpoint, seed, truth):
            return self.keep(View(endpoint, seed, truth))

        def counters(self, endpoints):
            return self.keep(Remote("counters", endpoints))

        def keep(self, client):
            running.append(client)
            return client

    yield Clients()
    for client in running:
        client.kill()
