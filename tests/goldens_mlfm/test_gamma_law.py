"""The law of gamma: mixture, fits, statistics and chains of updates, as the authors' code has them.

Each is compared in float32, as training runs, and in float64 where that shows more. In float32 a
quantile is as sure as F over its slope, which is 0.1/16 at least: 1e-7 / 0.00625 = 1.6e-5.
"""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.flows.gamma_fit import increasing, isotonic, logistic_fit, logistic_knots
from flm_jax.flows.gamma_fit import logistic_quantile as quantile_of
from flm_jax.flows.gamma_law import (
    mixture_cdf,
    mixture_quantile,
    mixture_weights,
    sampling_grid,
)
from flm_jax.flows.gamma_state import GammaConfig, bin_centers, fresh_state, state_of_knots
from flm_jax.flows.gamma_statistics import curve, observe
from flm_jax.flows.noise_schedule import refitted, update_state
from helpers.goldens_mlfm import GOLDENS, record

ADAPTATION = GammaConfig()
FINE_TUNING = GammaConfig(
    normal=0.0,
    learnt="empirical",
    bins=134,
    decay=0.98,
    knot_rate=0.05,
    ratio_low=0.95,
    least_r2=0.0,
)
LAWS = {"pre": ADAPTATION, "sft": FINE_TUNING}
# The chains are of 16 bins and few rows.
CHAINS = {
    "pre": dataclasses.replace(
        ADAPTATION, bins=16, decay=0.9, knot_rate=0.25, least_cell=3.0, least_examples=1500.0
    ),
    "sft": dataclasses.replace(FINE_TUNING, bins=16, least_cell=3.0, least_examples=500.0),
}
WIDTHS = {"float32": contextlib.nullcontext, "float64": lambda: jax.enable_x64(True)}


def stored(name):
    with np.load(GOLDENS / f"{name}.npz") as file:
        return {key: file[key] for key in file}


LAW, GRIDS, SAYS = stored("gamma_law"), stored("time_grids"), record("gamma_law")


@pytest.fixture(params=WIDTHS)
def width(request):
    """The name of the floats that JAX computes with."""
    with WIDTHS[request.param]():
        yield request.param


def close(got, want, width, single, double):
    assert np.asarray(got).dtype == width
    np.testing.assert_allclose(
        got, want, rtol=0, atol={"float32": single, "float64": double}[width]
    )


def floats(x):
    """As the floats that JAX computes with."""
    return jnp.asarray(x, jnp.zeros(()).dtype)


def state_at(tag, cfg):
    knots = {
        "smooth": LAW["fit_smooth_knots"],
        "final": LAW.get(f"{tag.partition('_')[0]}_s3_active"),
    }.get(tag.partition("_")[2])
    return fresh_state(cfg) if knots is None else state_of_knots(knots, cfg)


def test_defaults_are_the_released_configurations():
    """Of adaptation the defaults; of fine-tuning what is set above."""
    for cfg, says in ((ADAPTATION, "train"), (FINE_TUNING, "sft")):
        theirs = SAYS[f"config_{says}"]
        np.testing.assert_allclose(
            [cfg.uniform, cfg.normal, 1.0 - cfg.uniform - cfg.normal],
            theirs["gamma_active_mixture_weights"],
            atol=1e-12,
        )
        assert (cfg.low, cfg.high) == (theirs["gamma_min"], theirs["gamma_max"])
        assert (cfg.center, cfg.spread) == (theirs["gamma_loc"], theirs["gamma_scale"])
        assert cfg.decay == theirs["loss_diagnostic_ema_decay"]
        assert cfg.knot_rate == theirs["gamma_curve_update_rate"]
        assert cfg.refit_every == theirs["log_freq"]
        assert cfg.least_r2 == theirs["gamma_curve_min_r2"]
        assert cfg.least_examples == theirs["gamma_curve_min_examples"]
        assert cfg.ratio_low == theirs["gamma_curve_mask_p_min"]
        assert cfg.bins == SAYS["gamma_bins"][says]
        assert cfg.least_cell == SAYS["min_plot_samples"]
        learnt = {"generalized_logistic": "logistic", "empirical": "empirical"}
        assert cfg.learnt == learnt[theirs["gamma_curve_estimator"]]
        np.testing.assert_allclose(
            cfg.low + (cfg.high - cfg.low) / cfg.bins * np.arange(cfg.bins + 1),
            LAW[f"bin_edges_{says}"],
            atol=1e-12,
        )


@pytest.mark.parametrize("tag", ["pre_nofit", "sft_nofit", "pre_smooth", "pre_final", "sft_final"])
def test_the_mixture(tag, width):
    cfg = LAWS[tag[:3]]
    state = state_at(tag, cfg)
    close(mixture_weights(cfg, state), LAW[f"{tag}_weights"], width, 1e-7, 1e-15)
    found = mixture_cdf(floats(LAW["gamma_grid"]), cfg, state)
    close(found, LAW[f"{tag}_cdf"], width, 3e-7, 1e-14)
    # Theirs in float32 is up to 9e-6 from theirs in float64.
    close(
        mixture_quantile(floats(LAW["u"]), cfg, state),
        LAW[f"{tag}_quantile_f64"],
        width,
        2e-5,
        1e-13,
    )


def settled(tag):
    """The law of a time grid, and its state."""
    cfg = LAWS[tag.split("_")[1]]
    if tag.startswith("nocurve"):
        return cfg, fresh_state(cfg)
    return cfg, state_of_knots(GRIDS[f"{tag.split('_')[1]}_knots"], cfg)


@pytest.mark.parametrize(
    "tag",
    [
        "eval_sft_6",
        "eval_sft_16",
        "eval_sft_256",
        "eval_pre_6",
        "eval_pre_128",
        "fullrange_sft_6",
        "default_pre_6",
        "nocurve_sft_6",
    ],
)
def test_the_times_of_sampling(tag, width):
    cfg, state = settled(tag)
    says = record("sampler")["grids"][tag]
    given = says["time_distribution"]
    ends = {"low": given["gamma_min"], "high": given["gamma_max"]}
    first = given["init_quantile"]
    found = sampling_grid(says["steps"], cfg, state, first_quantile=first, **ends)
    close(found, GRIDS[f"{tag}_gamma"], width, 2e-5, 9e-6)  # theirs are float32
    assert np.sum(np.diff(found) == 0.0) == says["steps_with_zero_dt"]


@pytest.mark.parametrize("tag", ["sft_6", "sft_32", "pre_6", "pre_32"])
def test_the_times_of_their_validation(tag, width):
    """Even in F, from that of the highest gamma to that of the lowest."""
    cfg, state = settled(f"validation_{tag}")
    ends = mixture_cdf(floats([cfg.high, cfg.low]), cfg, state)
    u = jnp.linspace(*ends, int(tag[4:]) + 1)
    found = mixture_quantile(u, cfg, state)
    close(found, GRIDS[f"validation_{tag}_gamma"], width, 2e-5, 9e-6)


@pytest.mark.parametrize("case", SAYS["fits"])
def test_the_logistic_fit(case, width):
    data = (floats(LAW[f"fit_{case}_{name}"]) for name in ("gamma_mid", "ce", "n"))
    fit, want = logistic_fit(*data, least_scale=0.0), SAYS["fits"][case]
    assert bool(fit.found) == (want is not None)
    if want is None:
        return
    # 1 - p of 1e-4 has 4 digits in float32, and so has y at the ends.
    close(fit.shape, [want["loc"], want["scale"], want["shape"]], width, 1e-4, 1e-13)
    close(fit.r2, want["r2"], width, 1e-5, 1e-13)
    assert bool(fit.r2 >= ADAPTATION.least_r2) == want["accepted_r2"]
    close(logistic_knots(fit.shape, ADAPTATION), LAW[f"fit_{case}_knots"], width, 1e-4, 1e-12)
    u = jnp.clip(floats(LAW["u"]), 1e-6, 1 - 1e-6)
    # At u = 1 - 1e-6 a float32 is off by 3e-8, of 1e-6.
    close(quantile_of(fit.shape, u)[1:-2], LAW[f"fit_{case}_quantile_u"][1:-2], width, 1e-3, 1e-7)


def test_knots_are_made_to_increase(width):
    found = increasing(floats(LAW["mono_in"]), ADAPTATION)
    close(found, LAW["mono_out"], width, 5e-7, 1e-14)
    assert np.all(np.diff(found) > 0.0)
    ends = increasing(jnp.full(101, 100.0), ADAPTATION)
    assert np.all(np.diff(ends) > 0.0) and ends[0] == -10.0 and ends[-1] == 6.0


def samples(tag, k):
    gamma, ratio, nats = (LAW[f"{tag}_s{k}_{name}"] for name in ("gamma", "ratio", "ce"))
    return floats(gamma), floats(nats), floats(np.isfinite(nats)), floats(ratio)


@pytest.mark.parametrize("tag", CHAINS)
def test_chains_of_updates(tag, width):
    """Four intervals of 20 batches; the sums of one decay once."""
    cfg = CHAINS[tag]
    state = fresh_state(cfg)
    update = jax.jit(lambda s, o, step: update_state(s, o, step, cfg))
    updates = 0
    for k in range(4):
        for batch in range(20):
            rows = [x[batch::20] for x in samples(tag, k)]
            state = update(state, observe(*rows, cfg), jnp.int32(20 * k + batch))
        close(state.cells, LAW[f"{tag}_s{k}_cells"], width, 5e-4, 1e-9)  # sums of up to 3000
        points, want = curve(state, cfg), LAW[f"{tag}_s{k}_rows"]
        np.testing.assert_allclose(bin_centers(cfg), want[:, 0])
        close(points.number, want[:, 1], width, 5e-5, 1e-10)
        close(points.values, want[:, 2], width, 3e-6, 1e-12)
        says = SAYS[tag][k]
        np.testing.assert_allclose(points.number.sum(), says["examples"], rtol=1e-6)
        updates += says["candidate"]
        assert state.ready == (updates > 0) and updates == says["updates"]
        if not updates:
            np.testing.assert_array_equal(state.knots, fresh_state(cfg).knots)
            continue
        whole = dataclasses.replace(cfg, knot_rate=1.0)
        close(refitted(state, whole).knots, LAW[f"{tag}_s{k}_candidate"], width, 5e-4, 1e-10)
        close(state.knots, LAW[f"{tag}_s{k}_active"], width, 5e-4, 1e-10)
        if tag == "sft":
            found = isotonic(points.values, points.number)
            close(found, LAW[f"{tag}_s{k}_isotonic"], width, 3e-6, 1e-12)
            continue
        fit = says["fit"]
        close(state.shape, [fit["loc"], fit["scale"], fit["shape"]], width, 5e-5, 1e-10)
        close(state.r2, fit["r2"], width, 1e-5, 1e-12)
