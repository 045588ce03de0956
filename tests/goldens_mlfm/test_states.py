"""States of the masked bridge, hidden positions and hidden fractions, as the authors' code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.flows.interpolants.masked_bridge import MaskedBridge
from flm_jax.flows.masking import at_least_one, hide_below
from flm_jax.losses.masked_flow import BridgeConfig, hidden_share, may_be_hidden
from helpers.goldens_mlfm import SIGMA, arrays, assert_close

PATH = MaskedBridge(SIGMA)
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def masks():
    return arrays("masks")


def test_states_of_the_bridge():
    golden = arrays("forward")
    t = PATH.time_at(golden["gamma"])
    assert_close(t, golden["t_float64"], atol=2e-7)
    a, b, c = PATH.coefficients(t)
    assert_close(a, golden["signal"], atol=2e-7)
    assert_close(b, 1.0 - golden["signal"], atol=2e-7)
    assert_close(c, golden["noise_coeff"], atol=2e-7)
    start = jnp.broadcast_to(golden["mask_emb"], golden["clean"].shape)

    def states(t, clean, start):
        z = PATH.at(t, clean, golden["noise"][: len(t)], start)
        return jnp.where(golden["corrupt"][: len(t)][..., None], z, clean)

    assert_close(states(t, golden["clean"], start), golden["z_t"], atol=2e-6)
    ends = len(golden["t_ends"])
    z = PATH.at(golden["t_ends"], golden["clean"][:ends], golden["noise_ends"], start[:ends])
    assert golden["z_ends"].shape[0] == ends
    hidden = golden["corrupt"][:ends][..., None]
    assert_close(jnp.where(hidden, z, golden["clean"][:ends]), golden["z_ends"], atol=2e-6)


@pytest.mark.parametrize(
    "share, name",
    [
        ("cosine", "ratio_maskgit"),
        ("cosine_squared", "ratio_maskgit_pow2"),
        ("uniform", "ratio_uniform"),
    ],
)
def test_hidden_fractions(masks, share, name):
    got = hidden_share(masks["u"], BridgeConfig(share=share))
    assert_close(got, masks[name], atol=2e-7)


def test_special_tokens_stay_visible_and_a_row_has_one_hidden_position(masks):
    cfg = BridgeConfig(special_ids=tuple(masks["cm_special"].tolist()))
    batch = {"tokens": masks["cm_ids"], "mask": masks["cm_attention"]}
    free = may_be_hidden(batch, cfg)
    np.testing.assert_array_equal(free, masks["cm_valid"])
    hidden = hide_below(masks["cm_draws"], masks["cm_ratio"], free)
    np.testing.assert_array_equal(hidden, masks["cm_mask_raw"])
    filled = np.asarray(at_least_one(KEY, hidden, free))
    empty = ~np.asarray(hidden).any(axis=1)
    np.testing.assert_array_equal(filled[~empty], masks["cm_mask_nonempty"][~empty])
    # Theirs is drawn uniformly: the number agrees, and it is a position that may be hidden.
    np.testing.assert_array_equal(filled.sum(axis=1), masks["cm_mask_nonempty"].sum(axis=1))
    assert not (filled & ~masks["cm_valid"]).any()


def test_the_position_that_fills_an_empty_row_is_uniform():
    free = jnp.broadcast_to(jnp.array([False, True, True, False, True]), (3000, 5))
    filled = np.asarray(at_least_one(KEY, jnp.zeros_like(free), free))
    assert (filled.sum(axis=1) == 1).all()
    np.testing.assert_allclose(filled.mean(axis=0), [0, 1 / 3, 1 / 3, 0, 1 / 3], atol=0.03)


def test_end_of_text_and_padding_of_an_answer_are_hidden(masks):
    cfg = BridgeConfig(hide_special=True, special_ids=(0, 1, 2, 61))
    batch = {
        "tokens": masks["sft_input_ids"],
        "mask": masks["sft_attention_mask"],
        "prompt": jnp.arange(20)[None] < masks["sft_prompt_lengths"][:, None],
    }
    free = may_be_hidden(batch, cfg)
    np.testing.assert_array_equal(free, masks["sft_response_mask"])
    share = hidden_share(masks["sft_u"], cfg)
    assert_close(share, masks["sft_ratio_drawn"], atol=2e-7)
    hidden = hide_below(masks["sft_draws"], share, free)
    np.testing.assert_array_equal(hidden, masks["sft_mask_raw"])
    whole = masks["sft_full_draw"] < 0.5
    np.testing.assert_array_equal(whole, masks["sft_full_rows"])
    filled = at_least_one(KEY, hidden, free)
    np.testing.assert_array_equal(
        np.where(whole[:, None], free, filled).sum(axis=1), masks["sft_corrupt_mask"].sum(axis=1)
    )
    assert_close(np.where(whole, 1.0, share), masks["sft_ratio_final"], atol=2e-7)
