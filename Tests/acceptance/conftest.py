import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from harness import Agent  # noqa: E402
from target_processes import FreezingFileSystem  # noqa: E402


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
    system = FreezingFileSystem(tmp_path)
    try:
        if not system.mount():
            pytest.skip("no file system can be mounted here (root and loop devices are needed)")
        yield system
    finally:
        system.close()
