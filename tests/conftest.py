"""Fixtures that every test may ask for: real weights, real images, a seeded generator."""

import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

for _kind in ("CACHE", "STATE"):  # not the user's own
    os.environ[f"XDG_{_kind}_HOME"] = str(Path(__file__).parents[1] / ".pytest_cache" / "xdg" / _kind.lower())
# Before torch is imported, and for the processes that tests start; two processes of two threads wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")
os.environ.setdefault("TORCHFAULT_MKLDNN", "1")  # torch itself has no variable that switches oneDNN off

# Ignored where a shell without job control runs the tests in the background; what they interrupt would go on.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A loaded machine must not fail a test that is right: examples may take as long as they take.
settings.register_profile("torchfault", deadline=None)
settings.load_profile("torchfault")

ROOT = Path(__file__).resolve().parent.parent
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def pytest_collection_finish() -> None:
    """Fix torch's threads and kernels once, without importing torch for tests that do not use it."""
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        torch.backends.mkldnn.set_flags(os.environ["TORCHFAULT_MKLDNN"] != "0")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    marked = [item for item in items if item.get_closest_marker("cuda")]
    if marked and not sys.modules["torch"].cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip("no GPU here; benchmarks/gpu.sh runs it on a machine that has one"))


@pytest.fixture
def rng() -> np.random.Generator:
    """Return a generator that starts every test from the same seed."""
    return np.random.default_rng(20261121)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Return the folder of real inputs; without it the test is skipped, or fails where CI=true."""
    folder = Path(os.environ.get("TORCHFAULT_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "cifar10_test_1000.npz").is_file():
        reason = f"no cifar10_test_1000.npz in {folder}; set TORCHFAULT_DATA to the folder of real inputs"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return folder


@pytest.fixture(scope="session")
def resnet20(data_dir):
    """Return ResNet-20 with the trained CIFAR-10 weights, in evaluation mode; tests must leave it as it was."""
    import torch

    from torchfault import zoo

    state = torch.load(data_dir / "resnet20-12fca82f.th", map_location="cpu", weights_only=True)["state_dict"]
    model = zoo.resnet20()
    model.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
    return model.eval()


@pytest.fixture(scope="session")
def cifar100(data_dir):
    """Return the first 100 CIFAR-10 test images, normalised float32 (100, 3, 32, 32), and their labels (100,)."""
    import torch

    with np.load(data_dir / "cifar10_test_1000.npz") as held:
        images, labels = held["images"][:100], held["labels"][:100]
    scaled = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return ((scaled - mean) / std).contiguous(), torch.from_numpy(labels)


@pytest.fixture(scope="session")
def known():
    """Return the small network of which every fault's outcome on every input is known."""
    from tests.support.enumerated import enumerated

    return enumerated()


@pytest.fixture(scope="session")
def postgres():
    """Return a PostgreSQL server that this session runs; without its programs or driver the test is skipped."""
    from tests.support.postgres import programs, served

    folder = programs()
    if folder is None:
        pytest.skip("no PostgreSQL server (Debian: postgresql) with its driver (psycopg) is installed")
    with served(folder) as server:
        yield server
