"""Flags of the commands that draw samples: how tokens are drawn, where a family knows it."""

from absl import flags

from flm_jax.build.sampler import Options
from flm_jax.cli.path_flags import DEFINE_path
from flm_jax.samplers.flow import SOLVERS, Steering
from flm_jax.samplers.masked_flow import EOS_POLICIES, Bridging

_TEMPERATURE = flags.DEFINE_float(
    "temperature",
    None,
    "Of drawn tokens, 0 = the most probable; by default 1 for AR and MDLM, and for flows 0: they "
    "draw from the last read-out alone.",
)
_TOP_P = flags.DEFINE_float("top_p", 1.0, "Share of the probability that is kept in drawing.")
_METHOD = flags.DEFINE_string(
    "method",
    "ancestral",
    "MDLM: ancestral, confidence (low-confidence remasking), or flow (x-prediction flow).",
)
_BLOCK = flags.DEFINE_integer(
    "block_length",
    0,
    "MDLM by confidence or flow: tokens of a block, written in turn; 0 = one block.",
)
_STEP_SIZE = flags.DEFINE_float(
    "step_size", 0.0, "--method=flow: a in [1/256, 1]; 0 = so that tokens arrive in --steps calls."
)
_RE_EDIT = flags.DEFINE_bool("re_edit", True, "--method=flow: edit again what became unlikely.")
_HARD_COMMIT = flags.DEFINE_bool(
    "hard_commit", True, "--method=flow: each call writes the most confident token."
)
_POLICY = DEFINE_path(
    "policy", "", "--method=flow: workdir of train_policy, whose step sizes are taken."
)
_REFINE = flags.DEFINE_string(
    "refine", "", "Any-order FMLM: posterior refinement, topk or uniform; --steps calls at most."
)
_THRESHOLD = flags.DEFINE_float(
    "refine_threshold", 1.0, "--refine: also keep predictions of more than this probability."
)
_UNTIL = flags.DEFINE_float(
    "refine_until",
    1.0,
    "--refine: clock time that each jump ends at; 1 joint samples, 0 the most probable tokens.",
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

_SOLVER = flags.DEFINE_string(
    "solver", "euler", f"FLM: {', '.join(SOLVERS)}; adaptive takes at most --steps calls."
)
_TOLERANCE = flags.DEFINE_float(
    "tolerance", Steering.tolerance, "--solver=adaptive: error of a step, 1 = an embedding's norm."
)
_GAMMA = flags.DEFINE_float(
    "gamma", 0.0, "FMLM: fresh noise after each jump, 0 = none, 1 = all (consistency sampling)."
)
_GUIDANCE = flags.DEFINE_float(
    "guidance", 1.0, "Flows: eta of autoguidance by --weak or --weak_dropout; 1 = none."
)
_ITERATIONS = flags.DEFINE_integer(
    "iterations",
    0,
    "Self-conditioned FLM: network calls at each state, the first without an estimate; 0 = one "
    "call, with the estimate of the step before.",
)
_WEAK = DEFINE_path("weak", "", "Workdir of a weaker model, for --guidance.")
_WEAK_DROPOUT = flags.DEFINE_float(
    "weak_dropout", 0.0, "For --guidance: the model itself at this dropout rate; 0 = unused."
)
_REWARD = DEFINE_path("reward", "", "Flows: folder of train_reward, for --reward_scale.")
_REWARD_SCALE = flags.DEFINE_float("reward_scale", 0.0, "Weight of --reward; 0 = none.")


def options() -> Options:
    """What the flags say."""
    bridge = Bridging(_CONTEXT_GUIDANCE.value, _PROMOTE.value, _EOS.value)
    steering = Steering(
        solver=_SOLVER.value,
        tolerance=_TOLERANCE.value,
        gamma=_GAMMA.value,
        guidance=_GUIDANCE.value,
        weak=_WEAK.value,
        weak_dropout=_WEAK_DROPOUT.value,
        reward=_REWARD.value,
        reward_scale=_REWARD_SCALE.value,
        iterations=_ITERATIONS.value,
    )
    return Options(
        temperature=_TEMPERATURE.value,
        top_p=_TOP_P.value,
        method=_METHOD.value,
        block_length=_BLOCK.value,
        step_size=_STEP_SIZE.value,
        re_edit=_RE_EDIT.value,
        hard_commit=_HARD_COMMIT.value,
        policy=_POLICY.value,
        refine=_REFINE.value,
        refine_threshold=_THRESHOLD.value,
        refine_until=_UNTIL.value,
        bridge=bridge,
        steering=steering,
    )
