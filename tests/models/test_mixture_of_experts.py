"""Routed experts against a dense mixture, and the published sizes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.build.model import make_network
from flm_jax.config.schema import base_config
from flm_jax.core.errors import UserError
from flm_jax.distributed.sharding import MeshConfig, make_mesh, tree_shardings
from flm_jax.models import fused_attention
from flm_jax.models.attention import AttentionPlan
from flm_jax.models.functional import pure
from flm_jax.models.mixture_of_experts import Experts, check_kernel, choose_experts
from flm_jax.profiling import plan as profiling_plan
from helpers.llada2 import MIXTURE, route

installed = pytest.mark.skipif(bool(fused_attention.why_missing()), reason="needs tokamax")
# The published sizes of LLaDA2.0-mini.
MINI = {
    "name": "llama",
    "vocab_size": 157184,
    "length": 1024,
    "dim": 2048,
    "depth": 20,
    "heads": 16,
    "dtype": "bfloat16",
    "attention_softcap": 0.0,
    "logit_softcap": 0.0,
    "scan_blocks": True,
    "kv_heads": 4,
    "mask_id": 156895,
    "mlp_hidden": 5120,
    "param_dtype": "bfloat16",
    "qk_norm": True,
    "experts": {"number": 256, "groups": 8, "active_groups": 4, "scale": 2.5},
}


def test_the_router_keeps_to_its_groups_and_weighs_without_bias():
    """By a loop over tokens; the bias changes what is chosen and no weight of what is."""
    rng = np.random.default_rng(3)
    scores = rng.uniform(0.01, 0.99, (200, 12))
    bias = rng.normal(size=12)
    made = choose_experts(
        jnp.asarray(np.log(scores / (1 - scores)), jnp.float32), jnp.asarray(bias), MIXTURE
    )
    differing = 0
    for row in range(len(scores)):
        want = route(scores[row], bias)
        experts = np.asarray(made.experts[row]).tolist()
        assert set(experts) == set(want) and len({e // 3 for e in experts}) <= 2
        weights_here = np.asarray(made.weights[row])
        np.testing.assert_allclose(weights_here, [want[e] for e in experts], rtol=2e-5)
        differing += set(route(scores[row], 0 * bias)) != set(want)
        differing += set(np.argsort(-(scores[row] + bias))[:3]) != set(want)
    assert differing > 50  # neither the bias nor the groups are idle


@pytest.mark.parametrize("kernel", ["tiles", pytest.param("fused", marks=installed)])
@pytest.mark.parametrize("tokens", [2, 300])
def test_experts_and_their_gradients_are_those_of_a_dense_mixture(tokens, kernel):
    """Few tokens leave experts idle; many fill several tiles of an expert.

    Fused by what tokamax computes where it has no kernel.
    """
    cfg = dataclasses.replace(MIXTURE, kernel=kernel)
    init, bind = pure(lambda rngs: Experts(cfg, 16, 1.0, jnp.float32, jnp.float32, rngs))
    params = init(jax.random.key(0))
    params["router"]["bias"] = jnp.where(jnp.arange(12) == 4, 5.0, 0.0)  # most go to one
    x = jax.random.normal(jax.random.key(1), (1, tokens, 16))
    pull = jax.random.normal(jax.random.key(2), x.shape)

    def dense(params, x):
        p = {name: params[name]["kernel"] for name in ("gate", "up", "mlp_out")}
        made = choose_experts(x[0] @ params["router"]["kernel"], params["router"]["bias"], MIXTURE)
        spread = jax.nn.one_hot(made.experts, 12) * made.weights[..., None]
        hidden = jax.nn.silu(jnp.einsum("nd,edf->enf", x[0], p["gate"]))
        hidden = hidden * jnp.einsum("nd,edf->enf", x[0], p["up"])
        return jnp.einsum("nae,enf,efd->nd", spread, hidden, p["mlp_out"])[None]

    def both(run):
        return jax.jit(jax.value_and_grad(lambda *a: (run(*a) * pull).sum(), (0, 1)))(params, x)

    got, want = both(jax.checkpoint(lambda params, x: bind(params)(x))), both(dense)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, want)
    assert not np.asarray(got[1][0]["router"]["bias"]).any()


def test_the_fused_kernel_is_refused_where_it_cannot_run(monkeypatch):
    """Without tokamax, without a GPU, over several devices; tiles run everywhere."""
    cfg = dataclasses.replace(MIXTURE, kernel="fused")
    check_kernel(MIXTURE, AttentionPlan("xla"))
    monkeypatch.setattr(fused_attention, "why_missing", lambda: "tokamax is not installed")
    with pytest.raises(UserError, match="tokamax is not installed; or set it to 'tiles'"):
        check_kernel(cfg, AttentionPlan("xla"))
    monkeypatch.setattr(fused_attention, "why_missing", lambda: "")
    with pytest.raises(UserError, match="runs on GPUs, got cpu"):
        check_kernel(cfg, AttentionPlan("xla"))
    mesh = make_mesh(MeshConfig())
    with pytest.raises(UserError, match="one device, got 8"):
        check_kernel(cfg, AttentionPlan("xla", mesh=mesh, interpret=True))
    check_kernel(cfg, AttentionPlan("xla", interpret=True))


def test_published_sizes():
    """LLaDA2.0-mini has 16 billion weights, of which a token meets 1.1 in matrix products."""
    net = make_network(mini_config())
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    attention_part = 2048 * 24 * 128 + 2048 * 2048 + 2 * 128 + 2 * 2048
    mixed = 257 * 3 * 2048 * 512 + 256 * 2048 + 256
    want = 20 * attention_part + 3 * 2048 * 5120 + 19 * mixed + 2 * 157184 * 2048 + 2048
    assert sum(x.size for x in jax.tree.leaves(shapes)) == want == 16_255_643_392
    tree_shardings(shapes, make_mesh(MeshConfig(data=1, fsdp=4, tensor=2)))
    config = mini_config()
    met = 20 * (2048 * 24 * 128 + 2048**2) + 3 * 2048 * 5120
    met += 19 * (9 * 3 * 2048 * 512 + 256 * 2048) + 2048 * 157184
    attended = 4 * 1024 * 2048 * 20
    assert profiling_plan.forward_minimum(config, 1) == 1024 * (2 * met + attended)


def mini_config():
    config = base_config(model="llama", objective="masked_diffusion").to_dict()
    experts = config["model"]["experts"] | MINI["experts"]
    config["model"] |= MINI | {"experts": experts}
    return config
