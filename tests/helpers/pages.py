"""Reads the commands of the pages of documentation."""

import re
import shlex


def commands(text):
    """(module, words) of each `python -m flm_jax.MODULE ...` in a text."""
    text = re.sub(r"\\\n\s*", " ", text)
    for line in re.findall(r"python3? (?:-u )?-m flm_jax\.([\w.]+[^\n`#]*)", text):
        line = re.split(r"&&| > | \|", line)[0].rstrip(" .,;)'")
        line = line.removesuffix('"') if line.count('"') % 2 else line  # of a string of a program
        name, *words = shlex.split(line)
        yield name, words
