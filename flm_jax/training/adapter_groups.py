"""Learning rates and weight decay of adapters, and of a base that is trained with them."""

from collections.abc import Callable

from flm_jax.build.adapters import adapter_config
from flm_jax.core.types import Config
from flm_jax.models.lora import NAMES
from flm_jax.training.optim import Group, Path, is_kernel


def optimizer_groups(config: Config) -> tuple[list[Group], Callable[[Path], bool]]:
    """Groups of parameters with their own rates, and a predicate of weight decay for the others.

    As in the code of the authors of masked flows, LoRA has weight decay and the time conditioning
    has none; of a trained base its matrices and the last norm have weight decay.
    """
    cfg = adapter_config(config)
    if cfg is None:
        return [], is_kernel
    without = set() if cfg.time_decays else {"time", "target_time", "modulation"}
    decays = lambda path: is_kernel(path) and not without & set(path)
    if not cfg.base_lr:
        return [], decays
    base = Group(
        member=lambda path: not set(NAMES) & set(path),
        lr=cfg.base_lr,
        weight_decay=cfg.base_weight_decay,
        decays=lambda path: is_kernel(path) or path[0] == "norm",
    )
    return [base], decays
