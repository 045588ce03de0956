"""Flags of the commands that judge samples."""

from absl import flags

from flm_jax.cli.path_flags import DEFINE_path
from flm_jax.evaluation.wording import Wording

JUDGE = DEFINE_path(
    "judge",
    "",
    "Judge of generative perplexity: the workdir of an autoregressive model, or a local "
    "GPT-2 folder.",
)
FEATURES = DEFINE_path(
    "features",
    "",
    "Folder of the model whose features MAUVE uses, or judge for the judge's features; adds the "
    "column mauve.",
)
WORDS = DEFINE_path(
    "words",
    "",
    "Word list, one word a line; adds the fraction of generated words that it contains.",
)
COPIED = flags.DEFINE_integer(
    "copied",
    0,
    "Number of consecutive words; adds the fraction of samples that copy at least this "
    "many from the training texts of --data.",
)
OF_TEXTS = (WORDS, COPIED, FEATURES)


def wording(data: str) -> Wording:
    """Opens the figures of texts that the flags ask for.

    Args:
      data: prepared folder whose training texts may be copied.
    """
    return Wording(WORDS.value, COPIED.value, data)
