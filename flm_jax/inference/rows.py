"""Rows with a seed each, sampled together: a row's text does not depend on the rows beside it."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.build.load import Model
from flm_jax.build.sampler import make_sampler
from flm_jax.core.errors import require
from flm_jax.inference.guides import load_guides
from flm_jax.samplers.base import Given, SamplerConfig, Samples, Steps, nothing_given


class Row(NamedTuple):
    """A row to generate.

    Attributes:
      given: prescribed tokens, arrays [L].
      seed: seed of the row's draws.
      index: number of the row among the rows of this seed and prompt, from 0.
    """

    given: Given
    seed: int
    index: int = 0


class Written(NamedTuple):
    """A row that was generated.

    Attributes:
      tokens: int32 [L].
      steps_tokens: int32 [K, L], tokens after each network call, or K = 1 after the last one alone.
      calls: number of network calls for this row.
    """

    tokens: np.ndarray
    steps_tokens: np.ndarray
    calls: int


class Kind(NamedTuple):
    """What rows have in common that one program generates.

    Attributes:
      length: number of tokens of a row, L.
      hides: whether rows have positions that the network must not see.
      steps: step count of the sampler.
      sampler: settings of the sampler.
    """

    length: int
    hides: bool
    steps: Steps
    sampler: SamplerConfig


def kind_of(row: Row, steps: Steps, sampler: SamplerConfig) -> Kind:
    """Returns the kind of a row that is generated in `steps` with the settings `sampler`."""
    given = row.given
    return Kind(given.tokens.shape[0], given.visible is not None, steps, sampler)


class RowSampler:
    """The programs of a model that sample rows with a seed each.

    Row `index` of a seed is sample `index` of `LanguageModel.sample` with that seed and
    batch_size=1, up to rounding: the draws are the same, and products over more rows at a time may
    be summed in another order. `agreeing` finds the batch sizes that round alike. One thread may
    compile while another one runs.

    Args:
      model: loaded model.
      most: largest number of programs that are kept; the one that was not used for longest is
        dropped first.
    """

    def __init__(self, model: Model, most: int = 64) -> None:
        require(most >= 1, f"got {most} programs to keep; expected at least 1.")
        self._model, self._most, self._lock = model, most, threading.Lock()
        self._programs: OrderedDict[tuple[Kind, int], Callable[..., Samples]] = OrderedDict()

    def compiled(self, kind: Kind) -> list[int]:
        """Returns the batch sizes whose programs are there, in ascending order."""
        with self._lock:
            return sorted(size for own, size in self._programs if own == kind)

    def compile(self, kind: Kind, size: int) -> Callable[..., Samples]:
        """Returns the program (seeds, indices, given) -> Samples of a kind, compiled on first use.

        Args:
          kind: kind of the rows.
          size: number of rows of a batch.

        Raises:
          UserError: settings that do not fit the model; before compiling.
        """
        with self._lock:
            program = self._programs.get((kind, size))
        if program is None:
            program = self._make(kind, size)
        with self._lock:
            self._programs[kind, size] = program
            self._programs.move_to_end((kind, size))
            while len(self._programs) > self._most:
                self._programs.popitem(last=False)
        return program

    def run(self, kind: Kind, rows: Sequence[Row], size: int) -> list[Written]:
        """Generates rows of one kind in a batch.

        Args:
          kind: kind of all rows.
          rows: one to `size` rows.
          size: number of rows of the compiled program; the batch is filled with the first rows
            again.

        Raises:
          UserError: settings that do not fit the model; before compiling.
        """
        whole = [rows[place % len(rows)] for place in range(size)]
        given = jax.tree.map(lambda *parts: np.stack(parts), *(row.given for row in whole))
        seeds = np.array([row.seed for row in whole], np.uint32)
        indices = np.array([row.index for row in whole], np.uint32)
        found = jax.device_get(self.compile(kind, size)(seeds, indices, given))
        return [_written(found, place) for place in range(len(rows))]

    def agreeing(
        self,
        kind: Kind,
        sizes: Sequence[int],
        show: Callable[[int], None] = lambda done: None,
    ) -> list[int]:
        """Returns the batch sizes whose rows are equal, to the last bit, to the largest one's.

        The rows that are compared have no prompt and seeds of their own; sizes are compiled on the
        way.

        Args:
          kind: kind of the rows.
          sizes: batch sizes in ascending order.
          show: callback that takes the number of sizes done, after each.
        """
        number = sizes[-1]
        blank, seeds, zeros = _blank(kind, number)
        kept, want = [], None
        for done, size in enumerate(sorted(sizes, reverse=True), start=1):
            program, parts = self.compile(kind, size), []
            for start in range(0, number - size + 1, size):
                own = slice(start, start + size)
                part = jax.tree.map(lambda x, own=own: x[own], blank)
                parts.append(jax.device_get(program(seeds[own], zeros[own], part)))
            found = jax.tree.map(lambda *each: np.concatenate(each), *parts)
            want = found if want is None else want
            same = jax.tree.map(lambda a, b: np.array_equal(a, b[: len(a)]), found, want)
            kept += [size] if all(jax.tree.leaves(same)) else []
            show(done)
        return kept[::-1]

    def _make(self, kind: Kind, size: int) -> Callable[..., Samples]:
        model = self._model
        guides, extra = load_guides(model, kind.sampler)
        how = kind.steps, kind.sampler, guides
        made = jax.jit(_by_row(make_sampler(model.config, model.net, model.flow, *how)))
        given, seeds, zeros = _blank(kind, size)
        compiled = made.lower(seeds, zeros, model.params, given, extra).compile()
        return lambda seeds, indices, given: compiled(seeds, indices, model.params, given, extra)


def _blank(kind: Kind, size: int) -> tuple[Given, np.ndarray, np.ndarray]:
    """Rows without prompts, with seeds of their own and the index 0."""
    given = jax.tree.map(np.asarray, nothing_given(size, kind.length))
    if kind.hides:
        given = given._replace(visible=np.ones((size, kind.length), bool))
    return given, np.arange(size, dtype=np.uint32), np.zeros(size, np.uint32)


def _by_row(sample: Callable[..., Samples]) -> Callable[..., Samples]:
    """Maps a sampler over rows, each in a batch of its own with the key of its seed and index."""

    def one(seed, index, params, given, extra) -> Samples:
        # The key of `engine.draw` for batch `index` of a batch size of 1.
        key = jax.random.fold_in(jax.random.key(seed), index)
        return sample(key, params, jax.tree.map(lambda x: jnp.asarray(x)[None], given), extra)

    return jax.vmap(one, in_axes=(0, 0, None, 0, None))


def _written(found: Samples, place: int) -> Written:
    path = found.steps_tokens[place, :, 0]
    calls = len(path) if found.calls is None else int(found.calls[place])
    return Written(found.tokens[place, 0], path, calls)
