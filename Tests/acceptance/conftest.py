import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from harness import Agent  # noqa: E402
from target_processes import FreezingFileSystem, mounted  # noqa: E402


@pytest.fixture
def images(tmp_path):
    """A directory for sources."""
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
def start_agent():
    """Starts agents that end with the test."""
    agents = []

    def start(*drives, **options):
        agent = Agent(drives, **options)
        agents.append(agent)
        return agent.start()

    yield start
    for agent in agents:
        agent.close()


@pytest.fixture
def freezing(tmp_path):
    """A file system that can be frozen: whoever writes to it then hangs in the kernel."""
    with mounted(FreezingFileSystem(tmp_path)) as system:
        yield system
