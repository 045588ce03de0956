"""Lines are appended where stored files cannot grow, and what is written is JSON."""

import json
import math
import re
from pathlib import Path

from etils import epath

from flm_jax.core.files import StepLines, append_json_line, nulls_as_nan, to_json
from flm_jax.evaluation.tables import table
from flm_jax.training.logs import MetricsLog

PACKAGE = Path(__file__).parents[2] / "flm_jax"


def test_metrics_grow_where_files_cannot(tmp_path, monkeypatch):
    """An object store keeps whole objects alone: what was written before is written again."""
    path = epath.Path(tmp_path / "metrics.jsonl")
    path.write_text('{"step": 1}\n{"step": 2}\n')
    log = StepLines(path, 1)
    monkeypatch.setattr(log, "_remote", True)
    opens = type(path).open

    def refuse(path, mode="r", *args, **kwargs):
        assert "a" not in mode, f"{path} opened to append"
        return opens(path, mode, *args, **kwargs)

    monkeypatch.setattr(type(path), "open", refuse)
    log.append({"step": 2, "a": 1.0})
    log.append({"step": 3, "a": 2.0})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]


def strict(text):
    """What a reader makes of it that knows JSON alone, as those of other languages."""

    def refuse(name):
        raise ValueError(name)

    return json.loads(text, parse_constant=refuse)


def test_what_is_no_number_is_written_as_null(tmp_path):
    nan, inf = math.nan, math.inf
    row = {"a": nan, "b": [1.0, (inf, -inf)], "c": {"d": nan, "e": 2}, "f": "NaN", "g": None}
    expected = {"a": None, "b": [1.0, [None, None]], "c": {"d": None, "e": 2}, "f": "NaN"}
    assert strict(to_json(row, indent=1)) == expected | {"g": None}
    append_json_line(tmp_path / "records.jsonl", [row, row])
    assert len([strict(x) for x in (tmp_path / "records.jsonl").read_text().splitlines()]) == 2
    log = MetricsLog(tmp_path, 0)
    log.write(1, {"train/loss": nan, "train/norm": inf})
    log.close()
    assert strict((tmp_path / "metrics.jsonl").read_text())["train/loss"] is None
    MetricsLog(tmp_path, 1).close()
    assert strict((tmp_path / "metrics.jsonl").read_text())["step"] == 1


def test_figures_that_were_no_numbers_are_read_and_shown():
    row = {"model": "m", "kind": "flow", "calls": 1, "nats": math.nan, "nats_low": math.inf}
    read = nulls_as_nan(strict(to_json(row | {"nats_high": 2.0, "knots": [1.0, math.nan]})))
    assert math.isnan(read["knots"][1]) and read["nats_high"] == 2.0
    del read["knots"]
    assert "nan [nan, 2]" in table([read])


def test_there_is_one_writer_of_json():
    """`json.dumps` is for digests, pipes and requests; what goes into files is of `to_json`."""
    allowed = {
        "core/files.py",
        "config/check.py",
        "data/tokenizers/base.py",
        "distributed/agreement.py",
        "evaluation/benchmarks/chat_endpoint.py",
        "evaluation/benchmarks/sandbox.py",
        "evaluation/benchmarks/sandbox_exchange.py",
        "inference/answer_file.py",
        "profiling/bench_group.py",
        "profiling/bench_worker.py",
    }
    sources = {path.relative_to(PACKAGE).as_posix(): path for path in PACKAGE.rglob("*.py")}
    uses = {
        name for name, path in sources.items() if re.search(r"json\.dumps?\(", path.read_text())
    }
    assert uses <= allowed, uses - allowed
    # Files are written as UTF-8 whatever the locale is.
    plain = {
        name for name, path in sources.items() if re.search(r"\.write_text\(", path.read_text())
    }
    assert plain <= {"core/files.py", "checkpoints/object_store.py"}, plain
