"""Logs of a run: progress lines, metrics.jsonl and TensorBoard."""

import time

from etils import epath
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from flm_jax.core.files import StepLines, named_errors, write_whole
from flm_jax.core.printing import shown


class MetricsLog:
    """Writes figures and texts of one run, see `StepLines`.

    Everything is written by the calling thread: tensorboardX's own SummaryWriter passes it to a
    thread that ends at the first error, such as a full disk, and then blocks its caller for ever.
    """

    def __init__(self, workdir: str | epath.Path, start_step: int):
        self._folder = epath.Path(workdir)
        self._lines = StepLines(self._folder / "metrics.jsonl", start_step)
        with named_errors(self._folder):
            folder = self._folder / "tensorboard"
            folder.mkdir(parents=True, exist_ok=True)
            self._board = EventsWriter(str(folder / "events"))
            started = SessionLog(status=SessionLog.START)  # drops what it shows of later steps
            self._add(Event(session_log=started), start_step + 1)

    def write(self, step: int, values: dict[str, float], texts: list[str] | None = None) -> None:
        """Appends one record; `texts` go to TensorBoard and to samples/STEP.txt.

        Raises:
          UserError: the disk is full or not writable.
        """
        self._lines.append({"step": step, **values})
        with named_errors(self._folder):
            for name, value in values.items():
                self._add(Event(summary=summary.scalar(name, value)), step)
            if texts:
                folder = self._folder / "samples"
                folder.mkdir(parents=True, exist_ok=True)
                write_whole(folder / f"{step}.txt", shown("\n---\n".join(texts)) + "\n")
                quoted = "\n\n".join(f"    {text}" for text in texts)
                self._add(Event(summary=summary.text("samples", quoted)), step)
            self._board.flush()

    def evaluated(self, step: int) -> bool:
        """Whether the metrics of an earlier process contain the evaluation of a step."""
        return self._lines.has(step, "eval/")

    def _add(self, event: Event, step: int) -> None:
        event.step, event.wall_time = step, time.time()
        self._board.write_event(event)

    def close(self) -> None:
        with named_errors(self._folder):
            self._board.close()


class Speed:
    """Measures steps and tokens per second since the last call, and the time left."""

    def __init__(self, step: int, steps: int, tokens_per_step: int):
        self._last, self._time = step, time.perf_counter()
        self._steps, self._tokens = steps, tokens_per_step

    def lap(self, step: int) -> tuple[float, float, float]:
        """Returns (seconds per step, tokens per second, seconds left) at `step`."""
        now = time.perf_counter()
        seconds = (now - self._time) / max(step - self._last, 1)
        self._last, self._time = step, now
        return seconds, self._tokens / max(seconds, 1e-9), seconds * (self._steps - step)

    def skip(self, step: int) -> None:
        """Restarts the measurement at `step`, since the time before was not all training."""
        self._last, self._time = step, time.perf_counter()
