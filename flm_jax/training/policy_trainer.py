"""Trains a policy of step sizes by rollouts of a frozen masked diffusion model.

A step generates answers on the devices, scores them on the host, and updates the policy by
`make_train_step`; the general training loop drives it.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh

from flm_jax.build.families.masked_diffusion import masked_config
from flm_jax.build.families.registry import family, objective_name
from flm_jax.build.load import Model, load_model
from flm_jax.build.sampler import choose_sampler, make_sampler
from flm_jax.checkpoints.config_file import read_config, write_config
from flm_jax.checkpoints.state import TrainState, new_state
from flm_jax.checkpoints.workdir import Checkpoints
from flm_jax.config.schema import settings
from flm_jax.config.training import LoopConfig
from flm_jax.core.errors import check_seed, require
from flm_jax.core.locks import alone_in
from flm_jax.core.paths import check_folder, expanded
from flm_jax.core.progress import say, tracked
from flm_jax.core.settings import read_settings
from flm_jax.core.types import Config, Key, Params
from flm_jax.distributed import sharding
from flm_jax.inference.step_policy import OLDER, StepPolicy, step_policy_config
from flm_jax.losses.base import Objective
from flm_jax.losses.grpo import Actions, clipped_loss, group_advantages, token_rewards
from flm_jax.models import step_policy
from flm_jax.samplers import x_prediction
from flm_jax.samplers.base import Given, Share
from flm_jax.training.loop import Loop, Run
from flm_jax.training.optim import make_optimizer, rate_change
from flm_jax.training.step import make_train_step, step_key
from flm_jax.training.task_rewards import Problems, check_reward, problems_of_task

_FREE = ("train", "mesh")  # groups that may change when a run is continued
# What runs were before their configuration said it.
_OLDER = {"problems": "", "answer_length": 0, "chat": True, "isolation": "namespaces"}
_OLDER |= {"seconds": 3.0}


def actor(trained: StepPolicy) -> Callable[[Key, jax.Array], tuple[jax.Array, Any]]:
    """Returns a function that draws step sizes and records (u, log density of u)."""

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
    """Clipped loss `clipped_loss` as a function of a policy's parameters."""
    # Of calls that were not made nothing was drawn: any number of finite density will do.
    drawn = jnp.where(actions.counted, actions.drawn, 0.5)
    log_probs = step_policy.log_prob(made.law(params, actions.features), drawn)
    return clipped_loss(log_probs, actions.log_probs, advantages, actions.counted, clip)


def policy_objective(config: Config, made: step_policy.Policy) -> Objective:
    """Returns the clipped loss of rollouts as an objective of `make_train_step`.

    Its batch holds tokens [B, L], actions (see `losses.grpo.Actions`), answers (the reward of each
    row, [B]), reached [B, L], calls [B] and free (mask of the positions to generate, [B, L]).
    """
    cfg = step_policy_config(config)

    def objective(params, frozen, batch, key, rows):
        del frozen, key, rows
        actions, moves = batch["actions"], batch["actions"].counted
        rewards = token_rewards(batch["answers"], batch["reached"], config["completion"])
        advantages = group_advantages(rewards, config["group"])
        loss, metrics = policy_loss(params, made, actions, advantages, config["clip"])
        sizes = step_policy.step_size(cfg, actions.drawn)
        return loss, metrics | {
            "reward": jnp.mean(batch["answers"]),
            "reached": jnp.sum(batch["reached"] * batch["free"]) / jnp.sum(batch["free"]),
            "calls": jnp.mean(batch["calls"].astype(jnp.float32)),
            "step_size": jnp.sum(sizes * moves) / jnp.maximum(jnp.sum(moves), 1),
        }

    return objective


class PolicyStep:
    """One step of GRPO on the host: (state, model parameters, problems) -> (state, metrics).

    Args:
      config: configuration of `train_policy`.
      model: masked diffusion model, over `mesh`.
      reward: reward of completions, see `Problems`.
      mesh: devices; rollouts are split over its batch axes, the policy is replicated.
      state: shapes of the train state.
    """

    def __init__(
        self, config: Config, model: Model, reward: Callable, mesh: Mesh, state: TrainState
    ):
        self._config, self._model, self._reward, self._mesh = config, model, reward, mesh
        self._made = step_policy.policy(step_policy_config(config))
        optim, seed = settings(config, "optim"), config["seed"]
        step = make_train_step(
            policy_objective(config, self._made),
            _optimizer(config),
            seed=seed,
            microbatches=1,
            ema_decay=optim.ema_decay,
        )
        everywhere = sharding.replicated(mesh)
        shardings = jax.tree.map(lambda _: everywhere, state)
        self._update = jax.jit(step, donate_argnums=0, out_shardings=(shardings, everywhere))
        self._rows = sharding.local_rows(mesh, _answers(config))
        self._roll = functools.cache(self._compiled_rollout)

    def _compiled_rollout(self, calls: int) -> Callable:
        """Returns (key, model parameters, policy parameters, given) -> Rollout in `calls` calls."""
        model = self._model
        settings = {
            "steps": calls,
            "how": x_prediction.XPredictionConfig(block_length=self._config["block_length"]),
            "time_conditioning": masked_config(model.config).time_conditioning,
        }
        cfg = step_policy_config(self._config)

        def roll(key: Key, params: Params, policy_params: Params, given: Given):
            act = actor(StepPolicy(cfg, self._made, policy_params))
            return x_prediction.rollout(key, model.net, params, act, given=given, **settings)

        return jax.jit(roll)

    def __call__(self, state: TrainState, frozen: Params, batch: dict[str, jax.Array]):
        config, number = self._config, state.step
        calls = config["calls"][int(number) % len(config["calls"])]
        key = step_key(config["seed"], int(number))
        given = _given(batch)
        rolled = self._roll(calls)(key, frozen, state.params, given)
        learnt = {
            "tokens": rolled.tokens,
            "actions": Actions(rolled.features, *rolled.acts, rolled.moves),
            "answers": self._scored(rolled.tokens, batch["places"]),
            "reached": rolled.reached,
            "calls": rolled.calls,
            "free": ~given.mask,
        }
        for _ in range(config["epochs"]):
            # All updates of a rollout belong to one step of the run.
            state, metrics = self._update(state._replace(step=jnp.int32(int(number))), {}, learnt)
        return state, metrics

    def _scored(self, tokens: jax.Array, places: jax.Array) -> jax.Array:
        """Rewards [B]; each process scores the rows of its own devices."""
        local = lambda x: np.asarray(_everywhere(x))[self._rows]
        answers = self._reward(local(tokens), local(places))
        placed = sharding.global_batch(
            {"answers": np.asarray(answers, np.float32)}, self._mesh, self._rows, len(tokens)
        )
        return placed["answers"]


def _everywhere(x: jax.Array) -> Any:
    return process_allgather(x, tiled=True) if jax.process_count() > 1 else x


def _answers(config: Config) -> int:
    """Number of rows of a step."""
    return config["prompt_batch"] * config["group"]


def _optimizer(config: Config):
    return make_optimizer(settings(config, "optim"), config["train"]["steps"] * config["epochs"])


class SolvedPrompts(NamedTuple):
    """Problems that the model solves without a policy.

    Attributes:
      given: all problems, arrays [N, L].
      places: int [M], indices of the solved ones.
    """

    given: Given
    places: np.ndarray


def solved_prompts(model: Model, problems: Problems, config: Config, mesh: Mesh) -> SolvedPrompts:
    """Finds the problems that low-confidence decoding solves with one token per call.

    Raises:
      UserError: fewer of them than a batch.
    """
    number = len(problems.given.tokens)
    answers = _answered(model, problems.given, config, mesh)
    good = problems.reward(answers, np.arange(number)) > 0.5
    require(
        int(good.sum()) >= config["prompt_batch"],
        f"the model solves {int(good.sum())} of {number} problems; expected at least "
        f"config.prompt_batch = {config['prompt_batch']}: train it further, or raise "
        "config.prompts.",
    )
    return SolvedPrompts(problems.given, np.flatnonzero(good))


def _answered(model: Model, given: Given, config: Config, mesh: Mesh) -> np.ndarray:
    """Completions [N, L] by low-confidence decoding, in batches of the rows of a step."""
    number, total = len(given.tokens), _answers(config)
    rows = sharding.local_rows(mesh, total)
    how = {"temperature": 0.0, "block_length": config["block_length"]}
    how = choose_sampler(model.config, "confidence", **how)
    sample = make_sampler(model.config, model.net, model.flow, Share(1, 1), how)
    written = lambda params, given: sample(jax.random.key(0), params, given).tokens
    program = jax.jit(written, out_shardings=sharding.replicated(mesh))
    parts = []
    starts, quiet = range(0, number, total), jax.process_index() > 0
    for start in tracked(starts, "solving problems: batches", len(starts), quiet=quiet):
        places = (np.arange(start, start + total) % number)[rows]
        batch = sharding.global_batch(_rows(given, places), mesh, rows, total)
        parts.append(np.asarray(program(model.params, _given(batch))))
    return np.concatenate(parts)[:number]


def _rows(given: Given, places: np.ndarray) -> dict[str, np.ndarray]:
    """Some rows as a batch; without "visible" if all positions are."""
    found = {"tokens": given.tokens, "given": given.mask, "visible": given.visible}
    return {name: value[places] for name, value in found.items() if value is not None}


def _given(batch: dict[str, jax.Array]) -> Given:
    return Given(batch["tokens"], batch["given"], batch.get("visible"))


class PromptBatches:
    """Endless batches of solved problems; each depends on the seed and its number alone.

    Args:
      prompts: solved problems from which batches are drawn.
      config: configuration of `train_policy`.
      rows: indices in a batch of the rows that this process reads.
      step: number of batches drawn before.
    """

    stall_seconds = 0.0

    def __init__(self, prompts: SolvedPrompts, config: Config, rows: np.ndarray, step: int):
        self._prompts, self._config, self._rows, self._step = prompts, config, rows, step

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        config, prompts = self._config, self._prompts
        rng = np.random.default_rng([config["seed"], self._step])
        picked = rng.choice(len(prompts.places), config["prompt_batch"], replace=False)
        # Answers to one prompt are adjacent, as `grpo.group_advantages` expects them.
        places = prompts.places[np.repeat(picked, config["group"])[self._rows]]
        self._step += 1
        return _rows(prompts.given, places) | {"places": places.astype(np.int32)}

    def get_state(self) -> dict[str, Any]:
        """Returns the number of batches drawn."""
        return {"batches": self._step}


def check_policy_config(config: Config) -> None:
    """Refuses impossible values, before any work."""
    calls = config["calls"]
    require(
        bool(calls) and all(type(n) is int and n >= 1 for n in calls),
        f"config.calls is {calls}; expected numbers from 1, such as (2, 4).",
    )
    check_reward(config["reward"])
    require(bool(config["model"]), "config.model is ''; expected the workdir of a masked model.")
    asked, least = bool(config["problems"]), config["answer_length"]
    require(
        asked == (least > 0) and (not asked or config["reward"] == "unit_tests"),
        f"got config.problems {config['problems']!r} with answer_length {least} and reward "
        f"{config['reward']}; expected a file with an answer_length and reward unit_tests, or "
        "neither file nor answer_length.",
    )
    step_policy_config(config)


def _check_workdir(workdir: str, config: Config) -> Config | None:
    """Configuration of the run to continue, or None for a new one."""
    if not (epath.Path(workdir) / "config.json").exists():
        return None
    saved = read_config(workdir)
    # Of an older version, the warm-up's first step was what is now its default.
    saved = saved | {"optim": {"first_step": "still"} | saved.get("optim", {})}
    saved = _OLDER | saved | {"policy": OLDER | saved.get("policy", {})}
    changed = [key for key in config if key not in _FREE and saved.get(key) != config[key]]
    require(
        not changed,
        f"workdir {workdir} holds a run with another {', '.join(changed)}; restore it, or give a "
        "new --workdir.",
    )
    return saved


def _check_mesh(config: Config, mesh: Mesh) -> None:
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    require(
        _answers(config) % ways == 0,
        f"config.prompt_batch x config.group is {_answers(config)}, which does not split over "
        f"{ways} devices of the data and fsdp axes; use a multiple.",
    )


@alone_in("workdir", "training a policy", lambda: jax.process_index() == 0)
def train_policy_run(
    config: Config,
    workdir: str,
    problems_of: Callable[[Config, Model], Problems] = problems_of_task,
) -> int:
    """Trains, or continues, the policy of `config` in `workdir`.

    A step depends on its number and the seed alone: a run that is stopped continues bit for bit
    from its last checkpoint.

    Args:
      config: configuration of `train_policy`, checked.
      workdir: workdir of the policy.
      problems_of: function from (config, model) to the problems of training.

    Returns:
      0, the exit status of a run that is finished.

    Raises:
      Stopped: SIGTERM or SIGINT arrived; its step was saved.
      UserError: bad configuration, model or workdir; before anything is compiled.
    """
    check_policy_config(config)
    check_seed(config["seed"], "config.seed")
    workdir = expanded(workdir)
    check_folder(workdir, "--workdir")
    saved = _check_workdir(workdir, config)
    mesh = sharding.make_mesh(settings(config, "mesh"))
    _check_mesh(config, mesh)
    model = load_model(config["model"], mesh)
    # Rollouts are small, and their rows need not divide over the devices of a tiled loss.
    model = model._replace(net=dataclasses.replace(model.net, parallel=None))
    require(
        family(model.config).takes_step_policy,
        f"config.model {config['model']} is a model of objective {objective_name(model.config)}; "
        "expected masked diffusion (masked_diffusion, or better alignment).",
    )
    problems = problems_of(config, model)
    prompts = solved_prompts(model, problems, config, mesh)
    if jax.process_index() == 0:
        write_config(workdir, config)
        asked = len(prompts.given.tokens)
        print(f"{len(prompts.places)} of {asked} problems are solved in full", flush=True)
    made = step_policy.policy(step_policy_config(config))
    fresh = lambda: new_state(made.init(jax.random.key(config["seed"])), _optimizer(config))
    state = jax.jit(fresh, out_shardings=sharding.replicated(mesh))()
    cfg = read_settings(LoopConfig, config["train"], "config.train")
    checkpoints = Checkpoints(workdir, cfg.keep_checkpoints)
    found = checkpoints.restore(state)
    if found:
        state = found[0]
        moved = rate_change(saved or config, config, int(state.step), config["epochs"])
        if moved and jax.process_index() == 0:
            say(moved, sys.stderr)
    rows = sharding.local_rows(mesh, _answers(config))
    run = Run(
        state=state,
        train_step=PolicyStep(config, model, problems.reward, mesh, state),
        frozen=model.params,
        batches=PromptBatches(prompts, config, rows, int(state.step)),
        to_global=functools.partial(
            sharding.global_batch, mesh=mesh, rows=rows, total=_answers(config)
        ),
        evaluate=None,
        eval_every=0,
        rows=_answers(config),
        meta={"length": model.net.max_length, "tokenizer": model.tokenizer.fingerprint},
        shown=lambda name: name != "train/skipped_in_a_row",
    )
    with Loop(run, cfg, workdir, checkpoints) as loop:
        loop.train()
    return 0
