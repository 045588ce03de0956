"""Flags of the commands that draw samples: how tokens are drawn, where a family knows it."""

from absl import flags

from flm_jax.families import Options
from flm_jax.samplers.masked_bridge import EOS_POLICIES, Bridging

_TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "AR, MDLM: 0 = the most probable token.")
_TOP_P = flags.DEFINE_float("top_p", 1.0, "AR, MDLM: share of the probability that is kept.")
_METHOD = flags.DEFINE_string(
    "method", "ancestral", "MDLM: ancestral, or confidence (low-confidence remasking)."
)
_BLOCK = flags.DEFINE_integer(
    "block_length", 0, "MDLM by confidence: tokens of a block, written in turn; 0 = one block."
)
_REFINE = flags.DEFINE_string(
    "refine", "", "Any-order FMLM: posterior refinement, topk or uniform; --steps calls at most."
)
_THRESHOLD = flags.DEFINE_float(
    "refine_threshold", 1.0, "--refine: also keep predictions of more than this probability."
)
_CONTEXT_GUIDANCE = flags.DEFINE_float(
    "context_guidance", 0.0, "MLFM: weight of guidance away from corrupted context; 0 = none."
)
_PROMOTE = flags.DEFINE_float(
    "promote", 0.0, "MLFM: tokens of probability 1 - this or more are kept at once; 0 = none."
)
_EOS = flags.DEFINE_string(
    "eos", "free", f"MLFM: when the end of a text is so kept: {', '.join(EOS_POLICIES)}."
)


def options() -> Options:
    """What the flags say."""
    bridge = Bridging(_CONTEXT_GUIDANCE.value, _PROMOTE.value, _EOS.value)
    return Options(
        temperature=_TEMPERATURE.value,
        top_p=_TOP_P.value,
        method=_METHOD.value,
        block_length=_BLOCK.value,
        refine=_REFINE.value,
        refine_threshold=_THRESHOLD.value,
        bridge=bridge,
    )
