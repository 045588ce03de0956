"""Progress lines, metrics.jsonl and TensorBoard."""

import json
import math
import time

from etils import epath
from tensorboardX import SummaryWriter


class MetricsLog:
    """Writes numbers and texts of one run; the lines of steps past `start_step` are dropped first.

    A resumed run repeats the steps after its checkpoint: their old lines would stand twice.
    """

    def __init__(self, workdir: str | epath.Path, start_step: int):
        self._folder = epath.Path(workdir)
        self._path = self._folder / "metrics.jsonl"
        if self._path.exists():
            lines = self._path.read_text().splitlines()
            kept = [line for line in lines if json.loads(line)["step"] <= start_step]
            if len(kept) < len(lines):
                self._path.write_text("".join(f"{line}\n" for line in kept))
        self._board = SummaryWriter(str(self._folder / "tensorboard"), purge_step=start_step + 1)

    def write(self, step: int, values: dict[str, float], texts: list[str] | None = None) -> None:
        """Appends one record; `texts` go to TensorBoard and to samples/STEP.txt."""
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        if texts:
            folder = self._folder / "samples"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{step}.txt").write_text("\n---\n".join(texts) + "\n")
            self._board.add_text("samples", "\n\n".join(f"    {text}" for text in texts), step)
        self._board.flush()

    def close(self) -> None:
        self._board.close()


class Speed:
    """Steps and tokens per second since the last call, and the time left."""

    def __init__(self, step: int, steps: int, tokens_per_step: int):
        self._last, self._time = step, time.perf_counter()
        self._steps, self._tokens = steps, tokens_per_step

    def lap(self, step: int) -> tuple[float, float, float]:
        """(seconds per step, tokens per second, seconds left) at `step`."""
        now = time.perf_counter()
        seconds = (now - self._time) / max(step - self._last, 1)
        self._last, self._time = step, now
        return seconds, self._tokens / max(seconds, 1e-9), seconds * (self._steps - step)

    def skip(self, step: int) -> None:
        """Starts afresh at `step`: what came since the last lap was not all training."""
        self._last, self._time = step, time.perf_counter()


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    whole = math.ceil(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
