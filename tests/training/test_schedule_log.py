"""Records of a learnt schedule of gamma."""

import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.flows.gamma_fit import logistic_cdf
from flm_jax.flows.gamma_law import mixture_cdf
from flm_jax.flows.gamma_state import GammaConfig, fresh_state
from flm_jax.training import schedule_log
from flm_jax.training.schedule_log import read_schedule, schedule_record
from helpers.laws import SHAPE, learnt


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
    np.testing.assert_allclose(row["weights"], [0.1, 0.2, 0.7], rtol=1e-6)
    drawn = mixture_cdf(jnp.array(row["mixture"]), cfg, state)
    np.testing.assert_allclose(drawn, row["u"], atol=1e-5)
    assert row["rows"] == 32 * [400.0] and row["examples"] == 32 * 400


def test_nothing_seen_nothing_learnt():
    cfg = GammaConfig()
    row = schedule_record(0, fresh_state(cfg), cfg)
    assert row["gamma"] == [] and not row["ready"]
    np.testing.assert_allclose(row["weights"], [0.1, 0.9, 0.0], rtol=1e-6)


def test_the_last_record_of_a_step_counts(tmp_path):
    assert read_schedule(tmp_path) == []
    lines = ['{"step": 2, "r2": 0}', '{"step": 4, "r2": 0}', '{"step": 2, "r2": 1}']
    (tmp_path / schedule_log.FILE).write_text("\n".join(lines) + "\n")
    assert schedule_log.read_schedule(tmp_path) == [{"step": 2, "r2": 1}, {"step": 4, "r2": 0}]
