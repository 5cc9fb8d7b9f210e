"""Language models that generate, from a configuration and from the command line."""

import pytest
from typer.testing import CliRunner

from torchfault.cli.app import app
from torchfault.config import Override, read_settings
from torchfault.config.build import build_campaign, build_data, build_engine, build_model
from torchfault.errors import ConfigError, ModelError, SpaceError

TEXT = """\
model: tests.support.language:language
data: tests.support.language:prompts
generation: 3
sites: {kinds: output, steps: "1:3"}
stop: 40
executor: hooks
"""


@pytest.fixture
def written(tmp_path):
    def write(text: str, *overrides: Override):
        (tmp_path / "texts.yaml").write_text(text)
        return read_settings(tmp_path / "texts.yaml", overrides)

    return write


def built(settings):
    model, data = build_model(settings), build_data(settings.data, seed=settings.seed)
    return build_campaign(settings, build_engine(settings, model, data, lanes=10))


def test_a_configuration_strikes_steps_of_a_generation(written):
    campaign = built(written(TEXT))
    assert campaign.engine.golden()["sequences"].shape == (4, 3)
    assert {name for name in campaign.space.names if name.startswith("head")} == {"head@1:output", "head@2:output"}
    assert "TokenChange" in repr(campaign.criterion)
    prefill = built(written(TEXT, Override(("sites", 0, "steps"), "0", "--steps")))
    assert "head:output" in prefill.space.names
    assert not {"head@1:output", "head@2:output"} & set(prefill.space.names)


def test_weights_are_of_no_step_and_stay(written):
    both = built(written(TEXT.replace("kinds: output", "kinds: [weight, output]")))
    names = both.space.names
    assert {"head.weight", "attention.mix.weight", "head@2:output"} <= set(names)
    assert "head:output" not in names


def test_text_ends_where_the_configuration_says(written):
    plain = built(written(TEXT)).engine.golden()["sequences"]
    end = int(plain[0, 0])
    ended = built(written(TEXT.replace("3", f"{{tokens: 3, end: {end}, pad: 29}}", 1))).engine.golden()["sequences"]
    assert ended[0].tolist() == [end, 29, 29]


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        (TEXT.replace("1:3", "3"), SpaceError, "the activations have steps 0 to 2, got 3"),
        (TEXT.replace("output", "weight"), SpaceError, "the activations have steps 0 to 0, got 1"),
        (TEXT.replace("tests.support.language:language", "torchfault.zoo:resnet20"), ModelError, "not take input_ids"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told(written, text, error, said):
    with pytest.raises(error, match=said):
        built(written(text))


def test_no_tokens_are_told_with_their_line(written):
    with pytest.raises(ConfigError, match=r"texts.yaml:3: generation.tokens: expected a number of at least 1, got 0"):
        written(TEXT.replace("generation: 3", "generation: 0"))


def test_the_command_line_generates(tmp_path):
    generation = ["--generate", "2", "--steps", "1", "--kinds", "output", "--criterion", "tokens:0.5"]
    flags = [*generation, "--trials", "30", "--executor", "hooks"]
    where = ["--store", str(tmp_path / "texts.db"), "--name", "texts"]
    source = ["--model", "tests.support.language:language", "--data", "tests.support.language:prompts"]
    done = CliRunner().invoke(app, ["run", *source, *flags, *where])
    assert done.exit_code == 0, done.output
    again = CliRunner().invoke(app, ["resume", "texts", *where[:2], "--trials", "40"])
    assert again.exit_code == 0, again.output
    shown = CliRunner().invoke(app, ["show", "texts", *where[:2], "--by", "site"])
    assert "head@1:output" in shown.output
