"""The comparison: trains what is missing, measures what is missing, reports."""

import copy
import json

import numpy as np
import pytest
from test_training import tiny_config

from flm_jax import compare
from flm_jax.types import UserError


def comparison():
    flow = tiny_config()
    map_ = tiny_config()
    map_.objective.name, map_.model.two_time = "semigroup", True
    models = {
        "FLM": {"config": flow.to_dict(), "calls": (4,), "teacher": ""},
        "FMLM": {"config": map_.to_dict(), "calls": (1, 2), "teacher": "FLM"},
    }
    return {"title": "Two", "samples": 64, "batch_size": 32, "seed": 0, "models": models}


class Measure:
    """Stands for sampling; counts its calls."""

    def __init__(self):
        self.done = []

    def __call__(self, workdir, calls, samples, batch_size, seed):
        self.done.append((workdir.rsplit("/", 1)[1], calls))
        valid = 1.0 - 0.1 / calls
        return {
            "calls": calls,
            "task_valid": valid,
            "task_valid_interval": [valid - 0.01, valid + 0.01],
            "seconds_per_1000_tokens": 0.1 * calls,
            "entropy_nats": 0.69,
            "data_entropy_nats": np.log(2.0),
            "samples": ["new york"],
        }


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison")
    measure = Measure()
    assert compare.run(comparison(), str(folder), measure) == 0
    return folder, measure


def test_every_model_is_measured_at_every_number_of_calls(finished):
    folder, measure = finished
    assert measure.done == [("FLM", 4), ("FMLM", 1), ("FMLM", 2)]
    report = (folder / "report.md").read_text()
    assert "| FMLM | 1 | 0.9 [0.89, 0.91] |" in report
    assert "FMLM: 8 steps of 16 rows, from FLM" in report
    rows = json.loads((folder / "report.json").read_text())["rows"]
    assert [(r["model"], r["calls"]) for r in rows] == measure.done
    for name in ("quality.png", "loss_by_tau.png"):
        assert f"![{name}]({name})" in report
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_finished_work_is_not_repeated(finished, capsys):
    folder, _ = finished
    measure = Measure()
    (folder / "rows/FMLM-2.json").unlink()
    assert compare.run(comparison(), str(folder), measure) == 0
    assert measure.done == [("FMLM", 2)]
    said = capsys.readouterr().out
    assert "FLM: trained" in said and "training in" not in said


def test_other_settings_are_measured_again(finished):
    folder, _ = finished
    measure = Measure()
    compare.run(comparison() | {"samples": 32}, str(folder), measure)
    assert len(measure.done) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampels": 1}, "did you mean 'samples'"),
        ({"models": {}}, "has no models"),
        ({"samples": 0}, "config.samples is 0"),
    ],
)
def test_bad_comparisons_are_refused_before_training(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        compare.run(comparison() | change, str(tmp_path), Measure())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher": "FML"}, "unknown teacher of FMLM .a model before it. 'FML'; did you mean"),
        ({"calls": (0,)}, "config.models.FMLM.calls is .0.; expected numbers from 1"),
        ({"step": 1}, "unknown key of config.models.FMLM 'step'"),
    ],
)
def test_bad_models_are_refused_before_training(tmp_path, change, message):
    config = copy.deepcopy(comparison())
    config["models"]["FMLM"] |= change
    with pytest.raises(UserError, match=message):
        compare.run(config, str(tmp_path), Measure())
    assert not list(tmp_path.iterdir())
