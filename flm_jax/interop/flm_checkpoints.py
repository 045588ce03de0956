"""Reads files of the PyTorch FLM networks: weights, averages and release."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from safetensors.numpy import load_file

from flm_jax.core.errors import UserError, require
from flm_jax.core.reading import named_damage
from flm_jax.interop.flm import LOSS_HEAD, ROTARY, State, backbone_names
from flm_jax.interop.tensors import some
from flm_jax.interop.torch_files import load_torch, plain

SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth")  # of files that `read_checkpoint` reads

_LOSS_HEAD_TENSORS = (8, 12)  # of one time, and of two


class Release(NamedTuple):
    """Properties of a network that its tensors do not determine.

    Attributes:
      logit_softcap: cap c of c tanh(logits / c); 0 for none.
      clock: name in `flows.clocks.CLOCKS` of the clock on which the network is conditioned.
      any_order: whether training had clean context, with a time for each token.
      residual: whether the output is not a softmax, but a correction of a flow's velocity.
    """

    logit_softcap: float
    clock: str
    any_order: bool = False
    residual: bool = False


# The names are those of `convert --source`.
RELEASES = {
    "flm": Release(30.0, "decoding"),  # FLM and FMLM, April 2026 and later
    "flm_2026_02": Release(0.0, "decoding"),  # the same of February 2026
    # The first stage of the two-stage distillation of February 2026.
    "flm_residual": Release(0.0, "decoding", residual=True),
    "fmlm_plus": Release(30.0, "identity", any_order=True),  # arXiv 2606.24773
}
# Their algorithms -> the releases that have them.
_ALGORITHMS = {
    "flm": ("flm", "flm_2026_02"),
    "fmlm": ("flm",),
    "flm_distill_double": ("flm_2026_02",),
    "fmlm_plus": ("fmlm_plus",),
    **{f"flm_{kind}distill": ("flm_residual",) for kind in ("", "semigroup_", "shortcut_")},
}


class Checkpoint(NamedTuple):
    """Contents of a file of weights.

    Attributes:
      tensors: dict from name to float32 array, with the file's names, but bare names for averages.
      settings: configuration of the weights, nested; {} if the file has none.
    """

    tensors: State
    settings: dict[str, Any]


def read_checkpoint(path: str | Path, ema: bool = True) -> Checkpoint:
    """Reads weights from a file.

    Args:
      path: .safetensors (no torch needed), or a Lightning .ckpt / torch .pt, .pth; code that a file
        names is not run.
      ema: whether to take the averaged weights of a Lightning checkpoint, if it has any.

    Raises:
      UserError: no such file, unknown kind, torch missing, averages that do not fit.
    """
    path = Path(path)
    require(path.is_file(), f"no file {path}; expected a .safetensors or .ckpt checkpoint.")
    if path.suffix == ".safetensors":
        try:
            return Checkpoint(load_file(path), {})
        except Exception as error:  # safetensors raises its own, undocumented classes
            raise UserError(f"{path} is not a readable safetensors file: {error}") from error
    require(
        path.suffix in SUFFIXES,
        f"{path} has an unknown ending; expected one of {', '.join(SUFFIXES)}.",
    )
    with named_damage(path, "expected a state dict of tensors"):
        found = load_torch(path)
        said = plain(found.get("hyper_parameters"))
        settings = said.get("config") if isinstance(said, dict) else None
        return Checkpoint(_weights(found, ema), settings if isinstance(settings, dict) else {})


def release_of(source: str, settings: dict[str, Any]) -> Release:
    """Returns the release of a file.

    Args:
      source: name in `RELEASES`, as given by the user.
      settings: settings of the `Checkpoint`.

    Raises:
      UserError: the file states another release, or is no flow.
    """
    algorithm = settings.get("algo")
    algorithm = algorithm if isinstance(algorithm, dict) else {}
    name = algorithm.get("name")
    if name is None:
        return RELEASES[source]
    require(
        name in _ALGORITHMS,
        f"the file says algo.name={name}; expected one of {', '.join(_ALGORITHMS)}.",
    )
    fitting = _ALGORITHMS[name]
    why = ", the first stage of a two-stage distillation, whose output is no softmax"
    require(
        source in fitting,
        f"the file says algo.name={name}{why if fitting == ('flm_residual',) else ''}; expected "
        f"--source={' or '.join(fitting)}, got {source}.",
    )
    require(
        algorithm.get("backbone", "dit") == "dit",
        f"the file says algo.backbone={algorithm.get('backbone')}; expected dit, whose positions "
        "stand in one row.",
    )
    if "skip_time_reparam" in algorithm:
        clock = "identity" if algorithm["skip_time_reparam"] else "decoding"
        return RELEASES[source]._replace(clock=clock)
    return RELEASES[source]


def sizes_said(settings: dict[str, Any]) -> dict[str, int]:
    """Sizes of the network that a file's settings state: `length`, `heads`, or none of them."""
    model = settings.get("model")
    model = model if isinstance(model, dict) else {}
    named = {"length": model.get("length"), "heads": model.get("n_heads")}
    return {key: value for key, value in named.items() if isinstance(value, int)}


def _numpy(tensor: Any) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()


def _weights(checkpoint: dict[str, Any], ema: bool) -> State:
    """Weights of a Lightning checkpoint, or of a bare state dict."""
    state = checkpoint.get("state_dict", checkpoint)
    require(isinstance(state, dict), f"`state_dict` is {type(state).__name__}; expected tensors.")
    state = {name: value for name, value in state.items() if hasattr(value, "detach")}
    require(bool(state), "the checkpoint holds no tensors; expected a state dict of them.")
    averages = checkpoint.get("ema") if ema else None
    if averages is None:
        if ema and "state_dict" in checkpoint:
            logging.warning("the checkpoint has no averaged weights; taking the last ones.")
        return {name: _numpy(value) for name, value in state.items()}
    require(
        isinstance(averages, dict) and "shadow_params" in averages,
        "the checkpoint's `ema` lacks `shadow_params`; take the last weights instead (--noema).",
    )
    return averaged_weights(state, list(averages["shadow_params"]))


def averaged_weights(state: dict[str, Any], shadows: list[Any]) -> State:
    """Assigns names to the averaged tensors, which have none in the file.

    They have the order of the network's parameters, which is that of the state dict without its
    buffers. There the loss weighting precedes the blocks; averages or state may lack it.

    Args:
      state: named tensors in their order; tensors of a teacher are no parameters of the network.
      shadows: averaged tensors.

    Returns:
      A dict from bare name to float32 array, for all parameters that have averages, and the
      buffers.

    Raises:
      UserError: the two lists do not fit together.
    """
    named, _ = backbone_names(state)
    own = {bare: state[name] for name, bare in named.items()}
    buffers = {name: _numpy(own.pop(name)) for name in [ROTARY] if name in own}
    averaged = dict(zip(_order(list(own), len(shadows)), shadows, strict=True))
    averaged = {name: value for name, value in averaged.items() if name in own}
    wrong = [
        f"{name} {tuple(value.shape)} instead of {tuple(own[name].shape)}"
        for name, value in averaged.items()
        if value.shape != own[name].shape
    ]
    require(
        not wrong,
        f"{len(wrong)} averaged tensors have another shape than the weights they average"
        f"{some(wrong)}; take the last weights instead (--noema).",
    )
    return buffers | {name: _numpy(value) for name, value in averaged.items()}


def _order(names: list[str], count: int) -> list[str]:
    """Names of `count` averages of the parameters `names`, in order."""
    network = [name for name in names if not name.startswith(LOSS_HEAD)]
    if count in (len(names), len(network)):
        return names if count == len(names) else network
    extra = count - len(network)
    weighting = len(names) - len(network)
    sizes = [weighting] if weighting else list(_LOSS_HEAD_TENSORS)
    require(
        extra in sizes,
        f"{count} averaged tensors do not fit the {len(network)} of the network, nor "
        f"{' or '.join(map(str, sizes))} more for its loss weighting; take the last weights "
        "instead (--noema).",
    )
    place = next((i for i, name in enumerate(network) if name.startswith("blocks.")), len(network))
    return network[:place] + [f"{LOSS_HEAD}{i}" for i in range(extra)] + network[place:]
