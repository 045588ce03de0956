"""Bad input is refused in one line that says what was got and how to mend it, before compiling."""

import shutil

import jax
import pytest

from flm_jax.build.load import load_model
from flm_jax.config.check import check
from flm_jax.config.schema import choose
from flm_jax.core.errors import UserError, check_seed
from flm_jax.inference import engine
from helpers.files import prepared_corpus
from helpers.runs import run, text_config, tiny_config


@pytest.fixture(autouse=True)
def no_compilation(request, monkeypatch):
    """Any compilation inside a test of this file fails it."""
    if "compiles" not in request.keywords:

        def refuse(*args, **kwargs):
            raise AssertionError("compiled before refusing")

        monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained") / "run"
    config = tiny_config()
    config.train.steps = 2
    run(config, workdir)
    return workdir


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.steps", 0, r"config.train.steps is 0; expected a number in \[1, inf\)"),
        ("train.batch", 9, "config.train.batch 9 does not split"),
        ("model.heads", 3, "must give an even head size"),
        ("model.name", "dot", "did you mean 'dit'"),
        ("model.remat", "ful", "did you mean 'full'"),
        ("model.length", 3, "set it to 2"),
        ("model.vocab_size", 3, "the data's tokenizer has 4 tokens"),
        ("objective.name", "semigrup", "did you mean 'semigroup'"),
        ("flow.noise", "one", "valid: onehot, projected, unit"),
        ("objective.teacher", "nowhere", "has no 'teacher': that is a key of semigroup"),
        ("data.task", "phrases3", "did you mean 'phrases"),
        ("data.path", "x", "got config.data.path and config.data.task; set exactly one"),
        ("data.task", "", "got no data; set exactly one of config.data.path"),
        ("mesh.tensor", 3, "needs"),
        ("optim.schedule", "cosin", "did you mean 'cosine'"),
    ],
)
def test_bad_values(tmp_path, key, value, message):
    config = tiny_config()
    group, _, name = key.partition(".")
    with config.unlocked():
        config[group][name] = value
    with pytest.raises(UserError, match=message):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_flow_map_needs_a_second_time(tmp_path):
    config = tiny_config()
    choose(config, objective="semigroup")
    with pytest.raises(UserError, match="config.model.two_time = True"):
        run(config, tmp_path / "run")


def test_missing_data(tmp_path):
    with pytest.raises(UserError, match="is not prepared data"):
        run(text_config(str(tmp_path / "nothing")), tmp_path / "run")


def test_a_teacher_with_another_tokenizer_or_size_is_refused(trained, tmp_path):
    config = tiny_config()
    choose(config, objective="semigroup")
    config.model.two_time = True
    config.objective.teacher = str(trained)
    config.model.dim = 32
    with pytest.raises(UserError, match="dim: teacher 16, student 32"):
        run(config, tmp_path / "run")
    config = text_config(prepared_corpus(tmp_path, "characters"))
    choose(config, objective="semigroup")
    config.model.two_time = True
    config.objective.teacher = str(trained)
    with pytest.raises(UserError, match="length: teacher 2, student 16"):
        run(config, tmp_path / "run")


def test_a_run_is_not_continued_under_another_configuration(trained):
    config = tiny_config()
    config.optim.lr = 5e-4
    with pytest.raises(UserError, match="optim.lr: 0.001 -> 0.0005"):
        run(config, trained)


def test_changed_tokenizer_of_data_or_checkpoint(trained, tmp_path):
    folder = prepared_corpus(tmp_path, "characters")
    other = prepared_corpus(tmp_path, "bytes")
    shutil.rmtree(f"{folder}/tokenizer")
    shutil.copytree(f"{other}/tokenizer", f"{folder}/tokenizer")
    with pytest.raises(UserError, match="fingerprint"):
        run(text_config(folder), tmp_path / "run")
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    shutil.rmtree(copy / "tokenizer")
    shutil.copytree(f"{other}/tokenizer", copy / "tokenizer")
    with pytest.raises(UserError, match="tokens, its model 4"):
        load_model(copy)


def test_sampling_requests(trained):
    model = load_model(trained)
    with pytest.raises(UserError, match="got length=3; expected 1 to 2 tokens"):
        engine.check_request(model, [1], 1, 3)
    with pytest.raises(UserError, match="got steps=0"):
        engine.check_request(model, [4, 0], 1, 2)
    with pytest.raises(UserError, match="got num_samples=0"):
        engine.check_request(model, [4], 0, 2)
    with pytest.raises(UserError, match="both --prompt and --infill"):
        engine.given_tokens(model, "new", "{1}", 1, 2)
    with pytest.raises(UserError, match="must leave room"):
        engine.given_tokens(model, "new york new", "", 1, 2)


def test_workdirs_without_a_model(trained, tmp_path):
    with pytest.raises(UserError, match="is no workdir"):
        load_model(tmp_path)
    empty = tmp_path / "empty"
    shutil.copytree(trained, empty, ignore=shutil.ignore_patterns("checkpoints"))
    with pytest.raises(UserError, match="has no checkpoints"):
        load_model(empty)


@pytest.mark.parametrize("item", ["ema", "train"])
def test_a_truncated_checkpoint_is_named(trained, tmp_path, item):
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    files = [f for f in (copy / "checkpoints/2" / item).rglob("*") if f.is_file()]
    for file in files:
        if file.stat().st_size > 100:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError, match="none of the checkpoints .*damaged: 2.*start anew"):
        if item == "ema":
            load_model(copy)
        else:
            config = tiny_config()
            run(config, copy)


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1])
def test_seeds_that_jax_tells_apart_pass(seed):
    assert check_seed(seed) == seed


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, True, "1"])
def test_other_seeds_are_refused(seed):
    with pytest.raises(UserError, match="got seed=.*expected a whole number from 0 to 4294967295"):
        check_seed(seed)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_configurations_of_other_seeds_are_refused(seed):
    config = tiny_config()
    config.seed = seed
    with pytest.raises(UserError, match="got config.seed=.*expected a whole number from 0"):
        check(config)
