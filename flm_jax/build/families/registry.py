"""The families by the name of an objective; no other module interprets that name."""

from flm_jax.build.families.autoregressive import AUTOREGRESSIVE
from flm_jax.build.families.base import Family
from flm_jax.build.families.distribution_matching import DISTRIBUTION_MATCHING
from flm_jax.build.families.flow import FLOW
from flm_jax.build.families.flow_map import FLOW_MAP, ROUTES
from flm_jax.build.families.masked_diffusion import MASKED_DIFFUSION
from flm_jax.build.families.masked_distribution_matching import MASKED_DISTRIBUTION_MATCHING
from flm_jax.build.families.masked_flow import MASKED_FLOW
from flm_jax.build.families.masked_flow_map import MASKED_FLOW_MAP
from flm_jax.build.families.reinforce_matching import REINFORCE_MATCHING
from flm_jax.build.families.through_time import THROUGH_TIME
from flm_jax.build.families.two_networks import MERGE_STAGE, RESIDUAL_STAGE
from flm_jax.build.families.uniform_diffusion import DISCRETE_CONSISTENCY, UNIFORM_DIFFUSION
from flm_jax.build.families.x_prediction import X_PREDICTION
from flm_jax.build.flow import check_prompt
from flm_jax.core.errors import one_of, require
from flm_jax.core.network import Network
from flm_jax.core.types import Config
from flm_jax.flows.flow import Flow
from flm_jax.losses.base import Objective

OBJECTIVES: dict[str, Family] = {
    "denoising": FLOW,
    **dict.fromkeys(ROUTES, FLOW_MAP),
    "residual": RESIDUAL_STAGE,
    "merge": MERGE_STAGE,
    "distribution_matching": DISTRIBUTION_MATCHING,
    "reinforce_matching": REINFORCE_MATCHING,
    "masked_diffusion": MASKED_DIFFUSION,
    "through_time": THROUGH_TIME,
    "uniform_diffusion": UNIFORM_DIFFUSION,
    "discrete_consistency": DISCRETE_CONSISTENCY,
    "masked_flow": MASKED_FLOW,
    "masked_flow_map": MASKED_FLOW_MAP,
    "masked_distribution_matching": MASKED_DISTRIBUTION_MATCHING,
    "alignment": X_PREDICTION,
    "autoregressive": AUTOREGRESSIVE,
}


def teacher_folder(config: Config) -> str:
    """Workdir in config.objective.teacher; "" for none."""
    return config["objective"].get("teacher", "")


def objective_name(config: Config) -> str:
    """Name of a configuration's objective, for messages."""
    return config["objective"]["name"]


def family(config: Config) -> Family:
    """Returns the family of a configuration.

    Raises:
      UserError: an unknown objective.
    """
    return OBJECTIVES[one_of("config.objective.name", objective_name(config), OBJECTIVES)]


def make_objective(
    config: Config, net: Network, flow: Flow, teacher: Network | None = None
) -> Objective:
    """Returns the training objective of a configuration.

    Raises:
      UserError: an unknown name; a setting that the objective does not have; a teacher that it
        cannot use, or a missing one.
    """
    check_prompt(config)
    return family(config).objective(config, net, flow, teacher)


def check_network(config: Config, adapted: bool) -> None:
    """Refuses a network that the objective of a configuration does not train.

    Args:
      config: complete configuration with a known config.model.name.
      adapted: whether the network has adapters.

    Raises:
      UserError: the objective trains other networks, or other settings of this one.
    """
    model, goal, kind = config["model"], objective_name(config), family(config)
    name = model["name"]
    if name == "dit":
        require(
            kind is not AUTOREGRESSIVE,
            "objective autoregressive trains a causal network; set config.model.name = 'causal'.",
        )
    elif name == "causal":
        require(
            name in kind.networks,
            f"objective {goal} needs a network that sees all positions; set config.model.name = "
            "'dit', or config.objective.name = 'autoregressive'.",
        )
    elif name == "llama":
        allowed = kind.adapts == "either" or kind.adapts == ("always" if adapted else "never")
        require(
            name in kind.networks and allowed,
            f"objective {goal} with {'' if adapted else 'no '}adapters: a llama learns by "
            "masked_diffusion and through_time, by masked_flow with config.adapters.base set, "
            "whose adapters tell it the time, by masked_flow_map and masked_distribution_matching, "
            "which distil that, and by alignment either way.",
        )
    else:
        require(
            name in kind.networks,
            f"config.model.name is {name!r}, which objective {goal} does not train; expected "
            f"{' or '.join(kind.networks)}.",
        )
    two_time = model.get("two_time", False)
    require(
        not model.get("self_conditioning") or (kind.self_conditioned and not two_time),
        f"config.model.self_conditioning is for objective denoising with one time, got objective "
        f"{goal} with two_time = {two_time}; set it to False: a flow map distilled "
        "from a self-conditioned teacher needs no estimate.",
    )
    require(
        kind.from_noise or not (model.get("posterior_input") or model.get("posterior_skip")),
        "config.model.posterior_input and posterior_skip are for flows from noise, got objective "
        f"{goal}; set both to False.",
    )
    require(
        not (model.get("posterior_input") and model.get("posterior_skip")),
        "got config.model.posterior_input and posterior_skip; set one of them to False.",
    )
