"""Questions and answers as rows, each framed as one exchange; the question is the prompt.

A tokenizer's own chat template frames them, if it has one; otherwise this format does:

    USER:\n{prompt}\nASSISTANT:\n{response}EOS

With a template, its end-of-turn token precedes the EOS.

`data.instruction_sets` describes the lines.
"""

import copy
import functools
import hashlib
import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flm_jax.core.errors import UserError, require
from flm_jax.data.instruction_sets import Exchange, read_exchanges
from flm_jax.data.pipeline import MULTIPLE, Batch, MixedSource, Mixture, Source
from flm_jax.data.tokenizers.base import Tokenizer

_HELD_OUT = 20  # every so many lines one is kept for validation
PADDINGS, TOO_LONG = ("answer", "ignored"), ("skip", "cut")


def framed(*turns: str) -> str:
    """Returns the text before an answer for tokenizers without a template; turns as in `asked`."""
    heads = ("USER:\n", "ASSISTANT:\n")
    return "".join(f"{heads[i % 2]}{turn}\n" for i, turn in enumerate(turns)) + heads[1]


def asked(tokenizer: Tokenizer, turns: Sequence[str]) -> np.ndarray:
    """Token ids of everything before an answer, int32.

    Args:
      turns: turns of user and assistant, alternating; the first and the last are the user's.

    Raises:
      UserError: the tokenizer's chat template does not accept them.
    """
    ids = tokenizer.encode_turns(turns)
    return tokenizer.encode(framed(*turns)) if ids is None else ids


def told(tokenizer: Tokenizer, response: str) -> np.ndarray:
    """Token ids of an answer with its end, int32: the end of a turn, if there is one, and EOS."""
    ends = [i for i in (tokenizer.turn_end_id, tokenizer.eos_id) if i is not None]
    _, ids = tokenizer.encode_parts(["", response])
    return np.concatenate([ids, list(dict.fromkeys(ends))]).astype(np.int32)


class Framing(NamedTuple):
    """Settings by which exchanges become rows.

    Attributes:
      length: number of tokens of a row.
      padding: filling after an answer: "answer", its end of text, which counts as answer, so that
        models learn how long answers are; "ignored", padding that does not count.
      too_long: treatment of exchanges that do not fit: "skip" leaves them out; "cut" truncates the
        end of their answer and the end of text, and refuses a question that leaves no room.
    """

    length: int
    padding: str
    too_long: str


class ChatSource:
    """Random-access examples {"tokens": int32 [L], "mask", "prompt", "written": bool [L]}.

    `mask` is True where tokens count, `prompt` at the question, and `written` up to the end of the
    answer (see `cropped`).

    Raises:
      UserError: no exchange fits; a question leaves no room, where answers are cut.
    """

    def __init__(self, exchanges: Sequence[Exchange], tokenizer: Tokenizer, how: Framing):
        require(
            tokenizer.eos_id is not None,
            f"this {tokenizer.kind} tokenizer has no EOS token, which ends every answer.",
        )
        prompts = [asked(tokenizer, [one.prompt]) for one in exchanges]
        if how.too_long == "cut":
            _check_room(exchanges, [len(prompt) for prompt in prompts], how.length)
        rows = [
            (len(prompt), np.concatenate([prompt, told(tokenizer, one.response)]))
            for prompt, one in zip(prompts, exchanges)
        ]
        self._rows = [
            (prompt, row[: how.length])
            for prompt, row in rows
            if how.too_long == "cut" or len(row) <= how.length
        ]
        _tell_skipped(exchanges, len(rows) - len(self._rows), how.length)
        self._how, self._tokenizer = how, tokenizer
        pads = how.padding == "ignored" and tokenizer.pad_id is not None
        self._pad = tokenizer.pad_id if pads else tokenizer.eos_id

    @functools.cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self._how.length} {self._tokenizer.fingerprint}".encode())
        digest.update(self._how.padding.encode() if self._how.padding != "ignored" else b"")
        for prompt, row in self._rows:
            digest.update(f" {prompt} ".encode() + row.tobytes())
        return digest.hexdigest()

    def split(self, every: int) -> tuple["ChatSource", "ChatSource"]:
        """Splits off every `every`-th example from the first on; returns the rest and these."""
        parts = copy.copy(self), copy.copy(self)
        parts[0]._rows = [row for i, row in enumerate(self._rows) if i % every]
        parts[1]._rows = self._rows[::every]
        return parts

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Batch:
        prompt, row = self._rows[index]
        return framed_row(prompt, row, self._pad, self._how)


def framed_row(prompt: int, row: np.ndarray, pad: int, how: Framing) -> Batch:
    """Returns the example of an exchange.

    Args:
      prompt: number of tokens of the question.
      row: tokens of question and answer, int [N], N <= length.
      pad: token that fills the rest.
      how: settings of framing.
    """
    tokens = np.full(how.length, pad, np.int32)
    tokens[: len(row)] = row
    place = np.arange(how.length)
    written = place < len(row)
    mask = np.ones_like(written) if how.padding == "answer" else written
    return {"tokens": tokens, "mask": mask, "prompt": place < prompt, "written": written}


def _tell_skipped(exchanges: Sequence[Exchange], skipped: int, length: int) -> None:
    """Reports how many exchanges are left out; refuses to leave out all."""
    if not skipped:
        return
    where = exchanges[0].where.rpartition(",")[0] or "the data"
    said = (
        f"{where}: {skipped} of {len(exchanges)} exchanges are longer than {length} tokens with "
        "their end of text"
    )
    require(
        skipped < len(exchanges),
        f"{said}; set config.model.length higher, or config.data.too_long to 'cut'.",
    )
    logging.warning("%s, and are left out", said)


def _check_room(exchanges: Sequence[Exchange], takes: Sequence[int], length: int) -> None:
    """Raises UserError for the first question that leaves no room, with its place."""
    long = [(one.where, count) for one, count in zip(exchanges, takes) if count >= length]
    if long:
        (where, count), more = long[0], len(long) - 1
        raise UserError(
            f"{f'{where}: ' if where else ''}the question takes {count} tokens and must leave room "
            f"for an answer in config.model.length {length}; set that higher, or leave such "
            f"questions out{f' (there are {more} more)' if more else ''}."
        )


def open_chat(
    parts: Sequence[tuple[str, float]], tokenizer: Tokenizer, how: Framing
) -> tuple[Mixture, Source]:
    """Opens training and held-out examples of (file, weight) pairs; holds out every 20th."""
    train, valid = [], []
    for path, weight in parts:
        source = ChatSource(read_exchanges(path), tokenizer, how)
        require(
            len(source) >= 2,
            f"{path} has {len(source)} exchange that fits; expected at least 2, one is held out.",
        )
        rest, held_out = source.split(_HELD_OUT)
        train.append((rest, weight))
        valid.append((held_out, weight))
    return train, valid[0][0] if len(valid) == 1 else MixedSource(valid)


def cropped(batch: Batch, multiple: int = MULTIPLE) -> Batch:
    """Crops a batch to the columns that any row uses, rounded up to a multiple.

    The few resulting lengths are each compiled once. "written" is dropped.
    """
    batch = dict(batch)
    length, written = batch["tokens"].shape[1], batch.pop("written")
    longest = int(np.max(np.sum(written, axis=1), initial=1))
    keep = min(length, -(-longest // multiple) * multiple)
    return {name: value[:, :keep] for name, value in batch.items()}
