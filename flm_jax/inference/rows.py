"""Rows with a seed each, sampled together: a row's text does not depend on the rows beside it."""

import contextlib
import itertools
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.build.load import Model
from flm_jax.build.sampler import make_sampler
from flm_jax.core.errors import require
from flm_jax.inference.guides import load_guides
from flm_jax.samplers.base import Given, SamplerConfig, Samples, Steps, nothing_given
from flm_jax.samplers.watching import watching

# (place of a row in its batch, index of a network call, tokens int32 [L]), after a call; -1 where
# no token is read yet.
Seen = Callable[[int, int, np.ndarray], None]
_NOBODY = -1


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
      shown: whether a program can show its network calls. JAX keeps programs that call the host in
        no cache on disk.
    """

    def __init__(self, model: Model, most: int = 64, shown: bool = True) -> None:
        require(most >= 1, f"got {most} programs to keep; expected at least 1.")
        self._model, self._most, self._lock = model, most, threading.Lock()
        self._shown = shown
        self._programs: OrderedDict[tuple[Kind, int], Callable[..., Samples]] = OrderedDict()
        self._listeners = _Listeners()

    def compiled(self, kind: Kind) -> list[int]:
        """Returns the batch sizes whose programs are there, in ascending order."""
        with self._lock:
            return sorted(size for own, size in self._programs if own == kind)

    def compile(self, kind: Kind, size: int) -> Callable[..., Samples]:
        """Returns the program (seeds, indices, given, run) -> Samples of a kind.

        It is compiled on first use. The number `run` says who is shown the calls; -1 for nobody.

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

    def run(
        self, kind: Kind, rows: Sequence[Row], size: int, seen: Seen | None = None
    ) -> list[Written]:
        """Generates rows of one kind in a batch.

        Args:
          kind: kind of all rows.
          rows: one to `size` rows.
          size: number of rows of the compiled program; the batch is filled with the first rows
            again.
          seen: callback with the tokens of each row after each network call that another one
            follows, before that one is computed; from another thread. None for nobody.

        Raises:
          UserError: settings that do not fit the model; before compiling.
        """
        whole = [rows[place % len(rows)] for place in range(size)]
        given = jax.tree.map(lambda *parts: np.stack(parts), *(row.given for row in whole))
        seeds = np.array([row.seed for row in whole], np.uint32)
        indices = np.array([row.index for row in whole], np.uint32)
        program = self.compile(kind, size)
        with self._listeners.listening(seen if self._shown else None, len(rows)) as number:
            found = jax.device_get(program(seeds, indices, given, number))
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
        sample = make_sampler(model.config, model.net, model.flow, *how)
        made = jax.jit(_by_row(sample, self._listeners.tell if self._shown else None))
        given, seeds, zeros = _blank(kind, size)
        nobody = np.int32(_NOBODY)
        compiled = made.lower(seeds, zeros, nobody, model.params, given, extra).compile()

        def program(seeds, indices, given, run: int = _NOBODY) -> Samples:
            return compiled(seeds, indices, np.int32(run), model.params, given, extra)

        return program


class _Listeners:
    """Callbacks of runs, and the function by which compiled programs reach them."""

    def __init__(self) -> None:
        self._seen: dict[int, Callable[[np.ndarray, np.ndarray], None]] = {}
        self._numbers = itertools.count()

    @contextlib.contextmanager
    def listening(self, seen: Seen | None, rows: int) -> Iterator[int]:
        """Yields the number of a run, whose first `rows` rows are passed to `seen`."""
        if seen is None:
            yield _NOBODY
            return
        number, last = next(self._numbers), [-1] * rows

        def heard(steps: np.ndarray, tokens: np.ndarray) -> None:
            for place, (step, own) in enumerate(zip(steps.tolist(), tokens[:rows])):
                if step > last[place]:  # a row that is done repeats its last call
                    last[place] = step
                    seen(place, step, own)

        self._seen[number] = heard
        try:
            yield number
        finally:
            del self._seen[number]

    def tell(self, run: jax.Array, step: jax.Array, tokens: jax.Array) -> jax.Array:
        """Passes tokens [1, L] of a row to the host, with all rows of its batch; returns zero.

        Args:
          run: int32 scalar, number of the run; with -1 the host is not asked at all.
          step: int32 scalar, index of the call.
          tokens: int32 [1, L].
        """
        zero = jax.ShapeDtypeStruct((), jnp.int32)

        # Pure for JAX, which refuses side effects in a loop that rows leave at different times. Its
        # result is added to the state, so that it can be neither dropped nor delayed.
        def batch(run, steps, tokens) -> jax.Array:
            ask = lambda: jax.pure_callback(self._heard, zero, run, steps, tokens)
            return jax.lax.cond(run >= 0, ask, lambda: jnp.int32(0))

        @jax.custom_batching.custom_vmap
        def alone(run, step, tokens):
            return batch(run, step[None], tokens)

        @alone.def_vmap
        def together(size, batched, run, step, tokens):
            steps = step if batched[1] else jnp.broadcast_to(step, (size,))
            rows = tokens if batched[2] else jnp.broadcast_to(tokens, (size, *tokens.shape))
            return batch(run, steps, rows[:, 0]), False

        return alone(run, jnp.asarray(step, jnp.int32), tokens)

    def _heard(self, run: jax.Array, steps: jax.Array, tokens: jax.Array) -> np.ndarray:
        heard = self._seen.get(int(run))
        try:
            if heard is not None:
                heard(np.asarray(steps), np.asarray(tokens))
        except Exception:  # the batch goes on
            logging.getLogger(__name__).exception("a call could not be shown")
        return np.zeros((), np.int32)


def _blank(kind: Kind, size: int) -> tuple[Given, np.ndarray, np.ndarray]:
    """Rows without prompts, with seeds of their own and the index 0."""
    given = jax.tree.map(np.asarray, nothing_given(size, kind.length))
    if kind.hides:
        given = given._replace(visible=np.ones((size, kind.length), bool))
    return given, np.arange(size, dtype=np.uint32), np.zeros(size, np.uint32)


def _by_row(
    sample: Callable[..., Samples], tell: Callable[..., jax.Array] | None
) -> Callable[..., Samples]:
    """Maps a sampler over rows, each in a batch of its own with the key of its seed and index.

    Args:
      sample: sampler of a batch.
      tell: function from (number of the run, index of a call, tokens [1, L]) to zero, see
        `_Listeners.tell`; None for no calls that are shown.
    """

    def one(seed, index, run, params, given, extra) -> Samples:
        # The key of `engine.draw` for batch `index` of a batch size of 1.
        key = jax.random.fold_in(jax.random.key(seed), index)
        given = jax.tree.map(lambda x: jnp.asarray(x)[None], given)
        with watching(tell and (lambda step, tokens: tell(run, step, tokens))):
            return sample(key, params, given, extra)

    return jax.vmap(one, in_axes=(0, 0, None, None, 0, None))


def _written(found: Samples, place: int) -> Written:
    path = found.steps_tokens[place, :, 0]
    calls = len(path) if found.calls is None else int(found.calls[place])
    return Written(found.tokens[place, 0], path, calls)
