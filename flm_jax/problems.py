"""Problems of a synthetic task: given to a model's sampler, its completions scored."""

import jax
import numpy as np

from flm_jax import sampling
from flm_jax.build import Model
from flm_jax.data.tasks import Task, make_task
from flm_jax.families import Options
from flm_jax.samplers.common import Given
from flm_jax.types import require

_SEED = 12345  # apart from those of training data


def task_of(model: Model) -> Task:
    """The task that a model was trained on.

    Raises:
      UserError: it was trained on other data, or the task has no problems.
    """
    name = model.config["data"]["task"]
    require(
        bool(name) and make_task(name).has_problems,
        f"the model was trained on {name or 'data that are no task'}, which has no problems to "
        "complete; expected a task such as arithmetic, sudoku, grammar.",
    )
    return make_task(name)


def solve(
    model: Model, task: Task, num: int, steps: int, rows: int, seed: int, options: Options
) -> tuple[float, float]:
    """Completes problems, the same ones for all models and samplers.

    Args:
      num: problems; the last ones that do not fill a batch stand in it with others again.
      steps: of the sampler.
      rows: problems in a batch. Where a sampler stops early, it does when all of these are done.
      seed: of the draws.

    Returns:
      Share of the problems solved, and network calls of a batch, the mean over batches.
    """
    tokens, given = task.problems(num, _SEED)
    run = sampling.sampler(model.config, model.net, model.clock, steps, options)
    found, calls = np.empty_like(tokens), []
    for batch, start in enumerate(range(0, num, rows)):
        which = np.arange(start, start + rows) % num
        key = jax.random.fold_in(jax.random.key(seed), batch)
        out = jax.device_get(run(key, model.params, Given(tokens[which], given[which])))
        found[which] = out.tokens
        calls.append(len(out.steps_tokens) if out.calls is None else int(out.calls))
    return task.report_problems(found, tokens, given)["solved"], float(np.mean(calls))
