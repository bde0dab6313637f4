"""How fast are federated systems on the same work, the same arithmetic and the same cores?

Question: examples per second of federated averaging on the works A and B of works.py, by this library, by plain loops that use
all cores, and by pfl-research, Flower's simulation, FedJAX, BlazeFL and padded vmap; each in a file of ``peers/``, in the
fastest configuration that was found for it.

Each system is a process tree of its own, in a virtual environment of its own (made with pip where it is missing). The parameters
after its first round are compared with one plain round (``peers/reference.py``), and a system that is further away than
``APART`` is not timed. After 3 rounds of warm-up the systems take turns, one round each on the same cohort; all others are
stopped (SIGSTOP) then, Ray's daemons with them. Ratios are within a turn. Memory is the sum of the resident memory of a tree's
processes, at its peak, sampled; pages that processes share count in each. Examples per CPU second tell what the arithmetic costs,
where examples per second also tell how much of the cores a system uses; they suffer less from other work on the machine.

Command: python experiments/benchmarks/peers.py --environments DIRECTORY
Time: about 15 minutes on 2 CPU cores, and the downloads. Score: the tables it prints. PyTorch's CPU build does; pip may need
its index for that (PIP_EXTRA_INDEX_URL). TensorFlow Federated 0.87.0, the last, can't be installed from PyPI: it needs jaxlib
0.4.14, which is not there.
"""

import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro
from works import ROUNDS, Work, make_convolution_work, make_transformer_work, read, write

HERE = Path(__file__).parent
sys.path.append(str(HERE / "peers"))

TORCH = ("torch==2.13.0", "numpy==2.4.6")
# What pip is given for an environment, in this order.
ENVIRONMENTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "torch": (TORCH,),
    "pfl": (("pfl==0.6.0", "torch==2.13.0"),),
    "flower": (("flwr[simulation]==1.42.0", "torch==2.13.0"),),
    # FedJAX calls jax.tree_map, which later versions of JAX don't have.
    "fedjax": (("fedjax==0.0.17", "jax==0.4.30", "jaxlib==0.4.30", "dm-haiku==0.0.12", "optax==0.2.3", "chex==0.1.86"),),
    # BlazeFL asks for Python 3.12; what is used of it runs on 3.11.
    "blazefl": (TORCH, ("--ignore-requires-python", "--no-deps", "blazefl==2.0.3")),
}
WARM_UP = 3
# How far parameters may be from the reference's after a round. In work B's first round rounding decides the sign of some
# activation of one client (136): the JAX loop's 4e-4 is that client's, all others agree to 5e-6. A round moves parameters by up
# to 0.25.
APART = {"A": 1e-4, "B": 1e-3}
OURS = "fedjax_tx"


class System(NamedTuple):
    """A file of ``peers/`` with its further arguments, and the environment that it runs in; "": this one."""

    script: str
    environment: str = ""
    arguments: tuple[str, ...] = ()


SYSTEMS = {
    OURS: System("ours.py"),
    "plain loop, PyTorch": System("torch_loop.py", "torch"),
    "plain loop, JAX": System("jax_loop.py"),
    "pfl-research": System("with_pfl_research.py", "pfl"),
    "BlazeFL": System("with_blazefl.py", "blazefl", ("threads",)),
    "Flower simulation": System("with_flower.py", "flower"),
    "FedJAX": System("with_fedjax.py", "fedjax", ("pmap",)),
    "padded vmap, JAX": System("padded_vmap.py"),
}


@dataclass(frozen=True)
class Settings:
    """What is measured.

    environments: a directory with a virtual environment for each system; missing ones are made. works: A, B or both.
    systems: their names; all by default. turns: timed rounds, at most 10. smoke: tiny works, two turns.
    out: a JSON file for the figures.
    """

    environments: Path
    works: tuple[str, ...] = ("A", "B")
    systems: tuple[str, ...] = tuple(SYSTEMS)
    turns: int = ROUNDS - WARM_UP
    smoke: bool = False
    out: Path | None = None


# ---- environments and data


def make_environment(directory: Path, name: str) -> Path:
    """Returns the interpreter of an environment; makes it first where it isn't there."""
    if not name:
        return Path(sys.executable)
    place, python = directory / name, directory / name / "bin" / "python"
    if not (place / "complete").exists():
        print(f"making {place}", flush=True)
        venv.create(place, with_pip=True, clear=True)
        for requirements in ENVIRONMENTS[name]:
            subprocess.run([python, "-m", "pip", "install", "--quiet", *requirements], check=True)
        (place / "complete").touch()
    return python


def write_works(directory: Path, smoke: bool) -> dict[str, Path]:
    if not smoke:
        return write(directory / "works")
    small = {
        "A": make_transformer_work(clients=12, per_round=2, median=10.0, layers=1, width=32, length=8),
        "B": make_convolution_work(clients=12, per_round=2, median=20.0, channels=(4, 8), hidden=16),
    }
    paths = {name: directory / f"small{name}.npz" for name in small}
    for name, path in paths.items():
        np.savez(path, **small[name])
    return paths


# ---- processes


def tree_of(pid: int) -> list[int]:
    """Returns a process and all that descend from it, parents first; those that have ended meanwhile are left out."""
    tree = [pid]
    for one in tree:
        for children in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                tree += map(int, children.read_text().split())
            except (FileNotFoundError, ProcessLookupError):
                continue
    return tree


def resident_bytes(pid: int) -> int:
    """Returns the resident memory of a process tree."""
    pages = 0
    for one in tree_of(pid):
        try:
            pages += int(Path(f"/proc/{one}/statm").read_text().split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    return pages * os.sysconf("SC_PAGE_SIZE")


def cpu_seconds(pid: int) -> float:
    """Returns the processor time that a process tree has taken, with that of children that have ended."""
    ticks = 0
    for one in tree_of(pid):
        try:
            ticks += sum(map(int, Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()[11:15]))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return ticks / os.sysconf("SC_CLK_TCK")


def send(signal_number: int, pids: Sequence[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal_number)
        except ProcessLookupError:
            continue


class Running:
    """A system's processes, and what is said to them."""

    def __init__(self, name: str, python: Path, work: Work, data: Path, logs: Path):
        system = SYSTEMS[name]
        self.name, self.log, self.peak = name, logs / f"{work.name}-{system.script}.txt", 0
        paths = [str(HERE), str(HERE.parent.parent)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "JAX_PLATFORMS": "cpu"}
        environment |= {"OMP_WAIT_POLICY": "passive", "FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}
        command = [str(python), str(HERE / "peers" / system.script), str(data), work.name, *system.arguments]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
            )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.says, self.hears = self.process.stdout, self.process.stdin
        about = self.hear()
        self.versions, self.settings = about["versions"], about["settings"]

    def hear(self):
        """Waits for an answer; meanwhile looks at the memory."""
        ended = threading.Event()

        def watch():
            while not ended.wait(0.2):
                self.peak = max(self.peak, resident_bytes(self.process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        line = self.says.readline()
        ended.set()
        watcher.join()
        if not line:
            raise RuntimeError(f"expected an answer of {self.name}, got its end: see {self.log}")
        return json.loads(line)

    def ask(self, line: str):
        """Asks while the processes go on, and stops them again."""
        send(signal.SIGCONT, tree_of(self.process.pid))
        self.hears.write(line + "\n")
        self.hears.flush()
        answer = self.hear()
        send(signal.SIGSTOP, tree_of(self.process.pid))
        return answer

    def read_params(self) -> dict[str, np.ndarray]:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "params.npz"
            self.ask(f"params {path}")
            with np.load(path) as file:
                return {name: file[name] for name in file.files}

    def end(self) -> None:
        """Lets the system end; what is left of its tree after a while is killed."""
        tree = tree_of(self.process.pid)
        send(signal.SIGCONT, tree)
        self.hears.close()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
        send(signal.SIGKILL, tree[1:])
        self.process.wait()


# ---- the measurement


def main(settings: Settings) -> dict:
    """Measures and prints the tables."""
    turns = 2 if settings.smoke else settings.turns
    pythons = {name: make_environment(settings.environments, SYSTEMS[name].environment) for name in settings.systems}
    paths = write_works(settings.environments, settings.smoke)
    logs = settings.environments / "logs"
    logs.mkdir(exist_ok=True)
    figures = {}
    for name in settings.works:
        figures[name] = measure_work(read(paths[name], name), paths[name], pythons, turns, logs)
        report(name, figures[name], turns)
    if settings.out is not None:
        settings.out.write_text(json.dumps(figures, indent=2))
    return figures


def measure_work(work: Work, data: Path, pythons: dict[str, Path], turns: int, logs: Path) -> dict[str, dict]:
    """Returns the figures of each system; those that disagree have no rates."""
    from reference import reference_round  # starts JAX

    expected = reference_round(work)
    running: dict[str, Running] = {}
    figures: dict[str, dict] = {}
    try:
        for name, python in pythons.items():
            running[name] = Running(name, python, work, data, logs)
            running[name].ask("round")
            params = running[name].read_params()
            apart = max(float(np.abs(params[key] - value).max()) for key, value in expected.items())
            figures[name] = {"apart": apart, "versions": running[name].versions, "settings": running[name].settings}
            print(f"work {work.name}: {name} is {apart:.1e} apart after a round", flush=True)
            if apart > APART[work.name] or not np.isfinite(apart):
                running.pop(name).end()
                continue
            for _ in range(1, WARM_UP):
                running[name].ask("round")
        seconds, processor = take_turns(running, turns)
        examples = np.array([work.examples(WARM_UP + turn) for turn in range(turns)])
        for name, system in running.items():
            figures[name] |= {"rates": (examples / seconds[name]).tolist(), "peak_bytes": system.peak}
            figures[name]["per_cpu_second"] = (examples / processor[name]).tolist()
    finally:
        for system in running.values():
            system.end()
    return figures


def take_turns(running: dict[str, Running], turns: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Seconds and processor seconds of each system, by turn; the order of the systems is turned round every time."""
    seconds: dict[str, np.ndarray] = {name: np.zeros(turns) for name in running}
    processor: dict[str, np.ndarray] = {name: np.zeros(turns) for name in running}
    for turn in range(turns):
        for name in list(running)[:: -1 if turn % 2 else 1]:
            before = cpu_seconds(running[name].process.pid)
            seconds[name][turn] = running[name].ask("round")["seconds"]
            processor[name][turn] = max(cpu_seconds(running[name].process.pid) - before, 0.01)
    return seconds, processor


def report(work_name: str, figures: dict[str, dict], turns: int) -> None:
    """Prints a Markdown table, the fastest system first."""
    cores = len(os.sched_getaffinity(0))
    print(f"\n{platform.machine()}, {cores} cores, Python {platform.python_version()}, {turns} turns\n")
    print(f"| work {work_name} | examples/s (min–max) | {OURS} / it (min–max) | examples/CPU s | peak MiB | apart | versions |")
    print("|---|---|---|---|---|---|---|")
    timed = {name: row for name, row in figures.items() if "rates" in row}
    for name, row in sorted(timed.items(), key=lambda item: -np.median(item[1]["rates"])):
        rates = np.array(row["rates"])
        ratio = spread(np.array(timed[OURS]["rates"]) / rates, 2) if OURS in timed else "–"
        versions = ", ".join([f"{key} {value}" for part in ("versions", "settings") for key, value in row[part].items()])
        memory, cpu = row["peak_bytes"] / 2**20, np.median(row["per_cpu_second"])
        print(f"| {name} | {spread(rates, 0)} | {ratio} | {cpu:.0f} | {memory:.0f} | {row['apart']:.0e} | {versions} |")
    for name in figures.keys() - timed.keys():
        print(f"\n{name} is not timed: its parameters are {figures[name]['apart']:.1e} apart after the first round")


def spread(values: np.ndarray, digits: int) -> str:
    return f"{np.median(values):.{digits}f} ({values.min():.{digits}f}–{values.max():.{digits}f})"


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
