"""The synthetic tasks by name."""

import functools
from collections.abc import Callable

from flm_jax.core.errors import one_of
from flm_jax.data.tasks.arithmetic import ArithmeticTask
from flm_jax.data.tasks.base import Task
from flm_jax.data.tasks.functions import FunctionTask
from flm_jax.data.tasks.grammar import GrammarTask
from flm_jax.data.tasks.phrases import PHRASES_2, PHRASES_4, PHRASES_SHARED, phrases_task
from flm_jax.data.tasks.sudoku import SudokuTask
from flm_jax.data.tasks.written_sums import WrittenSumsTask

TASKS: dict[str, Callable[[], Task]] = {
    "phrases2": functools.partial(phrases_task, "phrases2", PHRASES_2),
    "phrases4": functools.partial(phrases_task, "phrases4", PHRASES_4),
    "phrases_shared": functools.partial(phrases_task, "phrases_shared", PHRASES_SHARED),
    "arithmetic": ArithmeticTask,
    "arithmetic1": functools.partial(ArithmeticTask, "arithmetic1", digits=1),
    "arithmetic2": functools.partial(ArithmeticTask, "arithmetic2", digits=2),
    "arithmetic7": functools.partial(ArithmeticTask, "arithmetic7", digits=7),
    "arithmetic_reversed": functools.partial(ArithmeticTask, "arithmetic_reversed", reverse=True),
    "sudoku": SudokuTask,
    "grammar": GrammarTask,
    "functions": FunctionTask,
    "written_sums": WrittenSumsTask,
}


def make_task(name: str) -> Task:
    """Builds a task by name."""
    one_of("task", name, TASKS)
    return TASKS[name]()
