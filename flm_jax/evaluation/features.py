"""Feature vectors of texts from a local model, which MAUVE compares."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.build.families.registry import family
from flm_jax.build.load import load_model
from flm_jax.checkpoints.portable import located
from flm_jax.config.upgrade import read_config
from flm_jax.core.errors import require
from flm_jax.core.network import Network
from flm_jax.core.progress import tracked
from flm_jax.core.reading import read_object
from flm_jax.core.types import Params
from flm_jax.data.tokenizers.base import Tokenizer
from flm_jax.denoiser.forward import forward
from flm_jax.evaluation.judges import load_judge
from flm_jax.metrics.generative_perplexity import Judge

OWN = "judge"  # the name of the features of the judge itself
# Texts, rows at a time -> features float32 [N, D].
Featurizer = Callable[[Sequence[str], int], np.ndarray]


def load_features(path: str) -> Featurizer:
    """Loads the model whose features are compared.

    Args:
      path: workdir or exported folder of any model of this library, or a GPT-2 folder, see
        `load_judge`.

    Returns:
      A function from (texts, rows at a time) to float32 [N, D]. For an autoregressive model it is
      the last hidden state after a text; for others the mean of the last hidden states over the
      clean text. Texts longer than the model's rows are cut.

    Raises:
      UserError: there is no model, or it is of another kind.
    """
    file = located(path) / "config.json"
    gpt2 = file.exists() and "model_type" in read_object(file, "that of a model")
    if gpt2 or family(read_config(file.parent)).likelihood == "exact":
        return judge_features(load_judge(path))
    model = load_model(path, attention="xla")  # which can leave out what stands behind a text
    return _featurizer(model.net, model.params, model.tokenizer, [], causal=False)


def features_of(name: str, judge: Judge | None) -> Featurizer | None:
    """Loads the features that a flag names: a model's folder, the judge by `OWN`, or "" for none.

    Raises:
      UserError: the judge is missing, or `load_features` fails.
    """
    if not name:
        return None
    require(
        name != OWN or judge is not None,
        f"got --features={OWN} and no judge; give --judge, or the folder of a model.",
    )
    return judge_features(judge) if name == OWN else load_features(name)


def judge_features(judge: Judge) -> Featurizer:
    """Features of a judge, see `load_features`."""
    return _featurizer(judge.net, judge.params, judge.tokenizer, judge.head, causal=True)


def _featurizer(
    net: Network, params: Params, tokenizer: Tokenizer, head: list[int], *, causal: bool
) -> Featurizer:
    program = jax.jit(_program(net, causal))
    # Behind a text there is room for the position that has seen all of it.
    room = net.max_length - len(head) - causal

    def features(texts: Sequence[str], rows: int) -> np.ndarray:
        found = []
        ids = [[*head, *one[:room]] for one in tokenizer.encode_batch(texts)]
        starts, quiet = range(0, len(ids), rows), jax.process_index() > 0
        for start in tracked(starts, "features: batches", len(starts), quiet=quiet):
            some = ids[start : start + rows]
            tokens = np.zeros((rows, net.max_length), np.int32)
            counts = np.ones(rows, np.int32)
            for place, one in enumerate(some):
                tokens[place, : len(one)], counts[place] = one, max(len(one), 1)
            found.append(np.asarray(program(params, tokens, counts))[: len(some)])
        return np.concatenate(found) if found else np.zeros((0, net.dim), np.float32)

    return features


def _program(net: Network, causal: bool) -> Callable[..., jax.Array]:
    def features(params, tokens, counts):
        # Clean text: a time of 1, which causal networks do not read.
        time = (jnp.zeros if causal else jnp.ones)(len(tokens))
        states = net.table(params)[tokens]
        inside = jnp.arange(tokens.shape[1])[None] < counts[:, None]
        more = {} if causal else {"visible": inside}
        out = forward(net, params, states, time, time, **more).features.astype(jnp.float32)
        if causal:
            return jnp.take_along_axis(out, counts[:, None, None], axis=1)[:, 0]
        return jnp.where(inside[..., None], out, 0.0).sum(axis=1) / counts[:, None]

    return features
