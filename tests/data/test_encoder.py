"""Tokenising in several processes: the same ids in the same order, faults in one line."""

import dataclasses
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from flm_jax.core.errors import UserError
from flm_jax.data.corpus import encoder as corpus_encoder
from flm_jax.data.corpus.encoder import Encoder
from flm_jax.data.corpus.prepare import PrepareConfig, prepare
from flm_jax.data.corpus.sources import SourceConfig
from flm_jax.data.tokenizers.builtin import ByteTokenizer, CharacterTokenizer

TEXTS = [f"text {i} " + "x" * (i % 7) for i in range(300)]


@pytest.fixture
def eager(monkeypatch):
    """Processes start for small corpora as well, and get them in many batches."""
    monkeypatch.setattr(corpus_encoder, "_ALONE_CHARACTERS", 100)
    monkeypatch.setattr(corpus_encoder, "_BATCH_CHARACTERS", 50)


class KilledTokenizer(ByteTokenizer):
    """Ends the process in which it encodes."""

    def encode(self, text):
        os.kill(os.getpid(), signal.SIGKILL)


def test_workers_give_the_ids_of_one_process_in_order(eager):
    tokenizer = CharacterTokenizer.train(TEXTS)
    with Encoder(tokenizer, workers=2) as encoder:
        for texts in (TEXTS, ["", *TEXTS[:20], ""], ["", ""], []):
            found = list(encoder.encoded(iter(texts)))
            assert [text for text, _ in found] == texts
            for text, ids in found:
                assert ids.dtype == np.int32
                np.testing.assert_array_equal(ids, tokenizer.encode(text))
        assert encoder._pool is not None


def test_a_small_corpus_starts_no_process():
    with Encoder(ByteTokenizer(), workers=2) as encoder:
        assert len(list(encoder.encoded(TEXTS))) == len(TEXTS)
        assert encoder._pool is None


def test_a_killed_worker_is_told_in_one_line(eager):
    killed = pytest.raises(UserError, match="was killed.*fewer --workers")
    with Encoder(KilledTokenizer(), workers=2) as encoder, killed:
        list(encoder.encoded(TEXTS))


def test_the_number_of_workers_is_checked():
    with pytest.raises(UserError, match="got 0 workers; expected at least 1"):
        Encoder(ByteTokenizer(), workers=0)


@pytest.mark.parametrize("tokenizer", ["sentencepiece", "characters"])
def test_the_folder_does_not_depend_on_the_workers(eager, tmp_path, tokenizer):
    (tmp_path / "corpus.txt").write_text("\n".join(TEXTS))
    source = SourceConfig("text", str(tmp_path / "corpus.txt"), split_documents="line")
    cfg = PrepareConfig(source, str(tmp_path / "1"), tokenizer, vocab_size=64)
    prepare(cfg, lambda _: None)
    said = []
    prepare(dataclasses.replace(cfg, out=str(tmp_path / "3"), workers=3), said.append)
    names = sorted(path.relative_to(tmp_path / "1") for path in (tmp_path / "1").rglob("*.*"))
    assert len(names) >= 6
    for name in names:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "3" / name).read_bytes()
    # So does not what counts as the same preparation.
    prepare(dataclasses.replace(cfg, out=str(tmp_path / "3")), said.append)
    assert "already prepared" in said[-1]


def test_processes_that_tokenise_do_not_start_jax():
    """Each imports the command's module again, and JAX takes longer than a small corpus."""
    check = "import sys, flm_jax.prepare_data; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
