"""From configurations to functions: the only reader of configurations, the only name tables."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh

from flm_jax.adaptation import adapter_config, bridge_objective, make_llama, trained, whole
from flm_jax.alignment import alignment_objective, check_base
from flm_jax.data.tokenizer_base import Tokenizer
from flm_jax.data.tokenizers import load_tokenizer
from flm_jax.flows.clocks import Clock, tau_to_t
from flm_jax.flows.states import NOISE_KINDS
from flm_jax.losses.autoregressive import autoregressive_loss
from flm_jax.losses.masked import MaskedConfig, masked_loss
from flm_jax.models.attention import KINDS, AttentionPlan, available
from flm_jax.models.causal import CausalConfig, causal
from flm_jax.models.dit import DiTConfig, dit
from flm_jax.models.policy import Policy
from flm_jax.objectives import clock, denoising, prediction
from flm_jax.routes import ROUTES, distillation
from flm_jax.training.checkpoint import load_ema, read_config
from flm_jax.training.folder import WEIGHTS, located
from flm_jax.training.folder import read as read_folder
from flm_jax.training.loop import TrainConfig
from flm_jax.training.optim import OptimConfig
from flm_jax.training.sharding import MeshConfig, attention_plan, loss_parallel, tree_shardings
from flm_jax.training.step import Objective
from flm_jax.types import Network, Params, UserError, require, unknown_name

Config = dict[str, Any]


class Model(NamedTuple):
    """A trained model as read from a workdir."""

    config: Config
    net: Network
    params: Params
    clock: Clock
    tokenizer: Tokenizer
    step: int


def _choice(kind: str, got: str, valid) -> str:
    if got not in valid:
        raise unknown_name(kind, got, valid)
    return got


# What a workdir may be too old to have.
_DIT_KEYS = {"position_table": False, "self_conditioning": False, "posterior_input": False}
_NEW_MODEL_KEYS = {"attention": "xla"} | _DIT_KEYS
_NEW_KEYS = {"context": 0.0, "prompt": 0, "weighting": "equal"}


def _dit(cfg: Config, plan: AttentionPlan, aim: Config) -> Network:
    require(
        aim["name"] != "autoregressive",
        "objective autoregressive trains a causal network; set config.model.name = 'causal'.",
    )
    require(
        not cfg["self_conditioning"] or (aim["name"] == "denoising" and not cfg["two_time"]),
        f"config.model.self_conditioning is for objective denoising with one time, got objective "
        f"{aim['name']} with two_time = {cfg['two_time']}; set it to False: a flow map distilled "
        "from a self-conditioned teacher needs no estimate.",
    )
    weighting = _choice("config.objective.weighting", aim["weighting"], ("equal", "learned"))
    anchored = aim["name"] in ("masked", "alignment")
    more = {"anchor": anchored, "weighting": weighting == "learned"}
    net = dit(DiTConfig(max_length=cfg.pop("length"), **more, **cfg), plan)
    return dataclasses.replace(net, any_order=aim["context"] > 0.0 or aim["prompt"] > 0)


def _causal(cfg: Config, plan: AttentionPlan, aim: Config) -> Network:
    goal = aim["name"]
    require(
        goal == "autoregressive",
        f"objective {goal} needs a network that sees all positions; set config.model.name = "
        "'dit', or config.objective.name = 'autoregressive'.",
    )
    require(
        not cfg["two_time"], "a causal network has no times; set config.model.two_time = False."
    )
    del cfg["two_time"], cfg["cond_dim"]
    return causal(CausalConfig(max_length=cfg.pop("length"), **cfg), plan)


def _llama(cfg: Config, plan: AttentionPlan, aim: Config) -> Network:
    return make_llama(cfg, plan, aim["name"])


MODELS: dict[str, Callable[..., Network]] = {"dit": _dit, "causal": _causal, "llama": _llama}


def _reading_posteriors(net: Network, config: Config) -> Network:
    goal = config["objective"]["name"]
    require(
        goal == "denoising" or goal in ROUTES,
        f"config.model.posterior_input is for flows over one-hot tokens, got objective {goal}; set "
        "it to False.",
    )
    times = functools.partial(tau_to_t, clock(config, net.vocab_size))
    return dataclasses.replace(net, interpolant_time=times)


def network(config: Config, mesh: Mesh | None = None) -> Network:
    """The denoiser of a configuration with its vocabulary resolved; to run over `mesh`."""
    cfg = _NEW_MODEL_KEYS | config["model"]
    _choice("config.model.attention", cfg["attention"], KINDS)
    name = _choice("config.model.name", cfg.pop("name"), MODELS)
    make, own, adapters = MODELS[name], cfg.pop("llama", {}), adapter_config(config)
    if name != "dit":
        for key in _DIT_KEYS:
            require(
                not cfg.pop(key),
                f"config.model.{key} is for 'dit' alone, got model.name {name!r}; set it to False.",
            )
    if name == "llama":
        cfg |= {"llama": own, "adapters": adapters}
    require(
        name == "llama" or adapters is None,
        f"config.adapters.base is set, config.model.name is {name!r}; only 'llama' has adapters.",
    )
    _choice("config.model.dtype", cfg["dtype"], ("float32", "bfloat16"))
    require(
        cfg["dim"] % cfg["heads"] == 0 and (cfg["dim"] // cfg["heads"]) % 2 == 0,
        f"config.model.dim {cfg['dim']} over {cfg['heads']} heads must give an even head size.",
    )
    for name in ("dim", "depth", "heads", "length"):
        require(cfg[name] >= 1, f"config.model.{name} must be at least 1, got {cfg[name]}.")
    require(
        0.0 <= cfg["dropout"] < 1.0, f"config.model.dropout is {cfg['dropout']}, not in [0, 1)."
    )
    plan = attention_plan(cfg["attention"], mesh)
    by_posterior = cfg.pop("posterior_input", False)
    net = make(cfg, plan, _NEW_KEYS | config["objective"])
    if by_posterior:
        net = _reading_posteriors(net, config)
    if mesh is None or not net.loss_tile:
        return net
    return dataclasses.replace(net, parallel=loss_parallel(mesh, net.vocab_size, net.dim))


def optim(config: Config) -> OptimConfig:
    cfg = OptimConfig(**config["optim"])
    _choice("config.optim.name", cfg.name, ("adamw", "muon"))
    _choice("config.optim.schedule", cfg.schedule, ("constant", "cosine"))
    require(cfg.lr > 0, f"config.optim.lr must be positive, got {cfg.lr}.")
    return cfg


def training(config: Config) -> TrainConfig:
    cfg = TrainConfig(**config["train"])
    for name in ("steps", "batch", "microbatches", "log_every", "checkpoint_every"):
        require(getattr(cfg, name) >= 1, f"config.train.{name} must be at least 1.")
    require(
        cfg.batch % cfg.microbatches == 0,
        f"config.train.batch {cfg.batch} does not split into {cfg.microbatches} microbatches.",
    )
    return cfg


def mesh(config: Config) -> MeshConfig:
    return MeshConfig(**config["mesh"])


def _autoregressive(
    config: Config, net: Network, clock: Clock, teacher: Network | None
) -> Objective:
    del clock
    _no_teacher(config, teacher)

    def objective(params, frozen, batch, key, rows):
        del frozen
        return autoregressive_loss(params, batch, key, net=net, rows=rows)

    return objective


def masked_config(config: Config) -> MaskedConfig:
    given, length = config["objective"], config["model"]["length"]
    prompt = given.get("prompt", 0)
    require(
        0 <= prompt < length,
        f"config.objective.prompt is {prompt}; expected 0 to {length - 1}, fewer than "
        f"config.model.length = {length}.",
    )
    return MaskedConfig(time_conditioning=given["time_conditioning"], prompt=prompt)


def _masked(config: Config, net: Network, clock: Clock, teacher: Network | None) -> Objective:
    del clock
    _no_teacher(config, teacher)
    require(not net.two_time, "objective masked has one time; set config.model.two_time = False.")
    cfg = masked_config(config)
    require(
        not cfg.time_conditioning or config["model"]["name"] != "llama",
        "a llama network is not told the time; set config.objective.time_conditioning = False.",
    )

    def objective(params, frozen, batch, key, rows):
        del frozen
        return masked_loss(params, batch, key, net=net, cfg=cfg, rows=rows)

    return objective


def _no_teacher(config: Config, teacher: Network | None) -> None:
    require(
        teacher is None,
        f"objective {config['objective']['name']} learns from data alone; set "
        "config.objective.teacher = ''.",
    )


OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "denoising": denoising,
    "autoregressive": _autoregressive,
    "masked": _masked,
    "masked_bridge": bridge_objective,
    "alignment": alignment_objective,
} | dict.fromkeys(ROUTES, distillation)


def objective(
    config: Config, net: Network, clock: Clock, teacher: Network | None = None
) -> Objective:
    """The training objective of a configuration."""
    given = config["objective"]
    _choice("config.objective.noise", given["noise"], NOISE_KINDS)
    make = OBJECTIVES[_choice("config.objective.name", given["name"], OBJECTIVES)]
    for key, off in _NEW_KEYS.items():
        require(
            given[key] == off
            or given["name"] in ("denoising", *ROUTES)
            or (key == "prompt" and given["name"] in ("masked", "alignment")),
            f"config.objective.{key} is {given[key]!r}, which objective {given['name']} does not "
            f"know; set it to {off!r}.",
        )
    require(
        prediction(config) == "probabilities" or given["name"] == "denoising",
        f"config.objective.prediction {given['prediction']!r} belongs to objective denoising; set "
        "it to 'probabilities'.",
    )
    return make(config, net, clock, teacher)


def abstract_params(net: Network | Policy, mesh: Mesh | None = None) -> Params:
    """Shapes of the parameters, with shardings: over a mesh, or one device."""
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    if mesh is None:
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        shardings = jax.tree.map(lambda _: device, shapes)
    else:
        shardings = tree_shardings(shapes, mesh)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )


def _usable(config: Config, mesh: Mesh | None, attention: str | None) -> Config:
    """A configuration with `attention`; by default its own, or "xla" where that cannot run here."""
    kind = attention or config["model"].get("attention", "xla")
    if not attention and not available(kind, attention_plan(kind, mesh).platform):
        kind = "xla"
    return config | {"model": config["model"] | {"attention": kind}}


def with_dropout(model: Model, rate: float) -> Network:
    """The network of a loaded model at another dropout rate, on one device."""
    config = _usable(model.config, None, None)
    return network(config | {"model": config["model"] | {"dropout": rate}})


def load_model(
    workdir: str | epath.Path, mesh: Mesh | None = None, attention: str | None = None
) -> Model:
    """Reads a model that `train` or `convert` wrote; its averaged parameters.

    Args:
      workdir: its folder, or hf:OWNER/NAME on the Hugging Face hub.
      mesh: devices to spread it over.
      attention: kernel to use; as in training by default, or "xla" where these devices lack that.

    Raises:
      UserError: no workdir, no checkpoint, a damaged one, another tokenizer.
    """
    folder = located(workdir)
    config = read_config(folder)
    tokenizer = load_tokenizer(folder / "tokenizer")
    net = network(_usable(config, mesh, attention), mesh)
    require(
        tokenizer.vocab_size <= net.vocab_size,
        f"{workdir}: its tokenizer has {tokenizer.vocab_size} tokens, its model {net.vocab_size}; "
        "restore the tokenizer folder of the run.",
    )
    if (folder / WEIGHTS).exists():
        params, step = read_folder(folder, abstract_params(net, mesh))
    else:
        params, step = load_ema(folder, trained(config, abstract_params(net, mesh)))
        if adapter_config(config):
            base = load_model(config["adapters"]["base"], mesh, attention)
            params = whole(config, params, base.params)
    return Model(config, net, params, clock(config, net.vocab_size), tokenizer, step)


_STUDENT_MAY_DIFFER = (
    "attention",
    "two_time",
    "dropout",
    "dtype",
    "remat",
    "scan_blocks",
    "loss_tile",
    "self_conditioning",
    "llama",  # no flow's
)


def check_teacher(config: Config, tokenizer: Tokenizer, teacher: Model) -> None:
    """Refuses a teacher of other sizes, of another tokenizer, or that is no flow."""
    goal = teacher.config["objective"]["name"]
    if config["objective"]["name"] == "alignment":
        check_base(config, teacher.config)
        _same_form(config, tokenizer, teacher, _STUDENT_MAY_DIFFER[:-1])
        return
    require(
        goal not in ("autoregressive", "masked", "masked_bridge", "alignment"),
        f"config.objective.teacher is a model of objective {goal}; expected a flow (objective "
        "denoising).",
    )
    aim = config["objective"]
    require(
        teacher.net.any_order or not (aim["context"] or aim["prompt"]),
        "config.objective.context and prompt need a teacher that was trained with clean context; "
        "got one without: train it with config.objective.context > 0, or set both to 0.",
    )
    require(
        prediction(teacher.config) == "probabilities",
        f"config.objective.teacher predicts a {prediction(teacher.config)}; expected a model of "
        "prediction probabilities.",
    )
    clocks = [c["objective"].get("clock", "decoding") for c in (teacher.config, config)]
    require(
        clocks[0] == clocks[1],
        f"config.objective.clock is {clocks[1]!r}, the teacher's {clocks[0]!r}; set it to that.",
    )
    _same_form(config, tokenizer, teacher, _STUDENT_MAY_DIFFER)


def _same_form(
    config: Config, tokenizer: Tokenizer, teacher: Model, may_differ: tuple[str, ...]
) -> None:
    """Refuses a teacher of other sizes or of another tokenizer."""
    student, other = config["model"], _NEW_MODEL_KEYS | teacher.config["model"]
    wrong = [
        f"{key}: teacher {other[key]!r}, student {student[key]!r}"
        for key in student
        if key not in may_differ and student[key] != other[key]
    ]
    if wrong:
        raise UserError(
            f"the student must have the teacher's sizes ({'; '.join(wrong)}); "
            "set config.model to the teacher's."
        )
    require(
        tokenizer.fingerprint == teacher.tokenizer.fingerprint,
        f"the data's tokenizer ({tokenizer.fingerprint[:12]}) is not the teacher's "
        f"({teacher.tokenizer.fingerprint[:12]}); prepare the data with it "
        "(--tokenizer=WORKDIR/tokenizer).",
    )


def student_params(fresh: Params, teacher: Params) -> Params:
    """The teacher's parameters, with what it lacks (the second time embedding) fresh.

    So are the weights of the loss, which is another one.
    """
    taken = {k: v for k, v in teacher.items() if k != "weighting"}
    return {k: jax.tree.map(jnp.copy, taken.get(k, v)) for k, v in fresh.items()}
