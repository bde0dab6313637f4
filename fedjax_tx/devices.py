"""The devices that JAX sees: on a CPU, one for each core.

JAX takes all cores of a CPU for one device. Its matrix products share a thread pool, which gains little where a client's batches
are small. As one device a core, each core trains its own clients (``Execution(mesh="auto")``).
"""

import os

import jax

_ONE_THREAD = "--xla_cpu_multi_thread_eigen=false"


def use_all_cores() -> int:
    """Makes each CPU core that this process may use a JAX device; returns how many devices there are.

    Called first thing in a script, before JAX starts. Where JAX uses an accelerator it changes nothing there, and the number
    returned is that of accelerators. Each device's products then run on its own thread only (an XLA flag, added to ``XLA_FLAGS``
    unless that sets it).

    Errors: ``RuntimeError`` if JAX has started, with another number of CPU devices.

    Example:
      >>> import subprocess, sys
      >>> script = "import fedjax_tx as ftx; print(ftx.devices.use_all_cores() == len(__import__('jax').devices()))"
      >>> subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout
      'True\\n'
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        jax.config.update("jax_num_cpu_devices", cores)
    except RuntimeError as error:  # JAX has started
        devices = jax.local_device_count()
        if jax.default_backend() == "cpu" and devices != cores:
            raise RuntimeError(
                f"expected use_all_cores() to be called before JAX starts, first thing in a script, got a process in which "
                f"JAX has {devices} CPU device(s) already, for {cores} core(s)"
            ) from error
        return devices
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_cpu_multi_thread_eigen" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_ONE_THREAD}".strip()
    return jax.local_device_count()
