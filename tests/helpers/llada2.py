"""Small random weights of LLaDA2.0's names, their folder and their network."""

import functools
import json

import numpy as np

from flm_jax.build.model import make_network
from flm_jax.config.schema import base_config
from flm_jax.models.mixture_of_experts import ExpertsConfig
from helpers.files import write_shards

VOCAB, DIM, DEPTH, HEADS, GROUPS, HIDDEN, LENGTH, MASK = 23, 32, 3, 4, 2, 40, 7, 21
SIZE, BLOCK = DIM // HEADS, 3
MIXTURE = ExpertsConfig(
    number=12, active=3, hidden=8, shared=1, groups=4, active_groups=2, scale=2.5, dense_blocks=1
)
SAYS = {
    "model_type": "llada2_moe",
    "hidden_act": "silu",
    "vocab_size": VOCAB,
    "hidden_size": DIM,
    "intermediate_size": HIDDEN,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "head_dim": SIZE,
    "num_experts": 12,
    "num_experts_per_tok": 3,
    "num_shared_experts": 1,
    "moe_intermediate_size": 8,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 2.5,
    "rms_norm_eps": 1e-6,
    "rope_theta": 600000,
    "partial_rotary_factor": 0.5,
    "max_position_embeddings": LENGTH,
    "use_qk_norm": True,
    "score_function": "sigmoid",
    "norm_topk_prob": True,
    "tie_word_embeddings": False,
}


@functools.lru_cache
def llada2_weights(vocab=VOCAB):
    shapes = {
        "model.word_embeddings.weight": (vocab, DIM),
        "model.norm.weight": (DIM,),
        "lm_head.weight": (vocab, DIM),
    }

    def mlp(at, hidden):
        return {
            f"{at}gate_proj.weight": (hidden, DIM),
            f"{at}up_proj.weight": (hidden, DIM),
            f"{at}down_proj.weight": (DIM, hidden),
        }

    for i in range(DEPTH):
        at = f"model.layers.{i}."
        shapes |= {
            f"{at}input_layernorm.weight": (DIM,),
            f"{at}post_attention_layernorm.weight": (DIM,),
            f"{at}attention.query_key_value.weight": ((HEADS + 2 * GROUPS) * SIZE, DIM),
            f"{at}attention.query_layernorm.weight": (SIZE,),
            f"{at}attention.key_layernorm.weight": (SIZE,),
            f"{at}attention.dense.weight": (DIM, DIM),
        }
        if i == 0:
            shapes |= mlp(f"{at}mlp.", HIDDEN)
            continue
        shapes |= {f"{at}mlp.gate.weight": (12, DIM), f"{at}mlp.gate.expert_bias": (12,)}
        shapes |= mlp(f"{at}mlp.shared_experts.", 8)
        for e in range(12):
            shapes |= mlp(f"{at}mlp.experts.{e}.", 8)
    rng = np.random.default_rng(7)
    near_one = {name for name, shape in shapes.items() if len(shape) == 1 and "bias" not in name}
    return {
        name: ((name in near_one) + 0.3 * rng.normal(size=shape)).astype(np.float32)
        for name, shape in shapes.items()
    }


def llada2_folder(folder, state, shards=3, **config):
    write_shards(folder, state, shards)
    says = {k: v for k, v in (SAYS | config).items() if v is not None}
    (folder / "config.json").write_text(json.dumps(says))
    added = {"added_tokens": [{"id": 3, "content": "<pad>"}, {"id": MASK, "content": "<|mask|>"}]}
    (folder / "tokenizer.json").write_text(json.dumps(added))
    return folder


def route(scores, bias):
    """{expert: weight} of one token."""
    biased = (scores + bias).reshape(4, 3)
    worth = np.sort(biased, axis=1)[:, -2:].sum(1)
    kept = np.argsort(-worth)[:2]
    able = [e for e in range(12) if e // 3 in kept]
    best = sorted(able, key=lambda e: -(scores + bias)[e])[:3]
    total = sum(scores[e] for e in best) + 1e-20
    return {e: 2.5 * scores[e] / total for e in best}


def network_of(model, mesh=None, **llama):
    config = base_config(model="llama", objective="masked_diffusion").to_dict()
    config["model"] |= model | {"length": min(model["length"], 1024)}
    config["model"] |= llama
    return make_network(config, mesh)
