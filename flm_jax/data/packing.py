"""Examples of a fixed length, cut from a token stream when they are read.

The length and the packing are chosen by the training run; one prepared folder serves them all.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from flm_jax.core.errors import one_of, require
from flm_jax.data.corpus.store import TokenStream
from flm_jax.data.tokenizers.base import Tokenizer

Example = dict[str, np.ndarray]

PACKINGS = ("wrap", "stream", "pad")


class PackedSource:
    """Random-access examples {"tokens": int32 [L], "mask": bool [L]}; mask is True where valid.

    Packings:
      wrap: documents joined by EOS, cut in blocks of L - 2, each framed as BOS block EOS, as for
      the published LM1B and OpenWebText models.
      stream: documents joined by EOS, cut in blocks of L.
      pad: one document per example, BOS document EOS; longer ones lose their end (and that EOS),
      shorter ones are padded with PAD, or with EOS if the tokenizer has no PAD.

    Tokens that do not fill a last block are left out. An example depends on its index alone.

    Args:
      stream, tokenizer, length, packing: token stream, its tokenizer, length L and packing, see
        above.
      group: number of documents that are joined and cut together; each group starts a block and
        drops what does not fill its last one; 0 for the complete split. The published models'
        preparation uses groups of 1000. Not for "pad".
    """

    def __init__(
        self,
        stream: TokenStream,
        tokenizer: Tokenizer,
        length: int,
        packing: str,
        group: int,
    ):
        one_of("packing", packing, PACKINGS)
        least = 1 if packing == "stream" else 3
        require(
            length >= least,
            f"packing {packing!r} got length {length}; expected at least {least} tokens",
        )
        require(
            packing == "stream" or tokenizer.bos_id is not None,
            f"packing {packing!r} needs a BOS token, which this {tokenizer.kind} tokenizer lacks; "
            "use packing 'stream'",
        )
        self._stream = stream
        self._length = length
        self._packing = packing
        self._bos = tokenizer.bos_id
        self._eos = tokenizer.eos_id
        self._pad = tokenizer.eos_id if tokenizer.pad_id is None else tokenizer.pad_id
        self._block = length - 2 if packing == "wrap" else length
        require(
            group == 0 or packing != "pad",
            f"packing 'pad' cuts no groups of documents, got groups of {group}; set group to 0",
        )
        self._group = group
        starts = stream.starts(range(0, stream.documents, group)) if group else np.zeros(1, int)
        self._starts = starts  # tokens before each group
        blocks = np.diff(starts, append=len(stream)) // self._block
        self._blocks = np.cumsum([0, *blocks])  # before each group, and in all
        self._size = stream.documents if packing == "pad" else int(self._blocks[-1])
        require(
            self._size > 0,
            f"the split has {len(stream)} tokens{f', cut by {group} documents' if group else ''}; "
            f"one example of length {length} with packing "
            f"{packing!r} needs {self._block}: use a shorter length or a larger corpus",
        )

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Example:
        if self._packing == "pad":
            return self._padded(self._stream.document(index))
        start = int(self._places(np.asarray([index]))[0])
        block = self._stream.read(start, start + self._block)
        if self._packing == "wrap":
            block = np.concatenate([[self._bos], block, [self._eos]]).astype(np.int32)
        return {"tokens": block, "mask": np.ones(self._length, bool)}

    def batch(self, places: Sequence[int]) -> Example:
        """Returns stacked examples: {"tokens": int32 [N, L], "mask": bool [N, L]}."""
        if self._packing == "pad":
            rows = [self[place] for place in places]
            return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        tokens = self._stream.blocks(self._places(np.asarray(places)), self._block)
        if self._packing == "wrap":
            tokens = np.pad(tokens, ((0, 0), (1, 1)))
            tokens[:, 0], tokens[:, -1] = self._bos, self._eos
        return {"tokens": tokens, "mask": np.ones(tokens.shape, bool)}

    def _places(self, blocks: np.ndarray) -> np.ndarray:
        """Index of the first token of each block."""
        group = np.searchsorted(self._blocks, blocks, side="right") - 1
        return self._starts[group] + (blocks - self._blocks[group]) * self._block

    def _padded(self, document: np.ndarray) -> Example:
        framed = np.concatenate([[self._bos], document[: self._length], [self._eos]])
        framed = framed[: self._length]
        tokens = np.full(self._length, self._pad, np.int32)
        tokens[: len(framed)] = framed
        return {"tokens": tokens, "mask": np.arange(self._length) < len(framed)}

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the tokens and of the packing."""
        text = f"{self._stream.fingerprint} {self._packing} {self._length}"
        text += f" {self._group}" if self._group else ""
        return hashlib.sha256(text.encode()).hexdigest()
