"""Completion requests answered by a model: rows of prompts, their texts, and counts of tokens."""

import asyncio
import contextlib
import dataclasses
import functools
import math
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from flm_jax.build.families.registry import family
from flm_jax.build.load import Model
from flm_jax.build.sampler import choose_sampler, make_sampler
from flm_jax.core.errors import UserError, device_memory_error
from flm_jax.core.settings import plain
from flm_jax.inference import engine
from flm_jax.inference.prompts import Prompt, answer_texts, lay_out
from flm_jax.inference.rows import Kind, Row, Written, kind_of
from flm_jax.samplers.base import SamplerConfig, Steps, most_calls, plain_steps
from flm_jax.samplers.registry import name_of
from flm_jax.serving.batches import QueueFullError, StoppingError, Worker
from flm_jax.serving.errors import RequestError, insist, later
from flm_jax.serving.limits import Limits
from flm_jax.serving.requests import PATHS, Wanted

_REPEATS = ("iterations", "flow_steps")  # settings that multiply the network calls of a step
_LONGEST_WAIT = 60


@dataclasses.dataclass(frozen=True)
class Served:
    """What a server offers.

    Attributes:
      model: loaded model.
      name: name of the model in requests.
      sampler: settings of the sampler of requests that change none.
      steps: step count of requests that give none.
      fixed: step counts that requests may give; None for any. If it is given, they may not change
        the sampler either.
    """

    model: Model
    name: str
    sampler: SamplerConfig
    steps: Steps
    fixed: tuple[Steps, ...] | None = None


class Asked(NamedTuple):
    """A prompt laid out as a row, with its answer at [start, stop)."""

    kind: Kind
    row: Row
    start: int
    stop: int


class Answered(NamedTuple):
    """The rows of a request as they were generated, in the order of its prompts."""

    wanted: Wanted
    asked: list[Asked]
    written: list[Written]


class Completions:
    """Answers completion requests.

    Texts are split into tokens and put together in one thread, beside the worker that samples, so
    that the event loop stays free.

    Args:
      served: model, and what is offered of it.
      worker: thread that generates rows.
      limits: limits of requests.
    """

    def __init__(self, served: Served, worker: Worker, limits: Limits) -> None:
        self.served, self.worker, self.limits = served, worker, limits
        self.answered = 0
        self._texts = ThreadPoolExecutor(1, "flm-texts")

    async def answer(self, wanted: Wanted) -> Answered:
        """Generates the texts of a request; the work is taken back if the caller is cancelled.

        Raises:
          RequestError: a request that does not fit the model, a full queue, or no answer in time.
        """
        futures: list[Future[Written]] = []
        with self._refusing():
            try:
                async with asyncio.timeout(self.limits.seconds):
                    asked = await self._in_texts(self._asked, wanted)
                    futures = self.worker.submit([(one.kind, one.row) for one in asked])
                    written = await asyncio.gather(*map(asyncio.wrap_future, futures))
            finally:
                self.worker.forget(futures)
        self.answered += 1
        return Answered(wanted, asked, written)

    async def stream(self, wanted: Wanted) -> AsyncIterator[dict[str, Any]]:
        """Yields the bodies of a stream's events, each once its network call is computed.

        A text has an event after each call, with its draft, and one with the text instead of the
        last call's. Work is taken back if the generator is closed.

        Raises:
          RequestError: the same as `answer`; after the first event too.
        """
        loop = asyncio.get_running_loop()
        until, futures = loop.time() + self.limits.seconds, []
        happened: asyncio.Queue[tuple[int, int, np.ndarray | None]] = asyncio.Queue()

        def tell(index: int, step: int = 0, tokens: np.ndarray | None = None) -> None:
            with contextlib.suppress(RuntimeError):  # of a loop that is closed
                loop.call_soon_threadsafe(happened.put_nowait, (index, step, tokens))

        with self._refusing():
            try:
                async with asyncio.timeout_at(until):
                    asked = await self._in_texts(self._asked, wanted)
                seen = [functools.partial(tell, index) for index in range(len(asked))]
                futures = self.worker.submit([(one.kind, one.row) for one in asked], seen)
                for index, future in enumerate(futures):
                    future.add_done_callback(lambda done, index=index: tell(index))
                answered, open_ones = Answered(wanted, asked, [None] * len(asked)), len(asked)
                head, steps = self._head(answered), [0] * len(asked)
                while open_ones:
                    async with asyncio.timeout_at(until):
                        index, step, tokens = await happened.get()
                        if tokens is None:
                            answered.written[index] = futures[index].result()
                            open_ones -= 1
                            step = steps[index]
                        steps[index] = step + 1
                        make = functools.partial(self._event, answered, index, step)
                        event = await self._in_texts(make, tokens)
                    if event is not None:
                        yield head | event
            finally:
                self.worker.forget(futures)
        self.answered += 1
        if wanted.usage:
            yield head | {"choices": [], "usage": self._usage(answered)}

    async def completion(self, answered: Answered) -> dict[str, Any]:
        """Returns the body of an answer."""
        return await self._in_texts(self._completion, answered)

    def described(self) -> dict[str, Any]:
        """Returns the description of the model."""
        served = self.served
        settings = {key: v for key, v in plain(served.sampler).items() if key not in PATHS}
        return {
            "id": served.name,
            "object": "model",
            "created": 0,
            "owned_by": "flm_jax",
            "kind": family(served.model.config).kind(served.model.net),
            "max_length": served.model.net.max_length,
            "training_step": served.model.step,
            "steps": plain_steps(served.steps),
            "sampler": {"name": name_of(served.sampler)} | settings,
        }

    async def _in_texts(self, work: Callable[[Any], Any], item: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._texts, work, item)

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[None]:
        """Raises what goes wrong with a request as a RequestError."""
        try:
            yield
        except TimeoutError as error:
            raise RequestError(
                504,
                f"the answer took longer than {self.limits.seconds:g} s; ask for fewer texts or "
                "steps, or later.",
                code="timeout",
            ) from error
        except UserError as error:
            raise RequestError(422, str(error)) from error
        except QueueFullError as error:
            seconds = min(max(1, math.ceil(error.seconds)), _LONGEST_WAIT)
            more = f"{self.worker.waiting} texts wait already; ask again in {seconds} s."
            raise later(503, more, seconds, "queue_full") from error
        except StoppingError as error:
            raise later(503, "the server is stopping; ask again later.", 5, "stopping") from error
        except RuntimeError as error:
            known = device_memory_error(error)
            if known is None:
                raise
            raise RequestError(500, str(known), code="device_memory") from error

    def _asked(self, wanted: Wanted) -> list[Asked]:
        """Lays out the prompts of a request; `n` rows for each.

        Raises:
          UserError: prompts or settings that do not fit the model.
          RequestError: a limit of the server.
        """
        served, model = self.served, self.served.model
        insist(
            wanted.model in ("", served.name),
            f"there is no model {wanted.model!r}; this server has {served.name!r}.",
            "model",
            404,
        )
        sampler = self._sampler(wanted)
        most = model.net.max_length
        asked_steps = served.steps if wanted.steps is None else wanted.steps
        engine.check_request(model, [asked_steps], wanted.n, most)
        found = []
        for number, text in enumerate(wanted.prompts):
            where = f"prompt {number}" if len(wanted.prompts) > 1 else ""
            prompt = Prompt(text, wanted.infill, wanted.max_tokens, where)
            rows = lay_out(model, [prompt], most)
            (steps,) = engine.step_counts(model, [asked_steps], rows.given.tokens.shape[1])
            make_sampler(model.config, model.net, model.flow, steps, sampler)  # its checks
            self._check_steps(steps, sampler, rows.given.tokens.shape[1])
            engine.check_given(model, rows.given, steps, sampler)
            given = jax.tree.map(lambda x: np.asarray(x)[0], rows.given)
            bounds = int(rows.starts[0]), int(rows.stops[0])
            for index in range(wanted.n):
                row = Row(given, wanted.seed, index)
                found.append(Asked(kind_of(row, steps, sampler), row, *bounds))
        return found

    def _sampler(self, wanted: Wanted) -> SamplerConfig:
        """Settings of the sampler of a request."""
        served = self.served
        name = wanted.sampler or name_of(served.sampler)
        own = plain(served.sampler) if name == name_of(served.sampler) else {}
        sampler = choose_sampler(served.model.config, name, **(own | wanted.settings))
        insist(
            served.fixed is None or sampler == served.sampler,
            "this server changes no settings of its sampler; leave them out "
            "(GET /v1/models shows them).",
            next(iter(wanted.settings), "sampler"),
            422,
        )
        return sampler

    def _check_steps(self, steps: Steps, sampler: SamplerConfig, length: int) -> None:
        """Refuses more network calls than the server allows, and steps that it does not offer."""
        served = self.served
        if not family(served.model.config).steps_free:
            return
        insist(
            served.fixed is None or steps in served.fixed,
            f"got steps={plain_steps(steps)}; this server offers "
            f"{', '.join(str(plain_steps(one)) for one in served.fixed or ())}.",
            "steps",
            422,
        )
        calls = most_calls(steps, length)
        for name in _REPEATS:
            calls *= max(1, getattr(sampler, name, 1))
        insist(
            calls <= self.limits.steps,
            f"got steps={plain_steps(steps)}, {calls} network calls for a text; expected at most "
            f"{self.limits.steps}.",
            "steps",
            422,
        )

    def _head(self, answered: Answered) -> dict[str, Any]:
        steps = answered.asked[0].kind.steps
        return {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": self.served.name,
            "seed": answered.wanted.seed,
            "steps": plain_steps(steps),
        }

    def _completion(self, answered: Answered) -> dict[str, Any]:
        choices = [self._choice(answered, index) for index in range(len(answered.asked))]
        return self._head(answered) | {"choices": choices, "usage": self._usage(answered)}

    def _event(
        self, answered: Answered, index: int, step: int, tokens: np.ndarray | None
    ) -> dict[str, Any] | None:
        """Event of a text, None for none.

        Args:
          index: index of the text.
          step: index of the call, or without `tokens` the number of calls that were shown.
          tokens: tokens after the call; None for the text itself.
        """
        asked = answered.asked[index]
        if tokens is None:
            most = most_calls(asked.kind.steps, asked.kind.length)
            choice = self._choice(answered, index)
            return {"step": max(most, step + 1), "choices": [choice | {"draft": choice["text"]}]}
        unread = np.flatnonzero(tokens[asked.start : asked.stop] < 0)
        stop = asked.start + int(unread[0]) if len(unread) else asked.stop
        if stop == asked.start:
            return None  # a prompt is being read
        draft = self._text(answered.wanted, asked._replace(stop=stop), tokens)[0]
        choice = {"index": index, "text": "", "finish_reason": None, "logprobs": None}
        return {"step": step + 1, "choices": [choice | {"draft": draft}]}

    def _text(self, wanted: Wanted, asked: Asked, tokens: np.ndarray) -> tuple[str, bool]:
        """The text of a row, and whether it ends before its length."""
        tokenizer = self.served.model.tokenizer
        texts = answer_texts(tokenizer, tokens, asked.start, asked.stop)
        kept = _cut(texts.answer, wanted.stop)
        ended = kept != texts.answer or self._end(asked, tokens) < asked.stop
        whole = texts.whole[: len(texts.whole) - (len(texts.answer) - len(kept))]
        return whole if wanted.echo else kept, ended

    def _choice(self, answered: Answered, index: int) -> dict[str, Any]:
        """One text of an answer."""
        asked, written = answered.asked[index], answered.written[index]
        text, ended = self._text(answered.wanted, asked, written.tokens)
        return {
            "index": index,
            "text": text,
            "finish_reason": "stop" if ended else "length",
            "logprobs": None,
            "network_calls": written.calls,
        }

    def _end(self, asked: Asked, tokens: np.ndarray) -> int:
        """Index of the first token that ends the answer, or of the answer's stop."""
        ends = sorted(self.served.model.tokenizer.end_ids)
        found = np.flatnonzero(np.isin(tokens[asked.start : asked.stop], ends))
        return asked.start + int(found[0]) if len(found) else asked.stop

    def _usage(self, answered: Answered) -> dict[str, int]:
        """Counts of tokens and of network calls over all texts; a prompt counts once."""
        prompt = completion = 0
        for place, (asked, written) in enumerate(zip(answered.asked, answered.written)):
            held = asked.row.given.mask
            if place % answered.wanted.n == 0:
                prompt += int(held[: asked.stop].sum())
            completion += int((~held[: self._end(asked, written.tokens)]).sum())
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "network_calls": sum(one.calls for one in answered.written),
        }


def _cut(text: str, stops: Sequence[str]) -> str:
    """Returns a text up to the first of the strings that stop it."""
    places = [text.find(stop) for stop in stops]
    return text[: min((place for place in places if place >= 0), default=len(text))]
