"""Logs of metrics: unwritable ones end the run, torn lines are dropped."""

import pytest

from flm_jax.core.errors import UserError
from flm_jax.training.logs import MetricsLog


def test_metrics_that_cannot_be_written_end_the_run(tmp_path):
    log = MetricsLog(tmp_path, 0)
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(UserError, match="metrics could not be written .*No space left"):
        log.write(1, {"a": 1.0})


def test_a_torn_line_of_metrics_is_dropped(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    MetricsLog(tmp_path, 2).close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'
