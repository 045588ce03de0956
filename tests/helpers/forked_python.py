"""Stands for `python` in commands of the documentation, each a fork of one warm process.

    python forked_python.py SOCKET [FLAGS.json]     serves; prints "ready"
    python -S -E forked_python.py SOCKET -m flm_jax.MODULE ...     asks it to run a command

A command begins with JAX and most of the library imported, but with no backend, no flags and a
configuration of its own. FLAGS.json: module -> flags that follow its own and take their place.
"""

import json
import os
import socket
import sys


def ask(path, words):
    """Runs a command there; its exit status."""
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(path)
        line.sendall(json.dumps([os.getcwd(), words]).encode() + b"\n")
        reply = b""
        while part := line.recv(1 << 16):
            reply += part
    status, output = json.loads(reply)
    sys.stdout.write(output)
    return status


def serve(path, more):
    """Answers until its input ends."""
    import select

    # All that commands have in common; none of them, since two may define the same flag.
    import flm_jax.evaluation.benchmarks.policy_problems
    import flm_jax.evaluation.benchmarks.runner
    import flm_jax.inference.self_generation
    import flm_jax.interop.llada2
    import flm_jax.training.policy_trainer
    import flm_jax.training.trainer  # noqa: F401

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        print("ready", flush=True)
        while True:
            if sys.stdin in select.select([server, sys.stdin], [], [])[0]:
                return
            line, _ = server.accept()
            with line, line.makefile() as lines:
                folder, words = json.loads(lines.readline())
                line.sendall(json.dumps(run(folder, words, more)).encode())


def run(folder, words, more):
    """(exit status, output) of `python WORDS` in a folder."""
    import tempfile

    _, module, *flags = words
    flags += more.get(module.removeprefix("flm_jax."), [])
    with tempfile.TemporaryFile("w+") as output:
        if not (child := os.fork()):
            os.chdir(folder)
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            os._exit(run_module(module, flags))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        output.seek(0)
        return status, output.read()


def run_module(module, flags):
    """The exit status of a command."""
    import runpy
    import traceback

    sys.argv = [module, *flags]
    status = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status


if __name__ == "__main__":
    where, *rest = sys.argv[1:]
    if rest[:1] == ["-m"]:
        sys.exit(ask(where, rest))
    with open(rest[0]) as file:
        serve(where, json.load(file))
