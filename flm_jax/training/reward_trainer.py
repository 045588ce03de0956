"""A trained reward: how likely a text matches a pattern, learnt from clean text.

A folder holds reward.json (pattern, sizes, fingerprint of the tokenizer) and weights.npz.
"""

import io
import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath

from flm_jax.build.load import load_model
from flm_jax.core.errors import require
from flm_jax.core.types import Params
from flm_jax.data import loading
from flm_jax.data.pipeline import make_iterator
from flm_jax.data.tokenizers.base import Tokenizer
from flm_jax.inference.text_reward import SETTINGS, WEIGHTS, checked_pattern, matches
from flm_jax.models.text_classifier import Classifier, ClassifierConfig, classifier

_HELD_OUT = 2048  # texts that the trained classifier is checked with


class RewardFigures(NamedTuple):
    """Figures of a training: share of held-out texts that match, and that are classified rightly.

    loss is the last one of training, in nats.
    """

    matching: float
    accuracy: float
    loss: float


def _loss(made: Classifier, params: Params, tokens: jax.Array, labels: jax.Array) -> jax.Array:
    logit = made.logit(params, made.table(params)[tokens])
    return jnp.mean(optax.sigmoid_binary_cross_entropy(logit, labels))


def train_text_reward(
    workdir: str, pattern: str, out: str, *, steps: int, batch: int, lr: float, seed: int
) -> RewardFigures:
    """Learns p(text matches | text) from the training data of a model, and writes it to `out`.

    Args:
      workdir: of the model that is to be steered; its data must be where they were.
      pattern: regular expression, searched in decoded texts.
      steps, batch, lr: of Adam.

    Raises:
      UserError: no such model or data; a pattern that all or no texts match.
    """
    for name, value in (("steps", steps), ("batch_size", batch)):
        require(value >= 1, f"got {name}={value}; expected at least 1.")
    require(lr > 0.0, f"got lr={lr}; expected more than 0.")
    checked_pattern(pattern)
    model = load_model(workdir)
    data, tokenizer = loading.open_data(model.config), model.tokenizer
    held_out = np.stack([data.valid[i]["tokens"] for i in range(min(_HELD_OUT, len(data.valid)))])
    right = matches(held_out, tokenizer, pattern)
    share = float(right.mean())
    require(
        0.0 < share < 1.0,
        f"{'all' if share else 'none'} of {len(right)} held-out texts match {pattern!r}; expected "
        "a pattern that some match and some do not.",
    )
    cfg = ClassifierConfig(model.net.vocab_size, model.net.max_length)
    made, optimizer = classifier(cfg), optax.adam(lr)
    params = made.init(jax.random.key(seed))

    @jax.jit
    def step(params, state, tokens, labels):
        loss, grads = jax.value_and_grad(lambda p: _loss(made, p, tokens, labels))(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, loss

    state = optimizer.init(params)
    batches = make_iterator(data.train, global_batch=batch, seed=seed)
    loss = jnp.nan
    for _ in range(steps):
        tokens = next(batches)["tokens"]
        labels = matches(tokens, tokenizer, pattern).astype(np.float32)
        params, state, loss = step(params, state, tokens, labels)
    guess = jax.jit(lambda p, x: made.logit(p, made.table(p)[x]) > 0)(params, held_out)
    _save(out, cfg, pattern, tokenizer, params)
    return RewardFigures(share, float(np.mean(np.asarray(guess) == right)), float(loss))


def _save(out: str, cfg: ClassifierConfig, pattern: str, tokenizer: Tokenizer, params) -> None:
    folder = epath.Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    buffer = io.BytesIO()
    np.savez(buffer, **{jax.tree_util.keystr(path): np.asarray(x) for path, x in leaves})
    (folder / WEIGHTS).write_bytes(buffer.getvalue())
    settings = {"pattern": pattern, "tokenizer": tokenizer.fingerprint, "sizes": vars(cfg)}
    (folder / SETTINGS).write_text(json.dumps(settings, indent=1) + "\n")
