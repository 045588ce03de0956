"""--config and its overrides: names first, keys of other names refused."""

import sys

import pytest
from absl import flags

from flm_jax.cli.config_flag import _Parser, overrides

RECIPE = """
from flm_jax.config import base_config, choose

def get_config():
    config = base_config()
    choose(config, objective="semigroup")
    config.objective.teacher = "there"
    config.objective.boundary = 0.25
    return config
"""


@pytest.fixture
def parse(tmp_path, monkeypatch):
    path = tmp_path / "recipe.py"
    path.write_text(RECIPE)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["train", f"--config={path}", *words])
        return _Parser("config").parse(str(path))

    return run


def test_a_name_is_taken_first_wherever_it_stands(parse):
    words = ["--config.objective.projection=clip", "--config.objective.name=lagrangian"]
    objective = parse(*words).objective
    assert objective.name == "lagrangian" and objective.projection == "default"
    # What the file set stays, what only the old name had is gone, defaults are the new name's.
    assert (objective.teacher, objective.boundary) == ("there", 0.25)
    assert "split" not in objective
    assert parse("--config.objective.name", "eulerian").objective.form == "mse"


def test_the_sampler_follows_the_objective_unless_it_fits(parse):
    assert parse().sampler.name == "flow_map"
    assert parse("--config.objective.name=eulerian").sampler.name == "flow_map"
    assert parse("--config.objective.name=denoising").sampler.name == "euler"
    words = ["--config.sampler.name=heun", "--config.objective.name=denoising"]
    assert parse(*words).sampler.name == "heun"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--config.objective.projection=clip", "that is a key of lagrangian and eulerian"),
        ("--config.objective.name=lagrangain", "did you mean 'lagrangian'"),
        ("--config.objective.boundery=1", "did you mean 'boundary'"),
        ("--config.optimm.lr=1", "did you mean 'optim'"),
        ("--config.model.kv_heads=2", "config.model dit has no 'kv_heads': that is a key of llama"),
        ("--noconfig.model.scan_block", "did you mean 'scan_blocks'"),
    ],
)
def test_unknown_keys_and_names_are_refused_in_one_line(parse, word, message):
    with pytest.raises(flags.Error, match=message):
        parse(word)


def test_words_of_a_command_line():
    words = ["--config=a.py", "--config.a.b=1=2", "-config.c", "3", "--noconfig.d", "--other.e=1"]
    assert list(overrides(words)) == [(["a", "b"], "1=2"), (["c"], "3"), (["d"], None)]
