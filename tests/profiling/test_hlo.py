"""Collectives are read from the text of a compiled program."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from flm_jax.distributed.sharding import MeshConfig, make_mesh
from flm_jax.profiling import hlo

TEXT = """HloModule jit_step

%fused (p.0: f32[4]) -> f32[32] {
  ROOT %all-gather.9 = f32[32]{0} all-gather(%p.0), channel_id=7, replica_groups={{0,1,2}}
}

%overlapped (p.5: f32[4]) -> f32[32] {
  ROOT %all-gather.10 = f32[32]{0} all-gather(%p.5), channel_id=7, replica_groups={{0,1,2}}
}

%inner_body (p.1: (s32[])) -> (s32[]) {
  %step.1 = f32[32]{0} fusion(%x), kind=kCustom, calls=%overlapped
}

%inner_condition (p.2: (s32[])) -> pred[] {
  %constant.4 = u32[]{:T(128)} constant(3)
  ROOT %compare.4 = pred[] compare(%i, %constant.4), direction=LT
}

%body (p.3: (s32[])) -> (s32[]) {
  %start = f32[32]{0} fusion(%x), kind=kCustom, calls=%fused
  %sum = (f32[2,3]{1,0:T(8,128)}, bf16[5]{0}) all-reduce(%a, %b), channel_id=1, to_apply=%add
  %while.2 = (s32[]) while(%t), condition=%inner_condition, body=%inner_body
}

%condition (p.4: (s32[])) -> pred[] {
  ROOT %less = pred[] call(%i), to_apply=%add
}

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %add.1 = f32[] add(%a, %b)
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %gather = (f32[8]{0}, f32[64]{0}) all-gather-start(%p), channel_id=2, replica_groups=[1,8]<=[8]
  %done = f32[64]{0} all-gather-done(%gather)
  %scatter = f32[4]{0} reduce-scatter(%q), channel_id=3, replica_groups=[4,2]<=[8]
  %mesh = f32[4]{0} reduce-scatter(%q), channel_id=4, replica_groups=mesh['a'=4,'b'=2] {'a'}
  %while.1 = (s32[]) while(%t), condition=%condition, body=%body, "known_trip_count":{"n":"12"}
}
"""


def test_collectives_are_read_from_the_text():
    """In loops as often as they turn; one that overlaps with an inner loop once an outer turn."""
    found = hlo.collectives(TEXT)
    assert found.unknown_loops == 0
    assert found.kinds == {
        "all-gather": (1 + 12, 4 * 64 + 12 * 4 * 32),
        "all-reduce": (12, 12 * (4 * 6 + 2 * 5)),
        "reduce-scatter": (2, 4 * 4 * 2 + 4 * 4 * 4),
    }
    unknown = hlo.collectives(TEXT.replace('"known_trip_count"', '"other"'))
    assert unknown.unknown_loops == 1
    assert unknown.kinds["all-reduce"] == (1, 4 * 6 + 2 * 5)


def test_collectives_of_a_compiled_program():
    mesh = make_mesh(MeshConfig(data=8))

    def local(x):
        return jax.lax.scan(lambda c, _: (jax.lax.psum(c, "data") * 0.5, None), x, length=5)[0]

    spec = PartitionSpec("data")
    fn = jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    shape = jax.ShapeDtypeStruct((8, 7), jnp.float32, sharding=NamedSharding(mesh, spec))
    found = hlo.collectives(jax.jit(fn).lower(shape).compile().as_text())
    assert found.kinds == {"all-reduce": (5, 5 * 4 * 7)} and found.unknown_loops == 0
