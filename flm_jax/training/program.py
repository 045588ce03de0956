"""Builds the training program for a configuration and a mesh, for training and for planning."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from flm_jax.build.adapters import trained_params
from flm_jax.build.families.registry import family, make_objective
from flm_jax.build.flow import make_flow
from flm_jax.build.model import make_network
from flm_jax.checkpoints.state import AuxiliaryState, TrainState, new_state
from flm_jax.config.schema import settings
from flm_jax.config.training import OptimConfig, TrainConfig
from flm_jax.core.errors import require
from flm_jax.core.network import Network
from flm_jax.core.types import Params
from flm_jax.distributed import sharding
from flm_jax.flows.flow import Flow
from flm_jax.flows.noise import UnitNoise
from flm_jax.training.adapter_groups import optimizer_groups
from flm_jax.training.optim import fallen, make_optimizer
from flm_jax.training.step import Companion, make_train_step


class Assembly(NamedTuple):
    """A training program, of which nothing has run or been compiled.

    Attributes:
      net: denoiser over the mesh.
      flow: flow for which it is trained.
      cfg: settings of the run: steps, batch and so on.
      state: shapes of the train state with their shardings.
      initial_state: (parameters of a teacher or of the base of adapters, or {}; initial parameters
        of the model, if there are others) -> state at step 0, created with its shardings.
      train_step: jitted (state, frozen, batch) -> (state, metrics); donates the state.
      rate: factor of the learning rate, see `Run`.
    """

    net: Network
    flow: Flow
    cfg: TrainConfig
    state: TrainState
    initial_state: Callable[..., TrainState]
    train_step: Callable
    rate: Callable[[float], float] | None = None


def assemble(
    config: dict[str, Any], mesh: Mesh, teacher: tuple[Network, Params] | None = None
) -> Assembly:
    """Builds a training program.

    Args:
      config: configuration, checked and with a resolved vocabulary.
      mesh: devices, attached or not.
      teacher: network and parameters of the teacher, or of the base of adapters; only shapes are
        used.

    Raises:
      UserError: a value, or a combination of values, that cannot be trained.
    """
    cfg, optim = settings(config, "train"), settings(config, "optim")
    net = make_network(config, mesh)
    flow = make_flow(config, net.vocab_size)
    objective = make_objective(config, net, flow, teacher and teacher[0])
    # The end of a run in seconds is not known when its step is compiled.
    timed = cfg.seconds > 0 and optim.schedule == "cosine"
    optim = dataclasses.replace(optim, schedule="constant") if timed else optim
    tracker = family(config).tracker(config)
    companion = _companion(config, optim, net, flow, teacher and teacher[0])
    renewal = family(config).renewal(config)
    _check_batch(cfg, mesh, companion)
    lead = companion.auxiliary.lead if companion else 0
    optimizer = make_optimizer(optim, cfg.steps - lead, *optimizer_groups(config))
    if teacher and family(config).from_noise and isinstance(flow.noise, UnitNoise):
        optimizer = without_table(optimizer)

    def fresh(teacher_params, start_params=None):
        # A number that no step has, so that weights and batches never share a key.
        params = net.init(jax.random.fold_in(jax.random.key(config["seed"]), 2**31 - 1))
        taken = {} if config["adapters"]["base"] else teacher_params  # a base is no student's
        own = student_params(trained_params(config, params), start_params or taken)
        if companion is None and renewal is None:
            return new_state(own, optimizer, tracker)
        other = student_params(trained_params(config, params), taken)
        if companion is None:
            return new_state(own, optimizer, tracker, AuxiliaryState(other, ()))
        other = companion.auxiliary.initial(other)
        beside = AuxiliaryState(other, companion.optimizer.init(other))
        return new_state(own, optimizer, tracker, beside)

    shapes = jax.eval_shape(fresh, teacher[1] if teacher else {})
    shardings = sharding.tree_shardings(shapes, mesh)
    step = make_train_step(
        objective,
        optimizer,
        seed=config["seed"],
        microbatches=cfg.microbatches,
        ema_decay=optim.ema_decay,
        tracker=tracker,
        companion=companion,
        renewal=renewal,
    )
    return Assembly(
        net=net,
        flow=flow,
        cfg=cfg,
        state=with_shardings(shapes, shardings),
        initial_state=jax.jit(fresh, out_shardings=shardings),
        train_step=jax.jit(step, donate_argnums=0, out_shardings=(shardings, None)),
        rate=fallen if timed else None,
    )


def without_table(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns an optimizer that leaves the embedding table unchanged.

    With noise of the embedding space a student and its teacher see the same state only if they have
    the same table.
    """

    def fixed(params: Params) -> Params:
        of = lambda path, _: path[0].key == "table"
        return jax.tree_util.tree_map_with_path(of, params)

    return optax.chain(optimizer, optax.masked(optax.set_to_zero(), fixed))


def with_shardings(shapes: Any, shardings: Any) -> Any:
    """Combines shapes with shardings."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )


def _companion(
    config: dict[str, Any], optim: OptimConfig, net: Network, flow: Flow, teacher: Network | None
) -> Companion | None:
    """Network that is trained beside the model, with an optimizer like the model's."""
    auxiliary = family(config).auxiliary(config, net, flow, teacher)
    if auxiliary is None:
        return None
    own = dataclasses.replace(optim, lr=auxiliary.lr or optim.lr)
    steps = auxiliary.updates * config["train"]["steps"]
    return Companion(auxiliary, make_optimizer(own, steps, *optimizer_groups(config)))


def _check_batch(cfg: TrainConfig, mesh: Mesh, companion: Companion | None) -> None:
    updates = companion.auxiliary.updates + 1 if companion else 1
    ways = mesh.shape["data"] * mesh.shape["fsdp"] * cfg.microbatches * updates
    more = f" times {updates} updates" if companion else ""
    require(
        cfg.batch % ways == 0,
        f"config.train.batch {cfg.batch} does not split over {ways} (devices of the data and fsdp "
        f"axes times microbatches{more}); use a multiple.",
    )


def student_params(fresh: Params, teacher: Params) -> Params:
    """Initialises a student by its teacher; what the teacher lacks (second time) stays fresh.

    The weights of the loss stay fresh too, since the loss differs. All parameters have the types of
    the fresh ones: a teacher may be stored in bfloat16, in which small updates of its student would
    round to zero.
    """
    taken = {k: v for k, v in teacher.items() if k != "weighting"}
    # A copy, since the state is donated and the teacher outlives it.
    own = lambda x, like: jnp.copy(x).astype(like.dtype)
    return {k: jax.tree.map(own, taken.get(k, v), v) for k, v in fresh.items()}
