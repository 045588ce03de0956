"""Prompts of different lengths, read from JSON lines and laid out in rows, and their answers."""

import os
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flm_jax.build.families.registry import family
from flm_jax.build.load import Model
from flm_jax.core.errors import require
from flm_jax.data.chat import asked
from flm_jax.data.jsonl import read_records
from flm_jax.data.pipeline import padded_length
from flm_jax.data.text import Mender, tidy
from flm_jax.data.tokenizers.base import Tokenizer
from flm_jax.samplers.base import Given

_GAP = re.compile(r"\{(\d+)\}")
_EXPECTED = "JSON lines with the field 'prompt', or 'infill', or both"


class Prompt(NamedTuple):
    """Text that is prescribed before a sequence is generated.

    Attributes:
      text: text at the beginning.
      infill: template that follows it; {n} stands for n tokens to generate: "the {3} of the {5}".
      answer_length: number of tokens to generate after both; None for all the room that is left.
      where: place of the prompt, for messages.
      before: earlier questions of a chat and their answers, alternating.
    """

    text: str = ""
    infill: str = ""
    answer_length: int | None = None
    where: str = ""
    before: tuple[str, ...] = ()


class Layout(NamedTuple):
    """Rows to complete, with the answer of each at [start, stop).

    Attributes:
      given: arrays [N, L] of prescribed tokens, NumPy.
      starts, stops: int [N]; the answer starts after the prompt's text.
    """

    given: Given
    starts: np.ndarray
    stops: np.ndarray


def read_prompts(path: str) -> list[Prompt]:
    """Reads prompts from JSON lines: "prompt" or "infill" or both, and optionally "answer_length".

    Raises:
      UserError: no such file, no lines, or a bad line, whose number the message names.
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
    cut: bool = False,
) -> Layout:
    """Lays out prompts as rows, one row for each.

    A row begins with BOS if the model was trained with one, or as the chat template begins; then
    come the prompt's text and template. Positions after an answer of given length are not seen by
    masked diffusion models, whatever stands in the other rows; other models have padding there if
    they were trained with it, and otherwise generate tokens that are dropped. Rows of networks that
    take any length are as short as all answers allow, see `padded_length`.

    Args:
      length: largest number of tokens of a row.
      chat: whether each text is framed as the question of an exchange, see `data.chat.asked`.
      whole: whether rows have exactly `length` tokens.
      cut: whether a prompt loses the tokens at its beginning for which there is no room.

    Raises:
      UserError: a prompt that fills the row, or is longer than it; the message names its line.
    """
    rows = [_row(model, prompt, length, chat, cut) for prompt in prompts]
    width = length
    if _any_length(model) and not whole:
        longest = max(stop for _, _, _, stop in rows)
        width = padded_length(longest, length)
    tokenizer, canvas = model.tokenizer, family(model.config).canvas
    pad = tokenizer.eos_id if tokenizer.pad_id is None else tokenizer.pad_id
    tokens, mask = np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width), bool)
    for i, (ids, held, _, stop) in enumerate(rows):
        tokens[i, : len(ids)], mask[i, : len(ids)] = ids, held
        if canvas or (_padded(model) and pad is not None):
            tokens[i, stop:], mask[i, stop:] = pad or 0, True
    starts, stops = (np.array([row[i] for row in rows]) for i in (2, 3))
    stops = np.minimum(stops, width)
    seen = np.arange(width) < stops[:, None] if canvas and (stops < width).any() else None
    return Layout(Given(tokens, mask, seen), starts, stops)


def room(model: Model, prompt: Prompt, length: int, chat: bool = False) -> int:
    """Number of tokens left to generate after a prompt; 0 or less if it does not fit."""
    return length - len(_encoded(model, prompt, length, chat)[0])


class Texts(NamedTuple):
    """Texts of a completed row: of the answer, and of prompt and answer."""

    answer: str
    whole: str


def answer_texts(tokenizer: Tokenizer, tokens: np.ndarray, start: int, stop: int) -> Texts:
    """Returns the texts of a completed row int [L], up to the first token that ends its answer.

    The answer is the text that its tokens add to the prompt's text: decoded alone, it would lose a
    leading space with some tokenizers, or could not complete a word.

    Args:
      start, stop: bounds of the answer, [start, stop).
    """
    row = np.asarray(tokens)
    ends = np.flatnonzero(np.isin(row[start:stop], sorted(tokenizer.end_ids)))
    stop = start + int(ends[0]) if len(ends) else stop
    whole = tokenizer.decode(row[:stop])
    return Texts(uncut_text(tokenizer, row, start, stop), whole)


def uncut_text(tokenizer: Tokenizer, tokens: np.ndarray, start: int, stop: int) -> str:
    """Returns the text of [start, stop) in a row int [L], including all after the answer's end."""
    before, whole = tokenizer.decode(tokens[:start]), tokenizer.decode(tokens[:stop])
    # What follows may change the end of the text before it: a character cut in two becomes whole.
    return whole[len(os.path.commonprefix([before, whole])) :]


def chatty(model: Model) -> bool:
    """Whether a model was trained on questions and answers."""
    return bool(model.config["data"].get("chat"))


def _padded(model: Model) -> bool:
    data = model.config["data"]
    if chatty(model):
        return data["padding"] == "ignored"
    return not data["task"] and data["packing"] == "pad"


def _any_length(model: Model) -> bool:
    return chatty(model) or model.net.any_length


def _encoded(
    model: Model, prompt: Prompt, length: int, chat: bool
) -> tuple[list[int], list[bool], int]:
    """Tokens of prompt and template, the mask of prescribed ones, and the end of the prompt."""
    mender = Mender()
    text = mender.text(prompt.text, prompt.where or "the prompt")
    infill = mender.text(prompt.infill, prompt.where or "the infill")
    tokens = _beginning(model, chat)
    if chat:
        tokens += asked(model.tokenizer, [*prompt.before, text]).tolist()
    elif text:
        tokens += model.tokenizer.encode(text).tolist()
    held, start = [True] * len(tokens), len(tokens)
    # The digits of gaps are the odd parts, the texts around them the even ones.
    parts = _GAP.split(infill)
    gaps = [*(_gap(digits, length, prompt.where) for digits in parts[1::2]), 0]
    for ids, gap in zip(_around(model.tokenizer, parts[::2], chat or bool(text)), gaps):
        tokens += [*ids.tolist(), *[0] * gap]
        held += [True] * len(ids) + [False] * gap
    return tokens, held, start


def _gap(digits: str, length: int, where: str) -> int:
    """Number of tokens of a gap; refuses gaps that no row could hold."""
    # Cut to one digit more than a valid number has, since Python refuses to read thousands of
    # them.
    few = digits.lstrip("0")[: len(str(length)) + 1] or "0"
    require(
        int(few) <= length,
        f"{where and where + ': '}the infill has a gap of {digits[:20]} tokens; expected at most "
        f"{length}, those of a row.",
    )
    return int(few)


def _beginning(model: Model, chat: bool) -> list[int]:
    """BOS if rows begin with it; a chat template determines its own beginning."""
    bos, own = model.tokenizer.bos_id, chat and model.tokenizer.has_template
    framed = model.config["data"]["packing"] != "stream" and not chatty(model)
    return [bos] if framed and not own and bos is not None else []


def _around(tokenizer: Tokenizer, parts: Sequence[str], behind: bool) -> list[np.ndarray]:
    """Ids of the text around the gaps of an infill; `behind` if there is text before it."""
    return tokenizer.encode_parts(["", *parts])[1:] if behind else tokenizer.encode_parts(parts)


def _row(model: Model, prompt: Prompt, length: int, chat: bool, cut: bool = False):
    """Tokens, the mask of prescribed ones, and the bounds of the answer."""
    tokens, held, start = _encoded(model, prompt, length, chat)
    if cut:
        least = (1 if all(held) else 0) if prompt.answer_length is None else prompt.answer_length
        lost = min(start, max(0, len(tokens) + least - length))
        tokens, held, start = tokens[lost:], held[lost:], start - lost
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
