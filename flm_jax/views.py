"""Texts as they resolve: token by token with the model's confidence, as HTML or in a terminal."""

import html
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from flm_jax.data.tokenizer_base import Tokenizer
from flm_jax.types import require

# Enough tokens before one to know how it is joined to them.
_CONTEXT = 4
_MASKED = "\N{LIGHT SHADE}"


def pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """What each token adds to the text; special tokens stand as "<bos>" and so on.

    A character of several byte tokens appears with the last of them.
    """
    names = {
        getattr(tokenizer, f"{role}_id"): f"<{role}>" for role in ("bos", "eos", "pad", "mask")
    }
    ids, out, start = [int(i) for i in ids], [], 0
    names.pop(None, None)
    for place, token in enumerate(ids):
        if token in names:
            out.append(names[token])
            start = place + 1
            continue
        first = max(start, place - _CONTEXT)
        before = tokenizer.decode(ids[first:place]).rstrip("\N{REPLACEMENT CHARACTER}")
        after = tokenizer.decode(ids[first : place + 1])
        out.append(after[len(before) :].rstrip("\N{REPLACEMENT CHARACTER}"))
    return out


def frames(
    tokenizer: Tokenizer, steps_tokens: np.ndarray, steps_confidence: np.ndarray
) -> list[list[list[list]]]:
    """[sample][step] -> pairs (piece, confidence).

    Args:
      steps_tokens, steps_confidence: int and float [K, N, L], as of `sampling.Draw`.
    """
    require(
        steps_tokens.shape == steps_confidence.shape and steps_tokens.ndim == 3,
        f"got tokens {steps_tokens.shape} and confidences {steps_confidence.shape}; expected "
        "[steps, samples, length] of both.",
    )
    return [
        [
            [[piece, round(float(c), 3)] for piece, c in zip(pieces(tokenizer, row), confidence)]
            for row, confidence in zip(steps_tokens[:, i], steps_confidence[:, i])
        ]
        for i in range(steps_tokens.shape[1])
    ]


def to_html(
    tokenizer: Tokenizer,
    steps_tokens: np.ndarray,
    steps_confidence: np.ndarray,
    title: str = "Text by network call",
) -> str:
    """A page that opens alone in a browser: a slider over the calls, confidence as colour.

    Args:
      steps_tokens, steps_confidence: int and float [K, N, L], as of `sampling.Draw`.
      title: of the page.
    """
    data = json.dumps(frames(tokenizer, steps_tokens, steps_confidence), ensure_ascii=False)
    # "</script>" in a text would end the script.
    data = data.replace("<", "\\u003c")
    return _PAGE.replace("TITLE", html.escape(title)).replace("FRAMES", data)


def in_terminal(
    tokenizer: Tokenizer,
    steps_tokens: np.ndarray,
    steps_confidence: np.ndarray,
    *,
    seconds: float = 0.3,
    write: Callable[[str], object] = sys.stdout.write,
) -> None:
    """Shows one sample after another resolve in place; what the model doubts is dim.

    Args:
      steps_tokens, steps_confidence: int and float [K, N, L].
      seconds: between two calls; where there is one call, nothing moves.
      write: takes text with ANSI escapes.
    """
    for sample in frames(tokenizer, steps_tokens, steps_confidence):
        height = 0
        for call, frame in enumerate(sample, 1):
            text = "".join(map(_ansi, frame)).replace("\n", " ")
            back = f"\x1b[{height}F\x1b[J" if height else ""
            write(f"{back}\x1b[1mcall {call}/{len(sample)}\x1b[0m\n{text}\n")
            sys.stdout.flush()
            height = 1 + sum(1 for _ in _lines("".join(piece for piece, _ in frame)))
            if call < len(sample):
                time.sleep(seconds)
        write("\n")


def _lines(text: str) -> Iterator[str]:
    """The lines that a text takes in the terminal."""
    width = shutil.get_terminal_size().columns
    for start in range(0, max(len(text), 1), width):
        yield text[start : start + width]


def _ansi(pair: list) -> str:
    piece, confidence = pair
    if confidence < 0.25:
        return _MASKED * len(piece)
    return f"\x1b[2m{piece}\x1b[0m" if confidence < 0.75 else piece


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>TITLE</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 16px/1.6 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem;
  color: #1a1a1a; background: #fff; }
h1 { font-size: 1.2rem; }
.bar { position: sticky; top: 0; background: #fff; padding: .6rem 0; display: flex; gap: .8rem;
  align-items: center; border-bottom: 1px solid #ddd; }
.bar input { flex: 1; }
.sample { margin: 1rem 0; padding: .7rem .9rem; border: 1px solid #ddd; border-radius: .4rem;
  white-space: pre-wrap; overflow-wrap: anywhere; }
.special { color: #888; font-size: .8em; }
.legend { font-size: .85rem; color: #555; }
.legend i { display: inline-block; width: 8rem; height: .8rem; vertical-align: middle;
  background: linear-gradient(90deg, hsl(10 85% 80%), hsl(55 85% 82%), hsl(100 0% 100%));
  border: 1px solid #ccc; }
</style></head><body>
<h1>TITLE</h1>
<div class="bar"><button id="play">Play</button><input id="at" type="range" min="0" value="0">
<span id="label"></span></div>
<p class="legend">confidence 0 <i></i> 1; point at a token to read it</p>
<div id="texts"></div>
<script>
const frames = FRAMES;
const at = document.getElementById("at"), label = document.getElementById("label");
const texts = document.getElementById("texts"), play = document.getElementById("play");
const calls = frames[0].length;
at.max = calls - 1;
at.value = calls - 1;
function colour(c) { return `hsl(${10 + 90 * c} 85% ${80 + 20 * c * c}%)`; }
function draw() {
  const k = +at.value;
  label.textContent = `call ${k + 1} of ${calls}`;
  texts.replaceChildren(...frames.map(sample => {
    const box = document.createElement("div");
    box.className = "sample";
    for (const [piece, confidence] of sample[k]) {
      const span = document.createElement("span");
      span.textContent = piece;
      span.title = `confidence ${confidence}`;
      span.style.background = colour(confidence);
      if (/^<(bos|eos|pad|mask)>$/.test(piece)) span.className = "special";
      box.append(span);
    }
    return box;
  }));
}
let timer = null;
play.onclick = () => {
  if (timer) { clearInterval(timer); timer = null; play.textContent = "Play"; return; }
  if (+at.value === calls - 1) at.value = 0;
  play.textContent = "Pause";
  draw();
  timer = setInterval(() => {
    if (+at.value < calls - 1) { at.value = +at.value + 1; draw(); }
    if (+at.value >= calls - 1) { clearInterval(timer); timer = null; play.textContent = "Play"; }
  }, 400);
};
at.oninput = draw;
draw();
</script></body></html>
"""
