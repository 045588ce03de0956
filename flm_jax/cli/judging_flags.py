"""Flags of the commands that judge samples."""

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
