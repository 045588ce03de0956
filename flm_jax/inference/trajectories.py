"""Texts as they resolve step by step, with the model's confidence, as HTML or in a terminal."""

import html
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from flm_jax.core.errors import require
from flm_jax.core.files import to_json, write_figure
from flm_jax.core.printing import shown
from flm_jax.data.tokenizers.base import Tokenizer

# Enough tokens before one to know how it is joined to them.
_CONTEXT = 4
_MASKED = "\N{LIGHT SHADE}"


def pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """Returns the text that each token adds; special tokens appear by name, such as "<bos>".

    A character of several byte tokens appears with the last of them.
    """
    names = tokenizer.special_names
    ids, out, start = [int(i) for i in ids], [], 0
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
    """Converts trajectories to lists: [sample][step] -> pairs (piece, confidence).

    Args:
      steps_tokens, steps_confidence: int and float [K, N, L], as in `engine.Draw`.
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
    title: str = "Text, step by step",
) -> str:
    """Returns a self-contained HTML page: a slider over the steps, confidence as colour.

    Space plays and pauses; the arrow keys, Home and End move; pointing at a token shows its
    confidence. Colours follow the light or dark scheme of the reader.

    Args:
      steps_tokens, steps_confidence: int and float [K, N, L], as in `engine.Draw`.
      title: title of the page.
    """
    data = to_json(frames(tokenizer, steps_tokens, steps_confidence), ensure_ascii=False)
    # "</script>" in a text would end the script.
    data = data.replace("<", "\\u003c")
    parts = {"TITLE": html.escape(title), "FRAMES": data}
    return re.sub("TITLE|FRAMES", lambda found: parts[found.group()], _PAGE)


def framed(page: str, height: int = 420, most: int = 900) -> str:
    """Embeds a page in another one, such as a notebook, with its own styles and scripts.

    Args:
      page: page from `to_html`.
      height: height of the frame in CSS pixels until its page is open.
      most: height up to which the frame then grows or shrinks to that of its page; longer pages
        scroll.
    """
    grow = f"this.height = Math.min(this.contentDocument.body.scrollHeight + 32, {most})"
    return (
        f'<iframe srcdoc="{html.escape(page)}" width="100%" height="{height}" '
        f'style="border: 0" title="text, step by step" onload="{grow}"></iframe>'
    )


def in_terminal(
    tokenizer: Tokenizer,
    steps_tokens: np.ndarray,
    steps_confidence: np.ndarray,
    *,
    seconds: float = 0.3,
    write: Callable[[str], object] = sys.stdout.write,
) -> None:
    """Shows in a terminal how samples resolve in place, one by one; uncertain tokens are dim.

    Args:
      steps_tokens, steps_confidence: int and float [K, N, L].
      seconds: time between two steps in s; a single step is shown without motion.
      write: function that takes text with ANSI escapes, none of which comes from the model.
    """
    for sample in frames(tokenizer, steps_tokens, steps_confidence):
        height = 0
        for step, frame in enumerate(sample, 1):
            text = "".join(map(_ansi, frame))
            back = f"\x1b[{height}F\x1b[J" if height else ""
            write(f"{back}\x1b[1mstep {step}/{len(sample)}\x1b[0m\n{text}\n")
            sys.stdout.flush()
            height = 1 + sum(1 for _ in _lines("".join(piece for piece, _ in frame)))
            if step < len(sample):
                time.sleep(seconds)
        write("\n")


def _lines(text: str) -> Iterator[str]:
    """Lines that a text takes in the terminal."""
    width = shutil.get_terminal_size().columns
    for start in range(0, max(len(text), 1), width):
        yield text[start : start + width]


def _ansi(pair: list) -> str:
    piece, confidence = shown(pair[0].replace("\n", " "), lines=False), pair[1]
    if confidence < 0.25:
        return _MASKED * len(piece)
    return f"\x1b[2m{piece}\x1b[0m" if confidence < 0.75 else piece


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>TITLE</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root { color-scheme: light dark; --ink: #1a1a1a; --soft: #555; --paper: #fff; --line: #ccc;
  --doubt: 246 150 108; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --soft: #b4b4b4; --paper: #16181c; --line: #444; --doubt: 150 60 20; }
}
body { font: 16px/1.6 system-ui, sans-serif; max-width: 52rem; margin: 1.5rem auto;
  padding: 0 1rem; color: var(--ink); background: var(--paper); }
h1 { font-size: 1.2rem; margin: 0; overflow-wrap: anywhere; }
.top { position: sticky; top: 0; padding: .6rem 0; background: var(--paper);
  border-bottom: 1px solid var(--line); }
.bar { display: flex; gap: .8rem; align-items: center; }
.bar button { width: 4.5rem; padding: .2rem 0; font: inherit; }
.bar input { flex: 1; min-width: 0; }
.bar output { min-width: 6.5rem; text-align: right; font-variant-numeric: tabular-nums; }
.legend { display: flex; justify-content: space-between; gap: 1rem; white-space: pre;
  font-size: .85rem; color: var(--soft); }
.legend i { display: inline-block; width: clamp(3rem, 18vw, 8rem); height: .8rem;
  vertical-align: middle;
  background: linear-gradient(90deg, rgb(var(--doubt)), rgb(var(--doubt) / 0));
  border: 1px solid var(--line); }
#read { overflow: hidden; text-overflow: ellipsis; }
.sample { margin: 1rem 0; padding: .7rem .9rem; border: 1px solid var(--line);
  border-radius: .4rem; box-sizing: border-box; white-space: pre-wrap; overflow-wrap: anywhere; }
.sample span { background: rgb(var(--doubt) / calc(1 - var(--c))); }
.sample .read { outline: 2px solid var(--ink); }
.sample .special { color: var(--soft); font-size: .8em; }
@media (prefers-color-scheme: light) { .sample .special { color: #3c3c3c; } }
</style></head><body>
<h1>TITLE</h1>
<div class="top">
<div class="bar"><button id="play" type="button">Play</button>
<input id="at" type="range" min="0" value="0" aria-label="step">
<output id="label" for="at"></output></div>
<div class="legend"><span>confidence 0 <i></i> 1</span>
<span id="read" role="status">point at a token</span></div>
</div>
<div id="texts"></div>
<script>
const frames = FRAMES;
const [at, label, texts, play, read] =
  ["at", "label", "texts", "play", "read"].map(id => document.getElementById(id));
const steps = frames[0].length;
at.max = at.value = steps - 1;
at.disabled = play.disabled = steps === 1;
const boxes = frames.map(() => {
  const box = document.createElement("div");
  box.className = "sample";
  return box;
});
texts.append(...boxes);
// The end of a line is a token too: a sign makes its confidence visible. One that the model doubts
// does not break the line yet, or the first steps would be a column of them.
function shown([piece, c], last) {
  return piece.replaceAll("\\n", last || c >= 0.5 ? "\\u21b5\\n" : "\\u21b5");
}
let pointed = [-1, -1];
function draw() {
  const k = +at.value;
  label.textContent = `step ${k + 1} of ${steps}`;
  at.setAttribute("aria-valuetext", label.textContent);
  frames.forEach((sample, i) => boxes[i].replaceChildren(...sample[k].map((pair, j) => {
    const span = document.createElement("span");
    span.textContent = shown(pair, k === steps - 1);
    span.style.setProperty("--c", pair[1]);
    span.dataset.at = j;
    if (/^<(bos|eos|pad|mask)>$/.test(pair[0])) span.className = "special";
    return span;
  })));
  tell();
}
// The confidence of the place pointed at, also as the steps go by.
function tell() {
  const span = boxes[pointed[0]]?.children[pointed[1]];
  if (!span) return;
  texts.querySelector(".read")?.classList.remove("read");
  span.classList.add("read");
  const [piece, c] = frames[pointed[0]][+at.value][pointed[1]];
  read.textContent = `${c.toFixed(3)} "${piece.replaceAll("\\n", "\\u21b5")}"`;
}
// Each box is as high as its highest step, so that the page stands still while it plays.
function measure() {
  for (const [i, sample] of frames.entries()) {
    boxes[i].style.minHeight = "";
    const heights = sample.map((frame, k) => {
      boxes[i].textContent = frame.map(pair => shown(pair, k === steps - 1)).join("");
      return boxes[i].offsetHeight;
    });
    boxes[i].style.minHeight = `${Math.max(...heights)}px`;
  }
  draw();
}
let timer = null;
function stop() {
  clearInterval(timer);
  timer = null;
  play.textContent = "Play";
}
function go(k) {
  at.value = k;
  draw();
}
play.onclick = () => {
  if (timer) return stop();
  if (+at.value === steps - 1) go(0);
  play.textContent = "Pause";
  timer = setInterval(() => {
    go(+at.value + 1);
    if (+at.value === steps - 1) stop();
  }, Math.max(60, Math.min(400, 10000 / steps)));
};
at.oninput = () => { stop(); draw(); };
texts.onpointerover = texts.onclick = ({target}) => {
  if (!target.dataset.at) return;
  pointed = [boxes.indexOf(target.parentNode), +target.dataset.at];
  tell();
};
onkeydown = event => {
  if (steps === 1 || event.ctrlKey || event.metaKey || event.altKey) return;
  const to = {ArrowLeft: +at.value - 1, ArrowRight: +at.value + 1, Home: 0, End: steps - 1};
  if (event.key === " " && event.target !== play) play.click();
  else if (event.key in to) { stop(); go(to[event.key]); }
  else return;
  event.preventDefault();
};
onresize = measure;
measure();
</script></body></html>
"""
_MOST_ROWS, _MOST_COLUMNS = 16, 120  # steps and characters of a trajectory
_DOUBT = (246 / 255, 150 / 255, 108 / 255)  # as on the page of `views`


def draw_trajectory(path: epath.Path, steps: Sequence[Sequence[Any]]) -> None:
    """Draws one sample as PNG: a row a step, a column a token, the model's doubt as colour.

    Of more than 16 steps, 16 are shown, evenly spread from the first to the last; of the tokens, as
    many from the first one on as fit in 120 characters.

    Args:
      path: path of the PNG file.
      steps: one sample of `frames`: for each step L pairs (piece, confidence in [0, 1]).
    """
    from matplotlib.figure import Figure

    rows = np.unique(np.linspace(0, len(steps) - 1, _MOST_ROWS).round().astype(int))
    shown = [[_printable(piece) for piece, _ in steps[row]] for row in rows]
    widths = np.array([max(map(len, column), default=0) + 1 for column in zip(*shown)])
    ends = np.cumsum(widths)
    kept = max(1, int(np.sum(ends <= _MOST_COLUMNS)))
    figure = Figure(figsize=(1.2 + 0.085 * ends[kept - 1], 0.8 + 0.25 * len(rows)))
    axis = figure.add_subplot()
    for y, row in enumerate(rows):
        for x in range(kept):
            left, doubt = ends[x] - widths[x], 1.0 - steps[row][x][1]
            spot = {"width": widths[x], "height": 1.0, "left": left, "align": "edge"}
            axis.barh(y, color=_DOUBT, alpha=float(np.clip(doubt, 0, 1)), linewidth=0, **spot)
            axis.text(left + 0.5, y + 0.5, shown[y][x], va="center", family="monospace", fontsize=9)
    axis.set(xlim=(0, ends[kept - 1]), ylim=(len(rows), 0), xticks=[], ylabel="step")
    axis.set_yticks(np.arange(len(rows)) + 0.5, [str(row + 1) for row in rows])
    left_out = len(widths) - kept
    axis.set_xlabel(
        "text, white where the model is sure" + f"; {left_out} more tokens" * bool(left_out)
    )
    figure.tight_layout()
    write_figure(figure, path)


def _printable(piece: str) -> str:
    """Piece on one line, in which no dollar sign starts a formula."""
    text = piece.replace("\n", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}").replace("$", r"\$")
    return "".join(c if c.isprintable() else "\N{MIDDLE DOT}" for c in text)
