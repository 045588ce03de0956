"""Lines are appended where stored files cannot grow."""

import json

from etils import epath

from flm_jax.core.files import StepLines


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
