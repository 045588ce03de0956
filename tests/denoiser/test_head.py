"""Vocabulary losses in tiles and over a mesh against the plain ones; memory and collectives."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from flm_jax.core.errors import UserError
from flm_jax.core.network import Network, Parallel
from flm_jax.denoiser import tiled
from flm_jax.denoiser.head import (
    Readout,
    cross_entropy,
    expected_embedding,
    logits,
    mixture_cross_entropy,
    summary,
    tempered,
)
from helpers.heads import CAP, MESHES, B, D, L, V, head_network, parallel, readout

KINDS = ("tokens", "mixture", "product", "embedding")


def draw_table() -> jax.Array:
    return jnp.asarray(np.random.default_rng(9).standard_normal((V, D), np.float32))


def problems(net: Network, dtype=jnp.float32) -> dict:
    """name -> (function of its differentiable arguments, those arguments)."""
    out, first, second = (readout(i, d, dtype=dtype) for i, d in enumerate((D, D, 24)))
    rng = np.random.default_rng(8)
    tokens = jnp.asarray(rng.integers(0, V, (B, L)), jnp.int32)
    weights = rng.random((B, L), np.float32)
    weights[0, :3] = 0.0
    weights, share = jnp.asarray(weights), jnp.asarray(rng.random(B, np.float32))

    def tokens_loss(out, weights):
        return cross_entropy(out, tokens, weights, net)

    def mixture_loss(out, weights):
        targets = [(share, first), (1.0 - share, second)]
        return mixture_cross_entropy(out, targets, weights, net)

    def product_loss(out, weights):
        targets = [(1.0 + share, first), (-share, second)]
        return mixture_cross_entropy(out, targets, weights, net, product=True)

    def embedding(out, table):
        y, best = summary(out, table, net)
        return jnp.sum(jnp.sin(y)), (y, best)

    return {
        "tokens": (tokens_loss, (out, weights)),
        "mixture": (mixture_loss, (out, weights)),
        "product": (product_loss, (out, weights)),
        "embedding": (embedding, (out, draw_table())),
    }


def runner(fn):
    """Values without differentiation, with it, and gradients: all that a problem can give.

    The scale shows a backward rule that forgets its cotangent.
    """

    def scaled(*args):
        value, rest = fn(*args)
        return 2.5 * value, rest

    return jax.jit(lambda *args: (fn(*args), jax.value_and_grad(scaled, (0, 1), True)(*args)))


def results(net: Network, dtype=jnp.float32, kinds=KINDS) -> dict:
    chosen = {kind: problems(net, dtype)[kind] for kind in kinds}
    return {kind: runner(fn)(*args) for kind, (fn, args) in chosen.items()}


def assert_close(found, wanted, tolerance):
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(wanted), strict=True
    ):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        error = np.max(np.abs(a - b)) / np.max(np.abs(b))
        assert error < tolerance, f"{jax.tree_util.keystr(path)}: relative error {error:.1e}"


@pytest.fixture(scope="module")
def plain():
    return results(head_network())


@pytest.mark.parametrize("tile", [4, 99])
def test_tiled_equals_plain(plain, tile):
    """A tile that does not divide L, one that exceeds it: values and gradients within 1e-5."""
    assert_close(results(head_network(loss_tile=tile)), plain, 1e-5)


@pytest.mark.parametrize("mesh", ["", "tensor"])
def test_large_logits(mesh):
    """Without a soft cap and in the hundreds: exp of them as they are would overflow."""

    def run(net):
        fn, (out, weights) = problems(net)["tokens"]
        return runner(fn)(out._replace(features=60.0 * out.features), weights)

    wanted = run(head_network(logit_softcap=0.0))
    assert float(jnp.max(wanted[0][1])) > 200.0
    axes = parallel(mesh) if mesh else None
    assert_close(run(head_network(logit_softcap=0.0, loss_tile=5, parallel=axes)), wanted, 1e-5)


@pytest.mark.parametrize("cap", [CAP, 0.0])
@pytest.mark.parametrize("tile", [0, 5])
def test_a_temperature_divides_the_capped_logits(cap, tile):
    """And what samplers and losses take of them, tile by tile too."""
    given, table = readout(0, D), draw_table()
    net = head_network(logit_softcap=cap, loss_tile=tile, readout=lambda _: given[1:])
    sharp = tempered(net, 0.5)
    out = given._replace(**dict(zip(("kernel", "bias"), sharp.readout(None))))
    wanted = logits(given, net) / 0.5
    np.testing.assert_allclose(logits(out, sharp), wanted, rtol=1e-5, atol=1e-5)
    probs = jax.nn.softmax(wanted, axis=-1)
    np.testing.assert_allclose(expected_embedding(out, table, sharp), probs @ table, atol=1e-4)
    assert tempered(net, 1.0) is net


def test_bfloat16_features():
    """bf16 products: within 2% of the largest entry of the plain path in bf16."""
    wanted = results(head_network(), jnp.bfloat16, KINDS[:2])
    found = results(head_network(loss_tile=5), jnp.bfloat16, KINDS[:2])
    assert_close(found, wanted, 2e-2)
    gradient = found["tokens"][1][1][0]
    assert gradient.features.dtype == jnp.bfloat16
    assert gradient.kernel.dtype == jnp.float32


def test_the_backward_pass_of_a_mean_takes_its_logits_alone_again():
    """Seven products: two, the first of them again, and two for the gradients of each."""
    fn, args = problems(head_network(loss_tile=5))["embedding"]
    text = str(jax.make_jaxpr(jax.grad(lambda *args: fn(*args)[0], argnums=(0, 1)))(*args))
    assert text.count("dot_general") == 7


def test_a_cpu_adds_the_gradient_of_the_bias_in_the_product_of_the_kernel():
    """The same to 1e-5, in one product instead of two."""
    shapes = (2, 3, 5), (2, 3, 1), (2, 3, 37)
    args = [jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)]
    for found, wanted in zip(tiled._joined_products(*args), tiled._products(*args)):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    products = lambda fn: str(jax.make_jaxpr(fn)(*args)).count("dot_general")
    assert (products(tiled._joined_products), products(tiled._products)) == (1, 2)


@pytest.mark.parametrize("softcap", [CAP, 0.0])
def test_added_columns_have_no_probability(monkeypatch, softcap):
    """Heads of 16-bit networks get columns up to a multiple of 128: the same to rounding."""
    net = head_network(loss_tile=5, logit_softcap=softcap)
    wanted = results(net, jnp.bfloat16)
    monkeypatch.setattr(tiled, "_LARGE", 1)
    fn, args = problems(net, jnp.bfloat16)["tokens"]
    assert f"bf16[{D},128]" in str(jax.make_jaxpr(fn)(*args))
    assert_close(results(net, jnp.bfloat16), wanted, 4e-3)


def test_targets_receive_no_gradient():
    out, target = readout(0), readout(1)
    net = head_network(loss_tile=4)
    weights, share = jnp.ones((B, L)), jnp.ones(B)
    loss = lambda q, w: mixture_cross_entropy(out, [(w, q)], weights, net)[0]
    for leaf in jax.tree.leaves(jax.grad(loss, (0, 1))(target, share)):
        assert not np.any(leaf)
    # The values per token are for reporting.
    values = lambda out: jnp.sum(cross_entropy(out, jnp.zeros((B, L), int), weights, net)[1])
    assert not np.any(jax.grad(values)(out).features)


def test_forward_mode():
    """The expected embedding has a jvp, equal to the plain one; the losses refuse."""
    out, tangent = readout(0), readout(1)
    table = draw_table()
    push = lambda net: jax.jvp(lambda o: expected_embedding(o, table, net), (out,), (tangent,))
    assert_close(push(head_network(loss_tile=4)), push(head_network()), 1e-5)
    loss = lambda o: cross_entropy(
        o, jnp.zeros((B, L), int), jnp.ones((B, L)), head_network(loss_tile=4)
    )
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(loss, (out,), (tangent,))


def temporaries(kind: str, tile: int, length: int, vocab: int) -> int:
    """Bytes of temporaries of a loss and its gradient, from the compiled program."""
    struct = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    out = Readout(struct(B, length, D), struct(D, vocab), struct(vocab))
    net, weights, share = head_network(loss_tile=tile), jnp.ones((B, length)), jnp.full(B, 0.5)
    fn, args = {
        "tokens": (
            lambda out, tokens: cross_entropy(out, tokens, weights, net)[0],
            (out, jax.ShapeDtypeStruct((B, length), jnp.int32)),
        ),
        "mixture": (
            lambda out, *q: mixture_cross_entropy(out, [(share, x) for x in q], weights, net)[0],
            (out, out, out),
        ),
        "embedding": (
            lambda out, table: jnp.sum(expected_embedding(out, table, net)),
            (out, struct(vocab, D)),
        ),
    }[kind]
    program = jax.jit(jax.value_and_grad(fn)).lower(*args).compile()
    return program.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(("kind", "tiles"), [("tokens", 3), ("mixture", 6), ("embedding", 6)])
def test_memory(kind, tiles):
    """Temporaries: a few tiles and head gradients, where the plain path holds all logits.

    D is small, so that [B, tile, V] counts for most.
    """
    length, vocab, tile = 128, 4096, 8
    whole, head, states = (4 * n for n in (B * length * vocab, (D + 1) * vocab, B * length * D))
    assert temporaries(kind, 0, length, vocab) > whole
    used = temporaries(kind, tile, length, vocab)
    assert used < tiles * whole * tile / length + 4 * head + 8 * states
    assert used < whole / 2


def computations(text: str) -> dict[str, list[str]]:
    """HLO text as computation name -> its lines."""
    found, lines = {}, []
    for line in text.splitlines():
        start = re.match(r"(?:ENTRY )?%?([\w.\-]+) .*\{$", line)
        if start:
            lines = found.setdefault(start[1], [])
        else:
            lines.append(line)
    return found


def collectives(text: str) -> list[tuple[bool, str, list[tuple[int, ...]]]]:
    """(inside a loop, kind, shapes) of each collective of a compiled program."""
    bodies = computations(text)
    looped, waiting = set(), re.findall(r" while\(.*body=%?([\w.\-]+)", text)
    assert waiting, "no loop in the program: the test looks at nothing"
    while waiting:
        name = waiting.pop()
        if name in bodies and name not in looped:
            looped.add(name)
            waiting += re.findall(r"%([\w.\-]+)", "\n".join(bodies[name]))
    kinds = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
    pattern = re.compile(rf"= (.*?) ({kinds})(?:-start)?\(")
    found = [
        (name in looped, match)
        for name, lines in bodies.items()
        for match in map(pattern.search, lines)
        if match
    ]
    return [(loop, match[2], sizes(match[1])) for loop, match in found]


def sizes(types: str) -> list[tuple[int, ...]]:
    """The shapes in an HLO type such as (f32[3,4]{1,0}, f32[])."""
    return [tuple(map(int, s.split(","))) for s in re.findall(r"\[([\d,]+)\]", types)]


def on_mesh(axes: Parallel, net: Network, kind: str):
    """The problem `kind`, compiled for arguments that lie as in training: (compiled, args)."""
    fn, args = problems(net)[kind]
    rows, vocab = PartitionSpec(axes.batch_axes), axes.vocab_axis
    head = Readout(rows, PartitionSpec(axes.embed_axis, vocab), PartitionSpec(vocab))
    specs = (head, PartitionSpec(vocab) if kind == "embedding" else rows)
    args = jax.tree.map(lambda x, s: jax.device_put(x, NamedSharding(axes.mesh, s)), args, specs)
    return runner(fn).lower(*args).compile(), args


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MESHES)
def test_mesh(plain, name, kind):
    """8 fake devices: the plain results within 1e-5, and no wide array moves needlessly.

    No logits move; nothing of the size of head or table is summed inside the tile loop, nor put
    together over the vocabulary.
    """
    axes = parallel(name)
    compiled, args = on_mesh(axes, head_network(loss_tile=5, parallel=axes), kind)
    assert_close(compiled(*args), plain[kind], 1e-5)

    found = collectives(compiled.as_text())
    wide = [
        (loop, op, s) for loop, op, ss in found for s in ss if {V, V // 2, V // 4, V // 8} & {*s}
    ]
    assert all(len(s) <= 2 and not loop for loop, _, s in wide), wide
    if axes.vocab_axis:
        assert all(V not in s for _, _, s in wide), wide
    if axes.embed_axis and kind != "embedding":
        assert ("reduce-scatter", 2) in {(op, len(s)) for _, op, s in wide}, wide
    # The sums over the batch are there to be seen.
    summed = any(len(s) == 2 for _, op, s in wide if op != "all-gather")
    assert summed == bool(axes.batch_axes), found


def test_the_compiler_alone_sums_in_the_loop():
    """Why `Parallel` exists; should this fail, the compiler has learned to do without it."""
    compiled, _ = on_mesh(parallel("data"), head_network(loss_tile=5), "tokens")
    # With the bias as a further row, see `tiled._joined_products`.
    assert any(loop and (D + 1, V) in s for loop, _, s in collectives(compiled.as_text()))


def test_unfit_shapes_and_meshes_are_refused():
    loss = lambda out, net: cross_entropy(
        out, jnp.zeros(out.features.shape[:2], int), jnp.ones(out.features.shape[:2]), net
    )
    split = head_network(loss_tile=4, parallel=parallel("data-tensor"))
    with pytest.raises(UserError, match="vocab_multiple=4"):
        loss(readout(0, vocab=V + 1), split)
    with pytest.raises(UserError, match="batch of 3 rows"):
        loss(readout(0)._replace(features=jnp.zeros((3, L, D))), split)
    with pytest.raises(UserError, match="head width 7"):
        loss(readout(0, dim=7), head_network(parallel=parallel("data-fsdp-tensor")))
    with pytest.raises(UserError, match="loss_tile"):
        loss(readout(0), head_network(loss_tile=-1))
    mesh = split.parallel.mesh
    with pytest.raises(UserError, match="mesh axis 'model'"):
        Parallel(mesh, ("data",), "model")
    with pytest.raises(UserError, match="used once"):
        Parallel(mesh, ("data",), "data")
    with pytest.raises(UserError, match="embed_axis"):
        Parallel(mesh, ("data",), None, "tensor")
    with pytest.raises(UserError, match="Auto"):
        Parallel(jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,)), ("data",))


def test_soft_cap_bounds_the_logits():
    out = readout(0)._replace(features=jnp.full((B, L, D), 50.0))
    assert float(jnp.max(jnp.abs(logits(out, head_network())))) <= CAP
