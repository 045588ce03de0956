"""Training on several prepared folders in proportion to their weights, from the configuration."""

import numpy as np
import pytest

from flm_jax.build.data import open_data
from flm_jax.config.check import check
from flm_jax.core.errors import UserError
from helpers.files import prepared_corpus
from helpers.runs import run, tiny_config


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    texts = {"a": "to be or not to be\n", "b": "all the world is a stage\n"}
    made = {}
    for name, text in texts.items():
        folder = tmp_path_factory.mktemp(name)
        made[name] = prepared_corpus(folder, "bytes", text)
    made["other"] = prepared_corpus(tmp_path_factory.mktemp("other"), "characters")
    return made


def _config(*pairs):
    config = tiny_config()
    config.data.task, config.model.length = "", 16
    config.data.mixture = pairs
    return config


def test_rows_come_in_proportion_to_the_weights(folders, tmp_path):
    config = _config((folders["a"], 3.0), (folders["b"], 1))
    data = open_data(check(config))
    assert [weight for _, weight in data.train] == [3.0, 1.0]
    held_out = np.stack([data.valid[i]["tokens"] for i in range(len(data.valid))])
    texts = [data.tokenizer.decode(row) for row in held_out]
    share = np.mean(["w" in text or "s" in text or "l" in text for text in texts])
    assert share == pytest.approx(0.25, abs=0.05)
    assert run(config, tmp_path / "run") == 0


def test_a_mixture_is_part_of_the_run(folders, tmp_path):
    config = _config((folders["a"], 3.0), (folders["b"], 1.0))
    assert run(config, tmp_path / "run") == 0
    assert run(config, tmp_path / "run") == 0  # the same again: nothing left to do
    config.data.mixture = ((folders["a"], 2.0), (folders["b"], 1.0))
    with pytest.raises(UserError, match="data.mixture: .*restore these values"):
        run(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("a", 1.0, 2.0)], "expected pairs of path and weight > 0"),
        ([("a", 0)], "expected pairs of path and weight > 0"),
        ([("a", 1.0), ("missing", 1.0)], "missing is not prepared data"),
        ([("a", 1.0), ("other", 1.0)], "have different tokenizers"),
    ],
)
def test_bad_mixtures(folders, tmp_path, pairs, message):
    pairs = [(folders.get(name, name), *rest) for name, *rest in pairs]
    with pytest.raises(UserError, match=message):
        run(_config(*pairs), tmp_path / "run")
