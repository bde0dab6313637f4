"""How long from the command to the first round? A script's start, with and without compiled programs kept on disk.

Question: ``ftx.devices.use_compilation_cache()`` keeps compiled programs for the next start of a script. What does it save?

Each turn starts the main job (``experiments/shakespeare.py``, its defaults but for ``--rounds`` and where it keeps things) twice:
*cold*, with an empty cache, and *warm*, with what the cold start left; both in a new run directory, with the data set prepared.
What is timed ends with the first line of metrics.jsonl: Python's and JAX's start, data, compiling, the search for the number of
lanes (which runs programs) and a first call. Then the process is ended.

Command: python experiments/benchmarks/first_round.py
Time: about 5 minutes on 2 CPU cores. Score: the table it prints.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

import fedjax_tx as ftx

SCRIPT = Path(__file__).resolve().parents[1] / "shakespeare.py"
LONGEST = 600.0


@dataclass(frozen=True)
class Settings:
    """What is measured.

    repeats: turns; the median is shown, and the lowest and highest. data_dir: as for the main job. smoke: two turns of its smoke
    run. out: a JSON file for the figures.
    """

    repeats: int = 7
    data_dir: Path | None = None
    smoke: bool = False
    out: Path | None = None


def first_round(settings: Settings, cache: Path) -> float:
    """Returns the seconds from the command to the first round."""
    with tempfile.TemporaryDirectory() as run_dir:
        command = [sys.executable, str(SCRIPT), "--run-dir", run_dir]
        command += ["--smoke"] if settings.smoke else []
        command += [] if settings.data_dir is None else ["--data-dir", str(settings.data_dir)]
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)}
        began = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment) as process:
            try:
                return wait_for_line(process, Path(run_dir) / "metrics.jsonl") - began
            finally:
                process.kill()


def wait_for_line(process: subprocess.Popen, path: Path) -> float:
    """Returns when the file had its first line."""
    end = time.perf_counter() + LONGEST
    while time.perf_counter() < end:
        if path.exists() and path.stat().st_size:
            return time.perf_counter()
        if process.poll():
            raise RuntimeError(f"expected the main job to reach its first round, got its end, with status {process.returncode}")
        time.sleep(0.01)
    raise TimeoutError(f"expected a first round within {LONGEST:.0f} s, got none")


def main(settings: Settings) -> dict:
    """Measures and prints the table."""
    ftx.data.load("shakespeare", data_dir=settings.data_dir)  # prepared before anything is timed
    seconds: dict[str, list[float]] = {"cold": [], "warm": []}
    for _ in range(2 if settings.smoke else settings.repeats):
        with tempfile.TemporaryDirectory() as cache:
            for name, values in seconds.items():
                values.append(first_round(settings, Path(cache)))
                if name == "cold" and not any(Path(cache).iterdir()):
                    raise RuntimeError(f"expected the main job to leave compiled programs in {cache}, got none")
    report(seconds)
    if settings.out is not None:
        settings.out.write_text(json.dumps(seconds, indent=2))
    return seconds


def report(seconds: dict[str, list[float]]) -> None:
    """Prints a Markdown table."""
    ratio = np.array(seconds["warm"]) / np.array(seconds["cold"])
    print(f"\n{platform.machine()}, {os.cpu_count()} cores, {len(ratio)} turns\n")
    print("| start of the main job | seconds to the first round (min–max) | of cold (min–max) |\n|---|---|---|")
    for name, shown in (("cold", np.ones_like(ratio)), ("warm", ratio)):
        values = np.array(seconds[name])
        print(
            f"| {name} | {np.median(values):.1f} ({values.min():.1f}–{values.max():.1f}) "
            f"| {np.median(shown):.2f} ({shown.min():.2f}–{shown.max():.2f}) |"
        )


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
