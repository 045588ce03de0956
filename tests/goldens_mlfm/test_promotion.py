"""Which tokens are drawn and promoted, as the authors' sampler does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.samplers.masked_flow_draws import picked
from flm_jax.samplers.promotion import promoted
from helpers.goldens_mlfm import EOS, arrays, assert_close

POLICIES = {"rank_together": "free", "rank_separately": "separate", "zero_confidence": "never"}


@pytest.fixture(scope="module")
def golden():
    return arrays("sampler_step")


@pytest.mark.parametrize("least", [0, 1, 3, 4])
@pytest.mark.parametrize("theirs, ours", POLICIES.items())
def test_promotion(golden, theirs, ours, least):
    got = promoted(
        golden["otp_cand"],
        golden["otp_conf"],
        golden["otp_remaining"],
        threshold=0.8,
        least=max(least, 1),  # theirs promotes one at the least
        eos=ours,
        eos_id=EOS,
    )
    np.testing.assert_array_equal(got, golden[f"otp_{theirs}_min{least}"])


@pytest.mark.parametrize("name, temperature", [("T1", 1.0), ("T01", 0.1), ("T0", 0.0)])
def test_tokens_are_drawn_with_the_probability_at_their_temperature(
    golden, name, temperature, monkeypatch
):
    noise = golden.get(f"tok_{name}_gumbel", jnp.zeros((5, 61)))
    monkeypatch.setattr("flm_jax.samplers.categorical.gumbel", lambda key, shape: noise)
    logits = golden["tok_logits"]
    tokens, probability = picked(logits, jax.random.key(0), temperature)
    np.testing.assert_array_equal(tokens, golden[f"tok_{name}_token_ids"])
    assert_close(probability, golden[f"tok_{name}_sample_prob"], atol=3e-6)
