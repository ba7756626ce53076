"""`job(n, args)`: a command to be killed and started again, see survive.py."""

import importlib.util
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from survive import Job  # noqa: E402


def _of_the_sampling_tests(name):
    """A fixture that other tests have too."""
    path = Path(__file__).parent.parent / "sampling" / "conftest.py"
    spec = importlib.util.spec_from_file_location("conftest_of_sampling", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


tiny = _of_the_sampling_tests("tiny")


@pytest.fixture(scope="session")
def job(mpiexec, jukebox_root):
    return lambda n, args, **more: Job(n, args, jukebox_root, mpiexec, **more)
