"""Small random weights of SMDM's and LLaDA's names, their folder and their logits."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.denoiser.forward import denoise
from flm_jax.flows.masking import masked_states
from flm_jax.models.llama import LlamaConfig
from helpers.files import write_shards

VOCAB, DIM, DEPTH, HEADS, GROUPS, HIDDEN, LENGTH = 23, 32, 3, 4, 2, 64, 7
CONFIG = LlamaConfig(
    vocab_size=VOCAB,
    length=LENGTH,
    dim=DIM,
    depth=DEPTH,
    heads=HEADS,
    mlp_ratio=2,
    dropout=0.0,
    attention_softcap=0.0,
    logit_softcap=0.0,
    dtype="float32",
    remat="none",
    scan_blocks=True,
    kv_heads=GROUPS,
)
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (2, LENGTH))
MASKED = jnp.asarray(np.random.default_rng(1).random((2, LENGTH)) < 0.4)
LLADA_MASK = 21


def weights(seed, shapes):
    rng = np.random.default_rng(seed)
    middle = {name: float(len(shape) == 1) for name, shape in shapes.items()}  # norms near 1
    return {
        name: (middle[name] + 0.15 * rng.normal(size=shape)).astype(np.float32)
        for name, shape in shapes.items()
    }


def smdm(seed=0):
    head_dim = DIM // HEADS
    shapes = {
        "transformer.wte.weight": (VOCAB + 1, DIM),
        "transformer.ln_f.weight": (DIM,),
        "lm_head.weight": (VOCAB, DIM),
    }
    for i in range(DEPTH):
        at = f"transformer.h.{i}."
        shapes |= {
            f"{at}norm_1.weight": (DIM,),
            f"{at}attn.attn.weight": ((HEADS + 2 * GROUPS) * head_dim, DIM),
            f"{at}attn.proj.weight": (DIM, DIM),
            f"{at}norm_2.weight": (DIM,),
            f"{at}mlp.swiglu.w1.weight": (HIDDEN, DIM),
            f"{at}mlp.swiglu.w2.weight": (HIDDEN, DIM),
            f"{at}mlp.swiglu.w3.weight": (DIM, HIDDEN),
        }
    return weights(seed, shapes)


def llada(seed=0, groups=HEADS, vocab=VOCAB):
    narrow = groups * DIM // HEADS
    shapes = {
        "model.transformer.wte.weight": (vocab, DIM),
        "model.transformer.ln_f.weight": (DIM,),
        "model.transformer.ff_out.weight": (vocab, DIM),
    }
    for i in range(DEPTH):
        at = f"model.transformer.blocks.{i}."
        shapes |= {
            f"{at}attn_norm.weight": (DIM,),
            f"{at}q_proj.weight": (DIM, DIM),
            f"{at}k_proj.weight": (narrow, DIM),
            f"{at}v_proj.weight": (narrow, DIM),
            f"{at}attn_out.weight": (DIM, DIM),
            f"{at}ff_norm.weight": (DIM,),
            f"{at}ff_proj.weight": (HIDDEN, DIM),
            f"{at}up_proj.weight": (HIDDEN, DIM),
            f"{at}ff_out.weight": (DIM, HIDDEN),
        }
    return weights(seed, shapes)


def llada_folder(folder, state, shards=3, **config):
    """Shards with their index and config.json, as published."""
    write_shards(folder, state, shards)
    says = {"n_heads": HEADS, "rope_theta": 500000.0, "mask_token_id": LLADA_MASK}
    says |= {"max_sequence_length": LENGTH, "rms_norm_eps": 1e-05, "weight_tying": False}
    (folder / "config.json").write_text(json.dumps(says | config))
    return folder


@functools.lru_cache
def program(net):
    def run(params, tokens, masked, times, key):
        y = masked_states(tokens, masked, net.table(params), net.anchor(params))
        return denoise(net, params, y, times, times, key=key)

    return jax.jit(run)


def logits(net, params, s=0.0, key=None):
    params = jax.tree.map(jnp.asarray, params)
    return np.asarray(program(net)(params, jnp.asarray(TOKENS), MASKED, jnp.full(2, s), key))
