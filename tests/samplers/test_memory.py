"""Memory of samplers over a large vocabulary, by the compiler."""

import jax
import jax.numpy as jnp
import pytest

from flm_jax.models.llama import LlamaConfig, llama
from flm_jax.models.step_policy import PolicyConfig, expected_step_size, policy
from flm_jax.samplers import masked_diffusion
from flm_jax.samplers.base import Given
from flm_jax.samplers.categorical import Choice
from flm_jax.samplers.windows import BlocksConfig
from flm_jax.samplers.x_prediction import XPredictionConfig, sample_x_prediction

ROWS, LENGTH, VOCAB = 2, 512, 126_464  # LLaDA's vocabulary
NET = llama(
    LlamaConfig(
        vocab_size=VOCAB,
        length=LENGTH,
        dim=64,
        depth=1,
        heads=2,
        attention_softcap=0.0,
        logit_softcap=0.0,
        mask_id=126_336,
    )
)


def confident(temperature, top_p):
    how = {"steps": 4, "choice": Choice(temperature, top_p), "time_conditioning": False}
    return lambda key, params, given: masked_diffusion.sample_confident(
        key, NET, params, given=given, blocks=BlocksConfig(), **how
    )


def with_policy(key, params, given):
    cfg = PolicyConfig()
    made = policy(cfg)
    weights = made.init(jax.random.key(0))
    stepper = lambda seen: expected_step_size(cfg, made.law(weights, seen))
    how = {"steps": 4, "how": XPredictionConfig(), "time_conditioning": False}
    return sample_x_prediction(NET, params, given=given, stepper=stepper, **how)


def ancestral(key, params, given):
    how = {"steps": 4, "choice": Choice(1.0, 0.9), "time_conditioning": False}
    return masked_diffusion.sample_ancestral(key, NET, params, given=given, **how)


@pytest.mark.parametrize(
    "sampler",
    [confident(0.0, 1.0), confident(1.0, 1.0), confident(1.0, 0.9), ancestral, with_policy],
    ids=["greedy", "drawn", "top_p", "ancestral", "policy"],
)
def test_a_call_takes_a_fifth_of_a_gib_besides_the_parameters(sampler):
    """Half of what the logits [B, L, V] alone would take; no setting asks for it."""
    assert NET.loss_tile == 0
    params = jax.eval_shape(NET.init, jax.random.key(0))
    struct = lambda kind: jax.ShapeDtypeStruct((ROWS, LENGTH), kind)
    given, key = Given(struct(jnp.int32), struct(bool)), jax.eval_shape(jax.random.key, 0)
    program = jax.jit(sampler).lower(key, params, given).compile()
    stats = program.memory_analysis()
    assert 0 < stats.temp_size_in_bytes < 0.2 * 2**30
