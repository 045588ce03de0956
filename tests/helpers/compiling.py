"""Flags of XLA under which the small programs of the tests compile in half of the time.

Imported before JAX: nothing here may import it.
"""

from importlib.metadata import version

_OLD = tuple(int(part) for part in version("jaxlib").split(".")[:2]) < (0, 11)
# Newer releases have no such flags, and end where they are given one.
FAST = (
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1" if _OLD else ""
)
