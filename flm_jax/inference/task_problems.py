"""Problems of a synthetic task: given to a model's sampler, its completions scored."""

from flm_jax.build.load import Model
from flm_jax.core.errors import require
from flm_jax.data.tasks.base import Task
from flm_jax.data.tasks.registry import make_task
from flm_jax.inference import engine
from flm_jax.samplers.base import Given, SamplerConfig, Steps

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
    model: Model,
    task: Task,
    num: int,
    steps: Steps,
    rows: int,
    seed: int,
    sampler: SamplerConfig | None = None,
) -> tuple[dict[str, float], float]:
    """Completes problems, the same ones for all models and samplers.

    Args:
      num: problems.
      steps: of the sampler, a number or a share of the tokens to write.
      rows: problems in a batch, see `engine.completions`.
      seed: of the draws.

    Returns:
      Figures of `Task.report_problems`, and network calls of a batch, the mean over batches.
    """
    tokens, given = task.problems(num, _SEED)
    settings = dict(steps=steps, batch_size=rows, seed=seed, sampler=sampler)
    done = engine.complete(model, Given(tokens, given), **settings)
    return task.report_problems(done.tokens, tokens, given), done.calls
