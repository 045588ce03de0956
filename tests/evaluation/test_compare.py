"""The comparison: trains what is missing, measures what is missing, reports."""

import copy
import json

import pytest
from etils import epath

from flm_jax.config.schema import choose
from flm_jax.core.errors import UserError
from flm_jax.evaluation import compare
from flm_jax.evaluation.compare import compare_run
from flm_jax.evaluation.measure import measure
from helpers.runs import tiny_config


def comparison():
    flow = tiny_config()
    map_ = tiny_config()
    choose(map_, objective="semigroup")
    map_.model.two_time = True
    ar = tiny_config()
    choose(ar, model="causal", objective="autoregressive")
    flow.objective.context = map_.objective.context = 0.5
    refined = {"topk": {"steps": (2,), "sampler": "posterior_refinement"}}
    models = {
        "FLM": {
            "config": flow.to_dict(),
            "steps": (4,),
            "teacher": "",
            "frontier": {"denoiser_temperature": (0.5,)},
        },
        "FMLM": {"config": map_.to_dict(), "steps": (1, 2), "teacher": "FLM", "ways": refined},
        "AR": {"config": ar.to_dict(), "steps": (), "teacher": ""},
    }
    settings = {"samples": 64, "batch_size": 32, "seed": 0, "judge": "AR"}
    return {"title": "Two", "models": models} | settings


@pytest.fixture(scope="module", autouse=True)
def short_likelihoods():
    """Of few held-out sequences: what they are is tested elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flm_jax.evaluation.measure._LIKELIHOOD_ROWS", 32)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison")
    assert compare_run(comparison(), str(folder)) == 0
    return folder


@pytest.fixture
def measured(monkeypatch):
    """(workdir's name, steps) of every measurement."""
    done = []

    def note(workdir, steps, **settings):
        done.append((workdir.rsplit("/", 1)[1], *steps))
        return measure(workdir, steps, **settings)

    monkeypatch.setattr(compare, "measure", note)
    return done


def test_every_model_is_measured_at_every_number_of_steps(finished):
    report = (finished / "report.md").read_text()
    rows = json.loads((finished / "report.json").read_text())["rows"]
    *rows, data = rows
    drawn = [("FLM", 4), ("FLM denoiser_temperature=0.5", 4)]
    drawn += [("FMLM", 1), ("FMLM", 2), ("FMLM topk", 2)]
    assert (rows[1]["of"], rows[1]["swept"]) == ("FLM", 0.5) and (
        finished / "frontier.png"
    ).exists()
    assert [(r["model"], r["calls"]) for r in rows] == drawn
    assert rows[-1]["settings"]["sampler"]["budget"] == "topk"
    assert rows[-1]["samples"] != rows[-2]["samples"]
    assert data["model"] == "data" and data["task_valid"] == 1.0
    for row in [*rows, data]:
        found = [row[f"judge_perplexity{end}"] for end in ("_low", "", "_high")]
        assert 1.0 < found[0] <= found[1] <= found[2]
        perplexity = f"{found[1]:.4g} [{found[0]:.4g}, {found[2]:.4g}]"
        assert f"{perplexity} | {row['entropy_nats']:.4g} [" in report  # the entropy beside it
    for row in rows:
        assert f"| {row['model']} | {row['kind']} | {row['calls']:g} |" in report
        assert f"{row['task_valid']:.4g}" in report
        assert 0.0 <= row["task_valid"] <= 1.0 and len(row["samples"]) == 64
    assert "FMLM: 8 steps of 16 rows, from FLM" in report and "FMLM topk: " not in report
    for name in ("quality.png", "loss_by_tau.png"):
        assert f"![{name}]({name})" in report
        assert (finished / name).read_bytes().startswith(b"\x89PNG")


def test_finished_work_is_not_repeated(finished, measured, capsys):
    (finished / "rows/FMLM-2.json").unlink()
    assert compare_run(comparison(), str(finished)) == 0
    assert measured == [("FMLM", 2)]
    said = capsys.readouterr().out
    assert "FLM: trained" in said and "training in" not in said


def test_other_settings_are_measured_again(finished, measured):
    """All numbers of steps of a model at once: model and data are read once."""
    compare_run(comparison() | {"samples": 32}, str(finished))
    assert measured == [("FLM", 4), ("FLM", 4), ("FMLM", 1, 2), ("FMLM", 2)]


def test_known_words_are_those_of_the_training_texts(tmp_path):
    """Their share is measured where the corpus is prepared here, and of held-out texts too."""
    corpus = tmp_path / "texts.txt"
    corpus.write_text("\n".join(f"a tale of {word}" for word in ("one two", "six ten") * 300))
    config = copy.deepcopy(comparison()) | {"samples": 16, "batch_size": 16, "words": True}
    config["prepare"] = {"source": "text", "path": str(corpus), "split_documents": "line"}
    config["prepare"] |= {"tokenizer": "characters", "valid_fraction": 0.2}
    config["models"] = {"FLM": config["models"]["FLM"] | {"frontier": {}}}
    config["judge"] = ""
    trained = config["models"]["FLM"]["config"]
    trained["data"]["task"] = ""
    trained["data"]["packing"], trained["model"]["length"] = "stream", 24
    assert compare_run(config, str(tmp_path / "run")) == 0
    drawn, data = json.loads((tmp_path / "run" / "report.json").read_text())["rows"]
    # Of texts that are cut at any letter, and of letters that a network without training draws.
    assert data["known_words"] > 0.5 > drawn["known_words"]


def test_a_model_starts_from_an_earlier_one(tmp_path):
    config = comparison() | compare._OPTIONAL
    matched = tiny_config()
    choose(matched, objective="distribution_matching")
    matched.model.two_time = True
    own = {"config": matched.to_dict(), "steps": (1,), "teacher": "FLM", "start": "FMLM"}
    config["models"]["matched"] = own
    found = compare.entries(config, epath.Path(tmp_path))[-1].config["objective"]
    assert (found["teacher"], found["start"]) == tuple(
        str(tmp_path / "models" / name) for name in ("FLM", "FMLM")
    )


def test_rows_are_kept_as_soon_as_they_are_measured(finished, measured, monkeypatch):
    """A comparison that is stopped between two rows of a model measures only the second again."""
    changed, whole = comparison() | {"seed": 1}, compare.measure

    def stops(workdir, steps, **settings):
        rows = whole(workdir, steps, **settings)
        yield next(rows)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(compare, "measure", stops)
        compare_run(changed, str(finished))
    measured.clear()
    compare_run(changed, str(finished))
    assert measured == [("FMLM", 2), ("FMLM", 2)]  # the second is refined


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampels": 1}, "did you mean 'samples'"),
        ({"models": {}}, "has no models"),
        ({"samples": 0}, "config.samples is 0"),
        ({"judge": "FLM"}, "config.judge FLM is a model of objective denoising"),
        ({"judge": "runs/none"}, "config.judge is 'runs/none'; expected a model of the comp"),
        ({"prepare": {"sorce": "text"}}, "unknown key of config.prepare 'sorce'; did you mean 'so"),
        ({"prepare": {"source": "text"}}, "name them by --config.prepare.path="),
        ({"words": True}, "config.words counts words of the training texts; set config.prepare"),
    ],
)
def test_bad_comparisons_are_refused_before_training(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        compare_run(comparison() | change, str(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher": "FML"}, "unknown teacher of FMLM .a model before it. 'FML'; did you mean"),
        ({"start": "FLN"}, "unknown start of FMLM .a model before it. 'FLN'; did you mean 'FLM'"),
        ({"steps": (0,)}, "config.models.FMLM.steps is .0.; expected numbers from 1"),
        (
            {"ways": {"a": {"sampler": "posterior_refinement"}}},
            "config.models.FMLM.ways.a lacks steps",
        ),
        ({"ways": {"a": {"steps": (1,), "gama": 0.5}}}, "'gama'; did you mean 'gamma'"),
        ({"calls": 1}, "unknown key of config.models.FMLM 'calls'"),
    ],
)
def test_bad_models_are_refused_before_training(tmp_path, change, message):
    config = copy.deepcopy(comparison())
    config["models"]["FMLM"] |= change
    with pytest.raises(UserError, match=message):
        compare_run(config, str(tmp_path))
    assert not list(tmp_path.iterdir())
