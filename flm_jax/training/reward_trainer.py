"""Trains a text classifier as a reward: the probability that a text matches a pattern.

A folder holds reward.json (pattern, sizes, fingerprint of the tokenizer) and weights.npz, and from
its training config.json, checkpoints/ and metrics.jsonl; the general training loop drives it.
"""

import functools
import io
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from jax.sharding import Mesh

from flm_jax.build.data import open_data
from flm_jax.build.load import load_model
from flm_jax.checkpoints.config_file import read_config, write_config
from flm_jax.checkpoints.state import new_state
from flm_jax.checkpoints.workdir import Checkpoints
from flm_jax.config.training import LoopConfig
from flm_jax.core.errors import check_seed, require
from flm_jax.core.files import to_json, write_whole
from flm_jax.core.locks import alone_in
from flm_jax.core.paths import check_folder, expanded
from flm_jax.data import loading
from flm_jax.data.pipeline import make_iterator
from flm_jax.data.tokenizers.base import Tokenizer
from flm_jax.distributed import sharding
from flm_jax.inference.text_reward import SETTINGS, WEIGHTS, checked_pattern, matches
from flm_jax.losses.base import Objective
from flm_jax.models.text_classifier import Classifier, ClassifierConfig, classifier
from flm_jax.training.loop import Loop, Run
from flm_jax.training.step import make_train_step

_HELD_OUT = 2048  # texts that the trained classifier is checked with
_LOG_EVERY, _CHECKPOINT_EVERY, _MAX_SKIPPED, _WATCHDOG_SECONDS = 50, 200, 20, 600.0


class RewardFigures(NamedTuple):
    """Figures on held-out texts.

    Attributes:
      matching: fraction of texts that match the pattern.
      accuracy: fraction of texts that the classifier labels correctly.
      loss: binary cross entropy of the classifier, nats/text.
    """

    matching: float
    accuracy: float
    loss: float


def classifier_objective(made: Classifier) -> Objective:
    """Binary cross entropy of batches of "tokens" int32 [B, L] and "labels" float32 [B]."""

    def objective(params, frozen, batch, key, rows):
        del frozen, key, rows
        logit = made.logit(params, made.table(params)[batch["tokens"]])
        loss = jnp.mean(optax.sigmoid_binary_cross_entropy(logit, batch["labels"]))
        return loss, {"nats_per_text": loss}

    return objective


@alone_in("out", "training a reward", lambda: jax.process_index() == 0)
def train_text_reward(
    workdir: str, pattern: str, out: str, *, steps: int, batch: int, lr: float, seed: int
) -> RewardFigures:
    """Learns p(text matches | text) from the training data of a model, and writes it to `out`.

    If run again with the same arguments, it continues from its last checkpoint.

    Args:
      workdir: workdir of the model to steer, whose data must still be available.
      pattern: regular expression, searched in decoded texts.
      out: folder of the reward.
      steps: number of updates of Adam.
      batch: number of texts in a step.
      lr: learning rate.
      seed: seed of the initialisation and of the order of the data.

    Returns:
      Figures on held-out texts.

    Raises:
      Stopped: SIGTERM or SIGINT arrived; its step was saved.
      UserError: no such model or data; a pattern that all or no texts match; a folder `out` with
        other arguments.
    """
    for name, value in (("steps", steps), ("batch_size", batch)):
        require(value >= 1, f"got {name}={value}; expected at least 1.")
    require(lr > 0.0, f"got lr={lr}; expected more than 0.")
    check_seed(seed)
    checked_pattern(pattern)
    out = expanded(out)
    check_folder(out, "--out")
    model = load_model(workdir)
    data, tokenizer = open_data(model.config), model.tokenizer
    held_out = np.stack([data.valid[i]["tokens"] for i in range(min(_HELD_OUT, len(data.valid)))])
    right = matches(held_out, tokenizer, pattern)
    share = float(right.mean())
    require(
        0.0 < share < 1.0,
        f"{'all' if share else 'none'} of {len(right)} held-out texts match {pattern!r}; expected "
        "a pattern that some match and some do not.",
    )
    settings = {"workdir": workdir, "match": pattern, "batch_size": batch, "lr": lr, "seed": seed}
    _begin(out, {"reward": settings})
    sizes = ClassifierConfig(model.net.vocab_size, model.net.max_length)
    made, mesh = classifier(sizes), _mesh(batch)
    loop_settings = LoopConfig(
        steps=steps,
        log_every=_LOG_EVERY,
        checkpoint_every=_CHECKPOINT_EVERY,
        keep_checkpoints=1,
        max_skipped=_MAX_SKIPPED,
        watchdog_seconds=_WATCHDOG_SECONDS,
    )
    checkpoints = Checkpoints(out, 1)
    run = _run(made, mesh, data, tokenizer, pattern, checkpoints, settings)
    with Loop(run, loop_settings, out, checkpoints) as loop:
        loop.train()
        params = jax.device_get(loop.state.params)
    logit = jax.jit(lambda p, x: made.logit(p, made.table(p)[x]))(params, held_out)
    loss = jnp.mean(optax.sigmoid_binary_cross_entropy(logit, right.astype(np.float32)))
    _save(out, sizes, pattern, tokenizer, params)
    correct = np.mean((np.asarray(logit) > 0) == right)
    return RewardFigures(share, float(correct), float(loss))


def _begin(out: str, config: dict[str, Any]) -> None:
    """Writes config.json, and refuses a folder that was started with another one."""
    if (epath.Path(out) / "config.json").exists():
        saved, now = read_config(out).get("reward", {}), config["reward"]
        changed = [f"{k}: {saved.get(k)!r} -> {now[k]!r}" for k in now if saved.get(k) != now[k]]
        require(
            not changed,
            f"{out} holds a training with another configuration ({'; '.join(changed)}); restore "
            "these values, or give a new --out.",
        )
    if jax.process_index() == 0:
        epath.Path(out).mkdir(parents=True, exist_ok=True)
        write_config(out, config)


def _mesh(batch: int) -> Mesh:
    """Mesh over as many devices as divide the batch."""
    ways = math.gcd(batch, jax.device_count())
    devices = jax.devices() if jax.process_count() > 1 else jax.devices()[:ways]
    return sharding.make_mesh(sharding.MeshConfig(), devices)


def _run(
    made: Classifier,
    mesh: Mesh,
    data: loading.Data,
    tokenizer: Tokenizer,
    pattern: str,
    checkpoints: Checkpoints,
    settings: dict[str, Any],
) -> Run:
    """Parts for the loop, at step 0 or at the last checkpoint."""
    optimizer, batch = optax.adam(settings["lr"]), settings["batch_size"]
    everywhere, seed = sharding.replicated(mesh), settings["seed"]
    fresh = lambda: new_state(made.init(jax.random.key(seed)), optimizer)
    state = jax.jit(fresh, out_shardings=everywhere)()
    # With a decay of 0 the average is the parameters themselves.
    step = make_train_step(
        classifier_objective(made), optimizer, seed=seed, microbatches=1, ema_decay=0.0
    )
    rows = sharding.local_rows(mesh, batch)
    batches = make_iterator(
        data.train,
        global_batch=batch,
        seed=seed,
        rows=rows,
        threads=1,
        prefetch=4,
        prefix_crop=0.0,
    )
    if found := checkpoints.restore(state):
        state = found[0]
        batches.set_state(found[1]["iterator"])
    place = functools.partial(sharding.global_batch, mesh=mesh, rows=rows, total=batch)

    def labelled(local: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        tokens = local["tokens"]
        labels = matches(tokens, tokenizer, pattern).astype(np.float32)
        return place({"tokens": tokens, "labels": labels})

    return Run(
        state=state,
        train_step=jax.jit(step, donate_argnums=0, out_shardings=everywhere),
        frozen={},
        batches=batches,
        to_global=labelled,
        evaluate=None,
        eval_every=0,
        rows=batch,
        meta={"length": data.valid[0]["tokens"].shape[0], "tokenizer": tokenizer.fingerprint},
        shown=lambda name: name.endswith("_text"),
    )


def _save(out: str, cfg: ClassifierConfig, pattern: str, tokenizer: Tokenizer, params) -> None:
    folder = epath.Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    buffer = io.BytesIO()
    np.savez(buffer, **{jax.tree_util.keystr(path): np.asarray(x) for path, x in leaves})
    write_whole(folder / WEIGHTS, buffer.getvalue())
    settings = {"pattern": pattern, "tokenizer": tokenizer.fingerprint, "sizes": vars(cfg)}
    write_whole(folder / SETTINGS, to_json(settings, indent=1) + "\n")
