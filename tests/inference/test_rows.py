"""Rows with a seed each: the texts of `LanguageModel.sample`, whatever rows stand beside them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.inference.answers import Answering, answer_batches
from flm_jax.inference.language_model import LanguageModel
from flm_jax.inference.prompts import Prompt, answer_texts, lay_out
from flm_jax.inference.rows import Row, RowSampler, kind_of
from helpers.serving import LENGTH, served_model

CASES = {
    "euler": ("denoising", {}),
    "flow_map": ("semigroup", {"gamma": 0.5}),
    "confidence": ("masked_diffusion", {"block_length": 8, "temperature": 0.5}),
    "x_prediction": ("masked_diffusion", {}),
    "uniform_diffusion": ("uniform_diffusion", {}),
    "autoregressive": ("autoregressive", {}),
}


def row_of(model, text, seed, index=0):
    given = lay_out(model, [Prompt(text)], LENGTH).given
    return Row(jax.tree.map(lambda x: np.asarray(x)[0], given), seed, index)


@pytest.mark.parametrize("sampler", CASES)
def test_a_row_is_a_sample_of_its_seed_alone(sampler):
    goal, changes = CASES[sampler]
    model = served_model(goal, "causal" if goal == "autoregressive" else "dit")
    alone = LanguageModel(model)
    alone.sampler = alone._chosen(sampler, changes)
    steps = LENGTH if goal == "autoregressive" else 3
    asked = [("ab", 5, 1), ("", 2**32 - 1, 0), ("ab", 5, 0), ("wxyz", 7, 0)]
    rows = [row_of(model, *one) for one in asked]
    kind, programs = kind_of(rows[0], steps, alone.sampler), RowSampler(model)
    found = programs.run(kind, rows[:3], 4)
    for (text, seed, index), written in zip(asked, found):
        want = alone.sample(index + 1, steps, prompt=text, seed=seed, batch_size=1)
        np.testing.assert_array_equal(written.tokens, want.tokens[index])
        np.testing.assert_array_equal(written.steps_tokens, want.steps_tokens[:, index])
        assert written.calls == want.calls
    # The same rows in other places beside others, to the last bit.
    again = programs.run(kind, [rows[3], rows[1], rows[3], rows[0]], 4)
    np.testing.assert_array_equal(again[1].steps_tokens, found[1].steps_tokens)
    np.testing.assert_array_equal(again[3].steps_tokens, found[0].steps_tokens)
    assert not np.array_equal(again[1].tokens, again[3].tokens)
    assert programs.compiled(kind) == [4]


@pytest.mark.parametrize(
    ("goal", "sampler", "steps"),
    [
        ("denoising", "euler", 2),
        ("denoising", "heun", 4),
        ("denoising", "heun", 5),
        ("denoising", "marginal_bridge", 3),
        ("masked_diffusion", "confidence", 3),
        ("masked_diffusion", "remasking", 4),
        ("masked_diffusion", "x_prediction", 3),
        ("uniform_diffusion", "uniform_diffusion", 3),
    ],
)
def test_each_call_is_shown_before_the_next_one_is_computed(goal, sampler, steps):
    model, happened = served_model(goal), []

    def called(one):
        happened.append("call")
        return np.zeros_like(one)

    def features(*args, **kwargs):
        found = model.net.features(*args, **kwargs)
        first = jnp.ravel(jax.tree.leaves(args[1:])[0])[0].astype(jnp.float32)
        zero = jax.ShapeDtypeStruct((), jnp.float32)
        told = jax.pure_callback(called, zero, first, vmap_method="broadcast_all")
        return jax.tree.map(lambda x: x + told.astype(x.dtype), found)

    watched = model._replace(net=dataclasses.replace(model.net, features=features))
    alone = LanguageModel(model)
    kind = kind_of(row_of(model, "ab", 3), steps, alone._chosen(sampler, {}))
    drafts = {}

    def seen(place, step, tokens):
        happened.append("seen")
        drafts[step] = tokens

    (written,) = RowSampler(watched).run(kind, [row_of(model, "ab", 3)], 1, seen)
    calls = happened.count("call")
    assert calls >= written.calls and happened[0] == "call"
    # Without "seen" between two calls, the second was computed before the first was shown.
    assert all({a, b} == {"call", "seen"} for a, b in zip(happened, happened[1:]))
    for step, tokens in drafts.items():
        np.testing.assert_array_equal(tokens, written.steps_tokens[step])
    assert len(drafts) >= steps - 1


def test_programs_that_show_no_calls_can_be_cached_and_write_the_same():
    """JAX caches a program only without calls of the host; the text of a row is the same."""
    model = served_model("denoising")
    row, seen = row_of(model, "ab", 3), []
    kind = kind_of(row, 2, LanguageModel(model).sampler)
    shown, quiet = RowSampler(model), RowSampler(model, shown=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "pure_callback", None)  # not even traced
        (written,) = quiet.run(kind, [row], 1, lambda *call: seen.append(call))
    assert not seen
    (again,) = shown.run(kind, [row], 1, lambda *call: seen.append(call))
    assert seen and np.array_equal(again.tokens, written.tokens)


def test_the_batch_sizes_that_agree_hold_the_largest_and_few_programs_are_kept():
    model = served_model("semigroup")
    programs = RowSampler(model, most=2)
    kind = kind_of(row_of(model, "", 0), 1, LanguageModel(model).sampler)
    shown = []
    found = programs.agreeing(kind, [1, 2, 4], shown.append)
    assert found[-1] == 4 and set(found) <= {1, 2, 4} and shown == [1, 2, 3]
    assert programs.compiled(kind) == [1, 2]
    made = programs.compile

    def other(kind, size):
        """Rounds otherwise where a batch has two rows."""
        program, more = made(kind, size), 1e-7 * (size == 2)
        return lambda *rows: program(*rows)._replace(
            steps_confidence=np.asarray(program(*rows).steps_confidence) + np.float32(more)
        )

    programs.compile = other
    assert 2 not in programs.agreeing(kind, [2, 4])


def test_a_row_with_positions_to_hide_is_the_answer_to_its_prompt_alone():
    model = served_model("masked_diffusion", "llama", length=32)
    prompt = Prompt("abc", answer_length=5)
    how = Answering(2, batch_size=1, seed=9, length=20)
    (want,) = next(answer_batches(model, [prompt], how))
    rows = lay_out(model, [prompt], 20)
    row = Row(jax.tree.map(lambda x: np.asarray(x)[0], rows.given), 9)
    kind = kind_of(row, 2, LanguageModel(model).sampler)
    assert kind.hides and kind.length == 20
    other = row._replace(seed=8)
    found = RowSampler(model).run(kind, [other, row], 2)
    texts = [answer_texts(model.tokenizer, one.tokens, 3, 8).answer for one in found]
    assert texts[1] == want.text != texts[0] and found[1].calls == want.calls
