"""Converts the reference's flows, flow maps and residuals to configurations and parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.build.families.registry import objective_name
from flm_jax.build.load import Model
from flm_jax.build.model import make_network
from flm_jax.build.published import imported_config
from flm_jax.core.errors import require
from flm_jax.core.types import Config, Params
from flm_jax.denoiser.forward import denoise
from flm_jax.interop.flm_checkpoints import Release

_CLEAN_TOKENS = 64  # of which `clean_probability` takes the median


def imported_flow(release: Release, model: dict[str, Any], data: str = "") -> Config:
    """Returns the configuration of a flow or flow map of the reference.

    Args:
      release: properties that the tensors do not determine.
      model: values of config.model.
      data: value of config.data.path.

    Raises:
      UserError: a network with one time for a release with two.
    """
    require(
        model["two_time"] or not (release.any_order or release.residual),
        "the file holds a network of one time, without sigma_map_prime; FMLM+ and first stages "
        "have two: expected --source=flm or flm_2026_02.",
    )
    more: dict[str, Any] = {"flow": {"clock": release.clock}}
    if release.any_order:
        # Every row has a clean context of any size in their training, without a teacher.
        more["objective"] = {"context": 1.0, "boundary": 1 / 32}
    objective = "semigroup" if model["two_time"] else "denoising"
    if release.residual:
        # It writes no text by itself, at which training could look.
        objective, more["eval"] = "residual", {"batches": 0, "samples": 0}
    model = {"logit_softcap": release.logit_softcap} | model
    return imported_config(model, objective, data, more)


def clean_probability(config: Config, params: Params) -> float:
    """Median probability that a flow's network gives to the tokens of a clean state.

    It is near 1 for a network that was trained to denoise, whatever its release, and near 0 for one
    that was not trained, or whose output is not a softmax.
    """
    net, params = make_network(config), jax.tree.map(jnp.asarray, params)
    length = min(net.max_length, _CLEAN_TOKENS)
    tokens = np.random.default_rng(0).integers(0, net.vocab_size, (1, length))
    times = jnp.ones((1, length) if net.any_order else (1,))
    states = net.table(params)[jnp.asarray(tokens)]
    probs = jax.nn.softmax(denoise(net, params, states, times, times), axis=-1)
    return float(jnp.median(jnp.take_along_axis(probs, jnp.asarray(tokens)[..., None], axis=-1)))


def imported_residual(
    release: Release,
    model: dict[str, Any],
    params: Params,
    teacher: Model,
    where: str,
    data: str = "",
) -> tuple[Config, Params]:
    """Converts the first stage of a two-stage distillation: configuration and parameters.

    Its head is stored as the sum with the head of the flow that it corrects (see
    `losses.distillation.two_networks`).

    Args:
      release: release with a residual.
      model: values of config.model.
      params: parameters in the file.
      teacher: flow that it corrects.
      where: workdir of that flow, which is stored in the configuration.
      data: value of config.data.path.

    Raises:
      UserError: a teacher that is no flow, or has other sizes.
    """
    goal, own = objective_name(teacher.config), teacher.config["model"]
    require(
        goal == "denoising",
        f"--base {where} is a model of objective {goal}; expected the flow whose velocity the "
        "first stage corrects, objective denoising.",
    )
    wrong = [
        f"{key} {model[key]}, there {own[key]}"
        for key in ("vocab_size", "dim", "depth", "heads")
        if model[key] != own[key]
    ]
    require(
        not wrong,
        f"--base {where} is not the flow of this first stage ({'; '.join(wrong)}); give the "
        "workdir of the one that it was trained with.",
    )
    config = imported_flow(release, model, data)
    config["objective"]["teacher"] = where
    head = jax.tree.map(lambda x, y: x + np.asarray(y), params["head"], teacher.params["head"])
    return config, params | {"head": head}
