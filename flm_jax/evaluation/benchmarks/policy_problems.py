"""MBPP's training split as problems for policies of step sizes, rewarded by their tests."""

import numpy as np

from flm_jax.build.load import Model
from flm_jax.core.errors import require
from flm_jax.core.types import Config
from flm_jax.evaluation.benchmarks.code import (
    TRAINING_SPLIT,
    CodeProblem,
    mbpp_program,
    mbpp_prompt,
    read_mbpp,
)
from flm_jax.evaluation.benchmarks.sandbox import Limits, open_sandbox, run_programs
from flm_jax.inference.prompts import Prompt, answer_texts, lay_out, room
from flm_jax.training.task_rewards import Problems


def mbpp_problems(config: Config, model: Model) -> Problems:
    """Reads problems in MBPP's format, each with config.answer_length tokens to generate.

    A program that passes all tests of its problem has reward 1, any other 0. Problems that leave no
    room for an answer are left out; if the model continues texts, the prompt has the paper's solved
    problems.

    Args:
      config: configuration of `train_policy`.
      model: model whose tokenizer, template and length the rows have.

    Raises:
      UserError: a missing or bad file, one without problems of the training split, no room for any
        of them, or programs that cannot be run here.
    """
    path, chat, least = config["problems"], config["chat"], config["answer_length"]
    found, shots = read_mbpp(path, split=TRAINING_SPLIT)
    first, last = TRAINING_SPLIT.start, TRAINING_SPLIT.stop - 1
    found = [problem for problem in found if _number(problem) in TRAINING_SPLIT]
    require(
        bool(found),
        f"{path} has no problem of MBPP's training split; expected numbers from {first} to {last} "
        "under 'task_id', as mbpp.jsonl has them.",
    )
    length = model.net.max_length
    asked = [(one, Prompt(mbpp_prompt(one, shots, chat), "", least)) for one in found]
    fit = [(one, prompt) for one, prompt in asked if room(model, prompt, length, chat) >= least]
    require(
        bool(fit),
        f"no problem of {path} leaves room for config.answer_length = {least} in {length} tokens; "
        "set it lower.",
    )
    problems = [one for one, _ in fit[: config["prompts"]]]
    rows = lay_out(model, [prompt for _, prompt in fit[: config["prompts"]]], length, chat=chat)
    sandbox = open_sandbox(Limits(seconds=config["seconds"]), config["isolation"])

    def reward(tokens: np.ndarray, places: np.ndarray) -> np.ndarray:
        def program(row: np.ndarray, place: int):
            ends = int(rows.starts[place]), int(rows.stops[place])
            answer = answer_texts(model.tokenizer, row, *ends).answer
            return mbpp_program(problems[place], answer, chat)

        programs = [program(row, int(place)) for row, place in zip(tokens, places)]
        passed = [outcome.status == "passed" for outcome in run_programs(sandbox, programs)]
        return np.asarray(passed, np.float32)

    return Problems(rows.given, reward)


def _number(problem: CodeProblem) -> int:
    return int(problem.id.rpartition("/")[2])
