"""The configuration: its keys, its checks and its documentation."""

from flm_jax.config.schema import base_config, choose, policy_config

__all__ = ["base_config", "choose", "policy_config"]
