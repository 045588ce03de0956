"""Opens the first stage of a two-stage distillation for its second stage."""

from jax.sharding import Mesh

from flm_jax.build.families.flow import check_flow_teacher
from flm_jax.build.families.registry import objective_name
from flm_jax.build.load import load_model
from flm_jax.core.errors import require
from flm_jax.core.types import Config, Params
from flm_jax.data.tokenizers.base import Tokenizer
from flm_jax.losses.distillation.two_networks import RESIDUAL

# What the parameters do not depend on.
_MAY_DIFFER = ("attention", "dropout", "dtype", "param_dtype", "remat", "scan_blocks", "loss_tile")


def residual_params(config: Config, tokenizer: Tokenizer, mesh: Mesh | None) -> Params:
    """Returns {RESIDUAL: averaged parameters of config.objective.residual}, or {} for none.

    Raises:
      UserError: a model of another objective, other sizes, another flow or another tokenizer.
    """
    where = config["objective"].get("residual", "")
    if not where:
        return {}
    model = load_model(where, mesh, config["model"]["attention"])
    goal = objective_name(model.config)
    require(
        goal == "residual",
        f"config.objective.residual {where} is a model of objective {goal}; expected one of "
        "objective residual, the first stage.",
    )
    check_flow_teacher(config, model.config, model.net, "residual")
    own, other = config["model"], model.config["model"]
    wrong = [key for key in own if key not in _MAY_DIFFER and own[key] != other.get(key)]
    told = ", ".join(f"{key} ({other.get(key)!r}, here {own[key]!r})" for key in wrong)
    require(
        not wrong,
        f"config.objective.residual {where} differs in config.model.{told}; set it to that.",
    )
    require(
        model.tokenizer.fingerprint == tokenizer.fingerprint,
        f"config.objective.residual {where} has another tokenizer than the data; prepare the data "
        f"with --tokenizer={where}/tokenizer.",
    )
    # The weights of its loss are no part of the network here.
    return {RESIDUAL: {key: value for key, value in model.params.items() if key != "weighting"}}
