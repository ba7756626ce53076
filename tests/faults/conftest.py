"""`job(n, args)`: a command to be killed and started again, see survive.py."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from survive import Job  # noqa: E402


@pytest.fixture
def job(mpiexec, jukebox_root):
    return lambda n, args, **more: Job(n, args, jukebox_root, mpiexec, **more)
