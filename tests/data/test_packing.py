"""Packed examples against brute force."""

import itertools

import numpy as np
import pytest
from etils import epath

from flm_jax.core.errors import UserError
from flm_jax.data.corpus.manifest import build_manifest, write_manifest
from flm_jax.data.corpus.store import Shard, SplitWriter, load_prepared
from flm_jax.data.packing import PackedSource
from flm_jax.data.tokenizers.builtin import ByteTokenizer, WordTokenizer

DOCUMENTS = ["abcdefg", "hi", "", "jklmnopqrstuvw", "x", "yz0123"]
TOKENIZER = ByteTokenizer()
BOS, EOS, PAD = TOKENIZER.bos_id, TOKENIZER.eos_id, TOKENIZER.pad_id


def _stream(folder, shards):
    """Stores the documents in consecutive shards; an empty list is an empty shard."""
    folder = epath.Path(folder)
    records = []
    for index, texts in enumerate(shards):
        writer = SplitWriter(folder, "train", Shard(index, len(shards)), TOKENIZER)
        for text in texts:
            writer.add(TOKENIZER.encode(text), text)
        records.append(writer.finish())
    TOKENIZER.save(folder / "tokenizer")
    write_manifest(folder, "manifest.json", build_manifest(TOKENIZER, {}, {"train": records}))
    return load_prepared(folder, verify=True).split("train")


SHARDINGS = {
    "one": [DOCUMENTS],
    "three": [DOCUMENTS[:2], DOCUMENTS[2:3], DOCUMENTS[3:]],
    "with empty ones": [[], DOCUMENTS[:1], [], DOCUMENTS[1:], []],
}


@pytest.fixture(params=SHARDINGS)
def stream(request, tmp_path):
    return _stream(tmp_path, SHARDINGS[request.param])


def _flat():
    return list(itertools.chain.from_iterable([*text.encode(), EOS] for text in DOCUMENTS))


def _rows(source):
    return [source[i]["tokens"].tolist() for i in range(len(source))]


@pytest.mark.parametrize("length", [3, 5, 8, 20])
def test_wrap_matches_brute_force(stream, length):
    flat, block = _flat(), length - 2
    expected = [
        [BOS, *flat[i : i + block], EOS]
        for i in range(0, len(flat), block)
        if i + block <= len(flat)
    ]
    assert _rows(PackedSource(stream, TOKENIZER, length, "wrap", 0)) == expected


@pytest.mark.parametrize("group", [1, 2, 3, 100])
@pytest.mark.parametrize("packing", ["wrap", "stream"])
def test_groups_of_documents_are_cut_by_themselves(stream, packing, group):
    length, frame = 5, packing == "wrap"
    block, expected = length - 2 * frame, []
    for first in range(0, len(DOCUMENTS), group):
        texts = DOCUMENTS[first : first + group]
        flat = [t for text in texts for t in [*text.encode(), EOS]]
        blocks = [flat[i : i + block] for i in range(0, len(flat) - block + 1, block)]
        expected += [[BOS, *b, EOS] if frame else b for b in blocks]
    source = PackedSource(stream, TOKENIZER, length, packing, group)
    assert _rows(source) == expected
    assert source.batch(range(len(source)))["tokens"].tolist() == expected


@pytest.mark.parametrize("length", [1, 4, 7, 36])
def test_stream_matches_brute_force(stream, length):
    flat = _flat()
    expected = [flat[i : i + length] for i in range(0, len(flat) - length + 1, length)]
    assert _rows(PackedSource(stream, TOKENIZER, length, "stream", 0)) == expected


def test_pad_frames_cuts_and_masks(stream):
    source = PackedSource(stream, TOKENIZER, 6, "pad", 0)
    assert len(source) == len(DOCUMENTS)
    for example, text in zip((source[i] for i in range(len(source))), DOCUMENTS):
        framed = [BOS, *text.encode(), EOS][:6]
        assert example["tokens"].tolist() == framed + [PAD] * (6 - len(framed))
        assert example["mask"].tolist() == [True] * len(framed) + [False] * (6 - len(framed))


@pytest.mark.parametrize("packing", ["wrap", "stream", "pad"])
def test_dtypes_and_mask(stream, packing):
    example = PackedSource(stream, TOKENIZER, 5, packing, 0)[0]
    assert example["tokens"].dtype == np.int32
    assert example["mask"].dtype == bool
    assert example["tokens"].shape == example["mask"].shape == (5,)
    assert example["mask"].all()


def test_documents_are_read_back(stream):
    assert [TOKENIZER.decode(stream.document(i)) for i in range(stream.documents)] == DOCUMENTS
    assert stream.counts["characters"] == sum(map(len, DOCUMENTS))


def test_fingerprint_tells_cuts_apart(stream):
    cuts = [(5, "wrap", 0), (6, "wrap", 0), (5, "stream", 0), (5, "pad", 0), (5, "wrap", 2)]
    assert len({PackedSource(stream, TOKENIZER, *cut).fingerprint for cut in cuts}) == len(cuts)


def test_errors(stream):
    tokens = len(_flat())
    with pytest.raises(UserError, match=f"has {tokens} tokens; .* 'wrap' needs 98"):
        PackedSource(stream, TOKENIZER, 100, "wrap", 0)
    with pytest.raises(UserError, match="did you mean 'wrap'"):
        PackedSource(stream, TOKENIZER, 8, "warp", 0)
    with pytest.raises(UserError, match="got length 2; expected at least 3"):
        PackedSource(stream, TOKENIZER, 2, "wrap", 0)
    with pytest.raises(UserError, match="needs a BOS token"):
        PackedSource(stream, WordTokenizer(["a"]), 8, "wrap", 0)
    with pytest.raises(UserError, match="'pad' cuts no groups"):
        PackedSource(stream, TOKENIZER, 8, "pad", 2)
    with pytest.raises(UserError, match="cut by 1 documents; .* 'wrap' needs 58"):
        PackedSource(stream, TOKENIZER, 60, "wrap", 1)


@pytest.mark.parametrize("packing", ["wrap", "stream", "pad"])
def test_a_batch_is_its_examples(stream, packing):
    source = PackedSource(stream, TOKENIZER, 5, packing, 0)
    places = [*range(len(source)), 0, 2]
    batch = source.batch(places)
    for name in ("tokens", "mask"):
        expected = np.stack([source[place][name] for place in places])
        np.testing.assert_array_equal(batch[name], expected)
        assert batch[name].dtype == expected.dtype
