"""What a configuration is: its keys, its checks, its documentation."""

from flm_jax.config.schema import base_config, choose, policy_config

__all__ = ["base_config", "choose", "policy_config"]
