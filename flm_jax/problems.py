"""Problems of a synthetic task: given to a model's sampler, its completions scored."""

from flm_jax.build import Model
from flm_jax.data.tasks import Task, make_task
from flm_jax.samplers.common import Given
from flm_jax.sampling import Draw
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


def given_problems(task: Task, num: int) -> Given:
    """The same `num` problems for all models and samplers, as NumPy arrays [num, length]."""
    return Given(*task.problems(num, _SEED))


def solved(task: Task, drawn: Draw, given: Given) -> float:
    """Share of the problems whose completions are right as a whole."""
    return task.report_problems(drawn.tokens, given.tokens, given.mask)["solved"]
