"""Zero-shot likelihood of a corpus."""

import numpy as np
import pytest

from flm_jax.build.load import Model
from flm_jax.config.check import check
from flm_jax.config.schema import choose
from flm_jax.core.errors import UserError
from flm_jax.data.corpus import store
from flm_jax.data.corpus.prepare import PrepareConfig, prepare
from flm_jax.data.corpus.sources import SourceConfig
from flm_jax.data.tokenizers.builtin import ByteTokenizer
from flm_jax.evaluation import corpus
from helpers.networks import unigram_judge
from helpers.runs import tiny_config

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
        choose(config, model="causal", objective="autoregressive")
        net = unigram_judge(ByteTokenizer(), PROBS, length=16).net
        model = Model(check(config), net, {}, None, ByteTokenizer(), 1)
        monkeypatch.setattr(corpus, "load_model", lambda workdir, **more: model)

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
