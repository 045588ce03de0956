"""Workdirs: config.json, tokenizer/, checkpoints/STEP/{ema, train, meta}, metrics.

`ema` (the averaged parameters) is separate, so that sampling and distillation read only it and
`times`, the state of learnt times, if any; an imported model has only `ema`. `train` holds
parameters, optimizer state, counters, statistics and a network trained beside the model; `meta`
(JSON) holds the data iterator and the data's fingerprint.

A checkpoint is complete once the name of its folder is its number. One that cannot be read is
renamed to checkpoints/STEP.damaged, a name that orbax ignores, and the one before it is used. Order
and age of checkpoints are determined by step numbers alone: clocks of hosts and times of files are
never compared.
"""

import contextlib
import enum
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from flm_jax.checkpoints.object_store import Mirror, needed
from flm_jax.checkpoints.state import TrainState
from flm_jax.checkpoints.times import read_times
from flm_jax.core.errors import UserError, require
from flm_jax.core.printing import shown
from flm_jax.core.progress import say
from flm_jax.core.reading import NotPlainError, check_plain
from flm_jax.core.types import Params
from flm_jax.distributed.agreement import from_first, wait_for_all, worst

_DAMAGED = ".damaged"
_WAS_STEP = re.compile(rf"\d+{re.escape(_DAMAGED)}(-\d+)?")
_MOST_STEPS = 1024  # checkpoints of a workdir that the processes agree on
# What storage says when it, and not the checkpoint, is at fault.
_REFUSALS = ("PERMISSION_DENIED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")


class _Verdict(enum.IntEnum):
    """Result of reading a checkpoint; the worst one of all processes counts."""

    READ = 0
    DAMAGED = 1
    REFUSED = 2


class _DamagedError(Exception):
    """Files of a checkpoint are missing, cut short or garbled."""


class _Place:
    """Location of the checkpoints of a workdir.

    Attributes:
      folder: absolute path; for a workdir in object storage, the local copy.
    """

    def __init__(self, workdir: str | epath.Path):
        # `resolve` would make a local folder of gs://...
        folder = epath.Path(workdir)
        folder = (folder if "://" in str(workdir) else folder.resolve()) / "checkpoints"
        self.mirror = Mirror(folder) if needed(workdir) else None
        self.folder = self.mirror.local if self.mirror else folder

    def steps(self) -> list[int]:
        """Numbers of the complete checkpoints, newest first, as process 0 sees them."""
        found = self.mirror.steps() if self.mirror else self._here()
        return from_first(sorted(found, reverse=True), _MOST_STEPS)

    def _here(self) -> list[int]:
        """Steps that the manager counts: complete ones whose complete name is a number."""
        return [found.step for found in ocp.path.step.standard_name_format().find_all(self.folder)]

    def open(self, step: int) -> epath.Path:
        """The folder of one checkpoint, fetched if need be.

        Raises:
          UserError: the store does not give it.
        """
        if self.mirror:
            try:
                self.mirror.fetch(step)
            except Exception as error:  # each kind of store has its own
                raise UserError(
                    f"the checkpoint of step {step} cannot be fetched ({_reason(error)}); expected "
                    "storage that answers: mend that and run the same command again."
                ) from error
        return self.folder / str(step)

    def set_aside(self, step: int) -> None:
        """Renames a damaged checkpoint, on process 0."""
        path = self.folder / str(step)
        if jax.process_index() == 0:
            taken = {other.name for other in self.folder.iterdir()}
            name, number = f"{path.name}{_DAMAGED}", 2
            while name in taken:  # the step was reached, and damaged, once more
                name, number = f"{path.name}{_DAMAGED}-{number}", number + 1
            path.rename(path.parent / name)
            if self.mirror:
                self.mirror.disown(step)
            _warn(f"it was set aside as {path.parent / name}; trying the checkpoint before it.")
        wait_for_all(f"set aside {path.name}")

    def damaged(self) -> list[str]:
        """Names of the checkpoints that were set aside."""
        if self.mirror:
            return self.mirror.disowned()
        names = [path.name for path in self.folder.iterdir()] if self.folder.exists() else []
        return sorted(name for name in names if _WAS_STEP.fullmatch(name))

    def manager(self, keep: int | None) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,  # what a killed process left half-written
        )
        return ocp.CheckpointManager(self.folder, options=options)


def _without_ema(state: TrainState) -> dict[str, Any]:
    """Fields besides the average; those that few runs have are absent, not empty, in the others."""
    own = {k: v for k, v in state._asdict().items() if k != "ema_params"}
    return {k: v for k, v in own.items() if v is not None}


class Checkpoints:
    """Saves and restores the state of one run, asynchronously, and keeps the newest checkpoints."""

    def __init__(self, workdir: str | epath.Path, keep: int | None = None):
        """Opens the checkpoints of a workdir and keeps the newest `keep` ones, None for all.

        Raises:
          UserError: several processes and a store with copied checkpoints, where each has parts.
        """
        self._place = _Place(workdir)
        require(
            self._place.mirror is None or jax.process_count() == 1,
            f"workdir {workdir}: {jax.process_count()} processes write checkpoints together to a "
            "shared folder or a gs:// bucket only; expected one of these, or one process.",
        )
        self._manager = self._place.manager(keep)
        self._workdir, self._keep = workdir, keep
        self._saving: int | None = None

    @property
    def latest(self) -> int | None:
        """Returns the newest complete step, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, meta: dict[str, Any]) -> None:
        """Starts saving; a step that is already saved is left unchanged.

        Raises:
          UserError: this save, or the one before it, could not be written.
        """
        step = int(state.step)
        if step == self.latest:
            return
        items = {
            "ema": ocp.args.StandardSave(state.ema_params),
            "train": ocp.args.StandardSave(_without_ema(state)),
            "meta": ocp.args.JsonSave(meta),
        }
        if state.tracked is not None:
            items["times"] = ocp.args.StandardSave(state.tracked)
        with self._named_errors():
            self._manager.wait_until_finished()
            mirror = self._place.mirror
            if mirror:
                mirror.wait()
            self._saving = step
            self._manager.save(step, args=ocp.args.Composite(**items))
            if mirror:
                mirror.copy_behind(step, self._manager.wait_until_finished, self._keep)

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """Restores the newest checkpoint that can be read; returns None if nothing was saved yet.

        Damaged ones before it are renamed, with a warning.

        Args:
          like: shapes and shardings of the state.

        Returns:
          The state, and the meta record that was saved with it.

        Raises:
          UserError: none can be read, or it belongs to another model.
        """
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
        )
        wanted = {"ema": abstract.ema_params, "train": _without_ema(abstract), "meta": None}
        if not self._place.steps() and not self._place.damaged():
            return None
        found, _ = _read_newest(self._place, wanted, self._place.set_aside)
        self._manager.reload()
        return TrainState(ema_params=found["ema"], **found["train"]), found["meta"]

    def close(self) -> None:
        """Waits for saves under way.

        Raises:
          UserError: the last save could not be written.
        """
        with self._named_errors():
            if self._place.mirror:
                self._place.mirror.wait()
            self._manager.close()

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Turns failures of writing into a UserError; orbax and tensorstore raise several types."""
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(
                f"the checkpoint of step {self._saving} could not be written to {self._workdir} "
                f"({_reason(error)}); earlier checkpoints are intact: make room or mend the "
                "storage, then run the same command to continue from the newest of them."
            ) from error


def _reason(error: BaseException) -> str:
    """One short line about the original error; of a long message the end, which has the cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split("[tensorstore_spec")[0].split())
    return f"{type(error).__name__}: {text if len(text) < 240 else '... ' + text[-240:]}"


def _pass_over(step: int) -> None:
    """Leaves a damaged checkpoint unchanged: readers of a workdir do not modify it."""
    _warn(f"the checkpoint of step {step} is left as it is; trying the one before it.")


def _warn(line: str) -> None:
    if jax.process_index() == 0:
        say(f"WARNING: {shown(line)}", sys.stderr)


def _read_newest(
    place: _Place, wanted: dict[str, Any], on_damage: Callable[[int], None]
) -> tuple[dict[str, Any], int]:
    """Reads items of the newest checkpoint that every process can read, and its step.

    Raises:
      UserError: there is none, or one is complete but belongs to another model.
    """
    tried, folder = place.steps(), place.folder
    for step in tried:
        path, found, problem = folder / str(step), None, None
        try:
            found, verdict = _read(place.open(step), wanted), _Verdict.READ
        except _DamagedError as error:
            verdict, problem = _Verdict.DAMAGED, str(error)
        except UserError as error:
            verdict, problem = _Verdict.REFUSED, error
        verdict = worst(verdict)
        if verdict == _Verdict.READ:
            return found, step
        if verdict == _Verdict.REFUSED:
            raise problem or UserError(
                f"checkpoint {path} could not be read by another process; see its message."
            )
        _warn(f"checkpoint {path} is DAMAGED ({problem or 'found by another process'})")
        on_damage(step)
    names = [str(step) for step in tried if (folder / str(step)).exists()] + place.damaged()
    raise UserError(
        f"none of the checkpoints in {folder} can be read, expected at least one (damaged: "
        f"{', '.join(names)}): restore one from a copy under its number, or start anew with "
        "another --workdir."
    )


def _read(path: epath.Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """Reads items of one checkpoint; no process waits for another here.

    Args:
      path: path checkpoints/STEP.
      wanted: dict from an item's name to a tree of ShapeDtypeStruct with shardings, or None for
        JSON.

    Raises:
      _DamagedError: the checkpoint is incomplete.
      UserError: it belongs to another model, or the storage refused.
    """
    try:
        check_plain(path)
        return {name: _read_item(path / name, tree) for name, tree in wanted.items()}
    except Exception as error:  # orbax raises a bare Exception for a lost shard
        for name, tree in () if isinstance(error, NotPlainError) else wanted.items():
            _check_same_model(path / name, tree)
        if isinstance(error, (PermissionError, MemoryError)) or _refused(error):
            raise UserError(
                f"checkpoint {path} cannot be read now ({_reason(error)}); expected storage that "
                "answers and memory for it: mend that and run the same command again."
            ) from error
        raise _DamagedError(_reason(error)) from error


def _read_item(path: epath.Path, tree: Any) -> Any:
    if tree is None:
        return ocp.JsonCheckpointHandler().restore(path, args=ocp.args.JsonRestore())
    return ocp.StandardCheckpointHandler().restore(path, args=ocp.args.StandardRestore(tree))


def _refused(error: BaseException | None) -> bool:
    """Whether an error, or one that caused it, comes from the storage or the memory."""
    while error is not None:
        if any(word in str(error)[:100] for word in _REFUSALS):
            return True
        error = error.__cause__
    return False


def _check_same_model(path: epath.Path, tree: Any) -> None:
    """Raises UserError if names and shapes of the item can be read, and differ."""
    if tree is None:
        return
    try:
        saved = _shapes(ocp.StandardCheckpointHandler().metadata(path).tree)
    except Exception:  # as above; a checkpoint whose index is unreadable is damaged
        return
    own = _shapes(tree)
    wrong = [name for name in sorted(saved.keys() | own.keys()) if saved.get(name) != own.get(name)]
    if wrong:
        name = wrong[0]
        raise UserError(
            f"checkpoint {path.parent} is of another model: {path.name}/{name} has shape "
            f"{saved.get(name, 'none')} there, {own.get(name, 'none')} here ({len(wrong)} arrays "
            "differ); expected equal: restore the run's own configuration, or give another "
            "--workdir."
        )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    return {name(path): tuple(leaf.shape) for path, leaf in leaves}


def latest_step(workdir: str | epath.Path) -> int | None:
    """Returns the newest checkpoint's step, or None, without opening it."""
    return max(_Place(workdir).steps(), default=None)


def load_ema(workdir: str | epath.Path, abstract: Params) -> tuple[Params, int]:
    """Reads averaged parameters and step of the newest checkpoint that can be read."""
    params, step, _ = load_averages(workdir, abstract, ())
    return params, step


def load_averages(
    workdir: str | epath.Path, abstract: Params, times: Sequence[Any]
) -> tuple[Params, int, Any]:
    """Reads the parts of a model from the newest checkpoint that can be read.

    Damaged checkpoints are skipped with a line on stderr.

    Args:
      workdir: workdir of `train` or `convert`.
      abstract: tree of ShapeDtypeStruct (with shardings, if any) to restore the averaged parameters
        into.
      times: the same for each possible format of the state of learnt times.

    Returns:
      Parameters, their step, and the state of learnt times; None if the checkpoint has none.

    Raises:
      UserError: no checkpoint, none that can be read, or one of another model.
    """
    place = _Place(workdir)
    require(
        place.folder.exists(),
        f"workdir {workdir} has no checkpoints; expected the --workdir of a training run.",
    )
    require(bool(place.steps()), f"workdir {workdir} has no complete checkpoint; train it first.")
    found, step = _read_newest(place, {"ema": abstract}, _pass_over)
    return found["ema"], step, read_times(place.folder / str(step) / "times", times)


def save_ema(
    workdir: str | epath.Path, params: Params, step: int, meta: dict[str, Any], times: Any = None
) -> None:
    """Writes a checkpoint of averages, as in `convert`; `times` as in `load_averages`."""
    place = _Place(workdir)
    manager = place.manager(None)
    items = {"ema": ocp.args.StandardSave(params), "meta": ocp.args.JsonSave(meta)}
    if times is not None:
        items["times"] = ocp.args.StandardSave(times)
    manager.save(step, args=ocp.args.Composite(**items))
    manager.wait_until_finished()
    manager.close()
    if place.mirror:
        place.mirror.copy_behind(step, lambda: None, None)
        place.mirror.wait()
