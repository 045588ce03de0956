"""Zero-shot likelihood of a corpus, and problems of tasks as models complete them."""

import jax
import numpy as np
import pytest
from test_judge import unigram_judge
from test_training import tiny_config

from flm_jax.build import load as build_load
from flm_jax.build.flow import make_clock
from flm_jax.build.load import Model
from flm_jax.build.model import make_network
from flm_jax.build.sampler import PLAIN
from flm_jax.config.check import check
from flm_jax.core.errors import UserError
from flm_jax.data import loading
from flm_jax.data.corpus import store
from flm_jax.data.corpus.prepare import PrepareConfig, prepare
from flm_jax.data.corpus.sources import SourceConfig
from flm_jax.data.tasks.registry import make_task
from flm_jax.data.tokenizers.builtin import ByteTokenizer
from flm_jax.evaluation import corpus, measure, tables
from flm_jax.inference import engine

PROBS = np.random.default_rng(0).dirichlet(np.ones(260))


def prepared(folder, tokenizer, text="abc cab bacca"):
    (folder / "text").mkdir(exist_ok=True, parents=True)
    for i in range(8):
        (folder / f"text/{i}.txt").write_text(f"{text} {i}é" * 7)
    source = SourceConfig("text", str(folder / "text"), valid_fraction=0.25)
    prepare(PrepareConfig(source, str(folder / "data"), tokenizer), log=lambda line: None)
    return str(folder / "data")


@pytest.fixture
def unigram(monkeypatch):
    """An autoregressive model with one law for all tokens, in the place of every workdir."""

    def load(packing):
        config = tiny_config()
        config.data.task, config.data.packing = "", packing
        config.objective.name, config.model.name = "autoregressive", "causal"
        net = unigram_judge(ByteTokenizer(), PROBS, length=16).net
        model = Model(check(config), net, {}, None, ByteTokenizer(), 1)
        monkeypatch.setattr(build_load, "load_model", lambda workdir: model)

    return load


@pytest.mark.parametrize("packing", ["stream", "wrap"])
def test_likelihood_of_a_corpus_is_exact(tmp_path, unigram, packing):
    """Nats by hand from the tokens of the split; bits per byte count the corpus alone."""
    unigram(packing)
    folder = prepared(tmp_path, "bytes")
    row = corpus.corpus_row("w", folder, split="valid", sequences=0, batch_size=4)
    stream = store.load_prepared(folder).split("valid")
    block = 16 - 2 * (packing == "wrap")
    read = stream.read(0, len(stream) // block * block).reshape(-1, block)
    frame = ByteTokenizer.bos_id, ByteTokenizer.eos_id
    nats = -np.log(PROBS[read]).sum() - (block < 16) * len(read) * np.log(PROBS[[*frame]]).sum()
    np.testing.assert_allclose(row["nll_nats_per_token"], nats / (16 * len(read)), rtol=1e-5)
    np.testing.assert_allclose(row["perplexity"], np.exp(nats / (16 * len(read))), rtol=1e-4)
    assert row["likelihood"] == "exact" and row["sequences"] == len(read)
    per_byte = stream.counts["tokens"] / stream.counts["bytes"]
    want = nats / read.size / np.log(2) * per_byte
    np.testing.assert_allclose(row["bits_per_byte"], want, rtol=1e-5)
    few = corpus.corpus_row("w", folder, split="valid", sequences=4, batch_size=4)
    assert few["sequences"] == 4


def test_a_corpus_of_another_tokenizer_is_refused(tmp_path, unigram):
    unigram("stream")
    folder, settings = prepared(tmp_path, "characters"), dict(split="valid", batch_size=4)
    with pytest.raises(UserError, match="has another tokenizer .* --tokenizer=w/tokenizer"):
        corpus.corpus_row("w", folder, sequences=0, **settings)
    with pytest.raises(UserError, match="corpus_sequences=-1"):
        corpus.corpus_row("w", folder, sequences=-1, **settings)


def untrained(task_name, **settings):
    task = make_task(task_name)
    config = tiny_config()
    config.data.task, config.model.length = task_name, task.length
    config.model.vocab_size = task.tokenizer.vocab_size
    config.objective.name = settings.get("objective", "denoising")
    config.model.name = "causal" if config.objective.name == "autoregressive" else "dit"
    config = check(config)
    net = make_network(config)
    clock = make_clock(config, net.vocab_size)
    model = build_load.Model(
        config, net, jax.jit(net.init)(jax.random.key(0)), clock, task.tokenizer, 0
    )
    data = loading.Data([], None, task.tokenizer, task)
    return measure.Subject(model, data, None, None)


@pytest.mark.parametrize("objective", ["masked", "autoregressive"])
def test_problems_keep_what_is_given(objective):
    """Each row its own, also in a last, shorter batch."""
    row = measure.completions(untrained("arithmetic", objective=objective), 2, 10, 4, 0, PLAIN)
    assert row["problem_kept"] == 1.0
    assert 0.0 <= row["problem_solved_low"] <= row["problem_solved"] < 0.5


def test_right_answers_solve_problems(monkeypatch):
    task = make_task("arithmetic")
    tokens, given = task.problems(10, measure._PROBLEM_SEED)
    right = task.sample(10, measure._PROBLEM_SEED)
    assert (right[given] == tokens[given]).all()

    def complete(model, asked, **settings):
        np.testing.assert_array_equal(asked.tokens, tokens)
        return engine.Completed(np.arange(10), right, 2.0)

    monkeypatch.setattr(engine, "complete", complete)
    row = measure.completions(untrained("arithmetic"), 2, 10, 4, 0, PLAIN)
    assert row["problem_solved"] == 1.0 and row["problem_solved_high"] >= 1.0 - 1e-9
    assert row["problem_calls"] == 2.0


def test_only_models_that_can_read_the_givens_are_asked():
    """Clues of a grid lie behind the places that an autoregressive model writes first."""
    assert (
        measure.completions(untrained("grammar", objective="autoregressive"), 2, 8, 8, 0, PLAIN)
        == {}
    )
    assert measure.completions(untrained("phrases2"), 2, 8, 8, 0, PLAIN) == {}


def test_a_table_has_every_column_of_any_row():
    rows = [
        {"model": "a", "kind": "flow", "calls": 1, "judge_perplexity": 3.0, "entropy_nats": 2.0},
        {"model": "data", "kind": "held out", "entropy_nats": 1.5, "likelihood": "exact"},
    ]
    text = tables.table(rows).splitlines()
    assert text[0] == "| model | kind | calls | judge perplexity | entropy nats | likelihood |"
    assert text[2] == "| a | flow | 1 | 3 | 2 |  |"
    assert text[3] == "| data | held out |  |  | 1.5 | exact |"
