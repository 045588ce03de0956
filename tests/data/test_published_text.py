"""Published data sets from files to packed rows, against rows that were made from the rules."""

import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from flm_jax.core.errors import UserError
from flm_jax.data.corpus.prepare import PrepareConfig, prepare
from flm_jax.data.corpus.published import (
    BERT,
    GPT2,
    PUBLISHED,
    published_source,
    published_tokenizer,
)
from flm_jax.data.corpus.sources import SourceConfig
from flm_jax.data.corpus.store import load_prepared
from flm_jax.data.loading import DataConfig, load_data
from flm_jax.data.packing import PackedSource
from flm_jax.data.tokenizers.builtin import Text8Tokenizer
from flm_jax.data.tokenizers.registry import load_tokenizer, make_tokenizer

tokenizers = pytest.importorskip("tokenizers")
_WORDS = "the cat sat on it ' s , . ( ) 3 % do n t can not well - known".split()


def _bert(folder):
    """A tokenizer in the way of BERT's: lower case, whole words, framed by [CLS] and [SEP]."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_WORDS]
    ids = {name: i for i, name in enumerate(names)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(ids, unk_token="[UNK]"))
    backend.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return ids


def _gpt2(folder):
    """A tokenizer in the way of GPT-2's: bytes, and one token before, between and behind."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    ids = {piece: i for i, piece in enumerate([*alphabet, "<|endoftext|>"])}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(ids, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(["<|endoftext|>"])
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return ids


def _rows(blocks, bos, eos, length, group):
    """Rows by the rules: texts and their EOS in groups, cut, framed, the rest of each left out."""
    rows = []
    for first in range(0, len(blocks), group):
        flat = [token for ids in blocks[first : first + group] for token in [*ids, eos]]
        pieces = [flat[i : i + length - 2] for i in range(0, len(flat), length - 2)]
        rows += [[bos, *piece, eos] for piece in pieces if len(piece) == length - 2]
    return rows


def _parquet(root, **splits):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    for name, texts in splits.items():
        (root / "plain_text" / name).mkdir(parents=True)
        table = arrow.table({"text": texts})
        parquet.write_table(table, root / "plain_text" / name / "0000.parquet")
    return str(root)


def _prepared(tmp_path, source, tokenizer):
    out = str(tmp_path / "out")
    prepare(PrepareConfig(source, out, tokenizer), lambda line: None)
    return out


def test_lm1b_rows(tmp_path):
    ids = _bert(tmp_path / "bert")
    raw = ["The cat , it 's not on .", "do n't sit 3 %", "( the ) well - known .", "can not ."]
    # By the rules: "The cat, it's not on.", and the others but for the brackets as they were.
    words = [
        "the cat , it ' s not on .",
        "do n ' t [UNK] 3 %",
        "( the ) well - known .",
        "can not .",
    ]
    texts = [[ids[word] for word in text.split()] for text in words]
    source = published_source("lm1b", _parquet(tmp_path / "hub", train=raw, test=raw[:1]))
    out = _prepared(tmp_path, source, f"hf:{tmp_path / 'bert'}")
    cfg = DataConfig(path=out, packing="wrap", group=2)
    data = load_data(cfg, length=6, seed=0, tokenizer="")
    ((train, _),) = data.train
    bos, eos = ids["[CLS]"], ids["[SEP]"]
    assert [train[i]["tokens"].tolist() for i in range(len(train))] == _rows(
        texts, bos, eos, 6, group=2
    )
    assert (data.tokenizer.bos_id, data.tokenizer.eos_id) == (bos, eos)


def test_openwebtext_rows(tmp_path):
    ids = _gpt2(tmp_path / "gpt2")
    raw = [f"text {i}\r\n do n't <|endoftext|>" for i in range(9)] + ["", "the last"]
    hub = _parquet(tmp_path / "hub", train=raw)
    published = published_source("openwebtext", hub)
    assert (published.valid_last, published.detokenize) == (100_000, "")
    source = SourceConfig("hf", hub, valid_last=3, verbatim=published.verbatim)
    prepared = load_prepared(_prepared(tmp_path, source, f"hf:{tmp_path / 'gpt2'}"))
    end, level = ids["<|endoftext|>"], tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)

    def spelt(text):
        return [ids[c] for piece, _ in level.pre_tokenize_str(text) for c in piece]

    for split, texts in (("train", raw[:-3]), ("valid", raw[-3:])):
        expected = _rows([spelt(text) for text in texts], end, end, 8, group=1000)
        source = PackedSource(prepared.split(split), prepared.tokenizer, 8, "wrap", 1000)
        assert [source[i]["tokens"].tolist() for i in range(len(source))] == expected


@pytest.mark.parametrize("packed", [False, True])
def test_text8_rows(tmp_path, packed):
    text = ("the cat sat on the mat xyz " * 500)[:10_240]
    place = tmp_path / ("text8.zip" if packed else "text8")
    if packed:
        with zipfile.ZipFile(place, "w") as file:
            file.writestr("text8", text)
    else:
        place.write_text(text)
    prepared = load_prepared(_prepared(tmp_path, published_source("text8", str(place)), "text8"))
    ids = {c: i + 8 for i, c in enumerate("abcdefghijklmnopqrstuvwxyz ")}
    for split, first, last in (("train", 0, 9216), ("valid", 9728, 10_240)):
        chunks = [text[i : i + 256] for i in range(first, last, 256)]
        expected = _rows([[ids[c] for c in chunk] for chunk in chunks], 2, 3, 256, group=1000)
        source = PackedSource(prepared.split(split), prepared.tokenizer, 256, "wrap", 1000)
        assert [source[i]["tokens"].tolist() for i in range(len(source))] == expected


def test_the_tokenizer_of_text8(tmp_path):
    tokenizer = make_tokenizer("text8", lambda: [])
    assert tokenizer.encode("aZ !").tolist() == [8, 33, 34, 7]
    assert tokenizer.decode([2, 8, 33, 34, 7, 0, 3]) == "az \ufffd\ufffd"
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert isinstance(loaded, Text8Tokenizer)
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.encode("abc").dtype == np.int32


def test_what_is_no_text8(tmp_path):
    (tmp_path / "text8").write_text("Not in lower case")
    with pytest.raises(UserError, match="other characters than a to z and spaces, such as 'N'"):
        _prepared(tmp_path, published_source("text8", str(tmp_path / "text8")), "text8")
    (tmp_path / "text8.zip").write_bytes(b"no archive")
    with pytest.raises(UserError, match="expected text8.zip, whole"):
        _prepared(tmp_path, published_source("text8", str(tmp_path / "text8.zip")), "text8")
    with pytest.raises(UserError, match="'text8' needs a path"):
        _prepared(tmp_path, published_source("text8", ""), "text8")


def _run(*flags):
    command = [sys.executable, "-m", "flm_jax.prepare_data", *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command(tmp_path):
    (tmp_path / "text8").write_text("the cat sat on the mat xyz " * 500)
    flags = ("--published=text8", f"--path={tmp_path / 'text8'}", f"--out={tmp_path / 'out'}")
    done = _run(*flags)
    assert done.returncode == 0, done.stderr
    assert load_prepared(tmp_path / "out").tokenizer.kind == "text8"
    refused = _run(*flags, "--detokenize=ptb", "--valid_last=3")
    assert refused.returncode == 2
    assert "got --published and --detokenize and --valid_last; leave them out" in refused.stderr


def test_tokenizers_of_published_sets():
    names = {name: published_tokenizer(name) for name in PUBLISHED}
    assert (names.pop("lm1b"), names.pop("text8")) == (BERT, "text8")
    assert set(names.values()) == {GPT2}
    with pytest.raises(UserError, match="did you mean 'lm1b'"):
        published_source("lm2b", "")
