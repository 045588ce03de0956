"""From a configuration and a mesh to the compiled program: what training and planning share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from flm_jax import adaptation, build
from flm_jax.flows.clocks import Clock
from flm_jax.training import sharding
from flm_jax.training.loop import TrainConfig
from flm_jax.training.optim import make_optimizer
from flm_jax.training.step import TrainState, make_train_step, new_state
from flm_jax.types import Network, Params, require


class Assembly(NamedTuple):
    """A training program; nothing of it has run or been compiled.

    Attributes:
      net: the denoiser over the mesh.
      clock: tau(t) of its vocabulary.
      cfg: steps, batch and so on.
      state: shapes of the train state with their shardings.
      initial_state: parameters of a teacher or of the base of adapters, or {}, -> state at step 0,
        created already sharded.
      train_step: jitted (state, frozen, batch) -> (state, metrics); donates the state.
    """

    net: Network
    clock: Clock
    cfg: TrainConfig
    state: TrainState
    initial_state: Callable[[Params], TrainState]
    train_step: Callable


def assemble(
    config: dict[str, Any], mesh: Mesh, teacher: tuple[Network, Params] | None = None
) -> Assembly:
    """Puts a training program together.

    Args:
      config: checked, its vocabulary resolved.
      mesh: devices, attached or not.
      teacher: its network and parameters, of which only the shapes are read; likewise the base
        of adapters.

    Raises:
      UserError: a value, or a combination of values, that cannot be trained.
    """
    cfg, optim = build.training(config), build.optim(config)
    net = build.network(config, mesh)
    _check_batch(cfg, mesh)
    clock = build.clock(config, net.vocab_size)
    objective = build.objective(config, net, clock, teacher and teacher[0])
    optimizer = make_optimizer(optim, cfg.steps)
    tracker = adaptation.tracker(config)

    def fresh(teacher_params):
        params = net.init(jax.random.fold_in(jax.random.key(config["seed"]), 2**31 - 1))
        taken = {} if config["adapters"]["base"] else teacher_params  # a base is no student's
        params = build.student_params(adaptation.trained(config, params), taken)
        return new_state(params, optimizer, tracker)

    shapes = jax.eval_shape(fresh, teacher[1] if teacher else {})
    shardings = sharding.tree_shardings(shapes, mesh)
    step = make_train_step(
        objective,
        optimizer,
        seed=config["seed"],
        microbatches=cfg.microbatches,
        ema_decay=optim.ema_decay,
        tracker=tracker,
    )
    return Assembly(
        net=net,
        clock=clock,
        cfg=cfg,
        state=with_shardings(shapes, shardings),
        initial_state=jax.jit(fresh, out_shardings=shardings),
        train_step=jax.jit(step, donate_argnums=0, out_shardings=(shardings, None)),
    )


def with_shardings(shapes: Any, shardings: Any) -> Any:
    """Shapes that say where their arrays lie."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )


def _check_batch(cfg: TrainConfig, mesh: Mesh) -> None:
    ways = mesh.shape["data"] * mesh.shape["fsdp"] * cfg.microbatches
    require(
        cfg.batch % ways == 0,
        f"config.train.batch {cfg.batch} does not split over {ways} (devices of the data and fsdp "
        "axes times microbatches); use a multiple.",
    )
