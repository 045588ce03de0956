"""Opens the data that settings name."""

import dataclasses
from typing import Any, NamedTuple

from flm_jax.core.errors import require
from flm_jax.core.settings import setting
from flm_jax.data.chat import PADDINGS, TOO_LONG, Framing, open_chat
from flm_jax.data.corpus.store import load_prepared
from flm_jax.data.packing import PACKINGS, PackedSource
from flm_jax.data.pipeline import MixedSource, Mixture, Source
from flm_jax.data.self_generated import open_generated
from flm_jax.data.tasks.base import Task
from flm_jax.data.tasks.registry import make_task
from flm_jax.data.tokenizers.base import Tokenizer
from flm_jax.data.tokenizers.registry import make_tokenizer


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Training data: one of path, mixture, chat and task, or what a model generated."""

    path: str = setting("", "Folder written by prepare_data.")
    mixture: tuple = setting(
        (), "Several such folders with one tokenizer: pairs (folder, weight > 0)."
    )
    chat: tuple = setting(
        (),
        "Files of questions and answers, or folders of them, see data/instruction_sets.py: "
        "pairs (path, weight > 0).",
    )
    padding: str = setting(
        "answer",
        "Filling of a row after a chat answer: answer (ends of text that count as part of the"
        " answer, so that models learn how long answers are) or ignored (padding that does "
        "not count).",
        choices=PADDINGS,
    )
    too_long: str = setting(
        "skip",
        "Treatment of chat exchanges that do not fit: skip (left out) or cut (truncated at "
        "the end).",
        choices=TOO_LONG,
    )
    tokenizer: str = setting(
        "",
        "Tokenizer of chat: bytes, hf:NAME_OR_FOLDER, or a saved folder; empty for the "
        "tokenizer of config.adapters.base.",
    )
    task: str = setting(
        "",
        "Synthetic task, with the model.length it needs: phrases2, phrases4, phrases_shared "
        "(2), arithmetic, arithmetic_reversed (12), arithmetic7 (24), sudoku (81), grammar "
        "(16), functions (24), written_sums (44).",
    )
    task_prompts: bool = setting(
        False, "Whether the task's sequences are problems whose given part is a prompt."
    )
    task_size: int = setting(100_000, "Number of training sequences of the task.", range="[1, inf)")
    generated: str = setting(
        "",
        "Folder written by generate_data; task then names the task whose problems were answered.",
    )
    packing: str = setting(
        "wrap", "Packing of documents into sequences, see data/packing.py.", choices=PACKINGS
    )
    group: int = setting(
        0,
        "Number of documents that are joined and cut together, dropping what does not fill a "
        "last sequence; 0 for all of a split, 1000 as for the published models.",
        range="[0, inf)",
    )
    prefix_crop: float = setting(
        0.0,
        "Probability that a training batch is cut to a prefix of random length, a multiple of"
        " 64 tokens.",
        range="[0, 1]",
    )
    threads: int = setting(
        1, "Number of reader threads; 0 to read in the training loop.", range="[0, inf)"
    )
    prefetch: int = setting(4, "Number of batches read ahead.", range="[0, inf)")


class Data(NamedTuple):
    """Training examples (sources with weights), held-out examples, and their tokenizer.

    `task` is the task of synthetic data, else None.
    """

    train: Mixture
    valid: Source
    tokenizer: Tokenizer
    task: Task | None


def load_data(cfg: DataConfig, *, length: int, seed: int, tokenizer: str) -> Data:
    """Opens the data of a configuration.

    Args:
      cfg: settings of the data.
      length: length of a sequence in tokens.
      seed: seed of a task's sequences.
      tokenizer: name or folder of the tokenizer of chat data if `cfg` names none.

    Raises:
      UserError: none or several of data.path, data.mixture and data.task; missing or damaged data;
        no examples; a mixture with several tokenizers.
    """
    if cfg.generated:
        return _generated(cfg, length)
    given = [
        f"config.data.{key}" for key in ("path", "mixture", "chat", "task") if getattr(cfg, key)
    ]
    require(
        len(given) == 1,
        f"got {' and '.join(given) or 'no data'}; set exactly one of config.data.path (a folder "
        "that prepare_data wrote), config.data.mixture (pairs of folder and weight), "
        "config.data.chat (pairs of file and weight) and config.data.task.",
    )
    if cfg.chat:
        found = make_tokenizer(cfg.tokenizer or tokenizer, documents=lambda: ())
        how = Framing(length, cfg.padding, cfg.too_long)
        train, valid = open_chat(_mixture(cfg.chat, "chat"), found, how)
        return Data(train, valid, found, None)
    if cfg.task:
        task = make_task(cfg.task)
        require(
            length == task.length,
            f"task {task.name} has sequences of {task.length} tokens, config.model.length is "
            f"{length}; set it to {task.length}.",
        )
        train = [(task.source(cfg.task_size, seed, cfg.task_prompts), 1.0)]
        valid = task.source(4096, seed + 1, cfg.task_prompts)
        return Data(train, valid, task.tokenizer, task)
    parts = _mixture(cfg.mixture) if cfg.mixture else [(cfg.path, 1.0)]
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
        cut = (length, cfg.packing, cfg.group)
        sources = [PackedSource(f.split(split), f.tokenizer, *cut) for f in folders]
        return [(source, weight) for source, (_, weight) in zip(sources, parts)]

    return Data(packed("train"), MixedSource(packed("valid")), first.tokenizer, None)


def _generated(cfg: DataConfig, length: int) -> Data:
    """Opens texts that a model generated; a task names the one whose problems it answered."""
    given = [f"config.data.{key}" for key in ("path", "mixture", "chat") if getattr(cfg, key)]
    require(
        not given,
        f"got config.data.generated and {' and '.join(given)}; set one of them.",
    )
    train, valid, tokenizer = open_generated(cfg.generated, length)
    task = make_task(cfg.task) if cfg.task else None
    require(
        task is None or task.tokenizer.fingerprint == tokenizer.fingerprint,
        f"{cfg.generated} has another tokenizer than task {cfg.task}; expected texts of a "
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
