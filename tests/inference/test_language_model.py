"""`flm_jax.load` and what it gives: samples, scores, one compilation a shape."""

import inspect

import jax
import numpy as np
import pytest

import flm_jax
from flm_jax.build.families.registry import family
from flm_jax.data.tokenizers.builtin import ByteTokenizer
from flm_jax.inference import engine
from flm_jax.inference.language_model import LanguageModel
from flm_jax.metrics.likelihood import likelihood
from flm_jax.samplers.base import nothing_given
from flm_jax.training.trainer import train_run
from helpers.prompts import byte_model
from helpers.runs import three_step_config


@pytest.fixture(scope="module", params=["denoising", "autoregressive"])
def workdir(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("api") / request.param
    assert train_run(three_step_config(request.param), str(folder)) == 0
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
    model.sample(6, steps=3, seed=1, temperature=0.5)
    assert compilations


def test_scores_add_up_to_the_likelihood(model):
    texts = ["new york", "san diego", "new diego"]
    found = model.score(texts)
    loaded = model._model
    kind = family(model.config)
    tokens = np.stack([model.tokenizer.encode(text) for text in texts])
    batches = [{"tokens": row[None], "mask": np.ones((1, 2), bool)} for row in tokens]
    row = jax.jit(kind.row_likelihood(model.config, loaded.net, loaded.flow))
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


def test_lone_surrogates_are_told_once_and_read_as_replacements(caplog):
    model = LanguageModel(byte_model())
    spelt = model.score(["a", "b\ufffd", "\ufffd"])
    found = model.score(["a", "b\ud800", "\udc00"])
    np.testing.assert_array_equal(found.nats, spelt.nats)
    (said,) = caplog.messages
    assert said.startswith("text 1: got a lone surrogate")


@pytest.mark.parametrize("packing", ["wrap", "pad"])
def test_a_frame_that_the_tokenizer_cannot_spell_is_refused(packing, monkeypatch):
    model = byte_model(packing=packing)
    for role in ("bos_id", "eos_id"):
        bare = ByteTokenizer()
        setattr(bare, role, None)
        message = rf"data.packing is '{packing}', .* no {role[:3].upper()}.*'stream'"
        with pytest.raises(flm_jax.UserError, match=message):
            LanguageModel(model._replace(tokenizer=bare)).score(["a"])
    stream = byte_model(packing="stream")._replace(tokenizer=bare)
    assert LanguageModel(stream).score(["abc"]).tokens.tolist() == [3]


def test_public_names_are_documented():
    for name in flm_jax.__all__:
        thing = getattr(flm_jax, name)
        assert inspect.getdoc(thing), name
        for part, value in vars(thing).items() if inspect.isclass(thing) else ():
            if not part.startswith("_") and (inspect.isfunction(value) or type(value) is property):
                assert inspect.getdoc(value), f"{name}.{part}"
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        flm_jax.laod  # noqa: B018  raises
