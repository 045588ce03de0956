"""Opens a trained text classifier as a reward."""

import re

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from flm_jax.core.errors import UserError, require, unknown_name
from flm_jax.core.paths import expanded
from flm_jax.core.reading import named_damage, read_arrays, read_object
from flm_jax.core.types import Params
from flm_jax.data.tokenizers.base import Tokenizer
from flm_jax.models.text_classifier import ClassifierConfig, classifier
from flm_jax.samplers.reward_guidance import Reward

SETTINGS, WEIGHTS = "reward.json", "weights.npz"


def checked_pattern(pattern: str) -> re.Pattern:
    try:
        return re.compile(pattern)
    except re.error as error:
        message = f"got match={pattern!r}, which is no regular expression: {error}."
        raise UserError(message) from None


def matches(tokens: np.ndarray, tokenizer: Tokenizer, pattern: str) -> np.ndarray:
    """Whether the text of each row of tokens [N, L] matches somewhere, bool [N]."""
    regex = checked_pattern(pattern)
    return np.array([regex.search(tokenizer.decode(row)) is not None for row in tokens])


def _settings(folder: str) -> dict:
    path = epath.Path(expanded(folder)) / SETTINGS
    require(path.exists(), f"reward={folder} has no {SETTINGS}; expected a folder of train_reward.")
    found = read_object(path, "the settings of a reward")
    good = isinstance(found.get("pattern"), str) and isinstance(found.get("sizes"), dict)
    require(good, f"{path} lacks the pattern or the sizes of a reward; restore it.")
    return found


def pattern(folder: str) -> str:
    """Regular expression that the texts rewarded by a folder's reward should match."""
    return _settings(folder)["pattern"]


def load_text_reward(folder: str, tokenizer: Tokenizer) -> tuple[Reward, Params]:
    """Loads the reward log p(text matches | text), in nats, and its parameters.

    Raises:
      UserError: there is no reward, or it belongs to another tokenizer.
    """
    settings = _settings(folder)
    require(
        settings.get("tokenizer") == tokenizer.fingerprint,
        f"reward={folder} was trained with another tokenizer; train one with this model's workdir.",
    )
    arrays = read_arrays(epath.Path(expanded(folder)) / WEIGHTS, "the weights of a reward")
    with named_damage(f"reward={folder}", "restore its folder, or train it again"):
        made = classifier(ClassifierConfig(**settings["sizes"]))
        shapes = jax.eval_shape(made.init, jax.random.key(0))
    leaves, tree = jax.tree_util.tree_flatten_with_path(shapes)
    names = [jax.tree_util.keystr(path) for path, _ in leaves]
    missing = [name for name in names if name not in arrays]
    if missing:
        raise unknown_name(f"weights of reward {folder}", missing[0], arrays.keys())
    params = tree.unflatten([jnp.asarray(arrays[name]) for name in names])
    score = lambda params, x: jax.nn.log_sigmoid(made.logit(params, x))
    return Reward(made.table, score), params
