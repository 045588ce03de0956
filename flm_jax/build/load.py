"""Opens trained models from a workdir, an exported folder or the hub, and checks teachers."""

import os
from typing import NamedTuple

import jax
from etils import epath
from jax.sharding import Mesh

from flm_jax.build.adapters import adapter_config, trained_params, whole_params
from flm_jax.build.data import resolve_vocabulary
from flm_jax.build.families.flow import check_flow_teacher, check_same_flow
from flm_jax.build.families.registry import family, objective_name, teacher_folder
from flm_jax.build.flow import make_flow
from flm_jax.build.model import abstract_params, make_network, network_kind
from flm_jax.build.times import current, saved_forms
from flm_jax.checkpoints.portable import WEIGHTS, located, read_folder
from flm_jax.checkpoints.workdir import load_averages
from flm_jax.config.upgrade import read_config
from flm_jax.core.errors import UserError, require
from flm_jax.core.network import Network
from flm_jax.core.paths import expanded
from flm_jax.core.progress import Progress
from flm_jax.core.types import Config, Params
from flm_jax.data.tokenizers.base import Tokenizer
from flm_jax.data.tokenizers.registry import load_tokenizer
from flm_jax.distributed.sharding import attention_plan, replicated
from flm_jax.flows.flow import Flow
from flm_jax.flows.gamma_state import GammaState
from flm_jax.models.attention import available


class Model(NamedTuple):
    """A trained model, as read from a workdir.

    Attributes:
      flow: flow with its learnt times at `times`; None for models without one.
      shared: whether the processes of a run share batches of samples, each with this model on its
        own device; else every process draws all samples.
      folder: folder from which it was read, "" for none.
    """

    config: Config
    net: Network
    params: Params
    flow: Flow
    tokenizer: Tokenizer
    step: int
    times: GammaState | None = None
    shared: bool = False
    folder: str = ""


def _usable(config: Config, mesh: Mesh | None, attention: str | None) -> Config:
    """Returns a configuration with `attention`; by default its own, or "xla" if that cannot run."""
    kind = attention or config["model"]["attention"]
    if not attention and not available(kind, attention_plan(kind, mesh).platform):
        kind = "xla"
    return config | {"model": config["model"] | {"attention": kind}}


def with_dropout(model: Model, rate: float, attention: str | None = None) -> Network:
    """Returns the network of a loaded model with another dropout rate, on one device."""
    config = _usable(model.config, None, attention)
    return make_network(config | {"model": config["model"] | {"dropout": rate}})


def load_model(
    workdir: str | epath.Path,
    mesh: Mesh | None = None,
    attention: str | None = None,
    shared: bool = False,
) -> Model:
    """Reads a model written by `train` or `convert`, with its averaged parameters.

    Args:
      workdir: folder of the model, hf:OWNER/NAME on the Hugging Face hub, or the name of a model
        that comes with the library.
      mesh: devices over which the model is split; None for one device of this process.
      attention: attention kernel; by default the one of training, or "xla" if these devices lack
        it.
      shared: whether processes share batches of samples, see `Model`.

    Raises:
      UserError: no workdir, no checkpoint, a damaged one, or another tokenizer.
    """
    folder = located(workdir)
    config = read_config(folder)
    _check_other_models(config, folder)
    tokenizer = load_tokenizer(folder / "tokenizer")
    rows = config["model"]["vocab_size"]
    require(
        tokenizer.vocab_size <= rows and config["model"]["tokens"] in (0, tokenizer.vocab_size),
        f"{workdir}: its tokenizer has {tokenizer.vocab_size} tokens, its model "
        f"{config['model']['tokens'] or rows}; restore the tokenizer folder of the run.",
    )
    config = resolve_vocabulary(config, tokenizer)
    net = make_network(_usable(config, mesh, attention), mesh)
    # Every device of a mesh holds statistics as a whole.
    place = replicated(mesh) if mesh else jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    forms = saved_forms(config, place)
    abstract = abstract_params(net, mesh)
    trained = trained_params(config, abstract)
    portable = (folder / WEIGHTS).exists()
    with Progress(f"reading {workdir}", quiet=jax.process_index() > 0):
        if portable:
            whole = whole_params(config, trained, abstract)
            params, step, times = read_folder(folder, whole, forms)
        else:
            params, step, times = load_averages(folder, trained, forms)
    if adapter_config(config) and not portable:
        where = config["adapters"]["base"]
        other = read_config(located(where))
        require(
            not adapter_config(other) or family(other).name in family(config).teachers,
            f"{workdir}: its config.adapters.base {where} is itself a model with adapters; "
            "expected a model that was trained as a whole, or imported.",
        )
        base = load_model(where, mesh, attention)
        params = whole_params(config, params, base.params)
    times = jax.device_get(current(config, jax.device_get(times)))
    flow = make_flow(config, net.vocab_size).settled(times)
    return Model(config, net, params, flow, tokenizer, step, times, shared, str(folder))


def _check_other_models(config: Config, folder: epath.Path) -> None:
    """Refuses a portable folder of unknown origin that names other models to be opened."""
    sampler = config["sampler"]
    named = {f"config.sampler.{key}": sampler.get(key) for key in ("weak", "reward", "bigrams")}
    if (folder / WEIGHTS).exists() and (found := [key for key in named if named[key]]):
        raise UserError(
            f"{folder}/config.json: {found[0]} is {named[found[0]]!r}, but a portable folder names "
            f"no other model; set it to '' there, and give --{found[0].rpartition('.')[2]} where "
            "you sample."
        )


_STUDENT_MAY_DIFFER = (
    "attention",
    "two_time",
    "dropout",
    "dtype",
    "param_dtype",
    "remat",
    "scan_blocks",
    "loss_tile",
    "self_conditioning",
)


def check_teacher(config: Config, tokenizer: Tokenizer, teacher: Model) -> None:
    """Refuses a model in config.objective.teacher from which the configuration cannot learn.

    Args:
      config: configuration of the student.
      tokenizer: tokenizer of the student's data.
      teacher: loaded model.

    Raises:
      UserError: a teacher of another family, other sizes, or another tokenizer.
    """
    student, other = family(config), family(teacher.config)
    where, goal = teacher_folder(config), objective_name(teacher.config)
    if student.teachers:
        require(
            other.name in student.teachers,
            f"config.objective.teacher {where} is a model of objective {goal}; objective "
            f"{objective_name(config)} starts from one of {' or '.join(student.teachers)}.",
        )
    else:
        require(
            other.from_noise,
            f"config.objective.teacher is a model of objective {goal}; expected a flow (objective "
            "denoising).",
        )
    if student.check_teacher:
        student.check_teacher(config, teacher.config, teacher.net)
    _same_form(config, tokenizer, teacher)


def starting_params(config: Config, tokenizer: Tokenizer, mesh: Mesh | None) -> Params:
    """Averaged parameters of config.objective.start or config.train.start; {} for none.

    Args:
      config: configuration of the student.
      tokenizer: tokenizer of the student's data.
      mesh: devices over which the parameters are split.

    Raises:
      UserError: no flow or flow map, or one of other sizes, tokenizer, flow or context; for
        config.train.start a model of another objective, or both keys are set.
    """
    where, other = config["objective"].get("start", ""), config["train"].get("start", "")
    if other:
        return _fine_tuned(config, tokenizer, mesh, other, where)
    if not where:
        return {}
    model = load_model(where, mesh, config["model"]["attention"])
    require(
        family(model.config).from_noise,
        f"config.objective.start {where} is a model of objective {objective_name(model.config)}; "
        "expected a flow (objective denoising) or a flow map.",
    )
    check_flow_teacher(config, model.config, model.net, "start")
    _same_form(config, tokenizer, model, "start")
    return model.params


def _fine_tuned(
    config: Config, tokenizer: Tokenizer, mesh: Mesh | None, where: str, other: str
) -> Params:
    """Returns the averaged parameters of config.train.start, the model at `where`, after checks."""
    name = objective_name(config)
    require(
        not other and not config["objective"].get("teacher") and not config["adapters"]["base"],
        f"config.train.start is {where}, but this run starts from another model; expected one of "
        "config.train.start, config.objective.teacher or start, and config.adapters.base.",
    )
    model = load_model(where, mesh, config["model"]["attention"])
    found = objective_name(model.config)
    require(
        found == name,
        f"config.train.start {where} is a model of objective {found}; expected {name}, that of "
        "this run.",
    )
    if family(config).from_noise:
        check_same_flow(config, model.config, "config.train.start")
    _same_form(config, tokenizer, model, "start", _COMPUTE)
    return model.params


def _same_form(
    config: Config,
    tokenizer: Tokenizer,
    teacher: Model,
    what: str = "teacher",
    may_differ: tuple[str, ...] = _STUDENT_MAY_DIFFER,
) -> None:
    """Refuses a teacher with other sizes or another tokenizer."""
    student, other = config["model"], teacher.config["model"]
    wrong = [
        f"{key}: {what} {other.get(key)!r}, student {student[key]!r}"
        for key in student
        if key not in may_differ and student[key] != other.get(key)
    ]
    if wrong:
        raise UserError(
            f"the student must have the {what}'s sizes ({'; '.join(wrong)}); "
            f"set config.model to the {what}'s."
        )
    require(
        tokenizer.fingerprint == teacher.tokenizer.fingerprint,
        f"the data's tokenizer ({tokenizer.fingerprint[:12]}) is not the {what}'s "
        f"({teacher.tokenizer.fingerprint[:12]}); prepare the data with it "
        "(--tokenizer=WORKDIR/tokenizer).",
    )


# How a base is computed; all else of config.model is the base's own.
_COMPUTE = ("length", "dropout", "attention", "dtype", "remat", "scan_blocks", "loss_tile")
# What a flow map adds to the adapters of its masked flow, and how it trains them.
_MAP_ADAPTERS = (
    "base",
    "start",
    "two_time",
    "dropout",
    "base_lr",
    "base_weight_decay",
    "time_decays",
)


def resolve_adapted(config: Config, base: Config, tokenizer: Tokenizer) -> Config:
    """Fills in the sizes of the base and the tokenizer's EOS in a configuration of adaptation.

    Raises:
      UserError: the base is not a llama of masked diffusion, or for a flow map no masked flow; or
        it is shorter than config.model.length.
    """
    where, model, given = config["adapters"]["base"], base["model"], config["model"]
    kind, own = family(base), family(config)
    maps = own.two_time
    fits = kind.anchored and kind.adapts == "never"
    require(
        network_kind(base).adapters and (kind.name in own.teachers if maps else fits),
        f"config.adapters.base {where} is a {model['name']} of objective {objective_name(base)}; "
        f"expected a llama of objective {'masked_flow' if maps else 'masked_diffusion'}.",
    )
    if maps:
        _check_map_start(config)
        adapters = {key: config["adapters"][key] for key in _MAP_ADAPTERS}
        flow = base["flow"] | {"redraw": config["flow"].get("redraw", True)}
        config = config | {"adapters": base["adapters"] | adapters, "flow": flow}
    require(
        given["length"] <= model["length"],
        f"config.model.length is {given['length']}, config.adapters.base {where} was trained for "
        f"{model['length']} tokens; set it to that or less.",
    )
    objective = config["objective"]
    if objective.get("eos_id", 0) < 0 and tokenizer.eos_id is not None:
        objective = objective | {"eos_id": tokenizer.eos_id}
    special = tokenizer.special_ids | {i for i in (tokenizer.unknown_id,) if i is not None}
    if "special_ids" in objective and not objective["special_ids"]:
        objective = objective | {"special_ids": sorted(special)}
    own = {key: given[key] for key in _COMPUTE}
    return config | {"model": given | model | own, "objective": objective}


def _check_map_start(config: Config) -> None:
    """Refuses a config.adapters.start that is no flow map of the same masked flow."""
    start, base = config["adapters"]["start"], config["adapters"]["base"]
    if not start:
        return
    theirs = read_config(located(start))
    require(
        family(theirs).name == family(config).name,
        f"config.adapters.start {start} is a model of objective {objective_name(theirs)}; expected "
        "a flow map of config.adapters.base; from that masked flow itself a map starts without it.",
    )
    other = theirs["adapters"]["base"]
    require(
        os.path.realpath(expanded(other)) == os.path.realpath(expanded(base)),
        f"config.adapters.start {start} is a map of {other}, config.adapters.base is {base}; "
        "expected a map of the same masked flow.",
    )


def check_adapted_tokenizer(config: Config, tokenizer: Tokenizer, base: Tokenizer) -> None:
    """Refuses data whose tokenizer differs from the base's."""
    require(
        tokenizer.fingerprint == base.fingerprint,
        f"the data's tokenizer ({tokenizer.fingerprint[:12]}) is not that of config.adapters.base "
        f"({base.fingerprint[:12]}); prepare the data with it (--tokenizer="
        f"{config['adapters']['base']}/tokenizer).",
    )
