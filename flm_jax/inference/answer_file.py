"""Answers stored while they are generated, beside their file, so that a stopped run continues.

FILE.part gets a line with the settings, then one for each answer when its batch is done. FILE is
written at the end, atomically, and FILE.part removed.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from flm_jax.build.load import Model
from flm_jax.core.errors import require
from flm_jax.core.files import append_json_line, json_lines, read_json_lines, to_json, write_whole
from flm_jax.core.locks import alone
from flm_jax.core.paths import is_remote
from flm_jax.distributed.agreement import by_first
from flm_jax.inference.answers import Answer, Answering, answer_batches
from flm_jax.inference.prompts import Prompt
from flm_jax.samplers.base import plain_steps

Record = dict[str, Any]


def digest(content: bytes) -> str:
    """Short hash of a content."""
    return hashlib.sha256(content).hexdigest()[:16]


def described(model: Model, workdir: str, how: Answering) -> Record:
    """Settings on which a model's answers depend."""
    config = digest(json.dumps(model.config, sort_keys=True, default=str).encode())
    own = {"model": workdir, "model_step": model.step, "config_sha256": config}
    return own | dataclasses.asdict(how) | {"steps": plain_steps(how.steps)}


def plain_settings(settings: Record) -> Record:
    """Settings after a round trip through a file."""
    return json.loads(to_json(settings, default=str))


def check_settings(where: Path, before: Record, settings: Record, mend: str) -> None:
    """Refuses to mix records of different settings; the message names those that differ.

    Args:
      where: place of the records, for the message.
      before: plain settings of the existing records.
      settings: plain settings of the new records.
      mend: advice if they differ.

    Raises:
      UserError: they differ.
    """
    keys = [key for key in settings | before if settings.get(key) != before.get(key)]
    differ = "; ".join(f"{k}: {before.get(k)!r} there, {settings.get(k)!r} now" for k in keys)
    require(not keys, f"{where} holds records of other settings ({differ}); {mend}.")


class AnswerFile:
    """Records by (number of the run, index of the prompt), opened by `open_answers`."""

    def __init__(self, part: Path | None, records: dict[tuple[int, int], Record]):
        self._part, self._records = part, records

    def done(self, run: int) -> int:
        """Number of existing answers of a run."""
        return sum(number == run for number, _ in self._records)

    def answer(
        self,
        model: Model,
        prompts: Sequence[Prompt],
        how: Answering,
        run: int,
        show: Callable[[int], None] = lambda done: None,
    ) -> list[Record]:
        """Answers the prompts that have no answer yet; returns records of all, in their order.

        Each batch is on the disk before the next one is drawn.

        Args:
          model: model that answers.
          prompts: prompts of the run, the same ones whenever the file is opened with its settings.
          how: settings of the run.
          run: number of the run, among several with the same prompts.
          show: callback that takes the number of answers of the run, after each batch.

        Raises:
          UserError: for the errors of `answer_batches`.
        """
        records = self._records
        for batch in answer_batches(model, prompts, how, lambda i: (run, i) not in records):
            new = {one.place: _record(prompts[one.place], one, how) for one in batch}
            if self._part and jax.process_index() == 0:
                lines = [{"run": run, "place": i, "record": new[i]} for i in new]
                append_json_line(self._part, lines)
            records.update(((run, place), record) for place, record in new.items())
            show(self.done(run))
        return [records[run, place] for place in range(len(prompts))]


def _record(prompt: Prompt, answer: Answer, how: Answering) -> Record:
    own = {"infill": prompt.infill} if prompt.infill else {}
    more = {"steps": plain_steps(how.steps), "seed": how.seed, "calls": answer.calls}
    return {"prompt": prompt.text, **own, "answer": answer.text, "text": answer.whole} | more


@contextlib.contextmanager
def open_answers(path: str, settings: Record) -> Iterator[AnswerFile]:
    """Opens the answers of a file, including the answers of a run that was stopped.

    Answers are not stored where appending is impossible, in object stores and pipes. The caller
    writes the file before this context ends; then FILE.part is removed, but kept after an error.

    Args:
      path: path of the file; "" for none. One process at a time generates its answers.
      settings: settings on which the answers depend.

    Raises:
      UserError: FILE.part holds answers with other settings, or another process generates them.
    """
    file = Path(path)
    if not path or is_remote(path) or (file.exists() and not file.is_file()):
        yield AnswerFile(None, {})
        return
    part = file.with_name(f"{file.name}.part")
    with contextlib.ExitStack() as held:

        def opened() -> list[Record]:
            held.enter_context(alone(file.parent, "answering prompts", f".{file.name}"))
            return _opened(part, plain_settings(settings))

        found = by_first(opened)
        yield AnswerFile(part, {(one["run"], one["place"]): one["record"] for one in found})
        if jax.process_index() == 0:
            part.unlink()


def _opened(part: Path, settings: Record) -> list[Record]:
    """Records of a part, which is created if there is none."""
    lines = read_json_lines(part, mend=True)
    if not lines:
        write_whole(part, json_lines([{"settings": settings}]))
        return []
    mend = "give those to go on, or another --out, or remove it"
    check_settings(part, lines[0].get("settings", {}), settings, mend)
    return lines[1:]
