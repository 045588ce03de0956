"""Every sampler through the server: texts and streams are those of the library's own sampling."""

import pytest

from flm_jax.inference.prompts import answer_texts
from flm_jax.inference.rows import RowSampler
from flm_jax.samplers.registry import SAMPLERS
from helpers.application import Server
from helpers.serving import LENGTH, served_model

pytest.importorskip("starlette", reason="needs starlette (extra serve)")
WAIT = 20.0
FLOW, MAP, ANY_ORDER = "denoising", "semigroup", {"objective.context": 0.5}
BRIDGE = {"adapters.base": "base"}
BRIDGE_MAP = BRIDGE | {"adapters.two_time": True, "flow.redraw": False}
SOME = {"context_guidance": 2.0, "promote": 1e-3}
RUNS = {"promote": 0.3, "promotion": "runs"}
# Objective, steps, settings of the sampler, values of the configuration, and the steps of a
# stream's drafts, if all rows make all calls.
CASES = {
    "euler": (FLOW, 4, {}, {}, [1, 2, 3]),
    "euler guided": (FLOW, 3, {"guidance": 2.0, "weak_prompt": "noised"}, ANY_ORDER, [1, 2]),
    "euler posteriors": (FLOW, 3, {}, ANY_ORDER | {"model.posterior_input": True}, [1, 2]),
    "heun": (FLOW, 4, {}, {}, [1, 2, 3]),
    "adaptive": (FLOW, 20, {"tolerance": 0.05}, {}, []),
    "marginal_bridge": (FLOW, 3, {"temperature": 0.9}, {}, [1, 2]),
    "flow_map": (MAP, 3, {"gamma": 0.5, "temperature": 0.7}, {}, [1, 2]),
    "renoising": (MAP, 3, {"temperature": 1.0}, {}, [1, 2]),
    "posterior_refinement": (MAP, 4, {}, ANY_ORDER, None),
    "posterior_refinement jumps": (MAP, 4, {"flow_steps": 2, "threshold": 1.0}, ANY_ORDER, [1]),
    "ancestral": ("masked_diffusion", 4, {}, {}, None),
    "confidence": ("masked_diffusion", 4, {"block_length": 8, "temperature": 0.5}, {}, [1, 2, 3]),
    "remasking": ("masked_diffusion", 4, {}, {}, None),
    "x_prediction": ("masked_diffusion", 3, {}, {}, None),
    "uniform_diffusion": ("uniform_diffusion", 3, {}, {}, [1, 2]),
    "autoregressive": ("autoregressive", LENGTH, {}, {}, list(range(3, LENGTH))),
    "masked_flow": ("masked_flow", 4, {}, BRIDGE, [1, 2, 3, 4]),
    "masked_flow guided": ("masked_flow", 5, SOME, BRIDGE, None),
    "masked_flow runs": ("masked_flow", 3, RUNS, BRIDGE, None),
    "masked_flow_map": ("masked_flow_map", 3, {"gamma": 0.5}, BRIDGE_MAP, [1, 2]),
}
NETWORKS = {"autoregressive": "causal", "masked_flow": "llama", "masked_flow_map": "llama"}


@pytest.mark.parametrize("case", CASES)
def test_a_server_writes_what_the_library_writes(case):
    goal, steps, settings, values, shown = CASES[case]
    name = case.split()[0]
    model = served_model(goal, NETWORKS.get(goal, "dit"), **values)
    server = Server(model, RowSampler(model), [2], steps=steps)
    body = {"prompt": "ab", "seed": 5, "n": 2, "sampler": name, **settings}
    plain, streamed = server.together(body, body | {"stream": True})
    assert plain.status == streamed.status == 200, (plain.body, streamed.body)
    how = {"prompt": "ab", "seed": 5, "batch_size": 1, "sampler": name}
    drawn = server.alone.sample(2, steps, **how, **settings)
    text = lambda row: answer_texts(model.tokenizer, row, 2, LENGTH).answer
    for index, choice in enumerate(plain.json["choices"]):
        own = [one for one in streamed.events if one["choices"][0]["index"] == index]
        *drafts, last = [(one["step"], one["choices"][0]) for one in own]
        assert choice["text"] == text(drawn.tokens[index]) == last[1]["text"] == last[1]["draft"]
        path = [text(row) for row in drawn.steps_tokens[:, index]]
        numbers = [step for step, _ in drafts]
        assert numbers == sorted(set(numbers)) and last[0] > max(numbers, default=0)
        assert shown is None or numbers == shown
        if goal == "autoregressive":  # the library keeps the last text alone
            assert all(choice["text"].startswith(one["draft"]) for _, one in drafts)
        elif "runs" not in case:  # of several runs it keeps the last one
            assert all(one["draft"] == path[step - 1] for step, one in drafts)
    assert server.worker.close(WAIT)


def test_no_sampler_is_left_out():
    assert {case.split()[0] for case in CASES} == SAMPLERS.keys()
