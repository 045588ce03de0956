"""Flags of the commands that judge samples."""

from absl import flags

from flm_jax.cli.path_flags import DEFINE_path

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


def worded() -> tuple[str, int]:
    """Returns what the flags say of texts: the word list, and the length of copied runs."""
    return WORDS.value, COPIED.value
