"""Trained policies of step sizes, loaded from a workdir of `train_policy`."""

from typing import Any, NamedTuple

from flm_jax.build.model import abstract_params
from flm_jax.checkpoints.config_file import read_config
from flm_jax.checkpoints.workdir import load_ema
from flm_jax.core.errors import UserError, require
from flm_jax.core.settings import plain, read_settings
from flm_jax.core.types import Params
from flm_jax.models.step_policy import Policy, PolicyConfig, expected_step_size, policy
from flm_jax.samplers.x_prediction import Stepper

# What policies were before their settings said it.
OLDER = {"layers": 1}


class StepPolicy(NamedTuple):
    """A policy with its averaged parameters."""

    cfg: PolicyConfig
    made: Policy
    params: Params


def step_policy_config(config: dict[str, Any]) -> PolicyConfig:
    """Reads the policy settings of `train_policy`; missing keys get their older value."""
    given = config["policy"]
    require(isinstance(given, dict), f"config.policy must hold keys, got {given!r}.")
    return read_settings(PolicyConfig, plain(PolicyConfig()) | OLDER | given, "config.policy")


def load_step_policy(workdir: str) -> StepPolicy:
    """Loads the policy of a workdir, which is independent of the model and fits any.

    Raises:
      UserError: no workdir of `train_policy`, or one without a checkpoint.
    """
    config = read_config(workdir)
    require(
        "policy" in config,
        f"policy={workdir} is the workdir of a model; expected one of train_policy.",
    )
    try:
        cfg = step_policy_config(config)
    except UserError as error:
        raise UserError(f"policy={workdir}: {error}") from error
    made = policy(cfg)
    return StepPolicy(cfg, made, load_ema(workdir, abstract_params(made))[0])


def stepper(trained: StepPolicy) -> Stepper:
    """Returns a function from features [B, L, D] to expected step sizes, float32 [B, L]."""
    cfg, made, params = trained
    return lambda features: expected_step_size(cfg, made.law(params, features))
