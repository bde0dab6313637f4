"""What a script sets before JAX starts: a device for each core of a CPU, and where compiled programs are kept.

JAX takes all cores of a CPU for one device. Its matrix products share a thread pool, which gains little where a client's batches
are small. As one device a core, each core trains its own clients (``Execution(mesh="auto")``).
"""

import os
from pathlib import Path

import jax

from fedjax_tx import check

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


def use_compilation_cache(directory: str | Path | None = None) -> Path:
    """Keeps compiled programs on disk, so that the same script starts sooner the next time; returns where.

    JAX's persistent compilation cache, with every program in it, however short its compilation took. Called first thing in a
    script. Programs are found again by what they compute, the version of JAX, its flags and the machine.

    Args:
      directory: by default what ``JAX_COMPILATION_CACHE_DIR`` (JAX's own variable) names, else ``fedjax_tx`` in the user's cache
        directory (``XDG_CACHE_HOME``, or ``~/.cache``). Delete it at any time.

    Errors: ``TypeError`` if it is no path, ``ValueError`` if a file is there.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as directory:  # one that stays, in a script
      ...     use_compilation_cache(directory) == Path(directory)
      True
      >>> jax.config.update("jax_enable_compilation_cache", False)
    """
    if directory is None:
        caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        directory = os.environ.get("JAX_COMPILATION_CACHE_DIR") or Path(caches) / "fedjax_tx"
    path = Path(check.instance("directory", directory, (str, Path), "a path"))
    if path.exists() and not path.is_dir():
        check.fail_value("directory", "to be a directory", str(path))
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return path
