"""Prompts of different lengths: read from JSON lines, laid out in rows, their answers cut out."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flm_jax.build.load import Model
from flm_jax.core.errors import require
from flm_jax.data.chat import MULTIPLE, framed
from flm_jax.data.jsonl import read_records
from flm_jax.data.text import Mender, tidy
from flm_jax.samplers.base import Given

_GAP = re.compile(r"\{(\d+)\}")
_EXPECTED = "JSON lines with the field 'prompt', or 'infill', or both"


class Prompt(NamedTuple):
    """What stands in a sequence before it is written.

    Attributes:
      text: stands first.
      infill: template that follows it; {n} stands for n tokens to write: "the {3} of the {5}".
      answer_length: tokens to write after both; None for as many as there is room for.
      where: its place, for messages.
    """

    text: str = ""
    infill: str = ""
    answer_length: int | None = None
    where: str = ""


class Layout(NamedTuple):
    """Rows to complete, with the answer of each at [start, stop).

    Attributes:
      given: int32 and bool [N, L], NumPy.
      starts, stops: int [N]; the answer begins behind the prompt's text.
    """

    given: Given
    starts: np.ndarray
    stops: np.ndarray


def read_prompts(path: str) -> list[Prompt]:
    """Prompts of JSON lines: "prompt" or "infill" or both, and optionally "answer_length".

    Raises:
      UserError: no such file, no line, or a bad one (its number).
    """
    prompts = []
    for where, record in read_records(path, _EXPECTED):
        texts = [record.get("prompt", ""), record.get("infill", "")]
        require(
            all(isinstance(text, str) for text in texts) and any(texts),
            f"{where}: expected text under 'prompt', or 'infill', or both, got the fields "
            f"{({k: record[k] for k in ('prompt', 'infill') if k in record}) or sorted(record)}.",
        )
        length = record.get("answer_length")
        least = 0 if texts[1] else 1
        require(
            length is None or (type(length) is int and length >= least),
            f"{where}: got {length!r} for 'answer_length'; expected a number of tokens, at least "
            f"{least}.",
        )
        prompts.append(Prompt(*map(tidy, texts), length, where))
    return prompts


def lay_out(
    model: Model,
    prompts: Sequence[Prompt],
    length: int,
    *,
    chat: bool = False,
    whole: bool = False,
) -> Layout:
    """Rows of the prompts, one each.

    A row begins with BOS where the model was trained with one, then the prompt's text and template.
    What follows the answer is held as padding by a model that was trained so, and else written and
    left out. Rows of networks that take any length are as short as all answers allow, in steps of
    64 tokens.

    Args:
      length: most tokens of a row.
      chat: frames the text of each as the question of an exchange, see `data.chat.framed`.
      whole: rows of exactly `length`.

    Raises:
      UserError: one that leaves no room to write, or more than there is (its place).
    """
    rows = [_row(model, prompt, length, chat) for prompt in prompts]
    width = length
    if _any_length(model) and not whole:
        longest = max(stop for _, _, _, stop in rows)
        width = min(length, -(-longest // MULTIPLE) * MULTIPLE)
    tokenizer = model.tokenizer
    pad = tokenizer.eos_id if tokenizer.pad_id is None else tokenizer.pad_id
    tokens, mask = np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width), bool)
    for i, (ids, held, _, stop) in enumerate(rows):
        tokens[i, : len(ids)], mask[i, : len(ids)] = ids, held
        if _padded(model) and pad is not None:
            tokens[i, stop:], mask[i, stop:] = pad, True
    starts, stops = (np.array([row[i] for row in rows]) for i in (2, 3))
    return Layout(Given(tokens, mask), starts, np.minimum(stops, width))


def room(model: Model, prompt: Prompt, length: int, chat: bool = False) -> int:
    """Tokens left to write after a prompt; 0 or less where it does not fit."""
    return length - len(_encoded(model, prompt, chat)[0])


def answer_text(model: Model, tokens: np.ndarray, start: int, stop: int) -> str:
    """Text of the answer in a completed row int [L], up to its first EOS."""
    answer = np.asarray(tokens)[start:stop]
    if model.tokenizer.eos_id is not None:
        ends = np.flatnonzero(answer == model.tokenizer.eos_id)
        answer = answer[: ends[0]] if len(ends) else answer
    return model.tokenizer.decode(answer)


def chatty(model: Model) -> bool:
    """Whether a model was trained on questions and answers."""
    return bool(model.config["data"].get("chat"))


def _padded(model: Model) -> bool:
    data = model.config["data"]
    return chatty(model) or (not data["task"] and data["packing"] == "pad")


def _any_length(model: Model) -> bool:
    return chatty(model) or model.net.any_length


def _encoded(model: Model, prompt: Prompt, chat: bool) -> tuple[list[int], list[bool], int]:
    """Tokens of prompt and template, which of them are held, and where the prompt ends."""
    mender = Mender()
    text = mender.text(prompt.text, prompt.where or "the prompt")
    infill = mender.text(prompt.infill, prompt.where or "the infill")
    begins = model.config["data"]["packing"] != "stream" and not chatty(model)
    tokens = [model.tokenizer.bos_id] if begins and model.tokenizer.bos_id is not None else []
    text = framed(text) if chat else text
    tokens += [int(t) for t in model.tokenizer.encode(text)] if text else []
    held, start = [True] * len(tokens), len(tokens)
    for i, part in enumerate(_GAP.split(infill)):
        ids = [0] * int(part) if i % 2 else [int(t) for t in model.tokenizer.encode(part)]
        tokens += ids
        held += [i % 2 == 0] * len(ids)
    return tokens, held, start


def _row(model: Model, prompt: Prompt, length: int, chat: bool):
    """Tokens, which of them are held, where the answer begins, and where it ends."""
    tokens, held, start = _encoded(model, prompt, chat)
    kind = "infill" if prompt.infill else "prompt"
    where = f"{prompt.where}: " if prompt.where else ""
    more = prompt.answer_length
    require(
        len(tokens) <= length and (len(tokens) < length or not all(held)),
        f"{where}the {kind} takes {len(tokens)} of {length} tokens and must leave room to write; "
        "shorten it.",
    )
    require(
        more is None or len(tokens) + more <= length,
        f"{where}the {kind} takes {len(tokens)} tokens and its answer {more}; expected at most "
        f"{length} together.",
    )
    require(
        more != 0 or not all(held),
        f"{where}the infill has no {{n}} and the answer_length 0; expected something to write.",
    )
    return tokens, held, start, length if more is None else len(tokens) + more
