"""Pictures of clocks and of learnt noise schedules."""

import numpy as np
import pytest
from etils import epath

from flm_jax.core.files import write_figure
from flm_jax.evaluation import plots
from flm_jax.evaluation.plots import draw_schedule
from flm_jax.flows.gamma_state import fresh_state
from flm_jax.training import schedule_log
from helpers.laws import learnt


@pytest.fixture
def drawn(monkeypatch):
    """Axes of the pictures that are written."""
    axes = []

    def keep(figure, path):
        axes.extend(figure.axes)
        write_figure(figure, path)

    monkeypatch.setattr(plots, "write_figure", keep)
    return axes


def test_clocks_run_from_noise_to_text_and_later_in_a_narrow_embedding(drawn, tmp_path):
    plots.draw_clock(epath.Path(tmp_path / "c.png"), [8, 256], dim=16)
    small, large, narrow = (line.get_ydata() for line in drawn[0].lines)
    for tau in (small, large, narrow):
        assert tau[0] == 0 and tau[-1] == 1 and (np.diff(tau) >= 0).all()
    assert (narrow <= large).all() and (large <= small + 1e-6).all()
    assert narrow.mean() < large.mean() < small.mean()


@pytest.mark.parametrize("kind", ["logistic", "empirical"])
def test_a_picture_is_drawn_before_and_after_the_first_fit(kind, tmp_path):
    cfg, state = learnt(kind)
    rows = [
        schedule_log.schedule_record(i, s, cfg)
        for i, s in enumerate((fresh_state(cfg), state, state))
    ]
    for shown in (rows[:1], rows):
        draw_schedule(tmp_path / "s.png", shown)
        assert (tmp_path / "s.png").read_bytes()[:4] == b"\x89PNG"
    older = [{k: v for k, v in row.items() if k not in ("mixture", "weights")} for row in rows]
    draw_schedule(tmp_path / "older.png", older)
    assert (tmp_path / "older.png").exists()
