"""Models, checkpoints and data by name: what is asked for is what comes, and misfits are told in one line."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from torchfault.adapters.load import load_data, load_model
from torchfault.data import Data
from torchfault.errors import DataError, ModelError

ZOO = "torchfault.zoo:digits_cnn"


def test_resnet20_and_its_images_are_right_85_times(data_dir):
    model = load_model("torchfault.zoo:resnet20", checkpoint=data_dir / "resnet20-12fca82f.th")
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    data = load_data(data_dir / "cifar10_test_1000.npz", mean=mean, std=std, limit=100)
    with torch.no_grad():
        assert int((model(data.inputs).argmax(1) == data.labels).sum()) == 85
    assert not model.training


def test_loaded_images_are_those_of_the_fixture(data_dir, cifar100):
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    data = load_data(data_dir / "cifar10_test_1000.npz", mean=mean, std=std, limit=100)
    assert torch.equal(data.inputs, cifar100[0])
    assert torch.equal(data.labels, cifar100[1])


def test_fresh_weights_come_from_the_seed_and_leave_the_global_generator_alone():
    before = torch.random.get_rng_state()
    one, same, other = (load_model(ZOO, seed=seed).fc1.weight for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.fixture
def state():
    return load_model(ZOO, seed=5).state_dict()


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
@pytest.mark.parametrize("key", [None, "state_dict", "model"])
def test_usual_checkpoints_are_unwrapped(tmp_path, state, prefix, key):
    named = {prefix + name: value for name, value in state.items()}
    torch.save({key: named, "epoch": 3} if key else named, tmp_path / "a.pt")
    model = load_model(ZOO, checkpoint=tmp_path / "a.pt")
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_keys_and_prefixes_may_be_named(tmp_path, state):
    torch.save({"ema": {"best": {f"student.{n}": v for n, v in state.items()}}}, tmp_path / "a.pt")
    model = load_model(ZOO, checkpoint=tmp_path / "a.pt", key="ema.best", prefix="student.")
    assert torch.equal(model.fc2.weight, state["fc2.weight"])


def test_safetensors_are_read(tmp_path, state):
    from safetensors.torch import save_file

    save_file(state, tmp_path / "a.safetensors")
    assert torch.equal(load_model(ZOO, checkpoint=tmp_path / "a.safetensors").fc2.weight, state["fc2.weight"])


def test_the_pickled_model_is_refused_without_running_it(tmp_path):
    torch.save(load_model(ZOO), tmp_path / "whole.pt")
    with pytest.raises(ModelError, match=r"could run code; save model\.state_dict"):
        load_model(ZOO, checkpoint=tmp_path / "whole.pt")


def test_misfits_are_counted_and_the_first_are_named(tmp_path, state):
    wrong = {f"x{i}": torch.ones(1) for i in range(5)} | state | {"fc2.bias": torch.zeros(7)}
    del wrong["conv1.weight"]
    torch.save(wrong, tmp_path / "a.pt")
    expected = "1 missing: conv1.weight; 5 unexpected: x0, x1, x2, ...; 1 of another shape: fc2.bias 7 instead of 10"
    with pytest.raises(ModelError, match=expected):
        load_model(ZOO, checkpoint=tmp_path / "a.pt")


def test_a_module_in_the_working_directory_is_found(tmp_path, monkeypatch):
    (tmp_path / "my_own_net.py").write_text(
        "from torch import nn\nready = nn.Linear(2, 2)\nclass Net(nn.Linear): pass\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    assert isinstance(load_model("my_own_net:ready"), nn.Linear)
    assert load_model("my_own_net:Net", kwargs={"in_features": 3, "out_features": 1}).weight.shape == (1, 3)


def test_a_nested_missing_module_is_the_one_named(tmp_path, monkeypatch):
    (tmp_path / "needs_more.py").write_text("import not_there_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModelError, match="'needs_more' needs the module 'not_there_at_all'"):
        load_model("needs_more:net")


@pytest.fixture
def libraries(monkeypatch):
    """Put small stand-ins for torchvision, timm and transformers in place; record what they are asked for."""
    asked = []

    def make(name, **options):
        asked.append((name, options))
        return nn.Linear(2, options.get("classes", 3))

    torchvision, timm, transformers = (ModuleType(name) for name in ("torchvision", "timm", "transformers"))

    def build(*, weights=None, weights_backbone="DEFAULT", **kwargs):
        raise AssertionError(f"built past get_model: {weights}, {weights_backbone}, {kwargs}")

    known = {"resnet18": make, "vgg11": make, "ssd300": build}
    torchvision.models = SimpleNamespace(
        get_model=make,
        get_model_builder=known.__getitem__,
        detection="detection",
        list_models=lambda module=None: ["ssd300"] if module == "detection" else [*known],
    )
    timm.create_model, timm.list_models = make, lambda: ["resnet18", "vit_tiny"]

    class Tiny(nn.Linear):
        def __init__(self, config):
            super().__init__(config.size, 1)
            self.config = config

        @classmethod
        def from_pretrained(cls, name, config):
            asked.append((name, "weights"))
            return cls(config)

    class AutoConfig:
        @staticmethod
        def from_pretrained(name, *, local_files_only, **options):
            asked.append((name, {"local_files_only": local_files_only, **options}))
            if name == "absent":
                raise OSError("not in the cache\nand more")
            return SimpleNamespace(architectures=["Tiny"], size=4, use_cache=options.get("use_cache", True))

    transformers.AutoConfig, transformers.Tiny, transformers.__version__ = AutoConfig, Tiny, "5"
    for module in (torchvision, timm, transformers):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return asked


def test_torchvision_models_have_no_weights_unless_asked_for(libraries):
    load_model("torchvision:resnet18", kwargs={"classes": 7})
    load_model("torchvision:resnet18", pretrained=True)
    assert libraries == [("resnet18", {"weights": None, "classes": 7}), ("resnet18", {"weights": "DEFAULT"})]


def test_torchvision_detectors_are_padded_and_download_no_backbone(libraries):
    model = load_model("torchvision:ssd300")
    assert libraries == [("ssd300", {"weights": None, "weights_backbone": None})]
    with pytest.raises(ModelError, match="a list with a dictionary of tensors for each input"):
        model(torch.ones(1, 2))


def test_timm_models_may_carry_a_tag(libraries):
    load_model("timm:resnet18.a1_in1k")
    assert libraries == [("resnet18.a1_in1k", {"pretrained": False})]
    with pytest.raises(ModelError, match="timm has no model 'vit_tinny'; did you mean 'vit_tiny'"):
        load_model("timm:vit_tinny")


def test_hugging_face_stays_on_this_machine_unless_asked(libraries):
    assert load_model("hf:some/name").weight.shape == (1, 4)
    load_model("hf:some/name", pretrained=True)
    assert libraries == [
        ("some/name", {"local_files_only": True}),
        ("some/name", {"local_files_only": False}),
        ("some/name", "weights"),
    ]
    assert not load_model("hf:some/name").config.use_cache
    assert load_model("hf:some/name", kwargs={"use_cache": True}).config.use_cache
    with pytest.raises(ModelError, match=r"not in the cache.*set pretrained: true to download it"):
        load_model("hf:absent")


@pytest.mark.parametrize("name", ["torchvision", "timm", "transformers"])
def test_a_library_that_is_not_there_is_told_with_its_install_line(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    spec = {"transformers": "hf"}.get(name, name) + ":resnet18"
    with pytest.raises(ModelError, match=f"pip install -c constraints.txt {name}"):
        load_model(spec)


def test_a_library_that_breaks_beside_this_torch_is_told(tmp_path, monkeypatch):
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModelError, match=r"torchvision does not work beside the installed torch .*nms"):
        load_model("torchvision:resnet18")


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        ((4, 8, 8, 3), np.uint8, (4, 3, 8, 8)),
        ((4, 3, 8, 8), np.uint8, (4, 3, 8, 8)),
        ((4, 8, 8), np.uint8, (4, 1, 8, 8)),
        ((4, 8, 8, 1), np.float32, (4, 8, 8, 1)),
        ((4, 5), np.float64, (4, 5)),
        ((4, 6), np.int64, (4, 6)),
    ],
)
def test_arrays_become_tensors_of_the_usual_layout(tmp_path, rng, shape, dtype, expected):
    values = (rng.random(shape) * 200).astype(dtype)
    np.savez(tmp_path / "a.npz", x=values, y=np.arange(4))
    data = load_data(tmp_path / "a.npz")
    assert data.inputs.shape == expected
    assert data.inputs.is_floating_point() == (dtype != np.int64)
    assert data.labels.tolist() == [0, 1, 2, 3]
    wanted = values / 255 if dtype == np.uint8 else values
    assert np.isclose(data.inputs.double().sum(), wanted.astype(float).sum(), rtol=1e-5)


def test_images_are_normalised_per_channel(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.full((2, 4, 4, 3), 255, dtype=np.uint8))
    data = load_data(tmp_path / "a.npz", mean=[0.0, 0.5, 1.0], std=[1.0, 0.5, 2.0])
    assert data.inputs[0, :, 0, 0].tolist() == [1.0, 1.0, 0.0]
    assert data.labels is None


@pytest.fixture
def pictures(tmp_path):
    """Return a folder with two classes, of three and of one grey image."""
    from PIL import Image

    for label, shades in (("cat", (10, 20, 30)), ("dog", (200,))):
        (tmp_path / "set" / label).mkdir(parents=True)
        for i, shade in enumerate(shades):
            Image.new("L", (6, 4), shade).save(tmp_path / "set" / label / f"{i}.png")
    return tmp_path / "set"


def test_a_folder_of_images_takes_its_classes_in_turn(pictures):
    data = load_data(pictures)
    assert data.inputs.shape == (4, 3, 4, 6)
    assert data.labels.tolist() == [0, 1, 0, 0]
    assert (data.inputs[:, 0, 0, 0] * 255).round().tolist() == [10, 200, 20, 30]
    assert load_data(pictures, limit=2, grey=True, size=(2, 3)).inputs.shape == (2, 1, 2, 3)


def test_images_of_several_sizes_need_a_size(pictures):
    from PIL import Image

    Image.new("L", (5, 5)).save(pictures / "dog" / "1.png")
    with pytest.raises(DataError, match=r"'0.png' \(4, 6\), '1.png' \(5, 5\); give size"):
        load_data(pictures)
    assert load_data(pictures, size=(4, 4)).inputs.shape == (5, 3, 4, 4)


class Pairs(torch.utils.data.Dataset):
    def __len__(self):
        return 10

    def __getitem__(self, i):
        assert i < 4, "only the limit is read"
        return torch.full((2,), float(i)), i


@pytest.mark.parametrize(
    "made",
    [
        Data(torch.arange(8.0).reshape(4, 2), torch.arange(4)),
        (torch.arange(8.0).reshape(4, 2), torch.arange(4)),
        Pairs(),
    ],
)
def test_factories_may_return_data_pairs_or_a_data_set(made):
    data = load_data(lambda: made, limit=4)
    assert data.inputs.shape == (4, 2)
    assert data.labels.tolist() == [0, 1, 2, 3]


def test_factories_may_return_inputs_alone_and_take_arguments():
    assert load_data(lambda n: torch.zeros(n, 2), kwargs={"n": 3}).labels is None
    assert set(load_data(lambda: {"ids": torch.zeros(3, 2), "mask": torch.ones(3, 2)}).inputs) == {"ids", "mask"}
