"""Opens the data that a configuration names, and fits its vocabulary to them."""

from typing import Any, NamedTuple

from flm_jax.core import types
from flm_jax.core.errors import require
from flm_jax.core.types import Config
from flm_jax.data.chat import open_chat
from flm_jax.data.corpus.store import load_prepared
from flm_jax.data.packing import PackedSource
from flm_jax.data.pipeline import MixedSource, Mixture, Source
from flm_jax.data.self_generated import open_generated
from flm_jax.data.tasks.base import Task
from flm_jax.data.tasks.registry import make_task
from flm_jax.data.tokenizers.base import Tokenizer
from flm_jax.data.tokenizers.registry import make_tokenizer


class Data(NamedTuple):
    """Training examples (sources with weights), held-out ones, and their tokenizer.

    `task` is that of synthetic data, else None.
    """

    train: Mixture
    valid: Source
    tokenizer: Tokenizer
    task: Task | None


def open_data(config: Config) -> Data:
    """Opens the data of a configuration.

    Raises:
      UserError: none or several of data.path, data.mixture and data.task; missing or damaged data;
        no example; a mixture of several tokenizers.
    """
    old = {"chat": (), "tokenizer": "", "generated": ""}
    cfg, length = old | config["data"], config["model"]["length"]
    if cfg["generated"]:
        return _generated(cfg, length)
    given = [f"config.data.{key}" for key in ("path", "mixture", "chat", "task") if cfg[key]]
    require(
        len(given) == 1,
        f"got {' and '.join(given) or 'no data'}; set exactly one of config.data.path (a folder "
        "that prepare_data wrote), config.data.mixture (pairs of folder and weight), "
        "config.data.chat (pairs of file and weight) and config.data.task.",
    )
    if cfg["chat"]:
        name = cfg["tokenizer"] or (config["adapters"]["base"] or ".") + "/tokenizer"
        tokenizer = make_tokenizer(name, documents=lambda: ())
        train, valid = open_chat(_mixture(cfg["chat"], "chat"), tokenizer, length)
        return Data(train, valid, tokenizer, None)
    if cfg["task"]:
        task = make_task(cfg["task"])
        require(
            length == task.length,
            f"task {task.name} has sequences of {task.length} tokens, config.model.length is "
            f"{length}; set it to {task.length}.",
        )
        train = [(task.source(cfg["task_size"], config["seed"]), 1.0)]
        return Data(train, task.source(4096, config["seed"] + 1), task.tokenizer, task)
    parts = _mixture(cfg["mixture"]) if cfg["mixture"] else [(cfg["path"], 1.0)]
    folders = [load_prepared(folder) for folder, _ in parts]
    first = folders[0]
    for folder in folders:
        require(
            folder.tokenizer.fingerprint == first.tokenizer.fingerprint,
            f"{folder.path} and {first.path} have different tokenizers "
            f"({folder.tokenizer.fingerprint[:12]}, {first.tokenizer.fingerprint[:12]}); prepare "
            f"both with one (--tokenizer={first.path / 'tokenizer'}).",
        )

    def packed(split: str):
        sources = [
            PackedSource(f.split(split), f.tokenizer, length, cfg["packing"]) for f in folders
        ]
        return [(source, weight) for source, (_, weight) in zip(sources, parts)]

    return Data(packed("train"), MixedSource(packed("valid")), first.tokenizer, None)


def _generated(cfg: Config, length: int) -> Data:
    """Texts that a model wrote; a task beside them is the one whose problems it answered."""
    given = [f"config.data.{key}" for key in ("path", "mixture", "chat") if cfg[key]]
    require(
        not given,
        f"got config.data.generated and {' and '.join(given)}; set one of them.",
    )
    train, valid, tokenizer = open_generated(cfg["generated"], length)
    task = make_task(cfg["task"]) if cfg["task"] else None
    require(
        task is None or task.tokenizer.fingerprint == tokenizer.fingerprint,
        f"{cfg['generated']} has another tokenizer than task {cfg['task']}; expected texts of a "
        "model of that task, or config.data.task = ''.",
    )
    return Data([(train, 1.0)], valid, tokenizer, task)


def _mixture(pairs: Any, key: str = "mixture") -> list[tuple[str, float]]:
    """Checked (folder or file, weight) pairs of config.data.mixture or chat."""
    good = isinstance(pairs, (list, tuple)) and all(
        isinstance(pair, (list, tuple))
        and len(pair) == 2
        and isinstance(pair[0], str)
        and isinstance(pair[1], (int, float))
        and pair[1] > 0
        for pair in pairs
    )
    require(
        good,
        f"config.data.{key} is {pairs!r}; expected pairs of path and weight > 0, such as "
        "(('data/a', 3.0), ('data/b', 1.0)).",
    )
    return [(folder, float(weight)) for folder, weight in pairs]


def resolve_vocabulary(config: Config, tokenizer: Tokenizer) -> Config:
    """Fills model.vocab_size from the tokenizer, or checks that it covers it."""
    got, need = config["model"]["vocab_size"], tokenizer.vocab_size
    require(
        got == 0 or got >= need,
        f"config.model.vocab_size is {got}, the data's tokenizer has {need} tokens; "
        "set it to 0 to take the tokenizer's.",
    )
    return config | {"model": config["model"] | {"vocab_size": got or need}}


def framing(config: types.Config) -> str:
    """How a model's examples look, see `Judge.framing`; those of tasks have no frame."""
    return "stream" if config["data"]["task"] else config["data"]["packing"]
