"""The reference's protocol against a computation of its own in NumPy, on files and on models."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from flm_jax.core.errors import UserError
from flm_jax.data.tokenizers.builtin import CharacterTokenizer
from flm_jax.evaluation.judges import load_judge
from flm_jax.evaluation.protocols import file_row
from flm_jax.evaluation.sample_files import read_samples
from flm_jax.metrics.generative_perplexity import judge_texts, perplexity
from flm_jax.metrics.reference_perplexity import judge_as_reference
from helpers.command_server import run_commands
from helpers.networks import unigram_judge
from helpers.runs import run, tiny_config

GPT2 = Path(__file__).parents[1] / "goldens/gpt2"
END = "<|endoftext|>"
TEXTS = [
    f"{END}the flow carries noise{END}text and the map{END}",  # the first EOS is not judged
    f"text and the map jumps over it{END}noise{END}{END}the",  # the second and third do not count
    "the flow carries noise",  # shorter than others: its first padding counts
    "text and the map jumps over it, and the flow carries noise to text, and over it again",
    "",
    "a",
    f"{END}",
    "noise noise noise noise noise noise noise noise",
    "the last two of nine are judged by one",
]


def tokens_of(text):
    """BPE by its merges, one rank after the other; special tokens are found in the text first."""
    found = json.loads((GPT2 / "tokenizer.json").read_text())["model"]
    vocabulary, merges = found["vocab"], [tuple(m) for m in found["merges"]]
    ids = []
    for number, part in enumerate(text.split(END)):
        ids += [299] if number else []
        for word in _words(part):
            pieces = list(word)
            for left, right in merges:
                i = 0
                while i < len(pieces) - 1:
                    if (pieces[i], pieces[i + 1]) == (left, right):
                        pieces[i : i + 2] = [left + right]
                    i += 1
            ids += [vocabulary[piece] for piece in pieces]
    return ids


def _words(text):
    """Runs of letters, or of signs, each with the blank before it, as GPT-2 cuts these texts."""
    words, word = [], ""
    for sign in text.replace(" ", "\u0120"):
        if word and (
            sign == "\u0120" or sign.isalpha() != word[-1].isalpha() != (word == "\u0120")
        ):
            words, word = [*words, word], ""
        word += sign
    return [*words, word] if word else words


def forward(ids):
    """-ln p of each token but the first given those before it, by GPT-2 in float64."""
    p = {k.removeprefix("transformer."): v.astype(float) for k, v in WEIGHTS.items()}

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
        return x * p[f"{name}.weight"] + p[f"{name}.bias"]

    linear = lambda x, name: x @ p[f"{name}.weight"] + p[f"{name}.bias"]
    length, dim = len(ids), 16
    x = p["wte.weight"][ids] + p["wpe.weight"][:length]
    for i in range(2):
        q, k, v = np.split(linear(norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn"), 3, axis=-1)
        heads = [slice(0, 8), slice(8, 16)]
        out = []
        for h in heads:
            scores = q[:, h] @ k[:, h].T / np.sqrt(8)
            scores[np.triu_indices(length, 1)] = -np.inf
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            out.append(weights / weights.sum(-1, keepdims=True) @ v[:, h])
        x = x + linear(np.concatenate(out, -1), f"h.{i}.attn.c_proj")
        h = linear(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc")
        h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
        x = x + linear(h, f"h.{i}.mlp.c_proj")
    assert x.shape == (length, dim)
    logits = norm(x, "ln_f") @ p["wte.weight"].T
    logits = logits - logits.max(-1, keepdims=True)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -log_probs[np.arange(length - 1), ids[1:]]


WEIGHTS = load_file(GPT2 / "model.safetensors")


def by_hand(texts, length, together, at_once):
    """exp of the mean over the tokens that the reference scores, and how many those are."""
    nats, count = 0.0, 0
    for start in range(0, len(texts), together):
        ids = [tokens_of(text)[:length] for text in texts[start : start + together]]
        width, some = max(map(len, ids)), min(at_once, len(ids))
        for row in ids[: len(ids) // some * some]:
            row = row + [299] * (width - len(row))
            for begin in range(0, width, 24):  # the judge's length
                chunk, ends = np.array(row[begin : begin + 24]), 0
                loss = forward(chunk)
                for place, token in enumerate(chunk):
                    ends += token == 299
                    if place and (token != 299 or ends == 1):
                        nats, count = nats + loss[place - 1], count + 1
    return np.exp(nats / count), count


@pytest.fixture(scope="module")
def judge():
    return load_judge(str(GPT2))


def test_the_tokens_by_hand_are_those_of_the_tokenizer(judge):
    for text, ids in zip(TEXTS, judge.tokenizer.encode_whole(TEXTS)):
        assert list(ids) == tokens_of(text), text


@pytest.mark.parametrize("length", [12, 24, 40])
@pytest.mark.parametrize("together, at_once", [(16, 8), (4, 3), (9, 2)])
def test_perplexity_is_that_of_the_reference(judge, length, together, at_once):
    """Cut below, at and beyond the judge's length; texts that fill no batch are left out."""
    judged = judge_as_reference(judge, TEXTS, length, together, at_once)
    want, count = by_hand(TEXTS, length, together, at_once)
    assert judged[:, 1].sum() == count
    np.testing.assert_allclose(perplexity(judged).value, want, atol=1e-4, rtol=1e-6)


def test_it_is_another_figure_than_the_librarys(judge):
    """Whose judge sees no special tokens and every text whole."""
    own = perplexity(judge_texts(judge, ["the flow carries noise"])).value
    np.testing.assert_allclose(
        own, np.exp(forward(tokens_of("the flow carries noise")).mean()), rtol=1e-4
    )
    reference = perplexity(judge_as_reference(judge, TEXTS[:3], 40)).value
    assert abs(reference / own - 1) > 0.01


def test_judges_with_other_framing_are_refused():
    judge = unigram_judge(CharacterTokenizer("ab"), np.full(6, 1 / 6), "wrap")
    with pytest.raises(UserError, match="begins its texts by a token"):
        judge_as_reference(judge, ["ab"], 4)


KEPT = TEXTS[:8]
REFUSED = [
    ("", "expected --model=WORKDIR:STEPS"),
    ("--samples=theirs.json", "need a judge; give --judge"),
    ("--model=run:1 --protocol=reference", "need a judge; give --judge"),
    ("--model=run:1 --protocol=refernce", "did you mean 'reference'"),
    (f"--samples=theirs.json --judge={GPT2} --save_samples=c.jsonl", "no model to draw them from"),
    (f"--model=run:1 --judge={GPT2} --protocol=reference --data=c", "got --data with --protocol"),
    (f"--samples=absent.json --judge={GPT2}", "absent.json"),
]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """(folder, outcomes): files of the reference's form and of lines, and a model, evaluated."""
    folder = tmp_path_factory.mktemp("protocols")
    theirs = {"generative_ppl": 1.0, "generated_seqs": KEPT}
    (folder / "theirs.json").write_text(json.dumps(theirs, indent=4))
    rows = [{"model": "m", "calls": 4, "text": text, "tokens": [1, 1, 2, 2]} for text in KEPT]
    (folder / "lines.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = tiny_config()
    config.train.steps = 1
    run(config, folder / "run")
    reference, judge = "--protocol=reference", f"--judge={GPT2}"
    commands = [
        f"{reference} {judge} --samples=theirs.json --samples=lines.jsonl --length=40 "
        "--json=a.json",
        f"{judge} --samples=theirs.json --json=b.json",
        f"{reference} {judge} --model=run:1,2 --num_samples=10 --save_samples=s.jsonl "
        "--json=c.json",
        *(flags for flags, _ in REFUSED),
    ]
    outcomes = run_commands([{"words": ["evaluate", *one.split()]} for one in commands], folder)
    return folder, outcomes


def test_files_of_others_are_scored_by_the_command(done):
    """As the reference writes them, and as lines with tokens, whose entropy is that of these."""
    folder, (one, other, *_) = done
    assert one.status == other.status == 0, one.err + other.err
    first, second = json.loads((folder / "a.json").read_text())
    want, count = by_hand(KEPT, 40, 16, 8)
    for row in (first, second):
        np.testing.assert_allclose(row["generative_perplexity"], want, rtol=1e-6, atol=1e-4)
        assert (row["judged_texts"], row["judged_tokens"]) == (8, count)
    np.testing.assert_allclose(second["entropy_nats"], np.log(2), rtol=1e-6)
    assert (second["model"], second["calls"], second["entropy_of"]) == ("m", 4, "tokens")
    counts = [np.unique(tokens_of(text), return_counts=True)[1] for text in KEPT]
    entropies = [-(c / c.sum() * np.log(c / c.sum())).sum() if len(c) else 0.0 for c in counts]
    np.testing.assert_allclose(first["entropy_nats"], np.mean(entropies), rtol=1e-6)
    assert first["entropy_of"] == "judge's tokens" and "calls" not in first
    assert "theirs.json" in one.out
    # By the library's protocol special tokens are no text.
    (row,) = json.loads((folder / "b.json").read_text())
    plain = [text.replace(END, "") for text in KEPT]
    own = perplexity(judge_texts(load_judge(str(GPT2)), plain)).value
    np.testing.assert_allclose(row["judge_perplexity"], own, rtol=1e-5)


def test_samples_that_are_kept_score_as_those_that_are_drawn(done, judge):
    folder, outcomes = done
    assert outcomes[2].status == 0, outcomes[2].err
    drawn = json.loads((folder / "c.json").read_text())
    assert [row["calls"] for row in drawn] == [1, 2] and drawn[0]["judged_texts"] == 8
    kept = read_samples(str(folder / "s.jsonl"))
    for row, found in zip(drawn, kept, strict=True):
        again = file_row(found, "reference", judge)
        assert again["samples"] == row["samples"] and again["calls"] == row["calls"]
        for key in ("generative_perplexity", "entropy_nats", "judged_tokens"):
            np.testing.assert_allclose(again[key], row[key], rtol=1e-5)


def test_flags_that_do_not_go_together(done):
    for (flags, says), outcome in zip(REFUSED, done[1][3:], strict=True):
        assert outcome.status == 2 and says in outcome.err, (flags, outcome.err)
