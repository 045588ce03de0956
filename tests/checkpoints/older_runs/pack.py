"""Packs the working directory as older_runs.tar.gz: sorted, no times, no owners.

PYTHON pack.py OUT.tar.gz
"""

import gzip
import io
import sys
import tarfile
from pathlib import Path


def plain(entry):
    entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname = 0, 0, 0, "", ""
    entry.mode = 0o755 if entry.isdir() else 0o644
    return entry


buffer = io.BytesIO()
with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
    for path in sorted(p for p in Path(".").rglob("*") if p.is_file()):
        archive.add(path, arcname=path.as_posix(), filter=plain)
with open(sys.argv[1], "wb") as file, gzip.GzipFile("", "wb", 9, file, mtime=0) as packed:
    packed.write(buffer.getvalue())
