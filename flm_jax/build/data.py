"""Opens config.data, and resolves the vocabulary of a model from its data."""

from flm_jax.config.schema import settings
from flm_jax.core.errors import require
from flm_jax.core.types import Config
from flm_jax.data.loading import Data, load_data
from flm_jax.data.tokenizers.base import Tokenizer


def open_data(config: Config) -> Data:
    """Opens the data of a configuration.

    Raises:
      UserError: none or several of data.path, data.mixture and data.task; missing or damaged data;
        no examples; a mixture with several tokenizers.
    """
    base = settings(config, "adapters").base or "."
    return load_data(
        settings(config, "data"),
        length=config["model"]["length"],
        seed=config["seed"],
        tokenizer=f"{base}/tokenizer",
    )


def resolve_vocabulary(config: Config, tokenizer: Tokenizer) -> Config:
    """Fills model.vocab_size from the tokenizer, or checks that it is large enough.

    If there are more rows than tokens, model.tokens is set to the number of tokens; else to 0.
    """
    got, need = config["model"]["vocab_size"], tokenizer.vocab_size
    require(
        got == 0 or got >= need,
        f"config.model.vocab_size is {got}, the data's tokenizer has {need} tokens; "
        "set it to 0 to take the tokenizer's.",
    )
    told = config["model"]["tokens"]
    require(
        told in (0, need),
        f"config.model.tokens is {told}, the data's tokenizer has {need} tokens; set it to 0.",
    )
    sizes = {"vocab_size": got or need, "tokens": need if got > need else 0}
    return config | {"model": config["model"] | sizes}


def framing(config: Config) -> str:
    """Packing of a model's training examples, see `Judge.framing`; synthetic tasks are unframed."""
    cfg = settings(config, "data")
    return "stream" if cfg.task else cfg.packing
