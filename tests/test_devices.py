"""One JAX device for each core: in fresh processes, since JAX has started here."""

import os
import subprocess
import sys

import jax

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
print(one, len(jax.devices()), ftx.devices.use_all_cores())
"""
    expected = 1 if hasattr(os, "sched_setaffinity") else CORES
    assert run_fresh(code) == f"{expected} {expected} {expected}"
    assert run_fresh("import fedjax_tx as ftx; print(ftx.devices.use_all_cores())") == str(CORES)


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
