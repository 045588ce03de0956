"""The loss of alignment: distances of expected embeddings, positions that count, inputs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.denoiser.forward import denoise
from flm_jax.flows.time_sampling import Rows
from flm_jax.losses import alignment
from flm_jax.losses.alignment import (
    INPUTS,
    AlignmentConfig,
    aligned_at,
    alignment_loss,
    draw_inputs,
)
from helpers.alignment import MASKED, NET, PARAMS, TOKENS


def distances(t, tile=0):
    net = dataclasses.replace(NET, loss_tile=tile)
    run = lambda: aligned_at(PARAMS, TOKENS, t, net=net, cfg=AlignmentConfig())[0]
    return jax.jit(run)()


@pytest.mark.parametrize("level, tile", [(0.0, 0), (0.3, 0), (0.3, 3)])
def test_the_distance_is_that_of_expected_embeddings(level, tile):
    t = jnp.where(MASKED, level, 1.0)
    table, anchor = NET.table(PARAMS), NET.anchor(PARAMS)[:6]
    states = t[..., None] * table[TOKENS] + (1.0 - t)[..., None] * anchor[None]
    zeros = jnp.zeros(4)
    probs = jax.nn.softmax(jax.jit(lambda: denoise(NET, PARAMS, states, zeros, zeros))())
    want = np.sum((np.asarray(probs) @ np.asarray(table) - table[TOKENS]) ** 2, axis=-1)
    np.testing.assert_allclose(distances(t, tile), want, rtol=1e-4)


def loss_of(batch, params=PARAMS, **choices):
    run = lambda p: alignment_loss(
        p, batch, jax.random.key(5), net=NET, cfg=AlignmentConfig(**choices), rows=Rows(0, 4)
    )
    (loss, metrics), grads = jax.jit(jax.value_and_grad(run, has_aux=True))(params)
    return float(loss), metrics, grads


def test_all_positions_that_may_be_written_count_and_no_other():
    batch = {"tokens": TOKENS, "mask": jnp.ones((4, 6), bool)}
    loss, metrics, _ = loss_of(batch)
    hidden, visible = (
        float(metrics[f"{name}_squared_distance_per_token"]) for name in ("hidden", "visible")
    )
    assert min(hidden, visible) < loss < max(hidden, visible)
    prompted = batch | {"prompt": ~MASKED}
    first = loss_of(prompted | {"mask": MASKED | ~MASKED})
    # Prompts are seen, whole.
    other = loss_of(prompted | {"tokens": TOKENS.at[:, 0].set((TOKENS[:, 0] + 1) % 11)})
    assert first[0] != other[0]
    nothing = loss_of(prompted | {"mask": ~MASKED})
    assert nothing[0] == 0.0


def test_what_follows_a_text_is_hidden_like_it_and_does_not_count(monkeypatch):
    """As decoding finds it: where all is hidden, its tokens change nothing."""
    text = jnp.arange(6)[None] < jnp.array([[3], [4], [6], [4]])
    batch = {"tokens": TOKENS, "mask": text, "prompt": jnp.arange(6)[None] < jnp.ones((4, 1))}
    other = batch | {"tokens": jnp.where(text, TOKENS, (TOKENS + 1) % 11)}
    assert loss_of(batch)[0] != loss_of(other)[0]
    monkeypatch.setattr(alignment, "hide_independently", lambda key, share, free: free)
    loss, metrics, _ = loss_of(batch)
    assert loss == loss_of(other)[0] == metrics["hidden_squared_distance_per_token"] > 0.0
    assert metrics["counted"] == text.sum() - 4


@pytest.mark.parametrize("inputs", ["masked", "predicted"])
def test_what_stands_behind_a_canvas_is_not_seen(inputs):
    seen = jnp.arange(6)[None] < jnp.array([[4], [5], [6], [4]])
    batch = {"tokens": TOKENS, "mask": seen, "prompt": ~MASKED | ~seen}
    other = batch | {"tokens": jnp.where(seen, TOKENS, (TOKENS + 1) % 11)}
    assert loss_of(batch, inputs=inputs)[0] != loss_of(other, inputs=inputs)[0]
    first, again = (loss_of(b | {"visible": seen}, inputs=inputs)[0] for b in (batch, other))
    np.testing.assert_allclose(first, again, rtol=1e-6)


def test_the_embeddings_are_no_way_out():
    """With everything hidden the table gets no gradient; its other uses are inputs alone."""
    batch = {"tokens": TOKENS, "mask": jnp.ones((4, 6), bool)}
    run = lambda p: jnp.sum(
        aligned_at(p, TOKENS, jnp.zeros((4, 6)), net=NET, cfg=AlignmentConfig())[0]
    )
    grads = jax.jit(jax.grad(run))(PARAMS)
    assert not np.any(grads["table"])
    assert np.any(grads["anchor"]) and np.any(grads["head"]["kernel"])
    assert np.any(loss_of(batch)[2]["table"])


def test_inputs_between_mask_and_token():
    batch = {"tokens": TOKENS, "mask": jnp.ones((4, 6), bool)}
    losses = {inputs: loss_of(batch, inputs=inputs)[0] for inputs in INPUTS}
    assert len(set(losses.values())) == len(INPUTS) == 4


def test_predicted_inputs_are_what_a_call_leaves():
    """Own predictions at hidden positions of every other row, no further than their confidence."""
    cfg = AlignmentConfig(inputs="predicted")
    table, anchor = NET.table(PARAMS), NET.anchor(PARAMS)[:6]
    states = jnp.where(MASKED[..., None], anchor[None], table[TOKENS])
    zeros = jnp.zeros(4)
    probs = jax.nn.softmax(jax.jit(lambda: denoise(NET, PARAMS, states, zeros, zeros))())
    draw = lambda key: draw_inputs(key, PARAMS, TOKENS, MASKED, NET, cfg, Rows(0, 4))
    shown, t = jax.jit(draw)(jax.random.key(7))
    np.testing.assert_array_equal(shown, jnp.where(MASKED, jnp.argmax(probs, -1), TOKENS))
    assert (t[~MASKED] == 1.0).all() and (t[::2, 3:] == 0.0).all()
    moved, most = t[1::2, 3:], jnp.max(probs, -1)[1::2, 3:]
    assert (moved > 0.0).all() and (moved <= most * (1 + 1e-5)).all()
    assert len(np.unique(moved)) > 3
    # What is shown is not what is to be predicted.
    right = loss_of({"tokens": TOKENS, "mask": jnp.ones((4, 6), bool)}, inputs="predicted")
    own = aligned_at(PARAMS, TOKENS, t, net=NET, cfg=cfg, shown=shown)[0]
    assert np.any(own != aligned_at(PARAMS, shown, t, net=NET, cfg=cfg)[0]) and right[0] > 0.0
