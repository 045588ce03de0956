"""Reads GPT-2 from a local Hugging Face folder, as a causal network (Radford et al. 2019).

Only safetensors is used: neither PyTorch nor `transformers` is needed.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from safetensors.numpy import load as load_tensors

from flm_jax.core.errors import UserError, require
from flm_jax.core.network import Network
from flm_jax.core.reading import read_object
from flm_jax.core.types import Params

_WEIGHTS = "model.safetensors"
_SIZES = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
# What changes the forward pass, with the only value known here.
_SETTINGS = {
    "activation_function": "gelu_new",
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
}
_BLOCK = re.compile(r"h\.(\d+)\.(.+)")
_BUFFERS = ("attn.bias", "attn.masked_bias")


def load_gpt2(folder: str | epath.Path) -> tuple[Network, Params]:
    """Reads config.json and model.safetensors.

    Args:
      folder: folder with any size of GPT-2, in the format of `save_pretrained`.

    Returns:
      A network (see `_network`) and its float32 parameters.

    Raises:
      UserError: a missing or damaged file, another architecture.
    """
    folder = epath.Path(folder)
    for name in ("config.json", _WEIGHTS):
        require(
            (folder / name).exists(),
            f"{folder} lacks {name}; expected a GPT-2 folder as save_pretrained writes it.",
        )
    config = read_object(folder / "config.json", "that of GPT-2")
    _check(config, folder)
    try:
        tensors = load_tensors((folder / _WEIGHTS).read_bytes())
    except Exception as error:  # safetensors raises its own kind
        raise UserError(f"{folder / _WEIGHTS} cannot be read: {error}; fetch it again.") from error
    return _network(config), _params(tensors, config, folder)


def _check(config: dict[str, Any], folder: epath.Path) -> None:
    got = config.get("model_type")
    require(got == "gpt2", f"{folder} holds a model of type {got!r}; expected 'gpt2'.")
    missing = [key for key in _SIZES if key not in config]
    require(not missing, f"{folder / 'config.json'} lacks {', '.join(missing)}.")
    wrong = {key: config[key] for key in _SIZES if type(config[key]) is not int or config[key] < 1}
    require(not wrong, f"{folder / 'config.json'} has {wrong}; expected whole numbers from 1.")
    for key, known in _SETTINGS.items():
        require(
            config.get(key, known) == known,
            f"{folder}: {key} is {config.get(key)!r}; only {known!r} is known here.",
        )


def _params(tensors: dict[str, np.ndarray], config: dict[str, Any], folder) -> Params:
    """Parameters {"wte", "wpe", "ln_f.weight", ..., "blocks": {"ln_1.weight": [layers, ...]}}."""
    tensors = {k.removeprefix("transformer."): v for k, v in tensors.items()}
    trunk, blocks = {}, {}
    for name, value in tensors.items():
        value = np.asarray(value, np.float32)
        if match := _BLOCK.fullmatch(name):
            if match[2] not in _BUFFERS:
                blocks.setdefault(match[2], {})[int(match[1])] = value
        else:
            trunk[name.removesuffix(".weight") if name[0] == "w" else name] = value
    layers = config["n_layer"]
    wrong = [name for name, found in blocks.items() if sorted(found) != list(range(layers))]
    short = [name for name in ("wte", "wpe", "ln_f.weight", "ln_f.bias") if name not in trunk]
    require(
        bool(blocks) and not wrong and not short,
        f"{folder / _WEIGHTS}: weights of {', '.join(wrong + short) or 'all blocks'} are missing "
        f"for {layers} layers.",
    )
    trunk.setdefault("lm_head.weight", trunk["wte"])  # tied
    stacked = {k: np.stack([v[i] for i in range(layers)]) for k, v in blocks.items()}
    return jax.tree.map(jnp.asarray, trunk | {"blocks": stacked})


def _norm(x: jax.Array, p: Params, name: str, epsilon: float) -> jax.Array:
    mean = jnp.mean(x, axis=-1, keepdims=True)
    centred = x - mean
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + epsilon)
    shape = (1,) * (x.ndim - 1) + (-1,)
    return centred * scale * p[f"{name}.weight"].reshape(shape) + p[f"{name}.bias"].reshape(shape)


def _linear(x: jax.Array, p: Params, name: str) -> jax.Array:
    """Linear map; GPT-2 stores kernels as (in, out), unlike other PyTorch models."""
    return x @ p[f"{name}.weight"] + p[f"{name}.bias"][None, None]


def _block(x: jax.Array, p: Params, heads: int, epsilon: float) -> jax.Array:
    rows, length, dim = x.shape
    qkv = _linear(_norm(x, p, "ln_1", epsilon), p, "attn.c_attn")
    q, k, v = jnp.moveaxis(qkv.reshape(rows, length, 3, heads, dim // heads), 2, 0)
    h = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    x = x + _linear(h.reshape(x.shape), p, "attn.c_proj")
    h = _linear(_norm(x, p, "ln_2", epsilon), p, "mlp.c_fc")
    return x + _linear(jax.nn.gelu(h, approximate=True), p, "mlp.c_proj")


def _network(config: dict[str, Any]) -> Network:
    """Network whose features at position l see the tokens before l, as in `models.causal`.

    GPT-2 has no vector before the first token: features at position 0 are zero, and outputs there
    are undefined.
    """
    heads, epsilon = config["n_head"], config.get("layer_norm_epsilon", 1e-5)

    def features(params: Params, x_s, s, t, *, key=None):
        del s, t, key
        length = x_s.shape[1]
        x = x_s + params["wpe"][None, :length]

        def body(x, p):
            return _block(x, p, heads, epsilon), None

        x, _ = jax.lax.scan(body, x, params["blocks"])
        x = _norm(x, params, "ln_f", epsilon)
        return jnp.concatenate([jnp.zeros_like(x[:, :1]), x[:, :-1]], axis=1)

    def init(key):
        raise UserError("GPT-2 is read from a folder here, not trained.")

    return Network(
        init=init,
        features=features,
        readout=lambda params: (params["lm_head.weight"].T, jnp.zeros(config["vocab_size"])),
        table=lambda params: params["wte"],
        vocab_size=config["vocab_size"],
        dim=config["n_embd"],
        max_length=config["n_positions"],
        loss_tile=64,
    )
