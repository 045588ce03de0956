"""Problems from which policies learn, and rewards of completions, named by config.reward."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from flm_jax.build.load import Model
from flm_jax.core.errors import one_of, require
from flm_jax.core.types import Config
from flm_jax.data.tasks.base import Task
from flm_jax.inference import task_problems
from flm_jax.samplers.base import Given

_SEED = 977  # of a task's problems, apart from those that models are scored with


class Problems(NamedTuple):
    """Problems to complete.

    Attributes:
      given: prescribed tokens, arrays [N, L], NumPy.
      reward: function from (completions int [n, L], indices of their problems int [n]) to rewards
        float32 [n].
    """

    given: Given
    reward: Callable[[np.ndarray, np.ndarray], np.ndarray]


# completions [N, L], problems [N, L], given [N, L] -> reward of each row, float32 [N].
Reward = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def exact_match(task: Task) -> Reward:
    """Reward 1 for each row that equals the correct one token by token, else 0.

    The correct row is the task's reference; for a task without references, any row that solves the
    problem.
    """
    if task.has_references:
        return lambda tokens, asked, given: _equal(tokens, task.references(asked, given))

    def reward(tokens: np.ndarray, asked: np.ndarray, given: np.ndarray) -> np.ndarray:
        rows = [slice(i, i + 1) for i in range(len(tokens))]
        solved = [task.report_problems(tokens[r], asked[r], given[r])["solved"] for r in rows]
        return np.asarray(solved, np.float32)

    return reward


def _equal(tokens: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    return (np.asarray(tokens) == wanted).all(axis=1).astype(np.float32)


def unit_tests(task: Task) -> Reward:
    """Reward 1 for each row whose program passes all unit tests of its problem, else 0.

    Raises:
      UserError: the task's answers are not programs.
    """
    require(
        task.has_tests,
        f"config.reward is unit_tests, but answers of task {task.name} are no programs; expected "
        "exact_match or length_free, or a task such as functions.",
    )
    return lambda tokens, asked, given: task.passed(tokens, asked, given).astype(np.float32)


def length_free(task: Task) -> Reward:
    """Reward 1 for each row with the result of the reference, whatever its length, else 0.

    The task defines the result: a number without leading padding zeros, or the program before the
    words that fill up a row. Prescribed tokens must be unchanged.

    Raises:
      UserError: the task has no reference answers.
    """
    require(
        task.has_references,
        f"config.reward is length_free, but task {task.name} has no reference answers; expected "
        "exact_match, or a task such as arithmetic, functions.",
    )

    def reward(tokens: np.ndarray, asked: np.ndarray, given: np.ndarray) -> np.ndarray:
        pairs = zip(np.asarray(tokens), task.references(asked, given))
        same = np.array([task.result(row) == task.result(right) for row, right in pairs], bool)
        return (same & task.kept(np.asarray(tokens), asked, given)).astype(np.float32)

    return reward


REWARDS: dict[str, Callable[[Task], Reward]] = {
    "exact_match": exact_match,
    "unit_tests": unit_tests,
    "length_free": length_free,
}


def make_reward(name: str, task: Task) -> Reward:
    """Returns the reward that config.reward names.

    Raises:
      UserError: an unknown reward, or one that this task does not have.
    """
    check_reward(name)
    return REWARDS[name](task)


def problems_of_task(config: Config, model: Model) -> Problems:
    """Problems of the model's task.

    Args:
      config: configuration of `train_policy`.

    Raises:
      UserError: the model was not trained on a task with problems, or its task does not have this
        reward.
    """
    task = task_problems.task_of(model)
    reward = make_reward(config["reward"], task)
    asked, given = task.problems(config["prompts"], _SEED)
    scored = lambda tokens, places: reward(tokens, asked[places], given[places])
    return Problems(Given(asked, given), scored)


def check_reward(name: str) -> None:
    """Refuses an unknown name of a reward."""
    one_of("config.reward", name, REWARDS)
