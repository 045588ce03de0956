"""Trains a policy of step sizes by rollouts of a masked diffusion model that stays as it is."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath

from flm_jax.build.families import masked_diffusion
from flm_jax.build.load import Model, load_model
from flm_jax.build.sampler import Options
from flm_jax.checkpoints.state import TrainState, new_state
from flm_jax.checkpoints.workdir import Checkpoints, read_config, write_config
from flm_jax.core.errors import require
from flm_jax.core.types import Config, Key, Params
from flm_jax.data.tasks.base import Task
from flm_jax.inference import engine, task_problems
from flm_jax.inference.step_policy import StepPolicy, step_policy_config
from flm_jax.losses.grpo import Actions, clipped_loss, group_advantages, token_rewards
from flm_jax.models import step_policy
from flm_jax.samplers import x_prediction
from flm_jax.samplers.base import Given
from flm_jax.training.logs import MetricsLog
from flm_jax.training.loop import STOPPED_EXIT, StopSignal, stopped
from flm_jax.training.optim import make_optimizer, update_ema
from flm_jax.training.settings import optim_config
from flm_jax.training.step import step_key
from flm_jax.training.task_rewards import Reward, check_reward, make_reward

_SEED = 977  # of the problems, apart from those that models are scored with


class Programs(NamedTuple):
    """What a step runs on the device.

    Attributes:
      roll: (key, model params, policy params, given) -> Rollout; a rollout as a whole.
      update: (state, rollout, rewards of rows [B]) -> (state, metrics); one update.
    """

    roll: Callable
    update: Callable


def actor(trained: StepPolicy) -> Callable[[Key, jax.Array], tuple[jax.Array, Any]]:
    """Draws step sizes; keeps (u, log density of u)."""

    def act(key: Key, features: jax.Array):
        law = trained.made.law(trained.params, features)
        u = step_policy.draw(key, law)
        return step_policy.step_size(trained.cfg, u), (u, step_policy.log_prob(law, u))

    return act


def policy_loss(
    params: Params,
    made: step_policy.Policy,
    actions: Actions,
    advantages: jax.Array,
    clip: float,
):
    """`clipped_loss` of a policy's parameters."""
    log_probs = step_policy.log_prob(made.law(params, actions.features), actions.drawn)
    return clipped_loss(log_probs, actions.log_probs, advantages, actions.counted, clip)


def programs(config: Config, model: Model, calls: int) -> Programs:
    """Compiled parts of a step with rollouts of `calls` network calls."""
    cfg = step_policy_config(config)
    made = step_policy.policy(cfg)
    optim = optim_config(config)
    optimizer = make_optimizer(optim, config["train"]["steps"] * config["epochs"])
    settings = {
        "steps": calls,
        "how": x_prediction.Flowing(),
        "block_length": config["block_length"],
        "time_conditioning": masked_diffusion.masked_config(model.config).time_conditioning,
    }

    def roll(key: Key, params: Params, policy_params: Params, given: Given):
        act = actor(StepPolicy(cfg, made, policy_params))
        return x_prediction.rollout(key, model.net, params, act, given=given, **settings)

    def update(state: TrainState, rolled: x_prediction.Rollout, answers: jax.Array):
        rewards = token_rewards(answers, rolled.reached, config["completion"])
        advantages = group_advantages(rewards, config["group"])
        actions = Actions(rolled.features, *rolled.acts, rolled.moves)
        loss = lambda p: policy_loss(p, made, actions, advantages, config["clip"])
        grads, metrics = jax.grad(loss, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        average = update_ema(state.ema_params, params, optim.ema_decay, state.step)
        new = state._replace(params=params, ema_params=average, opt_state=opt_state)
        return new, metrics | {"grad_norm": optax.tree.norm(grads)}

    return Programs(jax.jit(roll), jax.jit(update))


class SolvedPrompts(NamedTuple):
    """Problems that the model solves by itself: tokens, given [N, L]; and how many it was asked."""

    tokens: np.ndarray
    given: np.ndarray
    asked: int


def solved_prompts(model: Model, task: Task, reward: Reward, config: Config) -> SolvedPrompts:
    """Those of config.prompts problems that low-confidence decoding solves, a token a call.

    Raises:
      UserError: fewer than a batch of them.
    """
    asked, given = task.problems(config["prompts"], _SEED)
    options = Options(temperature=0.0, method="confidence", block_length=config["block_length"])
    settings = dict(steps=model.net.max_length, batch_size=256, seed=0, options=options)
    answers = engine.complete(model, Given(asked, given), **settings).tokens
    good = reward(answers, asked, given) > 0.5
    require(
        int(good.sum()) >= config["prompt_batch"],
        f"the model solves {int(good.sum())} of {len(good)} problems; expected at least "
        f"config.prompt_batch = {config['prompt_batch']}: train it further, or raise "
        "config.prompts.",
    )
    return SolvedPrompts(asked[good], given[good], len(good))


def check_policy_config(config: Config) -> None:
    """Refuses impossible values, before any work."""
    for name in ("prompts", "prompt_batch", "epochs"):
        require(config[name] >= 1, f"config.{name} is {config[name]}; expected at least 1.")
    require(config["group"] >= 2, f"config.group is {config['group']}; expected at least 2.")
    calls = config["calls"]
    require(
        bool(calls) and all(type(n) is int and n >= 1 for n in calls),
        f"config.calls is {calls}; expected numbers from 1, such as (2, 4).",
    )
    require(config["clip"] > 0.0, f"config.clip is {config['clip']}; expected more than 0.")
    require(config["completion"] >= 0.0, f"config.completion is {config['completion']}; not >= 0.")
    check_reward(config["reward"])
    require(bool(config["model"]), "config.model is ''; expected the workdir of a masked model.")
    step_policy_config(config)


def _check_workdir(workdir: str, config: Config) -> None:
    if not (epath.Path(workdir) / "config.json").exists():
        return
    saved = read_config(workdir)
    changed = [key for key in config if key != "train" and saved.get(key) != config[key]]
    require(
        not changed,
        f"workdir {workdir} holds a run with another {', '.join(changed)}; restore it, or give a "
        "new --workdir.",
    )


def train_policy_run(config: Config, workdir: str) -> int:
    """Trains, or continues, the policy of `config` in `workdir`.

    A step is a function of its number and the seed: a run that is stopped goes on bit for bit from
    its last checkpoint.

    Returns:
      0 when finished, STOPPED_EXIT when SIGTERM or SIGINT stopped it after saving.

    Raises:
      UserError: bad configuration, model or workdir; before anything is compiled.
    """
    check_policy_config(config)
    _check_workdir(workdir, config)
    model = load_model(config["model"])
    require(
        family(model.config).takes_step_policy,
        f"config.model {config['model']} is a model of objective {objective_name(model.config)}; "
        "expected masked diffusion (masked, or better alignment).",
    )
    task = task_problems.task_of(model)
    reward = make_reward(config["reward"], task)
    prompts = solved_prompts(model, task, reward, config)
    write_config(workdir, config)
    print(f"{len(prompts.tokens)} of {prompts.asked} problems are solved in full", flush=True)
    made = step_policy.policy(step_policy_config(config))
    optim, steps = optim_config(config), config["train"]["steps"]
    optimizer = make_optimizer(optim, steps * config["epochs"])
    state = new_state(made.init(jax.random.key(config["seed"])), optimizer)
    checkpoints = Checkpoints(workdir, 2)
    found = checkpoints.restore(state)
    state = found[0] if found else state
    return _train(config, workdir, model, prompts, reward, state, checkpoints)


def _train(config, workdir, model, prompts, reward, state, checkpoints) -> int:
    first, given = int(state.step), config["train"]
    compiled = functools.cache(lambda calls: programs(config, model, calls))
    log, signal = MetricsLog(workdir, first), StopSignal()
    try:
        for step in range(first, given["steps"]):
            calls = config["calls"][step % len(config["calls"])]
            state, metrics = _step(config, model, prompts, reward, state, compiled(calls))
            state = state._replace(step=jnp.int32(step + 1))
            if (step + 1) % given["log_every"] == 0 or step == first:
                values = {f"train/{k}": float(v) for k, v in metrics.items()}
                shown = "  ".join(f"{k[6:]} {v:.4g}" for k, v in values.items())
                print(f"step {step + 1}/{given['steps']}  {calls} calls: {shown}", flush=True)
                log.write(step + 1, values)
            last = step + 1 == given["steps"]
            if (step + 1) % given["checkpoint_every"] == 0 or last or signal.name:
                checkpoints.save(state, {})
            if signal.name and not last:
                print(stopped(signal.name, step + 1), flush=True)
                return STOPPED_EXIT
    finally:
        signal.restore()
        checkpoints.close()
        log.close()
    return 0


def _step(
    config, model: Model, prompts: SolvedPrompts, reward: Reward, state: TrainState, run: Programs
):
    """Rollouts, rewards, updates; (state, metrics)."""
    number = int(state.step)
    rng = np.random.default_rng([config["seed"], number])
    picked = rng.choice(len(prompts.tokens), config["prompt_batch"], replace=False)
    rows = np.repeat(picked, config["group"])
    asked, given = prompts.tokens[rows], prompts.given[rows]
    key = step_key(config["seed"], number)
    rolled = run.roll(
        key, model.params, state.params, Given(jnp.asarray(asked), jnp.asarray(given))
    )
    answers = reward(np.asarray(rolled.tokens), asked, given)
    free = ~given
    for _ in range(config["epochs"]):
        state, metrics = run.update(state, rolled, answers)
    a = step_policy.step_size(step_policy_config(config), rolled.acts[0])
    return state, metrics | {
        "reward": answers.mean(),
        "reached": np.asarray(rolled.reached)[free].mean(),
        "calls": np.asarray(rolled.calls).mean(),
        "step_size": jnp.sum(a * rolled.moves) / jnp.maximum(jnp.sum(rolled.moves), 1),
    }
