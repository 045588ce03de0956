"""Checkpoints in stores that orbax does not support, such as s3://: written locally, then copied.

A copy has orbax's own files, under STEP/. An object store cannot rename a folder, so a copy counts
once it has the file COMPLETE, which is written last. The local folder is new in every process: only
the store determines what was saved.
"""

import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from etils import epath

_COMPLETE, _DAMAGED = "COMPLETE", "DAMAGED"


def needed(workdir: str | epath.Path) -> bool:
    """Whether orbax cannot write to this workdir; it supports local folders and gs:// alone."""
    scheme, remote, _ = str(workdir).partition("://")
    return bool(remote) and scheme != "gs"


class Mirror:
    """A local folder of checkpoints that are copied to `remote` during training.

    Attributes:
      local: temporary folder (in TMPDIR), deleted with this object.
    """

    def __init__(self, remote: epath.Path):
        self._remote = remote
        self._kept = tempfile.TemporaryDirectory(prefix="flm_jax-", ignore_cleanup_errors=True)
        self.local = epath.Path(self._kept.name) / "checkpoints"
        self.local.mkdir()
        self._worker = ThreadPoolExecutor(max_workers=1)
        self._copying: Future[None] | None = None

    def steps(self) -> list[int]:
        """Returns the steps whose copies are complete, in order."""
        return self._marked(_COMPLETE)

    def disowned(self) -> list[str]:
        """Returns the step numbers of damaged copies."""
        return [str(step) for step in self._marked(_DAMAGED)]

    def _marked(self, mark: str) -> list[int]:
        names = [p.name for p in self._remote.iterdir()] if self._remote.exists() else []
        steps = sorted(int(name) for name in names if name.isdigit() and name == str(int(name)))
        return [step for step in steps if self._mark(step, mark).exists()]

    def _mark(self, step: int, mark: str = _COMPLETE) -> epath.Path:
        return self._remote / str(step) / mark

    def fetch(self, step: int) -> None:
        """Copies one checkpoint to the local folder, unless it is already there."""
        here, half = self.local / str(step), self.local / f"fetching-{step}"
        if not here.exists():
            _copy(self._remote / str(step), half)
            (half / _COMPLETE).unlink()
            half.rename(here)

    def disown(self, step: int) -> None:
        """Marks a copy as damaged: it no longer counts, and is replaced by the next of its step."""
        self._mark(step).rename(self._mark(step, _DAMAGED))

    def copy_behind(self, step: int, saved: Callable[[], None], keep: int | None) -> None:
        """Copies one step after `saved()` returned, then removes all but the newest `keep` copies.

        Raises:
          OSError: the copy before this one, for which it waits, failed.
        """
        self.wait()

        def run() -> None:
            saved()
            _copy(self.local / str(step), self._remote / str(step))
            self._mark(step, _DAMAGED).unlink(missing_ok=True)
            # Last, so that a copy counts when all of it is there.
            self._mark(step).write_text("")
            for old in self.steps()[: -keep if keep else 0]:
                self._mark(old).unlink()  # first: half a copy must not count
                (self._remote / str(old)).rmtree()

        self._copying = self._worker.submit(run)

    def wait(self) -> None:
        """Waits until no copy is under way; raises the error of a failed one."""
        if self._copying is not None:
            copying, self._copying = self._copying, None
            try:
                copying.result()
            except Exception as error:  # each kind of store has its own
                raise OSError(str(error)) from error


def _copy(source: epath.Path, target: epath.Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.is_dir():
            _copy(path, target / path.name)
        else:
            path.copy(target / path.name, overwrite=True)
