"""Synthetic questions with several right answers each, all of which are known."""

from collections.abc import Mapping, Sequence

import numpy as np

from flm_jax.core.errors import one_of, require
from flm_jax.data.instruction_sets import Exchange

# Sets of questions, each with its right answers. `topics`: each word has five letters and belongs
# to one topic; letters drawn independently of each other hardly ever make a word.
EXCHANGES: Mapping[str, Mapping[str, Sequence[str]]] = {
    "topics": {
        "animal": ("camel", "horse", "mouse", "otter", "sheep", "tiger", "whale", "zebra"),
        "colour": ("amber", "beige", "black", "brown", "coral", "green", "ivory", "white"),
        "fruit": ("apple", "grape", "guava", "lemon", "mango", "melon", "olive", "peach"),
        "tool": ("brush", "clamp", "drill", "knife", "lever", "ruler", "spade", "wedge"),
    }
}


def synthetic_exchanges(name: str, num: int, seed: int) -> list[Exchange]:
    """Draws exchanges of a set: questions and their answers uniformly.

    Args:
      name: key in `EXCHANGES`.
      num: number of exchanges.
      seed: seed of the draws.

    Raises:
      UserError: an unknown name, no exchange.
    """
    one_of("exchanges", name, EXCHANGES)
    require(num >= 1, f"got num={num}; expected at least 1 exchange.")
    pairs = [Exchange(asked, told) for asked, each in EXCHANGES[name].items() for told in each]
    return [pairs[i] for i in np.random.default_rng(seed).integers(len(pairs), size=num)]
