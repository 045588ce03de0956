"""One variant of one benchmark case in a process of its own; see `bench`.

Speaks JSON lines: once it is compiled, a line; then a line for each line read from stdin.
"""

import json
import resource
import sys
import time

import jax
import jax.numpy as jnp

from flm_jax import build
from flm_jax.bench_cases import CASES, Case
from flm_jax.defaults import base_config
from flm_jax.flows.clocks import decoding_clock, tau_to_t
from flm_jax.flows.flow_map import flow_map_weights
from flm_jax.flows.readout import denoise
from flm_jax.samplers.common import clock_grid, nothing_given
from flm_jax.samplers.flow_map import sample
from flm_jax.training.optim import make_optimizer
from flm_jax.training.step import make_train_step, new_state

_PER_TURN = 3


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _config(case: Case, settings: dict) -> dict:
    config = base_config()
    sizes = {k: v for k, v in case.sizes.items() if k not in ("batch", "steps")}
    config.model.update(sizes)
    config.model.loss_tile = settings.get("loss_tile", 0)
    config.model.two_time = case.objective == "semigroup"
    config.objective.name = case.objective
    config.objective.noise = settings["noise"]
    config.train.batch = case.sizes["batch"]
    return config.to_dict()


def onehot_euler(key, net, params, clock, steps: int, given):
    """Euler steps carried in R^V, as the reference does: x_t @ E before every network call."""
    times = tau_to_t(clock, clock_grid(steps))
    table = net.table(params)
    x_t = jax.random.normal(key, (*given.tokens.shape, net.vocab_size))

    def step(x_s, now):
        tau, s, t = now
        taus = jnp.full(x_s.shape[0], tau)
        probs = jax.nn.softmax(denoise(net, params, x_s @ table, taus, taus), axis=-1)
        w_x, w_delta = flow_map_weights(s, t)
        return w_x * x_s + w_delta * probs, None

    x_1, _ = jax.lax.scan(step, x_t, (clock_grid(steps)[:-1], times[:-1], times[1:]))
    return jnp.argmax(x_1, axis=-1)


def _train_program(case: Case, config: dict):
    net, clock = build.network(config), decoding_clock(case.sizes["vocab_size"])
    optimizer = make_optimizer(build.optim(config), 1000)
    step = make_train_step(
        build.objective(config, net, clock), optimizer, seed=0, microbatches=1, ema_decay=0.999
    )
    state = jax.jit(lambda: new_state(net.init(jax.random.key(0)), optimizer))()
    shape = (case.sizes["batch"], case.sizes["length"])
    tokens = jax.random.randint(jax.random.key(1), shape, 0, case.sizes["vocab_size"])
    batch = {"tokens": tokens, "mask": jnp.ones(shape, bool)}
    program = jax.jit(step, donate_argnums=0).lower(state, {}, batch).compile()

    def run(state):
        state, metrics = program(state, {}, batch)
        jax.block_until_ready(metrics)
        return state

    return program, run, state


def _sample_program(case: Case, config: dict):
    net, clock = build.network(config), decoding_clock(case.sizes["vocab_size"])
    params = jax.jit(net.init)(jax.random.key(0))
    given = nothing_given(case.sizes["batch"], case.sizes["length"])
    steps = case.sizes["steps"]

    def draw(params):
        if config["objective"]["noise"] == "onehot":
            return onehot_euler(jax.random.key(0), net, params, clock, steps, given)
        key = jax.random.key(0)
        return sample(key, net, params, clock=clock, steps=steps, given=given).tokens

    program = jax.jit(draw).lower(params).compile()

    def run(params):
        jax.block_until_ready(program(params))
        return params

    return program, run, params


def main() -> None:
    case = CASES[sys.argv[1]]
    config = _config(case, case.variants[sys.argv[2]])
    make = _train_program if case.kind == "train" else _sample_program
    program, run, carry = make(case, config)
    carry = run(carry)
    ready = {"temporaries_mib": program.memory_analysis().temp_size_in_bytes / 2**20}
    print(json.dumps(ready), flush=True)
    for _ in sys.stdin:
        seconds = []
        for _ in range(_PER_TURN):
            began = time.perf_counter()
            carry = run(carry)
            seconds.append(time.perf_counter() - began)
        print(json.dumps({"seconds": seconds, "peak_mib": _peak_mib()}), flush=True)


if __name__ == "__main__":
    main()
