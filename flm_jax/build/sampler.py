"""Options of sampling, and what a family refuses of them."""

import dataclasses

from flm_jax.core.errors import require
from flm_jax.samplers import masked_flow
from flm_jax.samplers.categorical import Choice
from flm_jax.samplers.flow import NONE, Steering


@dataclasses.dataclass(frozen=True)
class Options:
    """How tokens are drawn; the defaults fit every family.

    Attributes:
      temperature, top_p: see `Choice`; by default a flow takes the most probable tokens of its last
        read-out, and the others draw at temperature 1.
      method: of masked diffusion: "ancestral", "confidence" or "flow".
      block_length: of "confidence" and "flow"; 0 for one block.
      step_size, re_edit, hard_commit: of "flow", see `x_prediction.Flowing`.
      policy: of "flow": workdir of `train_policy`, whose step sizes are taken; "" for none.
      refine: of any-order flow maps: posterior refinement with the budget "topk" or "uniform"; ""
        for none.
      refine_threshold: of refinement: probability above which predictions are kept at once.
      refine_until: of refinement: clock time that its jumps end at, in [0, 1].
      bridge: of masked language flows.
      steering: of flows.
    """

    temperature: float | None = None
    top_p: float = 1.0
    method: str = "ancestral"
    block_length: int = 0
    step_size: float = 0.0
    re_edit: bool = True
    hard_commit: bool = True
    policy: str = ""
    refine: str = ""
    refine_threshold: float = 1.0
    refine_until: float = 1.0
    bridge: masked_flow.Bridging = masked_flow.Bridging()  # noqa: RUF009  frozen
    steering: Steering = NONE

    def choice(self, temperature: float) -> Choice:
        """How tokens are drawn, with the temperature that a family takes by default."""
        given = self.temperature
        return Choice(temperature if given is None else given, self.top_p)


PLAIN = Options()


OF_X_PREDICTION = ("step_size", "re_edit", "hard_commit")
OF_REFINEMENT = ("refine", "refine_threshold", "refine_until")
OF_MASKED = ("method", "block_length", "policy", *OF_X_PREDICTION)


def refuse(options: Options, kind: str, *names: str) -> None:
    for name in names:
        got, default = getattr(options, name), getattr(Options, name)
        require(
            got == default,
            f"got {name}={got}, which {kind} does not know; leave it at {default}.",
        )


def unsteered(options: Options, kind: str) -> None:
    for field in dataclasses.fields(options.steering):
        got = getattr(options.steering, field.name)
        require(
            got == field.default,
            f"got {field.name}={got}, which steers flows; this is {kind}: leave it at "
            f"{field.default!r}.",
        )
