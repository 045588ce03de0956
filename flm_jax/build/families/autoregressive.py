"""Autoregressive models: objective, sampler and exact likelihood."""

import functools
from collections.abc import Callable

from flm_jax.build.families.base import Family, no_teacher
from flm_jax.core.network import Network
from flm_jax.core.types import Config
from flm_jax.flows.flow import Flow
from flm_jax.losses.autoregressive import autoregressive_loss
from flm_jax.losses.base import Objective
from flm_jax.metrics.likelihood import make_autoregressive_nll


def autoregressive_objective(
    config: Config, net: Network, flow: Flow, teacher: Network | None
) -> Objective:
    """Returns the objective: cross entropy of each next token."""
    del flow
    no_teacher(config, teacher)
    return functools.partial(autoregressive_loss, net=net)


def autoregressive_nll(config: Config, net: Network, flow: Flow) -> Callable:
    """Returns the exact negative log-likelihood of rows."""
    del config, flow
    return make_autoregressive_nll(net)


AUTOREGRESSIVE = Family(
    name="autoregressive",
    objective=autoregressive_objective,
    networks=("causal",),
    kind=lambda net: "autoregressive",
    row_nll=autoregressive_nll,
    row_likelihood=autoregressive_nll,
    likelihood="exact",
    draws=1,
    steps_free=False,
    timed=False,
    sees_ahead=False,
)
