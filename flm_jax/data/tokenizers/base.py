"""The interface of all tokenizers, and how they are fingerprinted and saved."""

import abc
import hashlib
import itertools
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from etils import epath

from flm_jax.core.files import write_whole

SPEC_FILE = "spec.json"
_ROLES = ("bos", "eos", "pad", "mask")
NORMAL_FORMS = ("NFC",)
NO_PIECE = "\N{REPLACEMENT CHARACTER}"  # the text of an id that has none


class Tokenizer(abc.ABC):
    """Converts text to int32 ids and back.

    No text encodes to a special id: only the library inserts a mask or EOS.

    Attributes:
      kind: name by which `load_tokenizer` finds the class.
      file_names: names of the files beside the spec.
      vocab_size: vocabulary size; ids are in [0, vocab_size).
      bos_id, eos_id, pad_id, mask_id: int, or None if the tokenizer has no such token.
      unknown_id: id of text that it cannot encode; None if it can encode all text.
      normal_form: Unicode normal form to which text is converted before it is encoded, "NFC"; ""
        for none.
    """

    kind: str
    file_names: tuple[str, ...] = ()
    vocab_size: int
    bos_id: int | None = None
    eos_id: int | None = None
    pad_id: int | None = None
    mask_id: int | None = None
    unknown_id: int | None = None
    normal_form: str = ""

    @abc.abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """Encodes a text to ids, int32 [n], without special tokens."""

    def _normal(self, text: str) -> str:
        return unicodedata.normalize(self.normal_form, text) if self.normal_form else text

    def decode(self, ids: Iterable[int]) -> str:
        """Decodes ids to text; special tokens are dropped, and an id without a piece is U+FFFD."""
        parts: list[str] = []
        for known, run in itertools.groupby(self._visible(ids), self._has_piece):
            run = list(run)
            parts.append(self._decode(run) if known else NO_PIECE * len(run))
        return "".join(parts)

    def decode_whole(self, ids: Iterable[int]) -> str:
        """Decodes ids to text with special tokens written out; other ids as in `decode`."""
        names, special = self.special_names, self.special_ids
        parts: list[str] = []
        for hidden, run in itertools.groupby(map(int, ids), special.__contains__):
            some = list(run)
            parts.append("".join(names[i] for i in some) if hidden else self.decode(some))
        return "".join(parts)

    def encode_whole(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Encodes texts with written-out special tokens, int32 [n] each.

        It is for texts from `decode_whole` alone: a user's text could contain any special token.
        """
        ids = {name: i for i, name in self.special_names.items()}
        if not ids:
            return self.encode_batch(texts)
        # Longest first, since a name may begin with another.
        pattern = re.compile(f"({'|'.join(map(re.escape, sorted(ids, key=len, reverse=True)))})")
        found = []
        for text in texts:
            parts = [part for part in pattern.split(text) if part]
            one = [np.array([ids[p]]) if p in ids else self.encode(p) for p in parts]
            found.append(np.concatenate([np.zeros(0), *one]).astype(np.int32))
        return found

    @abc.abstractmethod
    def _decode(self, ids: list[int]) -> str:
        """Decodes ids that have pieces and are not special."""

    def _has_piece(self, token: int) -> bool:
        """Whether an id stands for text; ids that pad a vocabulary do not."""
        return 0 <= token < self.vocab_size

    @abc.abstractmethod
    def spec(self) -> dict[str, Any]:
        """Settings as JSON values; together with `files` they define the tokenizer."""

    @classmethod
    @abc.abstractmethod
    def from_spec(cls, spec: dict[str, Any], files: dict[str, bytes]) -> "Tokenizer":
        """Rebuilds a tokenizer, the inverse of (`spec`, `files`)."""

    def unprinted(self) -> dict[str, Any]:
        """Settings as JSON values that `save` keeps beside `spec`, and that change no ids."""
        return {}

    def files(self) -> dict[str, bytes]:
        """Contents of the files that belong to the tokenizer."""
        return {}

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Encodes many texts, in parallel if the backend can."""
        return [self.encode(text) for text in texts]

    def encode_parts(self, parts: Sequence[str]) -> list[np.ndarray]:
        """Encodes parts of one text, with unknown text between them.

        Each part is encoded as within a text: only the first one begins it.
        """
        return [self.encode(part) for part in parts]

    def encode_turns(self, turns: Sequence[str]) -> np.ndarray | None:
        """Encodes an exchange in the tokenizer's own chat template, up to where an answer begins.

        Args:
          turns: turns of user and assistant, alternating; the first and the last are the user's.

        Returns:
          Ids, int32 [n]; None if the tokenizer has no template.

        Raises:
          UserError: a template that does not accept these turns.
        """
        del turns
        return None

    @property
    def has_template(self) -> bool:
        """Whether the tokenizer has its own chat template."""
        return False

    @property
    def turn_end_id(self) -> int | None:
        """Token with which the chat template ends an answer; None if there is no such token."""
        return None

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""
        return frozenset(i for i in (self.eos_id, self.turn_end_id) if i is not None)

    @property
    def special_ids(self) -> frozenset[int]:
        """Tokens that stand for no text."""
        return frozenset(self.special_names)

    @property
    def special_names(self) -> dict[int, str]:
        """Dict from special tokens to the names under which they are shown."""
        return self._role_names()

    def _role_names(self) -> dict[int, str]:
        roles = {getattr(self, f"{role}_id"): f"<{role}>" for role in _ROLES}
        return {token: name for token, name in roles.items() if token is not None}

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that determines the ids of a text."""
        digest = hashlib.sha256(json.dumps(self._full_spec(), sort_keys=True).encode())
        for name, content in sorted(self.files().items()):
            digest.update(f"\0{name}\0{len(content)}\0".encode() + content)
        return digest.hexdigest()

    def save(self, folder: os.PathLike | str) -> None:
        """Writes the tokenizer; the spec comes last, so its presence means a complete folder."""
        root = epath.Path(folder)
        root.mkdir(parents=True, exist_ok=True)
        for name, content in self.files().items():
            write_whole(root / name, content)
        spec = {**self._full_spec(), **self.unprinted(), "files": sorted(self.files())}
        content = json.dumps(spec, indent=2, ensure_ascii=False) + "\n"
        write_whole(root / SPEC_FILE, content)

    def _full_spec(self) -> dict[str, Any]:
        return {"kind": self.kind, "vocab_size": self.vocab_size, **self.spec()}

    def _visible(self, ids: Iterable[int]) -> list[int]:
        special = self.special_ids
        return [i for i in map(int, ids) if i not in special]
