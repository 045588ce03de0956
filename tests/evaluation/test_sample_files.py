"""Files of samples: what is written is read, and what is none is refused with its place."""

import json

import numpy as np
import pytest

from flm_jax.core.errors import UserError
from flm_jax.data.tokenizers.builtin import ByteTokenizer
from flm_jax.evaluation.sample_files import Kept, read_samples

BYTES = ByteTokenizer()


def test_what_is_kept_is_read(tmp_path):
    tokens = np.array([[BYTES.bos_id, 97, 98, BYTES.eos_id], [99, 99, 99, BYTES.eos_id]])
    kept = Kept()
    for model, calls in (("a", 1), ("b", 1), ("a", 2.5), ("a", 1)):
        kept.add(model, calls, tokens, BYTES)
    kept.write(str(tmp_path / "s.jsonl"))
    found = read_samples(str(tmp_path / "s.jsonl"))
    assert [(one.model, one.calls, len(one.texts)) for one in found] == [
        ("a", 1, 4),
        ("b", 1, 2),
        ("a", 2.5, 2),
    ]
    assert found[1].texts == ["<bos>ab<eos>", "ccc<eos>"] and found[1].length == 4
    np.testing.assert_array_equal(found[1].tokens, tokens)


def test_a_tokenizer_gives_what_is_missing(tmp_path):
    path = tmp_path / "s.jsonl"
    path.write_text('{"text": "a<eos>"}\n{"text": "bcd"}\n')
    (found,) = read_samples(str(path))
    assert (found.model, found.calls, found.tokens, found.length) == ("s.jsonl", None, None, 0)
    (found,) = read_samples(str(path), BYTES)
    assert [list(ids) for ids in found.tokens] == [[97, BYTES.eos_id], [98, 99, 100]]
    path.write_text(f'{{"tokens": [97, {BYTES.eos_id}]}}\n')
    assert read_samples(str(path), BYTES)[0].texts == ["a<eos>"]
    with pytest.raises(UserError, match="s.jsonl, line 1: no text; .* --tokenizer"):
        read_samples(str(path))


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("a.json", "{", "no JSON"),
        ("a.json", "{}", "generated_seqs"),
        ("a.json", '{"generated_seqs": []}', "generated_seqs"),
        ("a.json", '{"generated_seqs": [5]}', "a.json, sample 1: expected samples"),
        ("a.jsonl", '{"text": 5}', "a.jsonl, line 1: expected text"),
        ("a.jsonl", '{"text": "a"}\n{"text": "a", "tokens": [-1]}', "line 2: expected text"),
        ("a.jsonl", '{"text": "a"}\n{"text": "a", "tokens": [1]}', "1 of 2 samples .* have tokens"),
        ("a.jsonl", '{"text": "a", "calls": "x"}', "model is 'a.jsonl' and calls 'x'"),
        ("a.jsonl", "", "has no line; expected samples"),
    ],
)
def test_other_files_are_refused(tmp_path, name, content, says):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=says):
        read_samples(str(tmp_path / name))


def test_the_files_of_the_reference(tmp_path):
    path = tmp_path / "samples.json"
    theirs = {"generative_ppl": 3.0, "entropy": 1.0, "generated_seqs": ["a", "b"]}
    path.write_text(json.dumps(theirs, indent=4))
    assert read_samples(str(path))[0].texts == ["a", "b"]
