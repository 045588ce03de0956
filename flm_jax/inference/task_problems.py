"""Problems of a synthetic task: a model's sampler completes them, and they are scored."""

from collections.abc import Callable

from flm_jax.build.load import Model
from flm_jax.core.errors import require
from flm_jax.data.tasks.base import Task
from flm_jax.data.tasks.registry import make_task
from flm_jax.inference import engine
from flm_jax.samplers.base import Given, SamplerConfig, Steps

_SEED = 12345  # apart from those of training data


def task_of(model: Model) -> Task:
    """Returns the task on which a model was trained.

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
    model: Model,
    task: Task,
    num: int,
    steps: Steps,
    rows: int,
    seed: int,
    sampler: SamplerConfig | None = None,
    show: Callable[[int], None] = lambda done: None,
) -> tuple[dict[str, float], float]:
    """Completes problems, which are the same for all models and samplers.

    Args:
      num: number of problems.
      steps: step count of the sampler, a number or a fraction of the tokens to generate.
      rows: number of problems in a batch, see `engine.completions`.
      seed: seed of the random draws.
      show: callback that takes the number of problems done, after each batch.

    Returns:
      Figures of `Task.report_problems`, and the number of network calls for a batch, averaged over
      batches.
    """
    tokens, given = task.problems(num, _SEED)
    settings = dict(steps=steps, batch_size=rows, seed=seed, sampler=sampler)
    done = engine.complete(model, Given(tokens, given), show, **settings)
    return task.report_problems(done.tokens, tokens, given), done.calls
