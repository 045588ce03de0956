"""The suites of a GPU: their programs at full size as shapes, and runs of which some cases fail."""

import json
import sys

import jax
import numpy as np
import pytest

from flm_jax.distributed import sharding
from flm_jax.models import attention
from flm_jax.profiling import bench_group, bench_runs, bench_worker
from flm_jax.profiling.bench_cases import SECONDS, SUITES, Case, find
from flm_jax.samplers.base import nothing_given
from flm_jax.samplers.euler import sample_euler
from flm_jax.training.program import assemble

GROUPED = [suite for suite, cases in SUITES.items() if cases[0].group]
BUILT = [
    (case.name, variant)
    for case in SUITES["gpu"]
    for variant in case.variants
    if variant not in ("cudnn", "fused")
    and not case.name.endswith(("_64", "256"))  # of others' shapes
]
# Says what bench_group would, of cases that end in different ways.
CHILD = """
import json, os, sys, time
for name in sys.argv[2:]:
    print(json.dumps({"begin": name}), flush=True)
    print("a library says something", flush=True)
    if "dies" in name: os._exit(9)
    if "hangs" in name: time.sleep(60)
    figures = dict(median_seconds=2.0, tokens_per_second=1.0, utilisation=0.5, ceiling=1e12)
    figures |= dict(peak_mib=1.0, peak_is="planned", runs=3, spread=0.1, ready_seconds=1.0)
    told = {"failed": "no memory"} if "fails" in name else {"figures": figures}
    print(json.dumps(told), flush=True)
"""


def test_suites_of_groups():
    assert set(GROUPED) == set(SECONDS) == {"gpu", "gpu_quick", "gpu_smoke"}
    for suite in GROUPED:
        assert all(case.group for case in SUITES[suite])
    wanted = {("denoising", "train", 16), ("denoising", "train", 32), ("semigroup", "train", 16)}
    long = [case for case in SUITES["gpu"] if case.sizes["length"] == 1024]
    assert wanted <= {(case.objective, case.kind, case.sizes["batch"]) for case in long}
    assert {case.sizes.get("steps") for case in long} == {None, 1, 4, 64}


@pytest.mark.parametrize(("name", "variant"), BUILT)
def test_programs_of_the_gpu_suite_build(name, variant):
    case = find("gpu", name)
    # Traced with XLA's attention: a kernel's are the same shapes.
    config = bench_worker._config(case, case.variants[variant] | {"attention": "xla"})
    mesh = sharding.make_mesh(sharding.MeshConfig(**config["mesh"]), jax.devices()[:1])
    program = assemble(config, mesh)
    shape = (case.sizes["batch"], case.sizes["length"])
    if case.kind == "train":
        tokens = jax.ShapeDtypeStruct(shape, np.int32)
        batch = {"tokens": tokens, "mask": jax.ShapeDtypeStruct(shape, bool)}
        state, metrics = jax.eval_shape(program.train_step, program.state, {}, batch)
        assert jax.tree.map(np.shape, state) == jax.tree.map(np.shape, program.state)
        assert metrics
    else:
        net, steps = program.net, case.sizes["steps"]
        draw = lambda params: (
            sample_euler(
                jax.random.key(0),
                net,
                params,
                flow=program.flow,
                steps=steps,
                given=nothing_given(*shape),
            ).tokens
        )
        params = jax.eval_shape(net.init, jax.random.key(0))
        assert jax.eval_shape(draw, params).shape == shape


@pytest.mark.parametrize(("kind", "softcap"), [("cudnn", 0.0), ("fused", 50.0)])
def test_kernels_take_the_sizes_of_their_variants(monkeypatch, kind, softcap):
    monkeypatch.setitem(attention.KINDS, kind, None)  # as if its GPU were here
    monkeypatch.setattr(attention.fused_attention, "why_missing", lambda: "")
    for suite in ("gpu", "gpu_quick"):
        for case in SUITES[suite]:
            model = bench_worker._config(case, case.variants.get(kind, {}))["model"]
            assert model["attention_softcap"] == (softcap if kind in case.variants else 50.0)
            attention.check_attention(
                attention.AttentionPlan(model["attention"]),
                length=model["length"],
                heads=model["heads"],
                head_dim=model["dim"] // model["heads"],
                softcap=model["attention_softcap"],
                dtype=model["dtype"],
            )


def run(monkeypatch, tmp_path, names, seconds=60.0, one=1.0):
    monkeypatch.setattr(bench_runs, "_COMMAND", (sys.executable, "-c", CHILD))
    monkeypatch.setattr(bench_runs, "_ONE", one)
    cases = [Case(n, "train", "denoising", {}, {"a": {}, "b": {}}, group=n[:1]) for n in names]
    path = tmp_path / "results.json"
    saved = []

    def save(results):
        path.write_text(json.dumps(results))
        saved.append(path.read_text())

    found = {r["case"]: r for r in bench_runs.run_suite("x", cases, seconds, save)}
    assert len(saved) == 2 * len(names)  # after every variant
    return found


def test_what_fails_costs_one_line_and_the_rest_go_on(monkeypatch, tmp_path, capfd):
    names = ["1_good", "1_fails", "1_dies", "1_hangs", "1_last", "2_good"]
    found = run(monkeypatch, tmp_path, names)
    for name in ("1_good", "1_last", "2_good"):
        assert set(found[name]["variants"]) == {"a", "b"} and not found[name]["failed"]
        assert found[name]["ratios"] == {"a": {"speed": 1.0, "peak": 1.0}}
    assert found["1_fails"]["failed"] == {"a": "no memory", "b": "no memory"}
    assert "status 9" in found["1_dies"]["failed"]["b"]
    assert "not done after 1 s" in found["1_hangs"]["failed"]["a"]
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == 2 * len(names)
    assert lines[0].startswith("1_good/a: 2000.0 ms, 1 tokens/s, 50% of 1 TFLOP/s, peak 1 MiB")


def test_what_has_no_time_is_named(monkeypatch, tmp_path):
    found = run(monkeypatch, tmp_path, ["1_hangs", "2_good"], seconds=0.5, one=60.0)
    assert "stopped" in found["1_hangs"]["failed"]["a"]
    assert "not begun within the 0 s" in found["2_good"]["failed"]["a"]


def test_a_tiny_case_is_measured_and_one_for_a_gpu_refused(monkeypatch, capsys):
    monkeypatch.setattr(bench_worker, "matmul_ceiling", lambda dtype: 1e12)
    names = ["flm_train_owt_16/fused", "flm_sample_owt_4/fused"]
    monkeypatch.setattr(sys, "argv", ["bench_group", "gpu_smoke", *names])
    bench_group.main()
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [s["begin"] for s in said[::2]] == names
    assert "attention 'fused' runs on gpu" in said[1]["failed"]
    found = said[3]["figures"]
    assert found["runs"] >= 3 and found["planned_mib"] > 0
    assert found["peak_is"] in ("measured", "planned")
