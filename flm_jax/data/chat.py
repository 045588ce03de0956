"""Questions and answers from JSON lines, each framed as one exchange; the question is the prompt.

A tokenizer's own chat template frames them, if it has one; if not, this does:

    USER:\n{prompt}\nASSISTANT:\n{response}EOS

With a template, the token that ends a turn there stands before the EOS.

A line is an object with "prompt" and "response", or, as GSM8K has them, "question" and "answer"; of
the latter the calculator's notes <<...>> are dropped and the last line becomes "### {result}".
"""

import hashlib
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flm_jax.core.errors import UserError, require
from flm_jax.data.jsonl import read_records
from flm_jax.data.pipeline import Batch, MixedSource, Mixture, Source
from flm_jax.data.text import tidy
from flm_jax.data.tokenizers.base import Tokenizer

_FIELDS = (("prompt", "response"), ("question", "answer"))
_NOTES = re.compile(r"<<[^>]*>>")
_HELD_OUT = 20  # every so many lines one is kept for validation
MULTIPLE = 64  # tokens; batches are cropped to multiples of it


class Exchange(NamedTuple):
    """A question and its answer; `where` is its place, for messages."""

    prompt: str
    response: str
    where: str = ""


def framed(*turns: str) -> str:
    """The text before an answer, of tokenizers without a template; turns as of `asked`."""
    heads = ("USER:\n", "ASSISTANT:\n")
    return "".join(f"{heads[i % 2]}{turn}\n" for i, turn in enumerate(turns)) + heads[1]


def asked(tokenizer: Tokenizer, turns: Sequence[str]) -> np.ndarray:
    """Ids of all that stands before an answer, int32.

    Args:
      turns: of user and assistant in turn; the first and the last are the user's.

    Raises:
      UserError: the tokenizer's chat template does not take them.
    """
    ids = tokenizer.encode_turns(turns)
    return tokenizer.encode(framed(*turns)) if ids is None else ids


def told(tokenizer: Tokenizer, response: str) -> np.ndarray:
    """Ids of an answer with what ends it, int32: the end of a turn, if there is one, and EOS."""
    ends = [i for i in (tokenizer.turn_end_id, tokenizer.eos_id) if i is not None]
    _, ids = tokenizer.encode_parts(["", response])
    return np.concatenate([ids, list(dict.fromkeys(ends))]).astype(np.int32)


def read_exchanges(path: str) -> list[Exchange]:
    """The exchange of every line.

    Raises:
      UserError: no such file, no line, or one that is no JSON object with the fields (its number).
    """
    records = read_records(path, "JSON lines of questions and answers")
    return [_exchange(record, where) for where, record in records]


def _exchange(record, where: str) -> Exchange:
    for first, second in _FIELDS:
        if first in record:
            texts = record[first], record.get(second)
            require(
                all(isinstance(text, str) and text for text in texts),
                f"{where}: {first!r} and {second!r} must both be text, got {texts[1]!r} for "
                f"{second!r}.",
            )
            prompt, response = map(tidy, texts)
            if first == "question":
                response = _NOTES.sub("", response).replace("\n#### ", "\n### ")
            return Exchange(prompt, response, where)
    names = " or ".join(f"{first!r} with {second!r}" for first, second in _FIELDS)
    raise UserError(f"{where}: expected {names}, got {sorted(record)}.")


class ChatSource:
    """Random-access examples {"tokens": int32 [L], "mask", "prompt": bool [L]}.

    `mask` is True where valid, `prompt` where the question stands. An answer that does not fit
    loses its end and the EOS; one whose question leaves no room is refused.
    """

    def __init__(self, exchanges: Sequence[Exchange], tokenizer: Tokenizer, length: int):
        require(
            tokenizer.eos_id is not None,
            f"this {tokenizer.kind} tokenizer has no EOS token, which ends every answer.",
        )
        prompts = [asked(tokenizer, [one.prompt]) for one in exchanges]
        _check_room(exchanges, [len(prompt) for prompt in prompts], length)
        self._rows = [
            (len(prompt), np.concatenate([prompt, told(tokenizer, one.response)])[:length])
            for prompt, one in zip(prompts, exchanges)
        ]
        self._length = length
        self._pad = tokenizer.eos_id if tokenizer.pad_id is None else tokenizer.pad_id
        digest = hashlib.sha256(f"{length} {tokenizer.fingerprint}".encode())
        for prompt, row in self._rows:
            digest.update(f" {prompt} ".encode() + row.tobytes())
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Batch:
        prompt, row = self._rows[index]
        tokens = np.full(self._length, self._pad, np.int32)
        tokens[: len(row)] = row
        place = np.arange(self._length)
        return {"tokens": tokens, "mask": place < len(row), "prompt": place < prompt}


def _check_room(exchanges: Sequence[Exchange], takes: Sequence[int], length: int) -> None:
    """Raises UserError, with its place, for the first question that leaves no room."""
    long = [(one.where, count) for one, count in zip(exchanges, takes) if count >= length]
    if long:
        (where, count), more = long[0], len(long) - 1
        raise UserError(
            f"{f'{where}: ' if where else ''}the question takes {count} tokens and must leave room "
            f"for an answer in config.model.length {length}; set that higher, or leave such "
            f"questions out{f' (there are {more} more)' if more else ''}."
        )


def open_chat(
    parts: Sequence[tuple[str, float]], tokenizer: Tokenizer, length: int
) -> tuple[Mixture, Source]:
    """Training and held-out examples of (file, weight) pairs; every 20th line is held out."""
    train, valid = [], []
    for path, weight in parts:
        found = read_exchanges(path)
        require(
            len(found) >= 2, f"{path} has {len(found)} line; expected at least 2, one is held out."
        )
        held_out = found[::_HELD_OUT]
        rest = [pair for i, pair in enumerate(found) if i % _HELD_OUT]
        train.append((ChatSource(rest, tokenizer, length), weight))
        valid.append((ChatSource(held_out, tokenizer, length), weight))
    return train, valid[0][0] if len(valid) == 1 else MixedSource(valid)


def cropped(batch: Batch) -> Batch:
    """A batch without the columns in which no row is valid, its length a multiple of 64.

    The few lengths that occur are each compiled once.
    """
    length = batch["tokens"].shape[1]
    longest = int(np.max(np.sum(batch["mask"], axis=1), initial=1))
    keep = min(length, -(-longest // MULTIPLE) * MULTIPLE)
    return {name: value[:, :keep] for name, value in batch.items()}
