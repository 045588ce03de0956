"""Upgrades configurations of older versions, once, when they are read.

No other module knows older versions. Before names had settings of their own, `objective` held the
keys of all objectives, `bridge` and `alignment` the keys of two of them, and `model.llama` the keys
of a llama. Before flows had a group, objectives held the keys of their flows.
"""

from etils import epath

from flm_jax.checkpoints import config_file
from flm_jax.config.check import check
from flm_jax.config.schema import GROUPS, MODELS, NAMED, OBJECTIVES, defaults
from flm_jax.core.errors import UserError, require
from flm_jax.core.files import as_json
from flm_jax.core.reading import named_damage
from flm_jax.core.settings import Setting, settings_of
from flm_jax.core.types import Config
from flm_jax.flows.registry import flows_of
from flm_jax.samplers.registry import samplers_of

_OBJECTIVES = {"masked": "masked_diffusion", "masked_bridge": "masked_flow"}

# What adapters were before their settings said it.
_OLDER_ADAPTERS = {
    "gates": False,
    "final_norm": True,
    "shared_time": True,
    "time": "progress",
    "fused_qkv": False,
    "time_decays": True,
}

# What laws of gamma were before their settings said it.
_OLDER_LAW = {
    "bins": 64,
    "refit_every": 200,
    "knot_rate": 0.05,
    "before": "uniform",
    "decays": "batch",
    "least_cell": 0.0,
    "least_examples": 0.0,
    "least_scale": 0.05,
}

# What sampling of masked flows was before its settings said it.
_OLDER_STEPS = {"spacing": "uniform", "last_call": False, "reuse": True, "temperature": 0.0}

# What posterior refinement was before its settings said how it spreads positions over rounds.
_OLDER_REFINEMENT = {"spread": "even", "threshold": 1.0}

# What data of exchanges were before their settings said it.
_OLDER_DATA = {"padding": "ignored", "too_long": "cut"}


_GONE = "default"  # a choice of older versions, which stood for one of the others


def read_config(workdir: str | epath.Path) -> Config:
    """Reads the configuration of a workdir or an exported folder, completes it and checks it.

    Raises:
      UserError: there is no workdir, or its configuration is one that training would refuse.
    """
    found, place = config_file.read_config(workdir), epath.Path(workdir) / "config.json"
    for group in ("model", "objective"):
        require(
            isinstance(found.get(group), dict) and isinstance(found[group].get("name"), str),
            f"{place}: config.{group} is {found.get(group)!r}; expected that of a model, with a "
            "name: restore the file, or give the workdir of a model.",
        )
    try:
        with named_damage(place):
            whole = upgrade(found)
        return check(whole)
    except UserError as error:
        where = "" if str(place) in str(error) else f"{place}: "
        raise UserError(f"{where}{error}") from error


def upgrade(config: Config) -> Config:
    """Converts a configuration of any version to this version's; others are returned unchanged."""
    if not all(group in config and "name" in config[group] for group in ("model", "objective")):
        return config
    model = dict(config["model"])
    model |= model.pop("llama", {}) if model["name"] == "llama" else {}
    objective = dict(config["objective"])
    name = _OBJECTIVES.get(objective["name"], objective["name"])
    if name == "masked_flow" and (bridge := config.get("bridge")):
        objective = bridge | {"gamma": bridge} | {"name": name}
    if name == "alignment":
        objective |= config.get("alignment", {})
    if "gates" not in (adapters := config.get("adapters", {})) and adapters.get("base"):
        config = config | {"adapters": adapters | _OLDER_ADAPTERS}
    if (data := config.get("data", {})).get("chat") and "padding" not in data:
        config = config | {"data": data | _OLDER_DATA}
    now = {"seed": config.get("seed", 0)}
    now["model"] = {"name": model["name"]} | _completed(
        model, defaults("model", model["name"]), settings_of(MODELS[model["name"]])
    )
    flow = config.get("flow") or {"name": flows_of(name)[0]} | _flow_of(objective)
    if has_older_law({"flow": flow}) and "law" in defaults("flow", flow["name"]):
        flow = flow | {"law": _OLDER_LAW | flow.get("law", {})}
    now["flow"] = _named("flow", flow)
    now["objective"] = {"name": name} | _completed(
        objective, defaults("objective", name), settings_of(OBJECTIVES[name])
    )
    sampler = config.get("sampler", {"name": samplers_of(name)[0]})
    if sampler["name"] == "masked_flow" and "spacing" not in sampler:
        sampler = _OLDER_STEPS | sampler
    if sampler["name"] == "posterior_refinement" and "spread" not in sampler:
        sampler = _OLDER_REFINEMENT | sampler
    now["sampler"] = _named("sampler", sampler)
    for group, cls in GROUPS.items():
        now[group] = _completed(config.get(group, {}), defaults(group), settings_of(cls))
    return as_json(now)


def has_older_law(config: Config) -> bool:
    """Whether a configuration, as saved, is from before gamma was drawn by knots."""
    return "before" not in config.get("flow", {}).get("law", {})


def _flow_of(objective: Config) -> Config:
    """Returns an older objective's keys that now belong to the flow."""
    found = {key: objective[key] for key in ("clock", "noise", "sigma") if key in objective}
    return found | ({"law": objective["gamma"]} if "gamma" in objective else {})


def _named(group: str, values: Config) -> Config:
    name = values["name"]
    known = settings_of(NAMED[group][name])
    return {"name": name} | _completed(values, defaults(group, name), known)


def _completed(values: Config, default: Config, known: dict[str, Setting]) -> Config:
    """Values of known keys, with defaults for keys that are missing or once were a name."""
    found = {}
    for name, one in known.items():
        value = values.get(name, default[name])
        if one.group:
            value = _completed(value, default[name], settings_of(type(one.default)))
        elif one.choices and value == _GONE:
            value = default[name]
        found[name] = value
    return found
