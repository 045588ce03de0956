"""Opens the bigrams and trigrams that a sampler of a loaded model uses."""

from etils import epath

from flm_jax.build.load import Model
from flm_jax.core.errors import require
from flm_jax.core.paths import expanded
from flm_jax.data.bigrams import BIGRAMS, Bigrams, load_bigrams
from flm_jax.data.trigrams import TRIGRAMS, Trigrams, load_trigrams


def model_bigrams(model: Model, named: str) -> Bigrams:
    """Opens the bigrams in a folder, else those in the model's folder, else counts its data's.

    Args:
      model: model that is sampled.
      named: `sampler.bigrams`, a folder; "" for the model's own.

    Raises:
      UserError: there are none, or they are of other tokens.
    """
    return load_bigrams(_place(model, named, BIGRAMS), model.tokenizer.fingerprint)


def model_trigrams(model: Model, named: str) -> Trigrams:
    """Opens the trigrams in the same places; see `model_bigrams`."""
    return load_trigrams(_place(model, named, TRIGRAMS), model.tokenizer.fingerprint)


def _place(model: Model, named: str, name: str) -> str:
    """Folder of a table: the one that is named, the model's if it has the file, or the data's."""
    path, data = named or model.folder, model.config["data"]["path"]
    if not named and not (epath.Path(path) / name).exists():
        path = data
    kind = name.partition(".")[0]
    require(
        bool(path),
        f"sampler.{kind.removesuffix('s')} needs {kind}, and the model has none; give "
        "bigrams=FOLDER, prepared data of the model's tokenizer.",
    )
    return expanded(path)
