"""The length of an answer is honoured, and an answer depends on its own prompt alone."""

import jax
import jax.numpy as jnp
import pytest

from flm_jax.core.errors import UserError
from flm_jax.inference import engine
from flm_jax.inference.answers import Answering
from flm_jax.inference.prompts import Prompt, lay_out
from flm_jax.models.llama import LlamaConfig, llama
from flm_jax.models.mixture_of_experts import ExpertsConfig
from flm_jax.samplers.base import Share
from flm_jax.samplers.masked_diffusion import AncestralConfig, ConfidenceConfig
from flm_jax.samplers.x_prediction import XPredictionConfig
from helpers.prompts import BYTES, ROW_LENGTH, answers, byte_model

SIZES = dict(
    vocab_size=BYTES.vocab_size,
    length=ROW_LENGTH,
    dim=16,
    depth=2,
    heads=2,
    attention_softcap=0.0,
    logit_softcap=0.0,
    scan_blocks=True,
)
EXPERTS = ExpertsConfig(
    number=4, active=2, hidden=8, shared=1, groups=2, active_groups=1, dense_blocks=1
)
NETS = {
    "llama": llama(LlamaConfig(**SIZES)),
    "llada2": llama(LlamaConfig(**SIZES, qk_norm=True, block_length=8, experts=EXPERTS)),
}
SAMPLERS = {
    "confidence": ConfidenceConfig(temperature=0.0, block_length=8),
    "x_prediction": XPredictionConfig(block_length=16),
}
PROMPTS = [
    Prompt("abcdefghij" * 9, answer_length=9 + n)  # rows of 128
    if n == 4
    else Prompt("".join(chr(97 + (7 * n + i) % 26) for i in range(3 + 4 * n)), "", 16 + 3 * n)
    for n in range(8)
]


def model_of(name):
    """Random parameters: every position reads the others, and no two tokens tie."""
    net = NETS[name]
    leaves, tree = jax.tree.flatten(jax.eval_shape(net.init, jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    params = [0.4 * jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves)]
    # Masks that say nothing leave it to the context what is written.
    params = tree.unflatten(params) | {"anchor": jnp.zeros((1, net.dim))}
    return byte_model()._replace(net=net, params=params)


def written(model, prompts, batch_size, sampler, **change):
    """Prompt -> its answer's tokens; and the calls of each batch."""
    rows = lay_out(model, prompts, ROW_LENGTH)
    how = dict(steps=Share(1, 4), batch_size=batch_size, seed=0, sampler=sampler)
    found, calls = {}, []
    for done in engine.completions(model, rows.given._replace(**change), **how):
        calls.append(done.calls)
        for place, tokens in zip(done.places, done.tokens):
            answer = tokens[rows.starts[place] : rows.stops[place]].tolist()
            found[prompts[place]] = answer
    return found, calls


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_answer_depends_on_its_own_prompt_alone(name, sampler):
    """Batches of 8, of 3 in another order, and the first three one by one, in shorter rows."""
    model, sampler = model_of(name), SAMPLERS[sampler]
    together, _ = written(model, PROMPTS, 8, sampler)
    assert [len(answer) for answer in together.values()] == [p.answer_length for p in PROMPTS]
    assert len(set().union(*together.values())) >= 8
    threes, _ = written(model, PROMPTS[::-1], 3, sampler)
    assert threes == together
    alone, calls = written(model, PROMPTS[:3], 1, sampler)
    assert alone == {prompt: together[prompt] for prompt in PROMPTS[:3]}
    wanted = [4, 5, 6]  # a quarter of 16, 19 and 22 tokens
    assert calls == wanted or (isinstance(sampler, XPredictionConfig) and calls <= wanted)
    # Were it seen, what stands behind an answer would change it.
    seen, _ = written(model, PROMPTS, 8, sampler, visible=None)
    assert seen != together


def test_positions_behind_an_answer_are_not_seen():
    """By masked diffusion, where they are held; other families hold or write them, and see them."""
    model, prompts = byte_model(packing="wrap"), [Prompt("Hi", answer_length=3), Prompt("Why?")]
    rows = lay_out(model, prompts[:1], ROW_LENGTH)
    assert rows.given.visible[0].tolist() == [i < 6 for i in range(64)]
    assert rows.given.mask[0].tolist() == [not 3 <= i < 6 for i in range(64)]
    both = lay_out(model, prompts, ROW_LENGTH).given
    assert both.visible.sum(axis=1).tolist() == [6, ROW_LENGTH] and both.mask[0, 6:].all()
    assert lay_out(model, prompts[1:], ROW_LENGTH).given.visible is None
    other = byte_model(name="dit", objective="masked_flow", packing="wrap")
    flow = lay_out(other, prompts[:1], ROW_LENGTH).given
    assert flow.visible is None and not flow.mask[0, 6:].any()


def test_draws_take_shares_and_blocks_take_calls():
    """Ancestral sampling too; a row with fewer calls than blocks is refused."""
    model = model_of("llama")
    how = Answering(Share(1, 4), 3, answer_length=8, sampler=AncestralConfig())
    assert all(1 <= one.calls <= 2 for one in answers(model, [Prompt("a"), Prompt("bc")], how))
    blocks = ConfidenceConfig(temperature=0.0, block_length=2)
    how = Answering(3, 3, answer_length=8, sampler=blocks)
    with pytest.raises(UserError, match="3 network calls for the 4 blocks of 2 tokens"):
        next(answers(model, [Prompt("a")], how))
