"""`flm_jax.load` and what it gives: samples, scores, saved folders, pages."""

import html
import inspect
import json
import re

import jax
import numpy as np
import pytest
from safetensors.flax import load_file, save_file

import flm_jax
from flm_jax.build.families.registry import family
from flm_jax.build.load import load_model
from flm_jax.checkpoints.portable import save_folder
from flm_jax.config.check import check
from flm_jax.config.schema import base_config
from flm_jax.data.tokenizers.builtin import ByteTokenizer, WordTokenizer
from flm_jax.data.tokenizers.registry import make_tokenizer
from flm_jax.inference import engine
from flm_jax.inference.trajectories import framed, in_terminal, pieces, to_html
from flm_jax.metrics.likelihood import likelihood
from flm_jax.samplers.base import nothing_given
from flm_jax.training.trainer import train_run


def tiny(goal):
    config = base_config()
    config.data.task = "phrases2"
    config.model.update({"length": 2, "dim": 16, "depth": 1, "heads": 2, "cond_dim": 16})
    config.model.name = "causal" if goal == "autoregressive" else "dit"
    config.objective.name = goal
    config.train.update({"steps": 3, "batch": 8, "log_every": 3})
    config.eval.update({"every": 0, "sample_steps": 2, "samples": 1, "batches": 1})
    return check(config)


@pytest.fixture(scope="module", params=["denoising", "autoregressive"])
def workdir(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("api") / request.param
    assert train_run(tiny(request.param), str(folder)) == 0
    return folder


@pytest.fixture(scope="module")
def model(workdir):
    return flm_jax.load(workdir)


@pytest.fixture
def compilations():
    """Durations of the compilations since the test began."""
    found = []

    def listen(event, seconds, **more):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


def test_samples_are_those_of_the_command(model):
    made = model.sample(3, steps=2, seed=5, batch_size=4)
    loaded, given = model._model, nothing_given(4, 2)
    steps = engine.step_counts(loaded, [2], 2)[0]
    drawn = engine.draw(loaded, given, steps=steps, num=3, seed=5)
    np.testing.assert_array_equal(made.tokens, drawn.tokens)
    assert made.texts == [model.tokenizer.decode(row) for row in drawn.tokens]
    assert made.confidence.shape == (3, 2) and made.calls == 2
    assert model.sample(prompt="san").texts[0].startswith("san ")


def test_a_second_call_compiles_nothing(model, compilations):
    first = model.sample(8, steps=3, seed=1)
    assert compilations
    compilations.clear()
    again = model.sample(6, steps=3, seed=1)
    assert not compilations
    np.testing.assert_array_equal(first.tokens[:6], again.tokens)
    model.sample(6, steps=3, seed=1, options=flm_jax.Options(temperature=0.5))
    assert compilations


def test_scores_add_up_to_the_likelihood(model):
    texts = ["new york", "san diego", "new diego"]
    found = model.score(texts)
    loaded = model._model
    kind = family(model.config)
    tokens = np.stack([model.tokenizer.encode(text) for text in texts])
    batches = [{"tokens": row[None], "mask": np.ones((1, 2), bool)} for row in tokens]
    row = jax.jit(kind.row_likelihood(model.config, loaded.net, loaded.clock))
    each = [likelihood(row, loaded.params, [b], draws=kind.draws) for b in batches]
    np.testing.assert_allclose(found.nats, [2 * one.nats_per_token for one in each], rtol=1e-6)
    assert found.kind == kind.likelihood and found.tokens.tolist() == [2, 2, 2]
    assert found.perplexity == pytest.approx(np.exp(found.nats.sum() / 6))


def test_longer_texts_are_scored_in_pieces(model):
    parts = model.score(["new york", "san diego"]).nats
    whole = model.score(["new york san diego"])
    assert whole.tokens.tolist() == [4]
    assert whole.nats[0] == pytest.approx(parts.sum(), rel=1e-6)


def test_bad_requests_are_refused(model):
    with pytest.raises(flm_jax.UserError, match="text 1 is empty"):
        model.score(["new york", ""])
    with pytest.raises(flm_jax.UserError, match="got num_samples=0"):
        model.sample(0)
    with pytest.raises(flm_jax.UserError, match="got length=3"):
        model.sample(length=3)


def test_a_saved_folder_is_the_same_model(model, tmp_path):
    model.save_pretrained(tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"README.md", "config.json", "model.safetensors", "tokenizer"}
    again = flm_jax.load(tmp_path / "out")
    assert (again.step, again.kind) == (model.step, model.kind)
    before, after = (m.sample(8, steps=2, seed=2) for m in (model, again))
    np.testing.assert_array_equal(before.tokens, after.tokens)
    np.testing.assert_array_equal(before.confidence, after.confidence)
    with pytest.raises(flm_jax.UserError, match="holds a model already"):
        model.save_pretrained(tmp_path / "out")


def test_a_saved_folder_names_no_path_of_this_machine(model, tmp_path):
    loaded = model._model
    config = json.loads(json.dumps(loaded.config))
    config["data"]["path"], config["objective"]["teacher"] = "/secret/data", "/secret/teacher"
    config["data"]["generated"] = "/secret/own"
    save_folder(tmp_path / "out", config, loaded.params, loaded.tokenizer, 3)
    assert "secret" not in "".join(p.read_text() for p in (tmp_path / "out").glob("*.[jm]*d"))
    assert "secret" not in (tmp_path / "out/config.json").read_text()
    assert load_model(tmp_path / "out").step == 3


def test_damaged_folders_are_named(model, tmp_path):
    model.save_pretrained(tmp_path / "out")
    path = tmp_path / "out/model.safetensors"
    whole, tensors = path.read_bytes(), load_file(path)
    name = sorted(tensors)[0]
    save_file({k: v for k, v in tensors.items() if k != name}, path)
    with pytest.raises(flm_jax.UserError, match=f"differ in 1 tensors.*{name}"):
        flm_jax.load(tmp_path / "out")
    save_file(tensors | {name: tensors[name][..., :1]}, path)
    with pytest.raises(flm_jax.UserError, match=f"{name} has shape"):
        flm_jax.load(tmp_path / "out")
    path.write_bytes(whole[:100])
    with pytest.raises(flm_jax.UserError, match="cannot be read"):
        flm_jax.load(tmp_path / "out")


def test_the_hub_is_asked_for_its_names(model, tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    model.save_pretrained(tmp_path / "there")
    asked = []

    def snapshot_download(name):
        asked.append(name)
        if name != "owner/name":
            raise hub.errors.HFValidationError(f"no such model: {name}\nlong explanations")
        return str(tmp_path / "there")

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    assert flm_jax.load("hf:owner/name").step == model.step and asked == ["owner/name"]
    with pytest.raises(flm_jax.UserError, match="hf:a/b could not be fetched: no such model: a/b$"):
        flm_jax.load("hf:a/b")


def test_a_model_is_uploaded_as_it_was_saved(model, tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    calls = []
    monkeypatch.setattr(hub, "create_repo", lambda name, **more: calls.append((name, more)))
    monkeypatch.setattr(hub, "upload_folder", lambda **more: calls.append(more))
    model.push_to_hub("owner/name", folder=tmp_path / "out", private=True)
    assert calls == [
        ("owner/name", {"private": True, "exist_ok": True}),
        {"repo_id": "owner/name", "folder_path": str(tmp_path / "out")},
    ]


@pytest.mark.parametrize("kind", ["words", "bytes", "sentencepiece"])
def test_pieces_join_to_the_text(kind):
    text = "naïve words, of a longer text"
    if kind == "words":
        tokenizer, text = WordTokenizer("new york san diego".split()), "new york san diego new"
    elif kind == "bytes":
        tokenizer = ByteTokenizer()
    else:
        tokenizer = make_tokenizer("sentencepiece", lambda: [text] * 99, vocab_size=60)
    ids = tokenizer.encode(text)
    assert "".join(pieces(tokenizer, ids)) == text
    if tokenizer.eos_id is not None:
        framed = [tokenizer.bos_id, *ids, tokenizer.eos_id]
        assert "".join(pieces(tokenizer, framed)) == f"<bos>{text}<eos>"


def test_a_page_holds_every_call_and_no_markup_of_texts():
    tokenizer = ByteTokenizer()
    tokens = np.stack([tokenizer.encode(text) for text in ("</script>", "<b>&amp;!")])[:, None]
    page = to_html(tokenizer, tokens, np.full(tokens.shape, 0.5), title="a < b")
    assert page.count("</script>") == 1 and "<b>" not in page and "a &lt; b" in page
    data = page.split("const frames = ")[1].split(";\n")[0]
    steps = json.loads(data)[0]
    assert ["".join(p for p, _ in step) for step in steps] == ["</script>", "<b>&amp;!"]
    (inner,) = re.findall('srcdoc="([^"]*)"', framed(page))
    assert html.unescape(inner) == page
    with pytest.raises(flm_jax.UserError, match="expected \\[steps, samples, length\\]"):
        to_html(tokenizer, tokens[0], tokens[0])


def test_a_terminal_shows_each_call_in_place():
    tokenizer, written = WordTokenizer("new york san diego".split()), []
    tokens = np.array([[[0, 3]], [[0, 1]]])
    confidence = np.array([[[0.9, 0.1]], [[1.0, 0.6]]])
    in_terminal(tokenizer, tokens, confidence, seconds=0.0, write=written.append)
    first, second, _ = written
    assert "step 1/2" in first and "new" in first and "diego" not in first
    assert second.startswith("\x1b[2F\x1b[J") and "\x1b[2m york\x1b[0m" in second


def test_public_names_are_documented():
    for name in flm_jax.__all__:
        thing = getattr(flm_jax, name)
        assert inspect.getdoc(thing), name
        for part, value in vars(thing).items() if inspect.isclass(thing) else ():
            if not part.startswith("_") and (inspect.isfunction(value) or type(value) is property):
                assert inspect.getdoc(value), f"{name}.{part}"
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        flm_jax.laod  # noqa: B018  raises
