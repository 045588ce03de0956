"""Opens the bigrams that a sampler of a loaded model uses."""

from etils import epath

from flm_jax.build.load import Model
from flm_jax.core.errors import require
from flm_jax.core.paths import expanded
from flm_jax.data.bigrams import BIGRAMS, Bigrams, load_bigrams


def model_bigrams(model: Model, named: str) -> Bigrams:
    """Opens the bigrams in a folder, else those in the model's folder, else counts its data's.

    Args:
      model: model that is sampled.
      named: `sampler.bigrams`, a folder; "" for the model's own.

    Raises:
      UserError: there are none, or they are of other tokens.
    """
    path, data = named or model.folder, model.config["data"]["path"]
    if not named and not (epath.Path(path) / BIGRAMS).exists():
        path = data
    require(
        bool(path),
        "sampler.bigram needs bigrams, and the model has none; give bigrams=FOLDER, prepared data "
        "of the model's tokenizer.",
    )
    return load_bigrams(expanded(path), model.tokenizer.fingerprint)
