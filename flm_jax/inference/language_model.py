"""The Python interface of trained models: `load` one, then `sample`, `score` and `save_pretrained`.

model = flm_jax.load("runs/fmlm")
model.sample(4, steps=1, prompt="The ").texts
model.score(["The string is returned."]).perplexity
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh

from flm_jax.build.data import framing
from flm_jax.build.export import save_model
from flm_jax.build.families.registry import family
from flm_jax.build.load import Model, load_model
from flm_jax.build.sampler import choose_sampler, model_sampler
from flm_jax.checkpoints.portable import upload_folder
from flm_jax.core.errors import UserError, require
from flm_jax.core.files import write_output
from flm_jax.core.settings import plain
from flm_jax.data.pipeline import padded_length
from flm_jax.data.text import Mender
from flm_jax.data.tokenizers.base import Tokenizer
from flm_jax.inference import animation, engine, trajectories
from flm_jax.metrics.likelihood import sequence_nats
from flm_jax.samplers.base import SamplerConfig, Steps, read_steps
from flm_jax.samplers.registry import name_of

_MOST_ROWS = 32


@contextlib.contextmanager
def _pictures() -> Iterator[None]:
    """Turns a missing package for pictures into one line."""
    try:
        yield
    except ImportError as error:
        raise UserError(f"{error}: pictures need pip install 'flm-jax[plots]'.") from error


@dataclasses.dataclass(frozen=True)
class Generated:
    """Samples of a model.

    Attributes:
      texts: list of N texts, one for each sample.
      tokens: int32 [N, L].
      confidence: float32 [N, L], probability of each token at the last network call.
      steps_tokens, steps_confidence: arrays [K, N, L], the same after each call, or K = 1 after the
        last one alone.
      calls: number of network calls for a batch, averaged over batches.
      seconds: wall time without compilation.
    """

    texts: list[str]
    tokens: np.ndarray
    confidence: np.ndarray
    steps_tokens: np.ndarray
    steps_confidence: np.ndarray
    calls: float
    seconds: float
    tokenizer: Tokenizer = dataclasses.field(repr=False)

    def to_html(self, path: str | os.PathLike[str] | None = None) -> str:
        """Returns an HTML page that shows the texts call by call; writes it to `path` if given."""
        page = trajectories.to_html(self.tokenizer, self.steps_tokens, self.steps_confidence)
        if path is not None:
            write_output(path, page)
        return page

    def to_png(self, path: str | os.PathLike[str], sample: int = 0) -> None:
        """Draws one text as a picture: a row a step, the model's doubt as colour (extra `plots`).

        Raises:
          UserError: no such sample, or no matplotlib.
        """
        count = len(self.texts)
        require(0 <= sample < count, f"got sample={sample} of {count} samples, counted from 0.")
        (steps,) = self._frames(slice(sample, sample + 1))
        with _pictures():
            trajectories.draw_trajectory(epath.Path(os.path.expanduser(path)), steps)

    def to_gif(self, path: str | os.PathLike[str]) -> None:
        """Draws all texts as an animation: a frame of noise, then one a step (extra `plots`).

        Raises:
          UserError: no matplotlib.
        """
        with _pictures():
            write_output(path, animation.to_gif(self._frames(slice(None))))

    def _frames(self, samples: slice) -> list[list[list[list]]]:
        one = (x[:, samples] for x in (self.steps_tokens, self.steps_confidence))
        return trajectories.frames(self.tokenizer, *one)

    def _repr_html_(self) -> str:
        """Page in its own frame, which notebooks show."""
        return trajectories.framed(self.to_html())


@dataclasses.dataclass(frozen=True)
class Scores:
    """Likelihoods of N texts.

    Attributes:
      nats: float64 [N], -ln p of each text, or an upper bound on it; every token counts except a
        first BOS.
      tokens: int64 [N], number of tokens that were scored.
      kind: "exact" or "upper bound"; the bound is estimated from `draws` random draws for each
        text.
      draws: number of random draws for each text; 1 for exact likelihoods.
    """

    nats: np.ndarray
    tokens: np.ndarray
    kind: str
    draws: int

    @property
    def perplexity(self) -> float:
        """Perplexity, exp of the mean nats per token; comparable between models of a tokenizer."""
        return float(np.exp(self.nats.sum() / self.tokens.sum()))


class LanguageModel:
    """A trained model of any family, as opened by `load`.

    Sampling compiles one program for each number of rows, tokens and steps and for each set of
    options, and keeps it: another call of the same shape compiles nothing.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._programs: dict[tuple[Any, ...], Any] = {}
        self._nll: Any = None
        self._sampler = model_sampler(model.config)

    @property
    def config(self) -> dict[str, Any]:
        """Configuration with which the model was trained."""
        return self._model.config

    @property
    def step(self) -> int:
        """Training step from which its averaged parameters are."""
        return self._model.step

    @property
    def tokenizer(self) -> Tokenizer:
        """Tokenizer that turns text into token ids and back."""
        return self._model.tokenizer

    @property
    def kind(self) -> str:
        """Kind of the model: "flow (Euler)", "flow map", "masked diffusion", ..."""
        return family(self.config).kind(self._model.net)

    @property
    def max_length(self) -> int:
        """Largest length of a sequence, L, in tokens."""
        return self._model.net.max_length

    def __repr__(self) -> str:
        return f"LanguageModel({self.kind}, {self.max_length} tokens, step {self.step})"

    def sample(
        self,
        num: int = 1,
        steps: Steps | str | None = None,
        *,
        prompt: str = "",
        infill: str = "",
        length: int | None = None,
        seed: int = 0,
        batch_size: int | None = None,
        sampler: SamplerConfig | str | None = None,
        **changes: Any,
    ) -> Generated:
        """Generates texts.

        Args:
          num: number of texts.
          steps: step count of the sampler, which is the number of network calls for most; for
            masked diffusion also a fraction of the tokens to generate, such as "1/4". The default
            is the configuration's eval.sample_steps; autoregressive models ignore it.
          prompt: text with which every sample begins.
          infill: template in which {n} stands for n tokens to generate, instead of a prompt.
          length: length of a sample in tokens, at most `max_length`, which is the default.
          seed: seed of the random draws; the same seed and batch size give the same texts.
          batch_size: number of rows at a time; the default is the smallest power of two that is at
            least `num`, but no more than 32.
          sampler: name or settings of a sampler to use instead of `self.sampler`.
          changes: settings of the sampler by name, such as temperature=0.8.

        Raises:
          UserError: numbers, prompts or options that do not fit the model; raised before
            compilation.
        """
        model, count = self._model, length or self.max_length
        wanted = self.config["eval"]["sample_steps"] if steps is None else steps
        wanted = read_steps(wanted) if isinstance(wanted, str) else wanted
        engine.check_request(model, [wanted], num, count)
        rows = batch_size or min(_MOST_ROWS, 1 << (num - 1).bit_length())
        require(rows >= 1, f"got batch_size={batch_size}; expected at least 1.")
        given = engine.given_tokens(model, prompt, infill, rows, count)
        wanted = engine.step_counts(model, [wanted], count)[0]
        cfg = self._chosen(sampler, changes)
        key = (rows, count, wanted, cfg)
        engine.check_given(model, given, wanted, cfg)
        if key not in self._programs:
            self._programs[key] = engine.prepare(model, (rows, count), wanted, cfg)
        drawn = self._programs[key](given, num=num, seed=seed)
        return Generated(
            texts=[model.tokenizer.decode(row) for row in drawn.tokens],
            tokens=drawn.tokens,
            confidence=drawn.steps_confidence[-1],
            steps_tokens=drawn.steps_tokens,
            steps_confidence=drawn.steps_confidence,
            calls=drawn.calls,
            seconds=drawn.seconds,
            tokenizer=model.tokenizer,
        )

    @property
    def sampler(self) -> SamplerConfig:
        """Settings of the sampler of `sample`, a frozen dataclass; assign others, or a name."""
        return self._sampler

    @sampler.setter
    def sampler(self, value: SamplerConfig | str) -> None:
        self._sampler = self._chosen(value, {})

    def _chosen(self, value: SamplerConfig | str | None, changes: dict[str, Any]) -> SamplerConfig:
        """Settings of the model's sampler, or of another one, with changes."""
        cfg = self._sampler if value is None else value
        name, own = (cfg, {}) if isinstance(cfg, str) else (name_of(cfg), plain(cfg))
        return choose_sampler(self.config, name, **(own | changes))

    def score(self, texts: Sequence[str], *, seed: int = 1) -> Scores:
        """Returns the likelihood of texts: exact for autoregressive models, else an upper bound.

        Each text is framed like the training data (with BOS and EOS under packing wrap and pad) and
        scored at its own length; a text longer than `max_length` is scored in pieces, each without
        the text before it. Rows are padded to a few lengths, see `padded_length`, with positions
        that attention does not see: at most eight programs are compiled for all lengths up to 1024.

        Args:
          texts: texts to score, none of them empty.
          seed: seed of the random draws of a bound.

        Raises:
          UserError: an empty text, one that ends within the prompt that the model was trained to
            read, a model whose output is no distribution, or a tokenizer that lacks the BOS or EOS
            of its packing.
        """
        model, kind = self._model, family(self.config)
        if self._nll is None:
            row = kind.row_likelihood(self.config, model.net, model.flow)
            if row is None:
                raise UserError(f"this {self.kind} has no likelihood of texts.")
            self._nll = jax.jit(row)
        nats, tokens = np.zeros(len(texts)), np.zeros(len(texts), np.int64)
        mender = Mender()
        for index, text in enumerate(texts):
            ids = model.tokenizer.encode(mender.text(text, f"text {index}"))
            require(len(ids) > 0, f"text {index} is empty ({text!r}); there is nothing to score.")
            for row_ids in self._framed(ids):
                batch = self._filled(row_ids)
                found, count = sequence_nats(
                    self._nll, model.params, [batch], draws=kind.draws, seed=seed
                )
                nats[index] += found.sum()
                tokens[index] += int(count.sum())
            require(
                tokens[index] > 0,
                f"text {index} ends within the prompt that this model was trained to read "
                f"({text!r}); there is nothing to score.",
            )
        return Scores(nats, tokens, kind.likelihood, kind.draws)

    def _filled(self, ids: np.ndarray) -> dict[str, jax.Array]:
        """Batch of one row, padded if the network's attention can leave positions out."""
        hides = self.config["model"]["attention"] != "cudnn"
        width = padded_length(len(ids), self.max_length) if hides else len(ids)
        tokens, own = np.zeros((1, width), np.int32), np.arange(width)[None] < len(ids)
        tokens[0, : len(ids)] = ids
        batch = {"tokens": jnp.asarray(tokens), "mask": jnp.asarray(own)}
        return batch | ({"visible": batch["mask"]} if hides else {})

    def _framed(self, ids: np.ndarray) -> list[np.ndarray]:
        """Frames `ids` as sequences of at most `max_length` tokens, as in training."""
        frame, tokenizer = framing(self.config), self.tokenizer
        block = self.max_length if frame == "stream" else self.max_length - 2
        parts = [ids[start : start + block] for start in range(0, len(ids), block)]
        if frame == "stream":
            return parts
        lacks = [n for n in ("BOS", "EOS") if getattr(tokenizer, f"{n.lower()}_id") is None]
        require(
            not lacks,
            f"this model's data.packing is {frame!r}, which frames a text in BOS and EOS, and its "
            f"{tokenizer.kind} tokenizer has no {' and no '.join(lacks)}; to score texts without "
            "them, set data.packing to 'stream' in its config.json.",
        )
        first, last = [tokenizer.bos_id], [tokenizer.eos_id]
        return [np.concatenate([first, part, last]).astype(np.int32) for part in parts]

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes model.safetensors, config.json, tokenizer/ and a model card; `load` reads them.

        Raises:
          UserError: the folder already holds a model.
        """
        save_model(folder, self._model)

    def push_to_hub(
        self, name: str, *, folder: str | os.PathLike[str], private: bool = False
    ) -> None:
        """Saves the model into `folder` and uploads that to the Hugging Face hub (extra `hf`).

        Args:
          name: OWNER/NAME of the repository, which is created if it is missing.
          folder: new folder, which is kept.
          private: whether a new repository is private.

        Raises:
          UserError: a folder in use, the missing extra, or a refusal by the hub.
        """
        self.save_pretrained(folder)
        upload_folder(os.fspath(folder), name, private)


def load(
    workdir: str | os.PathLike[str], *, mesh: Mesh | None = None, attention: str | None = None
) -> LanguageModel:
    """Opens a trained model of any family.

    Args:
      workdir: workdir of `train` or `convert`, folder of `save_pretrained`, hf:OWNER/NAME, or name
        of a model that comes with the library, such as "tales".
      mesh: devices over which the model is split; one device by default.
      attention: attention kernel; by default the one of training, or "xla" where that is not
        available.

    Raises:
      UserError: there is no model, or it is damaged.
    """
    return LanguageModel(load_model(os.fspath(workdir), mesh, attention))
