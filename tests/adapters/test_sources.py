"""Data as they are: arrays, images, data sets and loaders come as their owner has them, or are refused in one line."""

import collections
import os
import re
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from torchfault.adapters.arrays import class_numbers, inputs_of
from torchfault.adapters.data_summary import near_chance, summarise
from torchfault.adapters.load import load_data
from torchfault.adapters.sources import as_data
from torchfault.data import Data
from torchfault.errors import DataError

# Images of more than 8 bits.


def png16(path, pixels):
    """Write a PNG of 16 bits per channel, which Pillow itself cannot write in colour."""
    height, width, channels = pixels.shape
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b""))


RAMP = np.linspace(0, 65535, 96).astype(np.uint16).reshape(8, 12)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "set" / "a").mkdir(parents=True)
    return tmp_path / "set"


WRITERS = {
    "png": (lambda path: Image.fromarray(RAMP).save(path), RAMP / 65535),
    "pgm": (lambda path: path.write_bytes(b"P5 12 8 65535\n" + RAMP.astype(">u2").tobytes()), RAMP / 65535),
    "tif": (lambda path: Image.fromarray(RAMP).save(path), RAMP / 65535),
    "tiff": (lambda path: Image.fromarray((RAMP / 7).astype(np.float32)).save(path), RAMP / 7),
    "bmp": (lambda path: Image.fromarray((RAMP // 256).astype(np.uint8)).save(path), RAMP // 256 / 255),
}


@pytest.mark.parametrize("grey", [True, False])
@pytest.mark.parametrize("suffix", WRITERS)
def test_images_keep_their_precision(folder, suffix, grey):
    write, expected = WRITERS[suffix]
    write(folder / "a" / f"0.{suffix}")
    got = load_data(folder, grey=grey).inputs
    assert got.shape == (1, 1 if grey else 3, 8, 12)
    assert all(torch.equal(channel, torch.from_numpy(expected.astype(np.float32))) for channel in got[0])


def test_images_of_many_grey_levels_keep_them_when_scaled(folder):
    Image.fromarray(RAMP).save(folder / "a" / "0.png")
    got = load_data(folder, grey=True, size=(16, 24)).inputs
    assert got.shape == (1, 1, 16, 24)
    assert len(got.unique()) > 256


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_colours_of_16_bits_are_refused_rather_than_cut(folder, channels):
    png16(folder / "a" / "0.png", np.full((4, 4, channels), 40_000))
    with pytest.raises(DataError, match="more than 8 bits per colour, of which Pillow reads 8; save"):
        load_data(folder)


def test_grey_pngs_of_16_bits_are_the_ones_by_hand(folder):
    png16(folder / "a" / "0.png", RAMP[:, :, None])
    assert torch.equal(load_data(folder, grey=True).inputs[0, 0], torch.from_numpy((RAMP / 65535).astype(np.float32)))


def test_other_images_of_unknown_scale_are_refused(folder):
    (folder / "a" / "0.ppm").write_bytes(b"P6 2 2 1023\n" + np.arange(12).astype(">u2").tobytes())
    with pytest.raises(DataError, match="more than 8 bits per colour"):
        load_data(folder)
    Image.fromarray(np.full((3, 3), 70_000, np.int32)).save(folder / "a" / "0.tif")
    (folder / "a" / "0.ppm").unlink()
    with pytest.raises(DataError, match="whole numbers of unknown scale"):
        load_data(folder)


# Arrays.


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64, np.int16, np.int8])
@pytest.mark.parametrize("shape", [(5, 64, 4, 4), (5, 22, 100, 1), (5, 4, 4, 4), (3, 7, 7, 3), (2, 6, 1), (4, 9)])
def test_only_uint8_arrays_are_turned(tmp_path, rng, shape, dtype):
    values = (100 * rng.random(shape)).astype(dtype)
    np.savez(tmp_path / "a.npz", x=values)
    for data in (load_data(tmp_path / "a.npz"), load_data(lambda: values), as_data(values), as_data((values, None))):
        assert torch.equal(data.inputs, torch.from_numpy(values))


@pytest.mark.parametrize(
    ("shape", "turned"),
    [
        ((2, 9, 9, 3), True),
        ((2, 3, 9, 9), False),
        ((2, 1, 28, 28), False),
        ((2, 28, 28, 4), True),
        ((2, 4, 4, 3), True),
        ((2, 3, 4, 4), False),
        ((2, 5, 7, 6), False),
    ],
)
def test_images_have_their_channels_first(rng, shape, turned):
    images = rng.integers(0, 256, shape, dtype=np.uint8)
    expected = images.transpose(0, 3, 1, 2) if turned else images
    assert torch.equal(inputs_of(images), torch.from_numpy(expected.copy()).float() / 255)


@pytest.mark.parametrize("shape", [(2, 3, 3, 3), (2, 1, 1, 1), (2, 4, 3, 1), (2, 3, 9, 4)])
def test_images_that_may_lie_either_way_are_refused(shape):
    with pytest.raises(DataError, match=r"channels first or last; save x / 255 as float32 \(N, C, H, W\)"):
        inputs_of(np.zeros(shape, np.uint8))


def test_the_bytes_of_a_number_may_stand_either_way(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.arange(6, dtype=">f4").reshape(3, 2), y=np.arange(3, dtype=">i2"))
    data = load_data(tmp_path / "a.npz")
    assert data.inputs.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert data.labels.tolist() == [0, 1, 2]


WIDE = np.array([[1, 2], [3, 2**40]], dtype=np.uint64)
REFUSED = {
    "longdouble": (np.zeros((2, 3), np.longdouble), "float128, which torch has no type for; save it as float64"),
    "complex": (np.zeros((2, 3), np.complex64), "complex numbers"),
    "structured": (np.zeros(2, dtype=[("a", "f4"), ("b", "i4")]), "numbers are needed"),
    "objects": (np.array([{}, 3], dtype=object), "Python objects"),
    "dates": (np.array(["2026-11-21"], dtype="M8[D]"), "numbers are needed"),
    "16-bit images": (
        np.full((2, 5, 5), 40_000, np.uint16),
        "up to 40000, of unknown scale; for images save x / 65535",
    ),
    "32-bit images": (np.ones((2, 5, 5, 3), np.uint32), "of unknown scale"),
    "beyond int64": (np.array([2**64 - 1, 0], np.uint64), "beyond 64-bit integers"),
    "no row": (np.float32(3), "shape|axis"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_arrays_that_are_no_plain_numbers_are_refused(tmp_path, name):
    values, message = REFUSED[name]
    np.savez(tmp_path / "a.npz", x=values)
    for attempt in (lambda: load_data(tmp_path / "a.npz"), lambda: as_data(values), lambda: as_data((values, values))):
        with pytest.raises(DataError, match=message):
            attempt()


def test_arrays_that_may_not_be_written_are_copied():
    for values in (np.frombuffer(bytes(24), np.float32).reshape(2, 3), np.frombuffer(bytes(98), np.uint8)):
        values = values.reshape(2, -1) if values.dtype != np.uint8 else values.reshape(2, 7, 7)
        as_data(values).inputs.add_(1)
        assert not values.any()


def test_tokens_may_be_of_any_whole_type():
    assert as_data(WIDE).inputs.tolist() == WIDE.tolist()
    assert as_data(WIDE.astype(np.uint16)).inputs.dtype == torch.int64
    assert class_numbers(np.array([[True], [False]])).tolist() == [1, 0]


# Damaged and special files.


def test_a_damaged_archive_is_no_archive_of_objects(tmp_path, rng):
    np.savez(tmp_path / "whole.npz", x=rng.random((40, 30)), y=np.arange(40))
    whole = (tmp_path / "whole.npz").read_bytes()
    said = []
    for place in rng.integers(0, len(whole), 60):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        (tmp_path / "a.npz").write_bytes(damaged)
        try:
            data = load_data(tmp_path / "a.npz")
        except DataError as error:
            said.append(str(error))
        else:  # a bit of the archive's own that nothing depends on, such as a date
            assert data.inputs.sum() == load_data(tmp_path / "whole.npz").inputs.sum()
    assert len(said) > 40
    assert not any("Python objects" in line or "\n" in line for line in said)


def test_a_header_does_not_decide_how_much_memory_is_asked_for(tmp_path):
    for shape in ("(1000000000000,)", "(3, 9999999999999999999999)"):
        header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(80))
        with pytest.raises(DataError, match=r"'a.npz' is damaged .*bytes"):
            load_data(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/dev/zero", "is a device, a pipe or another special file"),
        ("/dev/null", "is a device"),
        ("/proc/self/mem", "cannot be read"),
        ("a\0b.npz", "has a name that no file can have"),
        ("\ud800.npz", "has a name that no file can have"),
        ("~nosuch/a.npz", "there are no data at '~nosuch/a.npz'"),
    ],
)
def test_special_files_are_refused_in_one_line(path, message):
    with pytest.raises(DataError, match=message):
        load_data(path)


def test_pipes_are_not_waited_for(tmp_path, folder):
    for pipe in (tmp_path / "a.npz", folder / "a" / "0.png"):
        os.mkfifo(pipe)
    for source in (tmp_path / "a.npz", folder):
        with pytest.raises(DataError, match="is a device, a pipe or another special file"):
            load_data(source)


# What a user has at hand.


class Items(Dataset):
    """A data set of *items*."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


class Stream(IterableDataset):
    """A data set that goes on for ever."""

    def __iter__(self):
        i = 0
        while True:
            yield torch.full((3,), float(i)), i
            i += 1


X, Y = torch.arange(12.0).reshape(4, 3), torch.tensor([2, 0, 1, 2])
PAIRS = {
    "data": Data(X, Y),
    "tensors": (X, Y),
    "tensors in a list": [X, Y],
    "arrays": (X.numpy(), Y.numpy()),
    "arrays in a list": [X.numpy(), Y.numpy()],
    "an array and a list": (X.numpy(), Y.tolist()),
    "lists": (X.tolist(), Y.tolist()),
    "labels in a column": (X, Y.numpy()[:, None]),
    "a data set": TensorDataset(X, Y),
    "a list of items": list(zip(X, Y.tolist(), strict=True)),
    "a data set of arrays": Items([(x.numpy(), y) for x, y in zip(X, Y.tolist(), strict=True)]),
    "a loader": DataLoader(TensorDataset(X, Y), batch_size=3),
    "a loader of items": DataLoader(TensorDataset(X, Y), batch_size=None),
}


@pytest.mark.parametrize("name", PAIRS)
def test_inputs_and_labels_come_in_many_forms(name):
    for data in (as_data(PAIRS[name]), load_data(lambda: PAIRS[name])):
        assert torch.equal(data.inputs, X)
        assert torch.equal(data.labels, Y)


ALONE = {
    "a tensor": X,
    "an array": X.numpy(),
    "lists of numbers": X.tolist(),
    "one part": (X,),
    "no labels": (X, None),
    "a list of tensors": list(X),
    "a data set": TensorDataset(X),
    "a loader": DataLoader(X, batch_size=2),
    "a set of two pictures": [X[:2], X[2:]],
}


@pytest.mark.parametrize("name", ALONE)
def test_inputs_may_come_alone(name):
    data = as_data(ALONE[name])
    assert data.labels is None
    assert torch.equal(data.inputs.reshape(4, 3), X)


def test_a_pair_is_no_data_set_of_two_and_the_other_way_round():
    pair = as_data((np.zeros((2, 5)), np.array([1, 0])))
    assert pair.inputs.shape == (2, 5)
    assert pair.labels.tolist() == [1, 0]
    items = as_data([(torch.zeros(5), torch.tensor(1)), (torch.ones(5), torch.tensor(0))])
    assert items.inputs.tolist() == [[0] * 5, [1] * 5]
    assert items.labels.tolist() == [1, 0]
    pictures = as_data([np.zeros((3, 8, 8)), np.ones((3, 8, 8))])
    assert pictures.inputs.shape == (2, 3, 8, 8)
    assert pictures.labels is None
    both = as_data(((X, X.numpy()), Y))
    assert [part.shape for part in both.inputs] == [(4, 3), (4, 3)]


def test_what_a_tokenizer_gives_is_taken():
    tokens = collections.UserDict(input_ids=[[1, 2], [3, 4]], attention_mask=np.ones((2, 2), np.int64))
    for data in (as_data(tokens), as_data((tokens, [0, 1])), as_data([{"input_ids": torch.ones(2)}] * 2)):
        assert len(data) == 2
        assert "input_ids" in data.inputs


def test_a_loader_that_shuffles_does_so_the_same_way_each_time():
    before = torch.random.get_rng_state()
    loader = DataLoader(TensorDataset(torch.arange(40.0)[:, None], torch.arange(40)), batch_size=7, shuffle=True)
    one, two = as_data(loader), as_data(loader)
    assert one.digest() == two.digest()
    assert one.labels.tolist() != list(range(40))
    assert sorted(one.labels.tolist()) == list(range(40))
    assert torch.equal(one.inputs[:, 0], one.labels.float())
    assert torch.equal(before, torch.random.get_rng_state())


def test_no_more_is_read_than_the_limit():
    for given in (Stream(), DataLoader(Stream(), batch_size=4), (pair for pair in Stream())):
        data = load_data(lambda given=given: given, limit=6)
        assert data.labels.tolist() == list(range(6))
    with pytest.raises(DataError, match="does not say how many inputs it has; give a limit"):
        as_data(Stream())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "expected data, got an object of type NoneType; give Data, a tensor"),
        ("a.npz", "read a file with"),
        (3, "object of type int"),
        ((X, Y, Y), r"a tuple holds inputs and labels, got 3 parts; give \(\(first, second\), labels\)"),
        ([(torch.zeros(2), 1, 5)] * 2, "got 3 parts"),
        ([], "the data set is empty"),
        (DataLoader(TensorDataset(X[:0])), "gives no batch"),
        ((X, ["cat", "dog", "cat", "dog"]), "labels are numbers, got an object of type list"),
        ((X, np.array(["cat"] * 4)), "numbers are needed"),
        (["cat", "dog"], "need tensors or numbers"),
        ([torch.zeros(2), torch.zeros(3)], "equal size"),
        ([[1.0, 2.0], [3.0]], "inhomogeneous"),
        (torch.nn.Sequential(torch.nn.ReLU()), "object of type Sequential"),
        ({"x": torch.zeros(3), "y": torch.zeros(4)}, "same first axis"),
    ],
)
def test_anything_else_is_told_in_one_line(given, message):
    with pytest.raises(DataError, match=message) as told:
        as_data(given)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("broken", [lambda: 1 / 0, lambda: (_ for _ in ()).throw(SystemExit(0))])
def test_a_factory_that_fails_is_told(broken):
    with pytest.raises(DataError, match=r"the data factory '.*<lambda>' failed"):
        load_data(broken)


# What was understood.


def test_the_summary_says_what_there_is():
    images, labels = torch.linspace(-1, 2, 24).reshape(2, 3, 2, 2), torch.tensor([4, 0])
    told = summarise(Data(images, labels))
    assert str(told) == "2 inputs, float32 (3, 2, 2) from -1 to 2; labels int64 from 0 to 4, 2 different"
    assert (told.count, told.classes, told.notes) == (2, 2, ())
    words = summarise(Data({"ids": torch.arange(6).reshape(2, 3), "mask": torch.ones(2, 3, dtype=torch.bool)}))
    assert str(words) == "2 inputs, ids int64 (3) from 0 to 5, mask bool (3) from 1 to 1; no labels"
    half = summarise(Data(torch.tensor([[1.0, torch.inf], [torch.nan, 0.5]]).half()))
    assert str(half).startswith("2 inputs, float16 (2) from 0.5 to 1, 2 NaN or infinite")
    assert half.notes == ("inputs hold 2 values that are NaN or infinite",)


@pytest.mark.parametrize(
    ("labels", "note"),
    [
        (torch.eye(3)[[0, 2, 1, 1]], "look one-hot.*labels.argmax"),
        (torch.eye(3, dtype=torch.long)[[0, 2, 1, 1]], "look one-hot"),
        (torch.tensor([[1, 1, 0], [0, 0, 0], [1, 0, 1], [0, 1, 0]]), "mark several classes at once"),
        (torch.tensor([0.0, 2.0, 1.0, 0.0]), r"class numbers need labels.long\(\)"),
        (torch.tensor([0.5, 2.0, 1.0, 0.0]), None),
        (torch.tensor([0, 2, 1, 0]), None),
    ],
)
def test_unusual_labels_are_noted(labels, note):
    notes = summarise(Data(torch.zeros(4, 2), labels)).notes
    assert len(notes) == (note is not None)
    assert re.search(note or "", "".join(notes))


def test_accuracy_near_chance_is_warned_of():
    rng = torch.Generator().manual_seed(3)
    labels = torch.randint(0, 10, (500,), generator=rng)
    guessed = torch.rand(500, 10, generator=rng)
    right = torch.nn.functional.one_hot(labels, 10).float()
    assert "where guessing gives 10 %" in near_chance(guessed, labels)
    assert near_chance(right + 0.9 * guessed, labels) is None
    assert near_chance(guessed, None) is None
    assert near_chance(torch.rand(5, 2, 3), torch.zeros(5, 3).long()) is None
    few = torch.where(torch.arange(500)[:, None] < 150, right, guessed)
    assert near_chance(few, labels) is None


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        (torch.zeros(3, 0), "float32 (0) from nan to nan"),
        (torch.tensor([[torch.nan]]), "float32 (1) from nan to nan, 1 NaN or infinite"),
        (torch.ones(2, dtype=torch.uint16), "uint16 from 1 to 1"),
        (torch.tensor([[3 + 4j]]), "complex64 (1) from 5 to 5"),
    ],
)
def test_inputs_of_any_type_have_a_summary(inputs, told):
    assert str(summarise(Data(inputs)).inputs[0]) == told
