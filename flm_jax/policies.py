"""Trained policies of step sizes, as `train_policy` leaves them in a workdir."""

from typing import Any, NamedTuple

from flm_jax.build import abstract_params
from flm_jax.models.policy import Policy, PolicyConfig, expected_step_size, policy
from flm_jax.samplers.x_prediction import Stepper
from flm_jax.training.checkpoint import load_ema, read_config
from flm_jax.types import Params, require


class Trained(NamedTuple):
    """A policy with its averaged parameters."""

    cfg: PolicyConfig
    made: Policy
    params: Params


def policy_config(config: dict[str, Any]) -> PolicyConfig:
    """Sizes and ranges of a configuration of `train_policy`."""
    return PolicyConfig(**config["policy"])


def load(workdir: str) -> Trained:
    """The policy of a workdir; it knows nothing of the model it was trained on, and fits any.

    Raises:
      UserError: no workdir of `train_policy`, or none with a checkpoint.
    """
    config = read_config(workdir)
    require(
        "policy" in config,
        f"policy={workdir} is the workdir of a model; expected one of train_policy.",
    )
    cfg = policy_config(config)
    made = policy(cfg)
    return Trained(cfg, made, load_ema(workdir, abstract_params(made))[0])


def stepper(trained: Trained) -> Stepper:
    """Expected step sizes, float32 [B, L]."""
    cfg, made, params = trained
    return lambda features: expected_step_size(cfg, made.law(params, features))
