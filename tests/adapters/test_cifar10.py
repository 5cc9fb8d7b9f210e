"""The images of CIFAR-10 are found where a user puts them, and asked for in one line where they are not."""

import io
import tarfile

import numpy as np
import pytest

from torchfault.adapters import cifar10
from torchfault.errors import DataError

ROWS = np.random.default_rng(5).integers(0, 256, (7, 3073), dtype=np.uint8)
ROWS[:, 0] = [3, 0, 9, 1, 1, 2, 8]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Look nowhere but into a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCHFAULT_DATA", str(tmp_path / "named"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def archive(path, rows: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as held:
        member = tarfile.TarInfo("cifar-10-batches-bin/test_batch.bin")
        member.size = len(rows)
        held.addfile(member, io.BytesIO(rows))


@pytest.mark.parametrize("place", ["named", "data", "cache/torchfault"])
def test_the_archive_is_read_from_any_place(folder, place):
    archive(folder / place / "cifar-10-binary.tar.gz", ROWS.tobytes())
    data = cifar10.images()
    assert data.labels.tolist() == [3, 0, 9, 1, 1, 2, 8]
    assert data.inputs.shape == (7, 3, 32, 32)
    assert float(data.inputs[4, 2, 31, 30]) == np.float32(ROWS[4, 1 + 2 * 1024 + 31 * 32 + 30]) / 255


def test_unpacked_it_is_read_too(folder):
    file = folder / "data" / "cifar-10-batches-bin" / "test_batch.bin"
    file.parent.mkdir(parents=True)
    file.write_bytes(ROWS.tobytes())
    assert len(cifar10.images()) == 7


@pytest.mark.parametrize("rows", [b"", ROWS.tobytes()[:-1]])
def test_damage_is_told(folder, rows):
    archive(folder / "data" / "cifar-10-binary.tar.gz", rows)
    with pytest.raises(DataError, match="download it anew"):
        cifar10.images()
    (folder / "data" / "cifar-10-binary.tar.gz").write_bytes(b"no archive")
    with pytest.raises(DataError, match="is damaged"):
        cifar10.images()


def test_where_there_are_none_one_line_says_where_they_come_from():
    with pytest.raises(DataError, match=r"kriz/cifar\.html there .162 MB., or try examples/digits\.yaml") as error:
        cifar10.images()
    assert "\n" not in str(error.value)


def test_our_own_part_of_them_is_read(data_dir, monkeypatch):
    monkeypatch.setenv("TORCHFAULT_DATA", str(data_dir))
    assert cifar10.images().inputs.shape == (1000, 3, 32, 32)
