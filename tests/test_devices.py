"""One JAX device for each core: in fresh processes, since JAX has started here."""

import os
import subprocess
import sys

import jax
import pytest

import fedjax_tx as ftx

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def run_fresh(code: str, **environment: str) -> str:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", **environment}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_each_core_that_the_process_may_use_becomes_a_device():
    code = """
import os
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import fedjax_tx as ftx
one = ftx.devices.use_all_cores()
import jax
import pytest
print(one, len(jax.devices()), ftx.devices.use_all_cores())
"""
    expected = 1 if hasattr(os, "sched_setaffinity") else CORES
    assert run_fresh(code) == f"{expected} {expected} {expected}"
    assert run_fresh("import fedjax_tx as ftx; print(ftx.devices.use_all_cores())") == str(CORES)


@pytest.mark.slow
def test_what_the_user_says_of_threads_stays():
    code = "import os; import fedjax_tx as ftx; ftx.devices.use_all_cores(); print(os.environ['XLA_FLAGS'])"
    flag = "--xla_cpu_multi_thread_eigen"
    assert run_fresh(code) == f"{flag}=false"
    assert run_fresh(code, XLA_FLAGS=f"{flag}=true") == f"{flag}=true"
    other = "--xla_force_host_platform_device_count=5"
    assert run_fresh(code, XLA_FLAGS=other) == f"{other} {flag}=false"


def test_called_too_late_it_says_so_and_changes_nothing():
    code = """
import jax
import pytest
jax.config.update("jax_num_cpu_devices", 97)
jax.devices()
import os
import fedjax_tx as ftx
try:
    ftx.devices.use_all_cores()
except RuntimeError as error:
    print(error)
assert os.environ["XLA_FLAGS"] == ""
"""
    told = run_fresh(code)
    assert told.startswith("expected use_all_cores() to be called before JAX starts, first thing in a script, got a process")
    assert f"97 CPU device(s) already, for {CORES} core(s)" in told


def test_with_an_accelerator_nothing_changes(monkeypatch):
    flags = os.environ.get("XLA_FLAGS")
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    monkeypatch.setattr(jax, "local_device_count", lambda: 16)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(97), raising=False)
    assert ftx.devices.use_all_cores() == 16  # JAX has started, with one CPU device
    assert os.environ.get("XLA_FLAGS") == flags


@pytest.mark.slow
def test_a_second_process_finds_the_programs_of_the_first(tmp_path):
    code = f"""
import logging, sys
import fedjax_tx as ftx
print(ftx.devices.use_compilation_cache({str(tmp_path / "programs")!r}))
import jax
import pytest
found = []
jax.monitoring.register_event_listener(lambda name, **_: found.append(name) if name.endswith("cache_hits") else None)
print(float(jax.jit(lambda x: x * 3 + 1)(2.0)), len(found) > 0)
"""
    assert run_fresh(code).splitlines() == [str(tmp_path / "programs"), "7.0 False"]
    assert run_fresh(code).splitlines() == [str(tmp_path / "programs"), "7.0 True"]


@pytest.mark.slow
def test_compiled_programs_go_where_the_environment_says():
    code = "import fedjax_tx as ftx; print(ftx.devices.use_compilation_cache())"
    assert run_fresh(code, JAX_COMPILATION_CACHE_DIR="/a/b", XDG_CACHE_HOME="/c") == "/a/b"
    assert run_fresh(code, JAX_COMPILATION_CACHE_DIR="", XDG_CACHE_HOME="/c") == "/c/fedjax_tx"
    assert run_fresh(code, JAX_COMPILATION_CACHE_DIR="", XDG_CACHE_HOME="", HOME="/d") == "/d/.cache/fedjax_tx"


def test_a_file_is_no_cache(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"expected directory to be a directory, got .*file"):
        ftx.devices.use_compilation_cache(tmp_path / "file")
