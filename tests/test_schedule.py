"""Records and pictures of a learnt schedule of gamma."""

import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.evaluation.plots import draw_schedule
from flm_jax.flows.noise_schedule import (
    GammaConfig,
    bin_centers,
    fresh_state,
    logistic_cdf,
    update_state,
)
from flm_jax.training import schedule_log
from flm_jax.training.schedule_log import read_schedule, schedule_record

SHAPE = jnp.array([-2.0, 1.5, 1.0])


def learnt(kind):
    """A state that has seen the cross entropy 1 + 2 F(gamma) in every bin, refitted once."""
    cfg = GammaConfig(learnt=kind, refit_every=1, bins=32)
    nats = 1.0 + 2.0 * logistic_cdf(SHAPE, bin_centers(cfg))
    count = jnp.full(32, 400.0)
    state = fresh_state(cfg)._replace(examples=jnp.float32(1e5))
    return cfg, update_state(state, (nats * count, count), jnp.int32(0), cfg)


@pytest.mark.parametrize("kind", ["logistic", "empirical"])
def test_a_record_holds_the_law(kind):
    cfg, state = learnt(kind)
    row = schedule_record(7, state, cfg)
    assert row["step"] == 7 and row["ready"]
    np.testing.assert_allclose(
        row["nats"], 1 + 2 * logistic_cdf(SHAPE, jnp.array(row["gamma"])), 1e-5
    )
    middle = row["quantiles"][row["u"].index(0.5)]
    assert middle == pytest.approx(-2.0, abs=0.3)  # half of the rise; bins are .5 wide
    assert (row["r2"] > 0.99) == (kind == "logistic")


def test_nothing_seen_nothing_learnt():
    cfg = GammaConfig()
    row = schedule_record(0, fresh_state(cfg), cfg)
    assert row["gamma"] == [] and not row["ready"]


def test_the_last_record_of_a_step_counts(tmp_path):
    assert read_schedule(tmp_path) == []
    lines = ['{"step": 2, "r2": 0}', '{"step": 4, "r2": 0}', '{"step": 2, "r2": 1}']
    (tmp_path / schedule_log.FILE).write_text("\n".join(lines) + "\n")
    assert schedule_log.read_schedule(tmp_path) == [{"step": 2, "r2": 1}, {"step": 4, "r2": 0}]


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
