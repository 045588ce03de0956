"""Kernels without some call: the sandbox refuses in one line, and falls to nothing weaker."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from flm_jax.core.errors import UserError
from flm_jax.evaluation.benchmarks import sandbox_limits
from flm_jax.evaluation.benchmarks.sandbox import open_sandbox
from helpers.sandbox import LIMITS, NOBODY, PYTHONS, elsewhere, opened

# Runs a command on a kernel whose call of a number, with a first argument if one is given, fails.
WITHOUT = """
import ctypes, os, struct, sys
number, error, argument = map(int, sys.argv[1:4])
rules = [(0x20, 0, 0, 0), (0x15, 0, 3 if argument else 1, number)]
rules += [(0x20, 0, 0, 16), (0x15, 0, 1, argument)] if argument else []
rules += [(6, 0, 0, 0x50000 | error), (6, 0, 0, 0x7FFF0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in rules))
program = struct.pack("H6xQ", len(rules), ctypes.addressof(code))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0 == libc.prctl(22, 2, ctypes.create_string_buffer(program))
os.execvp(sys.argv[4], sys.argv[4:])
"""
MISSING, NOT_PERMITTED, INVALID = 38, 1, 22
CALLS = {  # number on x86-64, error, first argument: isolation, what is said
    (442, MISSING, 0): ("namespaces", "mount_setattr (Linux 5.12): Function not implemented"),
    (272, MISSING, 0): ("namespaces", "unshare: Function not implemented"),
    (165, NOT_PERMITTED, 0): ("namespaces", "mount: Operation not permitted"),
    (161, NOT_PERMITTED, 0): ("namespaces", "chroot: Operation not permitted"),
    (157, INVALID, 22): ("guard", "prctl: Invalid argument"),  # seccomp
    (446, NOT_PERMITTED, 0): ("guard", "Landlock does not bind this process"),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_missing_call_is_a_failed_set_up(call):
    if os.uname().machine != "x86_64":
        pytest.skip("the numbers are those of x86-64")
    isolation, said = CALLS[call]
    if isolation == "guard" and not sandbox_limits.landlock_is_whole():
        pytest.skip("no Landlock here")
    python = shutil.which("python3", path="/usr/bin") or PYTHONS["guard"][0]
    users = [{}, {"user": NOBODY, "group": NOBODY, "extra_groups": []}]
    for user in users if os.getuid() == 0 else users[:1]:
        with tempfile.TemporaryDirectory() as folder:
            before = [python, "-c", WITHOUT, *map(str, call)]
            found = elsewhere(Path(folder), isolation, "print('ran')", before=before, **user)
        assert found.startswith("error|") and "ran" not in found, found
        assert said in found or "unshare" in found, found


def test_calls_that_python_or_the_kernel_lacks_are_told_in_one_line(monkeypatch):
    def fails(*_):
        raise OSError(MISSING, "Function not implemented")

    for name in ("pidfd_open", "memfd_create"):
        for change in (
            lambda m, name=name: m.setattr(os, name, fails),
            lambda m, name=name: m.delattr(os, name),
        ):
            with monkeypatch.context() as patched:
                change(patched)
                with pytest.raises(UserError, match=f"no sandbox .*{name}.*expected Linux 5.3"):
                    open_sandbox(LIMITS, "guard", PYTHONS["guard"][-1])


def test_a_guard_without_landlock_says_so(monkeypatch, capsys):
    opened(LIMITS, "guard")
    monkeypatch.setattr(sandbox_limits, "_landlock_version", lambda: 2)
    opened(LIMITS, "guard")
    assert "WARNING: files outside are kept from programs by audit hooks" in capsys.readouterr().err


@pytest.mark.parametrize("release", ["6.6+", "5.15-custom", "2.6.78", "strange"])
def test_releases_of_all_forms_are_read(monkeypatch, release):
    """Of those that count processes otherwise, or are not known, what else a user runs counts."""
    name = os.uname()
    stand_in = os.uname_result((name[0], name[1], release, *name[3:]))
    monkeypatch.setattr(os, "uname", lambda: stand_in)
    newer = release.startswith(("6.6", "5.15"))
    assert sandbox_limits.counts_each_namespace() is newer
