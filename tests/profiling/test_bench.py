"""The benchmark's comparisons: variants with each other, a run with an earlier one."""

import json

import pytest

from flm_jax.config.check import check
from flm_jax.core.errors import UserError
from flm_jax.profiling import bench_results, bench_worker
from flm_jax.profiling.bench_cases import SUITES, find


def results(seconds=2.0, peak=100.0, device="cpu", batch=4):
    figures = {"median_seconds": seconds, "peak_mib": peak, "device": device}
    return [{"case": "c", "sizes": {"batch": batch}, "variants": {"v": figures}, "ratios": {}}]


def test_ratios_to_an_earlier_run():
    new = results(seconds=1.0, peak=50.0)
    bench_results.compare(new, results())
    assert new[0]["variants"]["v"]["against_baseline"] == {"speed": 2.0, "peak": 0.5}


@pytest.mark.parametrize("other", [{"device": "H100"}, {"batch": 8}])
def test_other_devices_and_sizes_are_not_compared(other):
    new = results()
    bench_results.compare(new, results(**other))
    assert "against_baseline" not in new[0]["variants"]["v"]


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"variants": {"v": {}}}]'])
def test_baselines_of_another_kind_are_refused(tmp_path, text):
    path = tmp_path / "old.json"
    path.write_text(text)
    with pytest.raises(UserError, match="holds no results of this benchmark"):
        bench_results.read_baseline(str(path))
    with pytest.raises(UserError, match="does not exist"):
        bench_results.read_baseline(str(tmp_path / "missing.json"))


def test_a_result_can_be_a_baseline(tmp_path):
    path = tmp_path / "old.json"
    path.write_text(json.dumps(results()))
    assert bench_results.read_baseline(str(path)) == results()


def test_every_case_is_a_valid_configuration():
    for suite, cases in SUITES.items():
        assert len({case.name for case in cases}) == len(cases)
        for case in cases:
            assert find(suite, case.name) is case
            for variant, settings in case.variants.items():
                config = bench_worker._config(case, settings)
                assert check(config) == config
                flat = config["model"] | config["mesh"] | config["flow"] | config["objective"]
                flat["route"] = flat["name"]
                for key, value in (case.sizes | settings).items():
                    if key not in ("batch", "steps"):
                        assert flat[key] == value, (case.name, variant, key)


def test_the_ceiling_is_a_rate_of_products():
    assert 1e9 < bench_worker.matmul_ceiling("float32") < 1e13


def test_products_in_turns_are_the_ceiling():
    """Of 100 operations in 1 s by the clock and 2 s of processors, as medians; runs of 4 and 5."""
    turn = {"seconds": [4.0], "peak_mib": 1.0, "processor": [(4.0, 5.0)], "operations": 100}
    turns = [turn | {"products": [(1.0, 2.0), (1.0, 2.0)]}, turn | {"products": [(9.0, 9.0)]}]
    case = SUITES["cpu"][0]
    ready = {"flops": 200, "ceiling": 1.0, "device": "cpu", "devices": 1}
    found = bench_results.figures(case, turns, ready)
    assert found["ceiling"] == 100.0
    assert found["utilisation"] == pytest.approx(0.5)
    assert found["processor_utilisation"] == pytest.approx(200 / 5 / (100 / 2))
