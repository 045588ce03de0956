"""Samplers with states in R^V take the path of the embedded ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.core.network import Network
from flm_jax.denoiser.head import embed_probs
from flm_jax.samplers.base import Given, nothing_given
from flm_jax.samplers.euler import sample_euler_from
from flm_jax.samplers.onehot import sample_onehot, sample_onehot_from
from helpers.linear import FLOW, KEY, NET, PARAMS, TOKENS, B, L, V


def test_states_in_both_spaces_take_the_same_path():
    """The sampler in R^V agrees with that in R^D where the output is a softmax."""
    x_0 = jax.random.normal(KEY, (B, L, V))
    given = Given(TOKENS, jnp.arange(L)[None] == jnp.zeros((B, 1), int))
    settings = dict(flow=FLOW, steps=5, given=given)
    wide = sample_onehot_from(x_0, NET, PARAMS, prediction="probabilities", **settings)
    narrow = sample_euler_from(embed_probs(x_0, PARAMS["table"]), NET, PARAMS, **settings)
    np.testing.assert_array_equal(wide.steps_tokens, narrow.steps_tokens)
    np.testing.assert_allclose(wide.steps_confidence, narrow.steps_confidence, atol=1e-4)
    assert (wide.tokens[:, 0] == TOKENS[:, 0]).all()


@pytest.mark.parametrize("prediction", ["denoiser", "velocity"])
def test_the_exact_field_of_one_sequence_is_carried_to_it(prediction):
    """For a law of one sequence D is its one-hot vector, and b = (D - x) / (1 - t)."""
    clean = jax.nn.one_hot(TOKENS, V)

    def features(params, y_t, s, t, *, key=None):
        time = FLOW.t(s)
        return clean if prediction == "denoiser" else FLOW.path.velocity(y_t, clean, time)

    net = Network(
        init=lambda key: {},
        features=features,
        readout=lambda params: (jnp.eye(V), jnp.zeros(V)),
        table=lambda params: jnp.eye(V),
        vocab_size=V,
        dim=V,
        max_length=L,
        logit_softcap=0.1,  # which these outputs must not pass through
    )
    settings = dict(flow=FLOW, steps=3, given=nothing_given(B, L), prediction=prediction)
    found = sample_onehot(KEY, net, {}, **settings)
    np.testing.assert_array_equal(found.steps_tokens, jnp.tile(TOKENS[None], (3, 1, 1)))
    np.testing.assert_allclose(found.steps_confidence, 1.0, atol=1e-4)
