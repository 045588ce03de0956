"""Seconds that the sandbox takes for a program, in each isolation.

python launch/sandbox_cost.py --humaneval=HumanEval.jsonl.gz [--programs=40] [--python=PROGRAM]

Runs the first references of HumanEval with their tests, one after another, and prints for each
isolation the wall time and the processor time of a program, the interpreter's start included, and
how many passed. Root gives programs of "guard" another user, which must be able to read --python.
"""

import argparse
import resource
import sys
import time

from flm_jax.core.errors import UserError
from flm_jax.evaluation.benchmarks.code import humaneval_program, read_humaneval
from flm_jax.evaluation.benchmarks.sandbox import ISOLATIONS, Limits, open_sandbox, run_program


def processor_seconds() -> float:
    """Of all processes that this one started and that ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--humaneval", required=True)
    parser.add_argument("--programs", type=int, default=40)
    parser.add_argument("--python", default=sys.executable)
    args = parser.parse_args()
    problems = read_humaneval(args.humaneval)[: args.programs]
    programs = [humaneval_program(problem, problem.solution, False) for problem in problems]
    for isolation in ISOLATIONS:
        try:
            sandbox = open_sandbox(Limits(seconds=20.0), isolation, args.python)
        except UserError as error:
            print(f"{isolation}: {error}")
            continue
        began, used = time.monotonic(), processor_seconds()
        passed = [run_program(sandbox, program).status for program in programs].count("passed")
        wall, used = time.monotonic() - began, processor_seconds() - used
        each = f"{wall / len(programs):.3f} s, {used / len(programs):.4f} s of a processor"
        print(f"{isolation}: {each}; {passed} of {len(programs)} passed")


if __name__ == "__main__":
    main()
