"""Files of samples, drawn by this library or by other projects."""

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np

from flm_jax.core.errors import UserError, require
from flm_jax.core.files import json_lines, to_json, write_output
from flm_jax.core.paths import expanded
from flm_jax.core.reading import loads, read_bounded
from flm_jax.data.jsonl import read_records
from flm_jax.data.tokenizers.base import Tokenizer

_EXPECTED = (
    "samples: lines of JSON with text, tokens or both, or the JSON of the reference with "
    "generated_seqs"
)
_THEIRS = "generated_seqs"


class SampleSet(NamedTuple):
    """Samples of one model.

    Attributes:
      model: name of the model, for tables.
      calls: number of network calls with which they were drawn; None if unknown.
      texts: texts with their special tokens written out, in the order of drawing.
      tokens: int32 [L] of each text by the model's tokenizer; None if unknown.
    """

    model: str
    calls: float | None
    texts: list[str]
    tokens: list[np.ndarray] | None

    @property
    def length(self) -> int:
        """Length of the longest in tokens; 0 if unknown."""
        return max(map(len, self.tokens)) if self.tokens else 0


class Kept:
    """Collection of drawn samples, to be written as one file."""

    def __init__(self) -> None:
        self._records: list[dict[str, Any]] = []

    def add(self, model: str, calls: float, tokens: np.ndarray, tokenizer: Tokenizer) -> None:
        """Adds samples [N, L] of a model."""
        for row in np.asarray(tokens):
            text = tokenizer.decode_whole(row)
            record = {"model": model, "calls": calls, "text": text, "tokens": row.tolist()}
            self._records.append(record)

    def write(self, path: str) -> None:
        """Writes the samples as JSON lines, atomically."""
        write_output(path, json_lines(self._records))


def read_samples(path: str, tokenizer: Tokenizer | None = None) -> list[SampleSet]:
    """Reads a file of samples, one set for each model and number of calls in it.

    Args:
      path: JSON lines of objects, or one array of them, with "text" (special tokens written out),
        "tokens" or both, optionally "model" and "calls"; or, ending in .json, an object whose
        `generated_seqs` are texts, as in the reference.
      tokenizer: tokenizer of the model, which converts between texts and tokens.

    Raises:
      UserError: no such file, another content, or tokens without text and tokenizer.
    """
    sets: dict[tuple[str, float | None], list[tuple[str, np.ndarray | None]]] = {}
    for where, record in _records(path):
        key = _named(record, where, PurePath(path).name)
        sets.setdefault(key, []).append(_sample(record, where, tokenizer))
    found = []
    for (model, calls), samples in sets.items():
        texts, tokens = (
            [text for text, _ in samples],
            [ids for _, ids in samples if ids is not None],
        )
        if not tokens and tokenizer:
            tokens = tokenizer.encode_whole(texts)
        require(
            len(tokens) in (0, len(texts)),
            f"{path}: {len(tokens)} of {len(texts)} samples of {model} have tokens; expected all "
            "or none.",
        )
        found.append(SampleSet(model, calls, texts, tokens or None))
    return found


def _records(path: str) -> Sequence[tuple[str, dict[str, Any]]]:
    if not path.endswith(".json"):
        return read_records(path, _EXPECTED)
    try:
        value = loads(read_bounded(expanded(path), _EXPECTED).decode("utf8"))
    except ValueError as error:
        raise UserError(f"{path}: no JSON ({error}); expected {_EXPECTED}.") from error
    texts = value.get(_THEIRS) if isinstance(value, dict) else value
    require(isinstance(texts, list) and bool(texts), f"{path}: expected {_EXPECTED}.")
    found = [{"text": one} if isinstance(one, str) else one for one in texts]
    return [(f"{path}, sample {number}", one) for number, one in enumerate(found, 1)]


def _named(record: Any, where: str, file: str) -> tuple[str, float | None]:
    require(isinstance(record, dict), f"{where}: expected {_EXPECTED}.")
    model, calls = record.get("model", file), record.get("calls")
    require(
        isinstance(model, str) and (calls is None or isinstance(calls, int | float)),
        f"{where}: model is {model!r} and calls {calls!r}; expected a name and a number.",
    )
    return model, calls


def _sample(
    record: dict[str, Any], where: str, tokenizer: Tokenizer | None
) -> tuple[str, np.ndarray | None]:
    text, ids = record.get("text"), record.get("tokens")
    require(
        (text is None or isinstance(text, str)) and (ids is None or _are_ids(ids)),
        f"{where}: expected text, and whole numbers from 0 as tokens, got {to_json(record)[:80]}.",
    )
    require(
        text is not None or (ids is not None and tokenizer is not None),
        f"{where}: no text; expected one, or tokens with --tokenizer, the model's.",
    )
    tokens = None if ids is None else np.array(ids, np.int32)
    return tokenizer.decode_whole(tokens) if text is None else text, tokens


def _are_ids(value: Any) -> bool:
    whole = isinstance(value, list) and all(type(one) is int for one in value)
    return whole and all(0 <= one < 2**31 for one in value)
