"""The bound of masked diffusion on exact networks, with prompts that are always visible."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.build.families.registry import make_objective
from flm_jax.build.flow import make_flow
from flm_jax.build.model import make_network
from flm_jax.config.check import check
from flm_jax.config.schema import base_config, choose
from flm_jax.core.errors import UserError
from flm_jax.core.network import Network
from flm_jax.flows.time_sampling import Rows
from flm_jax.losses.masked_diffusion import MaskedConfig, masked_loss
from flm_jax.metrics.likelihood import make_masked_nll
from helpers.laws import ENTROPY, EXACT, KEY, law_batch

LENGTH, VOCAB, PROMPT = 6, 4, 2
LOGITS = jax.random.normal(jax.random.key(0), (LENGTH, VOCAB))
TOKENS = jnp.tile(jnp.arange(LENGTH)[None] % VOCAB, (512, 1))
NLL = -jax.nn.log_softmax(LOGITS)[jnp.arange(LENGTH), TOKENS[0]]


def oracle():
    """Fixed laws for every position, unless it sees a prompt that is hidden."""

    def features(params, x, s, t, *, key=None):
        hidden = jnp.any(x[:, :PROMPT].max(axis=-1) < 0.5, axis=1)
        return jnp.where(hidden[:, None, None], jnp.nan, LOGITS[None])

    return Network(
        init=lambda key: {},
        features=features,
        readout=lambda params: (jnp.eye(VOCAB), jnp.zeros(VOCAB)),
        table=lambda params: jnp.eye(VOCAB),
        vocab_size=VOCAB,
        dim=VOCAB,
        max_length=LENGTH,
        anchor=lambda params: jnp.zeros((LENGTH, VOCAB)),
    )


@pytest.mark.parametrize("of_the_batch", [False, True])
def test_loss_and_likelihood_are_those_of_the_rest(of_the_batch):
    """Both estimate the mean over the positions after the prompt, which always sees it."""
    batch = {"tokens": TOKENS, "mask": jnp.ones((512, LENGTH), bool)}
    cfg = MaskedConfig(prompt=0 if of_the_batch else PROMPT)
    if of_the_batch:
        batch["prompt"] = jnp.broadcast_to(jnp.arange(LENGTH)[None] < PROMPT, (512, LENGTH))
    run = lambda key: masked_loss({}, None, batch, key, net=oracle(), cfg=cfg, rows=Rows(0, 512))[0]
    loss = np.mean([jax.jit(run)(jax.random.key(i)) for i in range(8)])
    want = float(NLL[PROMPT:].mean())
    np.testing.assert_allclose(loss, want, rtol=0.05)
    nll = jax.jit(make_masked_nll(oracle(), cfg))
    rows, valid = nll({}, batch, (jnp.arange(512) + 0.5) / 512, jax.random.key(1))
    np.testing.assert_allclose(rows.mean(), want, rtol=0.05)
    assert valid.all() and abs(want - float(NLL.mean())) > 0.1 * want
    short = batch | {"mask": batch["mask"].at[:, 4:].set(False)}
    rows, _ = nll({}, short, (jnp.arange(512) + 0.5) / 512, jax.random.key(1))
    np.testing.assert_allclose(rows.mean(), float(NLL[PROMPT:4].mean()), rtol=0.07)


@pytest.mark.parametrize("prompt, fits", [(3, True), (12, False), (-1, False)])
def test_the_prompt_leaves_something_to_learn(prompt, fits):
    config = base_config()
    choose(config, objective="masked_diffusion")
    config.objective.prompt, config.model.length = prompt, 12
    config.model.vocab_size = 12
    make = lambda config: make_objective(config, make_network(config), make_flow(config, 12))
    if fits:
        make(check(config))
        return
    with pytest.raises(UserError, match=r"expected 0 to 11|expected a number in \[0, inf\)"):
        make(check(config))


def test_nelbo_of_the_exact_denoiser_is_the_entropy():
    """Its training loss, within 4 standard errors of 64 batches (about 1% of it)."""

    @jax.jit
    def loss(batch, key):
        rows = Rows(0, 256)
        return masked_loss({}, None, batch, key, net=EXACT, cfg=MaskedConfig(), rows=rows)[0]

    values = [float(loss(law_batch(256, i), jax.random.fold_in(KEY, i))) for i in range(64)]
    error = np.std(values) / np.sqrt(len(values))
    assert error < 0.02 * ENTROPY
    assert abs(np.mean(values) - ENTROPY) < 4 * error
