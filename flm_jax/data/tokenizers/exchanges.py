"""Encodes exchanges: control tokens come from the chat template alone, never from a turn.

A turn that contains "<|eot_id|>" is text about that token. Signs that no text may hold (U+FDD0 to
U+FDEF, which Unicode reserves for programs) distinguish the two: one breaks up such words in a turn
before the template is rendered, and one stands for each control token while the complete text is
encoded at once.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flm_jax.core.errors import UserError
from flm_jax.data.tokenizers.base import NO_PIECE
from flm_jax.data.tokenizers.chat_template import ChatSettings, jinja, rendered

CONTROL, _BREAK, _ANSWER = "\ufdd0", "\ufdd1", "\ufdd2"
_RESERVED = re.compile("[\ufdd0-\ufdef]")
# Added tokens that are not special and stand in a template are controls if they look like some;
# other words, such as runs of spaces, are text.
_LOOKS = re.compile(r"<.+>|\[.+\]", re.DOTALL)


def controls_of(
    backend: Any, vocabulary: Mapping[str, int], chat: ChatSettings
) -> tuple[dict[str, int], dict[str, int]]:
    """Dicts from text to id of the special tokens in the files, and of all tokens closed to text.

    The second dict has the first one's tokens and the added tokens that the chat template contains.
    """
    added = backend.get_added_tokens_decoder().values()
    names = [token.content for token in added if token.special]
    names += [*chat.names.values(), *chat.more]
    special = {name: vocabulary[name] for name in names if name in vocabulary}
    written = {
        token.content: vocabulary[token.content]
        for token in added
        if _LOOKS.fullmatch(token.content) and token.content in chat.template
    }
    return special, special | written


class Framer:
    """Encodes exchanges with the chat template.

    Args:
      backend: tokenizer of the package `tokenizers`, used here alone; it takes no text for a
        control token, and has the token CONTROL.
      controls: dict from text to id of the tokens that a template may contain.
      chat: chat settings with the template.
    """

    def __init__(self, backend: Any, controls: Mapping[str, int], chat: ChatSettings):
        self._backend, self._controls, self._chat = backend, dict(controls), chat
        longest_first = sorted((c for c in controls if len(c) > 1), key=len, reverse=True)
        words = "|".join(map(re.escape, longest_first)) or "(?!)"
        self._word, self._starts = re.compile(f"({words})"), re.compile(f"(?={words}).", re.DOTALL)
        added = backend.get_added_tokens_decoder().values()
        self._strips = {token.content: (token.lstrip, token.rstrip) for token in added}

    def encode(self, turns: Sequence[str]) -> np.ndarray:
        """Encodes turns up to where the next answer begins, int32; see `Tokenizer.encode_turns`."""
        text = rendered(self._chat, [self._broken(turn) for turn in turns], answer=True)
        words = [part.replace(_BREAK, "") for part in self._word.split(text)]
        texts, controls = words[::2], words[1::2]
        for i, word in enumerate(controls):
            left, right = self._strips.get(word, (False, False))
            texts[i] = texts[i].rstrip() if left else texts[i]
            texts[i + 1] = texts[i + 1].lstrip() if right else texts[i + 1]
        # Encoded as one text with a stand-in for each control token, so that the parts between
        # them keep their surroundings; the ids of the stand-ins are then replaced in order.
        found = self._backend.encode(CONTROL.join(texts), add_special_tokens=False)
        ids = iter(controls)
        return np.array(
            [
                self._controls[next(ids)] if token == CONTROL else number
                for token, number in zip(found.tokens, found.ids)
            ],
            np.int32,
        )

    def turn_end(self) -> int | None:
        """Control token immediately after an assistant's turn; None if there is none.

        Raises:
          UserError: Jinja is missing.
        """
        jinja()
        try:
            text = rendered(self._chat, ["a", _ANSWER, "b"], answer=True)
        except UserError:
            return None
        behind = self._word.split(text.partition(_ANSWER)[2])
        return self._controls[behind[1]] if len(behind) > 1 and not behind[0].strip() else None

    def _broken(self, turn: str) -> str:
        """A turn without words of control tokens; `encode` removes the inserted breaks again."""
        return self._starts.sub(rf"\g<0>{_BREAK}", _RESERVED.sub(NO_PIECE, turn))
