"""Runs a benchmark: answers in batches, with a record of each score, and resumes interrupted runs.

A folder holds settings.json, records.jsonl (one line for each answer), and at the end summary.json.
A run that was stopped writes the same records as an uninterrupted one: each batch has its own
random key.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from flm_jax.build.load import Model
from flm_jax.core.errors import require
from flm_jax.core.files import append_json_line, read_json_lines, to_json, write_whole
from flm_jax.core.reading import read_object
from flm_jax.evaluation.benchmarks.base import Benchmark, Choices, Record
from flm_jax.evaluation.benchmarks.sandbox import Sandbox
from flm_jax.inference import engine
from flm_jax.inference.answer_file import check_settings, digest, plain_settings
from flm_jax.inference.answers import Answer, Answering, answer_batches
from flm_jax.inference.prompts import Prompt, room

SETTINGS, RECORDS, SUMMARY = "settings.json", "records.jsonl", "summary.json"
Key = tuple[str | int, int, int]
# (prompts, wanted) -> batches of answers to the wanted ones.
Answerer = Callable[[Sequence[Prompt], Callable[[int], bool]], Iterator[list[Answer]]]


def check_room(model: Model, benchmark: Benchmark, how: Answering) -> None:
    """Refuses a benchmark whose first questions all exceed the model's rows, before other work.

    Raises:
      UserError: none of them fits.
    """
    _fitting(model, [benchmark.prompt(i, []) for i in range(len(benchmark.ids))], how)


def _fitting(model: Model, asked: Sequence[Prompt], how: Answering) -> tuple[list[int], list[int]]:
    """Room that is left after each prompt, and the indices of prompts that leave some."""
    length = how.length or model.net.max_length
    engine.check_request(model, [how.steps], len(asked), length)
    rooms = [room(model, prompt, length, how.chat) for prompt in asked]
    if how.cut:
        rooms = [max(left, 1) for left in rooms]
    fit = [place for place, left in enumerate(rooms) if left >= 1]
    require(
        bool(fit),
        f"no prompt of the benchmark fits in {length} tokens, the longest that the model may "
        f"write; the shortest takes {length - max(rooms, default=0)}.",
    )
    return rooms, fit


def by_model(model: Model, how: Answering) -> Answerer:
    """Returns an answerer by a model; a prompt that leaves no room gets "" without a call.

    Raises:
      UserError: none of the prompts fits.
    """

    def answer(asked: Sequence[Prompt], wanted: Callable[[int], bool]) -> Iterator[list[Answer]]:
        rooms, fit = _fitting(model, asked, how)
        if lost := [Answer(i, "", "", 0) for i, left in enumerate(rooms) if left < 1 and wanted(i)]:
            yield lost
        most = how.answer_length
        lengths = [min(most, left) if most else None for left in rooms]
        prompts = [asked[i]._replace(answer_length=lengths[i]) for i in fit]
        for batch in answer_batches(model, prompts, how, lambda i: wanted(fit[i])):
            yield [one._replace(place=fit[one.place]) for one in batch]

    return answer


def by_reference(benchmark: Benchmark, batch_size: int, samples: int = 1) -> Answerer:
    """Returns an answerer with the correct answers, in the form of a model's answers."""
    require(
        benchmark.reference is not None, "got --reference; this benchmark has no right answers."
    )

    def answer(asked: Sequence[Prompt], wanted: Callable[[int], bool]) -> Iterator[list[Answer]]:
        places = [place for place in range(len(asked)) if wanted(place)]
        for start in range(0, len(places), batch_size):
            some = places[start : start + batch_size]
            found = [benchmark.reference(place // samples) for place in some]
            yield [Answer(i, text, asked[i].text + text, 0, text) for i, text in zip(some, found)]

    return answer


def settings_of(data: str, choices: Choices, sandbox: Sandbox | None) -> dict[str, Any]:
    """Settings on which records depend besides the model: data, examples, choices, sandbox.

    Args:
      data: path of the benchmark's data.
      choices: options; those that only the summary reads are left out.
      sandbox: sandbox of benchmarks with programs.
    """
    files = {
        f"{name}_sha256": digest(Path(path).read_bytes())
        for name, path in (("data", data), ("examples", choices.examples))
        if path
    }
    more = dataclasses.asdict(choices)
    for name in ("pass_at", "examples", "judge_model", "judge_prompts", "judge_references"):
        del more[name]
    where = {"isolation": sandbox.isolation, "seconds": sandbox.limits.seconds} if sandbox else {}
    return files | more | where


def by_key(records: Sequence[Record]) -> dict[Key, Record]:
    """Dict of records by (problem, sample, turn)."""
    return {(r["id"], r["sample"], r["turn"]): r for r in records}


def open_folder(folder: Path, settings: dict[str, Any]) -> list[Record]:
    """Returns the existing records of a folder.

    Raises:
      UserError: records with other settings, or damaged ones.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, settings = folder / SETTINGS, plain_settings(settings)
    if path.exists():
        before = read_object(path, "the settings of a benchmark")
        check_settings(folder, before, settings, "give those, or another --out")
    else:
        write_whole(path, to_json(settings, indent=1) + "\n")
    return read_json_lines(folder / RECORDS, mend=True)


def collect(
    benchmark: Benchmark,
    folder: Path,
    done: dict[Key, Record],
    answer: Answerer,
    samples: int = 1,
    show: Callable[[int, int], None] = lambda done, of: None,
    first: bool = True,
) -> list[Record]:
    """Answers and scores all problems that are not done yet.

    Args:
      done: existing records by key, from `open_folder`.
      samples: number of answers to each problem.
      show: callback that takes the numbers of completed and of all records.
      first: whether this process scores and writes; other processes only share its answers.

    Returns:
      All records, in the order of turns, problems and samples.
    """
    require(samples >= 1, f"got samples={samples}; expected at least 1.")
    places = list(itertools.product(range(len(benchmark.ids)), range(samples)))
    order: list[Key] = []
    for turn in range(benchmark.turns):
        keys = [(benchmark.ids[i], sample, turn) for i, sample in places]
        order += keys
        if all(key in done for key in keys):
            continue
        earlier = [[done[(*key[:2], t)]["answer"] for t in range(turn)] for key in keys]
        asked = [benchmark.prompt(i, before) for (i, _), before in zip(places, earlier)]
        for batch in answer(asked, lambda place, keys=keys: keys[place] not in done):
            batch = [one._replace(text=benchmark.cleaned(one.text)) for one in batch]
            problems = [places[one.place][0] for one in batch]
            scores = _scores(benchmark, problems, batch) if first else [{}] * len(batch)
            records = [
                _record(keys[one.place], asked[one.place], one, score)
                for one, score in zip(batch, scores)
            ]
            if first:
                append_json_line(folder / RECORDS, records)
            done.update((keys[one.place], record) for one, record in zip(batch, records))
            show(len(done), len(places) * benchmark.turns)
    return [done[key] for key in order]


def _scores(
    benchmark: Benchmark, problems: Sequence[int], answers: Sequence[Answer]
) -> list[Record]:
    """Fields of the records of answers, with all generated text if it is used and longer."""
    scores = benchmark.score([(i, one.text) for i, one in zip(problems, answers)])
    if benchmark.score_uncut is None:
        return scores
    written = [one.uncut or one.text for one in answers]
    more = benchmark.score_uncut(list(zip(problems, written)))
    kept = [{} if one.text == text else {"uncut": text} for one, text in zip(answers, written)]
    return [{**score, **other, **text} for score, other, text in zip(scores, more, kept)]


def _record(key: Key, prompt: Prompt, answer: Answer, score: Record) -> Record:
    # An answer that took no call did not fit; right answers take none either, but have a text.
    lost = {} if answer.calls or answer.whole else {"too_long": True}
    name = dict(zip(("id", "sample", "turn"), key))
    given = {"before": list(prompt.before)} if prompt.before else {}
    given |= {"prompt": prompt.text, "answer": answer.text, "calls": answer.calls}
    return name | given | lost | score


def summarise(benchmark: Benchmark, records: Sequence[Record]) -> Record:
    """Figures of all records, with the numbers of problems and of those that did not fit."""
    asked = [record["calls"] for record in records if not record.get("too_long")]
    row = {
        "problems": len(benchmark.ids),
        "samples_each": len(records) // (len(benchmark.ids) * benchmark.turns),
        "calls": sum(asked) / max(len(asked), 1),
        "too_long": len(records) - len(asked),
    }
    return row | benchmark.summary(records)
