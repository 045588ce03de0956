"""The parts of launch/gpu_check.sh that are Python; each prints one line `result: ...` last.

python launch/gpu_check.py versions | compare JSON RUNS | attention | hold READY GIB UNTIL
                           | experts [TINY] | note FILE NAME WORD SECONDS RESULT
"""

import importlib.metadata
import json
import os
import subprocess
import sys
import time
from pathlib import Path

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "tokamax")
COMPARED = ("train/nll_nats_per_token", "train/grad_norm")
# Against the CPU, relative: float32 products at full precision, and as the backend usually takes
# them (10 bits of mantissa on GPUs), over 60 steps of which each starts from the last.
TOLERANCES = {"gpu": 2e-3, "usual": 1e-1}
# bfloat16 keeps 8 bits, and the gradients sum over all positions.
ATTENTION_TOLERANCE = 2e-2
_PATIENCE = 40.0  # seconds to wait for another process


def tell(text: str) -> None:
    print(f"result: {text}", flush=True)


def stop(text: str) -> None:
    tell(text)
    sys.exit(1)


def versions() -> None:
    import jax
    import jax.numpy as jnp

    import flm_jax.evaluation.measure  # noqa: F401  with what the commands import
    import flm_jax.profiling.bench_worker  # noqa: F401
    import flm_jax.train  # noqa: F401

    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{package} missing")
    device = jax.devices()[0]
    x = jax.random.normal(jax.random.key(0), (512, 512), jnp.bfloat16)
    good = bool(jnp.isfinite(x @ x).all())
    version = sys.version.split()[0]
    text = f"Python {version}, {', '.join(found)}; {jax.device_count()} {device.device_kind}"
    wanted = os.environ.get("JAX_PLATFORMS", "").split(",")[0]
    if not good or (wanted == "cuda" and device.platform != "gpu"):
        stop(f"{text}: got platform {device.platform} and finite products: {good}")
    tell(text)


def losses(workdir: Path) -> dict[int, dict[str, float]]:
    """Step -> what is compared, of the steps at which a run logged."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return {r["step"]: {k: r[k] for k in COMPARED} for r in records if COMPARED[0] in r}


def largest(one: dict, other: dict) -> tuple[int, float]:
    """Number of common steps, and the largest relative difference at them."""
    steps = sorted(one.keys() & other.keys())
    apart = [
        abs(one[s][k] - other[s][k]) / max(abs(other[s][k]), 1e-6) for s in steps for k in COMPARED
    ]
    return len(steps), max(apart, default=float("inf"))


def compare(path: str, folder: str) -> None:
    """Runs `gpu` and `usual` of a folder against its run `cpu`."""
    runs = {name: losses(Path(folder) / name) for name in ("cpu", *TOLERANCES)}
    found = {name: largest(runs[name], runs["cpu"]) for name in TOLERANCES}
    report = {name: {"steps": n, "largest": d} for name, (n, d) in found.items()}
    Path(path).write_text(json.dumps({"runs": runs, "differences": report}, indent=1) + "\n")
    text = "; ".join(
        f"{name}: {n} logged steps at most {d:.1e} from the CPU's (allowed {TOLERANCES[name]:.0e})"
        for name, (n, d) in found.items()
    )
    # Not <=, so that a NaN fails too.
    bad = [name for name, (n, d) in found.items() if n < 6 or not d <= TOLERANCES[name]]
    if bad:
        stop(f"{text}; too far or too few: {', '.join(bad)}")
    tell(text)


def attention() -> None:
    """Each kernel for GPUs against XLA's einsums, forward and backward, causal and not."""
    import jax
    import jax.numpy as jnp

    from flm_jax.models.attention import AttentionPlan, available
    from flm_jax.models.attention import attention as attend

    here = [kind for kind in ("cudnn", "fused") if available(kind, jax.default_backend())]
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, weight = (jax.random.normal(key, (2, 256, 4, 64), jnp.float32) for key in keys)

    def results(kind, dtype, **how):
        def total(q, k, v):
            qkv = (x.astype(dtype) for x in (q, k, v))
            out = attend(*qkv, plan=AttentionPlan(kind), **how).astype(jnp.float32)
            return (out * weight).sum(), out

        (_, out), grads = jax.value_and_grad(total, (0, 1, 2), has_aux=True)(q, k, v)
        return (out, *grads)

    worst = {}
    for kind in here or ["xla"]:
        hows = [{}, {"causal": True}]
        if kind != "cudnn":  # a cap of 2 changes scores of this size
            seen = jnp.arange(256)[None] < jnp.array([[256], [200]])
            hows += [{"softcap": 2.0}, {"softcap": 2.0, "block": 64, "visible_BM": seen}]
            hows += [{"visible_BM": seen}]
        for how in hows:
            with jax.default_matmul_precision("highest"):
                true = results("xla", jnp.float32, **how)
            apart = (
                float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))
                for a, b in zip(results(kind, jnp.bfloat16, **how), true)
            )
            worst[kind] = max(worst.get(kind, 0.0), *apart)
    found = ", ".join(f"{kind} in bfloat16 is {far:.1e}" for kind, far in worst.items())
    text = f"{found} from float32 (allowed {ATTENTION_TOLERANCE:.0e})"
    if not max(worst.values()) <= ATTENTION_TOLERANCE:
        stop(text)
    tell(text)


def _median_ms(function, *args) -> float:
    import jax

    jax.block_until_ready(function(*args))
    times = []
    for _ in range(10):
        begun = time.perf_counter()
        jax.block_until_ready(function(*args))
        times.append(1e3 * (time.perf_counter() - begun))
    return sorted(times)[len(times) // 2]


def experts(tiny: str = "") -> None:
    """One product of rows by the matrices of their experts, at the sizes of LLaDA2.0-mini.

    The library's tiles, `jax.lax.ragged_dot` and tokamax's kernel, forward, and forward with
    backward, in ms, for a few blocks of tokens and for whole rows of them.
    """
    import jax
    import jax.numpy as jnp

    from flm_jax.models import fused_attention, mixture_of_experts

    number, active, dim, hidden = (8, 2, 32, 16) if tiny else (256, 8, 2048, 512)
    keys = jax.random.split(jax.random.key(0), 4)
    kernel = dim**-0.5 * jax.random.normal(keys[0], (number, dim, hidden), jnp.bfloat16)

    def tiles(rows, kernel, expert):
        tiles = mixture_of_experts._tiles(expert, number)
        room = jnp.zeros((len(tiles.expert) * tiles.size, rows.shape[1]), rows.dtype)
        tiled = room.at[tiles.place].set(rows).reshape(-1, tiles.size, rows.shape[1])
        out = mixture_of_experts._grouped(tiled, kernel, tiles.expert)
        return out.reshape(-1, hidden)[tiles.place]

    def ragged(product):
        def form(rows, kernel, expert):
            order = jnp.argsort(expert)
            sizes = jnp.bincount(expert, length=number).astype(jnp.int32)
            out = product(rows[order], kernel, sizes)
            return jnp.zeros_like(out).at[order].set(out)

        return form

    forms = {"tiles": tiles, "ragged_dot": ragged(jax.lax.ragged_dot)}
    if not fused_attention.why_missing():
        forms["tokamax"] = ragged(fused_attention.tokamax().ragged_dot)
    found = []
    for tokens in (4, 64) if tiny else (256, 4096):
        rows = jax.random.normal(keys[1], (tokens * active, dim), jnp.bfloat16)
        expert = jax.random.randint(keys[2], (tokens * active,), 0, number)
        weight = jax.random.normal(keys[3], (tokens * active, hidden))
        true = jnp.einsum("rd,rdf->rf", rows[:64].astype(jnp.float32), kernel[expert[:64]])
        for name, form in forms.items():
            loss = lambda r, k, e, w, form=form: (form(r, k, e).astype(jnp.float32) * w).sum()
            both = jax.jit(jax.grad(loss, (0, 1)))
            try:
                out = jax.jit(form)(rows, kernel, expert)[:64].astype(jnp.float32)
                apart = float(jnp.linalg.norm(out - true) / jnp.linalg.norm(true))
                forward = _median_ms(jax.jit(form), rows, kernel, expert)
                text = f"{name} {tokens} tokens {forward:.3f} ms, {apart:.1e} off"
                text += f", with backward {_median_ms(both, rows, kernel, expert, weight):.3f} ms"
            except Exception as error:  # a form that cannot run here is a finding too
                text = f"{name} {tokens} tokens: {type(error).__name__}: {str(error)[:200]}"
            print(text.replace("\n", " "), flush=True)
            found.append(text.replace("\n", " "))
    tell("; ".join(found))


def card() -> str:
    """Memory in use on the card, by all processes."""
    command = ["nvidia-smi", "--query-gpu=memory.used,memory.total", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return "unknown, without nvidia-smi"


def hold(ready: str, gib: str, until: str) -> None:
    """Takes memory, says so by making the file `ready`, and keeps it until the file `until` is."""
    import jax
    import jax.numpy as jnp

    platform = jax.default_backend()
    gibibytes = float(gib) if platform != "cpu" else 0.01
    data = jnp.ones(int(gibibytes * 2**28), jnp.float32)
    square = jnp.ones((256, 256)) @ jnp.ones((256, 256))
    jax.block_until_ready((data, square))
    Path(ready).touch()
    begun = time.monotonic()
    while not Path(until).exists():
        if time.monotonic() - begun > _PATIENCE:
            stop(f"holds {gibibytes} GiB, but {Path(until).name} did not come")
        time.sleep(0.1)
    stats = jax.devices()[0].memory_stats() or {}
    limit, used = (stats.get(k, 0) / 2**30 for k in ("bytes_limit", "bytes_in_use"))
    tell(f"holds {gibibytes} GiB, uses {used:.2f} of {limit:.1f} GiB; of the card {card()}")
    time.sleep(1.0)  # the other one reads the card as well


def note(path: str, name: str, word: str, seconds: str, result: str) -> None:
    """Adds a line to the list of parts."""
    record = {"part": name, "result": word, "seconds": int(seconds), "text": result}
    with Path(path).open("a", encoding="utf8") as file:
        file.write(json.dumps(record) + "\n")


COMMANDS = {f.__name__: f for f in (versions, compare, attention, experts, hold, note)}

if __name__ == "__main__":
    COMMANDS[sys.argv[1]](*sys.argv[2:])
