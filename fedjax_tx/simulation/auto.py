"""The number of lanes, chosen by measuring.

Candidates are powers of two up to the cohort's size; on an accelerator, where each takes longer to compile and more lanes cost
little, every second of them. Each is compiled (which tells its memory) and timed for a few ticks of a real schedule, with each
width of the lanes in its proportion; what a round would take is the time of a slot times the slots of the cohort at hand, so
lanes that run dry are counted, and so is their halving. The search stops when more lanes no longer fit, or were worse twice in a
row (once may be a bump) than the best so far, which is timed again then: other work on the machine may have come since. On a mesh
the number is that of each device's lanes.
"""

import time
from collections.abc import Callable

import jax
from jax.sharding import Mesh

from fedjax_tx import processes
from fedjax_tx.data.schedule import cut_short, slots_by_device
from fedjax_tx.simulation.experiment import Experiment
from fedjax_tx.simulation.placement import free_bytes
from fedjax_tx.simulation.round import run_rounds
from fedjax_tx.simulation.rounds import Plan, RoundFunction, build_round
from fedjax_tx.types import Execution

_PROBE_SECONDS = 0.25
_REPEATS = 5
MEMORY_SHARE = 0.8
_WORSE, _ENOUGH_WORSE = 1.1, 2


def choose_lanes(experiment: Experiment, execution: Execution, columns: dict, mesh: Mesh | None) -> RoundFunction:
    """Returns the round function with the number of lanes whose rounds take the least time."""
    most = experiment.cohorts.max_clients(experiment.train.num_clients)
    best = build_round(experiment, columns, 1, execution, mesh)
    factor = 2 if jax.default_backend() == "cpu" else 4
    best_seconds, lanes, worse = probe(best), factor, 0
    while lanes * (1 if mesh is None else mesh.size) <= most and worse < _ENOUGH_WORSE:
        candidate = build_round(experiment, columns, lanes, execution, mesh)
        if not fits(candidate):
            break
        seconds = probe(candidate)
        if seconds > _WORSE * best_seconds:
            best_seconds = probe(best)
        if seconds < best_seconds:
            best, best_seconds, worse = candidate, seconds, 0
        elif seconds > _WORSE * best_seconds:
            worse += 1
        lanes *= factor
    return best


def fits(round_fn: RoundFunction) -> bool:
    """Whether the compiled program's arguments, results and temporaries fit in the memory that is free now."""
    state = round_fn.init()
    compiled = run_rounds.lower(*round_fn.arguments(state, round_fn.plan(state, 1))).compile()
    return program_fits(compiled, 1 if round_fn.mesh is None else round_fn.mesh.local_mesh.size)


def program_fits(compiled, num_devices: int) -> bool:
    """Whether a compiled program's results and temporaries fit in the memory of each device that is free now."""
    memory = compiled.memory_analysis()
    needed = 0 if memory is None else memory.output_size_in_bytes + memory.temp_size_in_bytes
    return not processes.largest(needed > MEMORY_SHARE * free_bytes(num_devices))[0]


def probe(round_fn: RoundFunction) -> float:
    """Returns the seconds that a round is expected to take, from a few ticks of its compiled program."""
    state = round_fn.init()
    plan = round_fn.plan(state, 1)
    return expected_seconds(plan, lambda cut: jax.block_until_ready(run_rounds(*round_fn.arguments(state, cut))))


def expected_seconds(
    plan: Plan, run: Callable[[Plan], object], probe_seconds: float = _PROBE_SECONDS, repeats: int = _REPEATS
) -> float:
    """Returns the seconds that ``run(plan)`` is expected to take, from runs of the plan's first ticks."""
    most = max(1, *(int(planned[0].num_ticks.max()) for planned in plan.schedules))

    def slots(schedules) -> int:
        return sum(int(slots_by_device(planned[0]).max()) for planned in schedules)

    def cut(ticks: int) -> tuple:
        return tuple([cut_short(one, ticks, most) for one in planned] for planned in plan.schedules)

    def seconds(ticks: int) -> float:
        shorter = plan._replace(schedules=cut(ticks))
        start = time.perf_counter()
        run(shorter)
        return processes.largest(time.perf_counter() - start)[0]  # or several processes would choose each for itself

    seconds(1)  # compiles
    ticks = 1
    while ticks < most and seconds(ticks) < probe_seconds:
        ticks *= 2
    ticks = min(ticks, most)
    # The least of some: what else the machine does only adds.
    few, many = (min(seconds(count) for _ in range(repeats)) for count in (0, ticks))
    return few + max(many - few, 1e-9) * slots(plan.schedules) / max(1, slots(cut(ticks)))
