"""Imports and exports weights of LLaDA2.0 (model_type llada2_moe).

Its queries, keys and values are one matrix, all queries first, then all keys, then all values; its
experts are numbered, while this library stacks them after the blocks. Routers are float32 here
whatever the type in the files, without loss; all other weights are bfloat16 if the files hold
nothing else.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flm_jax.core.errors import require
from flm_jax.core.types import Params
from flm_jax.interop.llama import Imported, Layout, Part, differing, gathered, imported, read_json
from flm_jax.interop.tensors import TensorFiles

# What config.json must say where it says anything.
_SAYS = {
    "model_type": "llada2_moe",
    "hidden_act": "silu",
    "score_function": "sigmoid",
    "use_bias": False,
    "use_qkv_bias": False,
    "use_qk_norm": True,
    "norm_topk_prob": True,
    "moe_router_enable_expert_bias": True,
    "tie_word_embeddings": False,
    "norm_head": False,
    "rope_scaling": None,
}
# What it has to say.
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "num_experts",
    "num_experts_per_tok",
    "num_shared_experts",
    "moe_intermediate_size",
    "n_group",
    "topk_group",
    "first_k_dense_replace",
    "routed_scaling_factor",
    "rms_norm_eps",
    "rope_theta",
    "partial_rotary_factor",
    "max_position_embeddings",
)
# Neither stands in config.json: the token "<|mask|>", and the blocks of training.
_MASK, _MASK_ID, _BLOCK_LENGTH = "<|mask|>", 156895, 32


class _Sizes(NamedTuple):
    vocab: int
    dim: int
    depth: int
    heads: int
    groups: int
    hidden: int
    dense_blocks: int
    experts: int
    expert_hidden: int
    shared_hidden: int

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads


def _layout(n: _Sizes) -> Layout:
    layout: Layout = {
        "model.word_embeddings.weight": ((n.vocab, n.dim), [Part(("table",))]),
        "model.norm.weight": ((n.dim,), [Part(("norm", "scale"))]),
        "lm_head.weight": ((n.vocab, n.dim), [Part(("head", "kernel"))]),
    }
    for i in range(n.depth):
        at = f"model.layers.{i}."
        if i < n.dense_blocks:
            layout |= _attention(n, at, "dense_blocks", i)
            layout |= _mlp(n, f"{at}mlp.", ("dense_blocks",), i, n.hidden)
            continue
        block = i - n.dense_blocks
        layout |= _attention(n, at, "blocks", block)
        layout |= _mlp(n, f"{at}mlp.shared_experts.", ("blocks",), block, n.shared_hidden)
        router = ("blocks", "experts", "router")
        layout |= {
            f"{at}mlp.gate.weight": ((n.experts, n.dim), [Part((*router, "kernel"), block)]),
            f"{at}mlp.gate.expert_bias": ((n.experts,), [Part((*router, "bias"), block)]),
        }
        for e in range(n.experts):
            where = ("blocks", "experts")
            layout |= _mlp(n, f"{at}mlp.experts.{e}.", where, (block, e), n.expert_hidden)
    return layout


def _attention(n: _Sizes, at: str, stack: str, block: int) -> Layout:
    def one(shape: tuple[int, ...], name: str, leaf: str = "kernel"):
        return shape, [Part((stack, name, leaf), block)]

    wide, narrow = n.heads * n.head_dim, n.groups * n.head_dim
    ends = np.cumsum([0, wide, narrow, narrow]).tolist()
    fused = [
        Part((stack, name, "kernel"), block, slice(start, end))
        for name, start, end in zip("qkv", ends, ends[1:])
    ]
    return {
        f"{at}input_layernorm.weight": one((n.dim,), "norm1", "scale"),
        f"{at}post_attention_layernorm.weight": one((n.dim,), "norm2", "scale"),
        f"{at}attention.query_key_value.weight": ((ends[-1], n.dim), fused),
        f"{at}attention.query_layernorm.weight": one((n.head_dim,), "q_norm", "scale"),
        f"{at}attention.key_layernorm.weight": one((n.head_dim,), "k_norm", "scale"),
        f"{at}attention.dense.weight": one((n.dim, wide), "attn_out"),
    }


def _mlp(
    n: _Sizes, at: str, where: tuple[str, ...], block: int | tuple[int, int], hidden: int
) -> Layout:
    def one(shape: tuple[int, int], name: str):
        return shape, [Part((*where, name, "kernel"), block)]

    return {
        f"{at}gate_proj.weight": one((hidden, n.dim), "gate"),
        f"{at}up_proj.weight": one((hidden, n.dim), "up"),
        f"{at}down_proj.weight": one((n.dim, hidden), "mlp_out"),
    }


def _sizes(says: dict[str, Any], path: Path, heads: int | None) -> _Sizes:
    missing = [name for name in _SIZES if name not in says]
    require(
        not missing,
        f"{path} {'lacks ' + ', '.join(missing) if says else 'does not exist'}; expected the "
        "config.json of LLaDA2.0 beside its weights.",
    )
    wrong = differing(says, _SAYS)
    n = _Sizes(
        says["vocab_size"],
        says["hidden_size"],
        says["num_hidden_layers"],
        heads or says["num_attention_heads"],
        says["num_key_value_heads"],
        says["intermediate_size"],
        says["first_k_dense_replace"],
        says["num_experts"],
        says["moe_intermediate_size"],
        says["num_shared_experts"] * says["moe_intermediate_size"],
    )
    own = says.get("head_dim") or n.head_dim
    if own * n.heads != n.dim:
        wrong.append(f"{n.heads} heads of {own}, which do not make the width {n.dim}")
    require(not wrong, f"{path} is not LLaDA2.0's: {', '.join(wrong)}.")
    return n


def _mask_id(says: dict[str, Any], folder: Path, vocab: int) -> int:
    """Mask token in config.json, else in the tokenizer beside it, else of the published models."""
    found = says.get("mask_token_id")
    if found is None:
        added = read_json(folder / "tokenizer.json").get("added_tokens", [])
        ids = [token["id"] for token in added if token.get("content") == _MASK]
        found = ids[0] if ids else _MASK_ID
    require(
        0 <= found < vocab,
        f"the mask is token {found} and the embedding has {vocab} rows; expected a config.json "
        f"whose mask_token_id is one of them, or a tokenizer.json with {_MASK}.",
    )
    return found


def read_llada2(path: str | Path, heads: int | None = None) -> Imported:
    """Reads LLaDA2.0-mini (arXiv 2512.15745) from its folder of shards, index and config.json.

    config.model.block_length is 32, the block length of its block-causal training.

    Args:
      path: the folder, or one .safetensors file beside a config.json.
      heads: number of attention heads; by default as in config.json.

    Raises:
      UserError: unreadable files; tensors missing, misshapen or unexpected; a config.json that
        lacks sizes, or is of another architecture.
    """
    files = TensorFiles(path)
    where = files.folder / "config.json"
    says = read_json(where)
    n = _sizes(says, where, heads)
    mask = _mask_id(says, files.folder, n.vocab)
    llama = {
        "rope_base": float(says["rope_theta"]),
        "mask_id": mask,
        "mlp_hidden": n.hidden,
        "norm_eps": says["rms_norm_eps"],
        "qk_norm": True,
        "rotary_share": float(says["partial_rotary_factor"]),
        "block_length": _BLOCK_LENGTH,
        "experts": {
            "number": n.experts,
            "active": says["num_experts_per_tok"],
            "hidden": n.expert_hidden,
            "shared": says["num_shared_experts"],
            "groups": says["n_group"],
            "active_groups": says["topk_group"],
            "scale": float(says["routed_scaling_factor"]),
            "dense_blocks": n.dense_blocks,
            "kernel": "tiles",
        },
    }
    what, length = f"the LLaDA2.0 network of {where}", says["max_position_embeddings"]
    return imported(files, what, _layout(n), n, length=length, **llama)


def state_dict_from_params(params: Params, heads: int, kv_heads: int) -> dict[str, np.ndarray]:
    """Converts parameters of `models.llama` with experts to LLaDA2.0's names.

    Args:
      params: parameters with a mixture of experts, norms of queries and keys, and no anchor.
      heads, kv_heads: numbers of attention heads, and of key and value heads.

    Returns:
      A dict from LLaDA2.0's names to arrays in torch's layout and the parameters' type,
      C-contiguous.

    Raises:
      UserError: a network with parts for which LLaDA2.0 has no names.
    """
    blocks, dense = params["blocks"], params.get("dense_blocks", {})
    require(
        "q_norm" in blocks and "anchor" not in params,
        "LLaDA2.0's names are for a mixture of experts with config.model.qk_norm and a "
        "mask_id of the vocabulary; this network has no such, export it to a folder instead.",
    )
    mixed, experts, dim, expert_hidden = blocks["experts"]["gate"]["kernel"].shape
    count, _, hidden = dense["gate"]["kernel"].shape if dense else (0, dim, 0)
    shared = blocks["gate"]["kernel"].shape[-1]
    n = _Sizes(
        params["table"].shape[0],
        dim,
        count + mixed,
        heads,
        kv_heads,
        hidden,
        count,
        experts,
        expert_hidden,
        shared,
    )
    return gathered(params, _layout(n))
