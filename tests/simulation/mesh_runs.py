# ruff: noqa: E402  eight devices come before all else
"""What a mesh of eight CPU devices computes, against one device; run by ``test_mesh.py`` in a process that has eight.

With names of methods as arguments it runs the rounds of these alone.
Prints a JSON dict. ``apart`` is the largest difference between two results, in units of the tolerance 1e-6 + 1e-4 |value|.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "training"), str(ROOT)]

import jax

jax.config.update("jax_num_cpu_devices", 8)

import jax.numpy as jnp
import numpy as np
import optax
import problems
import runs

import fedjax_tx as ftx
from fedjax_tx import aggregation as agg
from fedjax_tx.simulation import placement

ROUNDS = 3
DEVICES = jax.devices()
EIGHT, FIVE = (jax.sharding.Mesh(DEVICES[:count], ("device",)) for count in (8, 5))
TWO = jax.make_mesh((2,), ("clients",), devices=DEVICES[:2])  # with whatever axis type JAX gives it
COHORTS = ftx.data.fixed_cohorts([[0, 1, 2, 3, 4, 5], [3, 5, 2], [], [4]])
TASK = problems.LOGISTIC
COMPILED: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **kwargs: COMPILED.append(event) if "backend_compile" in event else None
)


def play(experiment, mesh, num_lanes=1, rounds_per_call=ROUNDS, rounds=ROUNDS, taper="auto"):
    """The last state and what all rounds said, as plain arrays by path."""
    execution = ftx.Execution(num_lanes=num_lanes, rounds_per_call=rounds_per_call, mesh=mesh, taper=taper)
    round_fn = ftx.make_round(experiment, execution)
    state, infos = round_fn.init(), []
    while state.round < rounds:
        state, more = round_fn.run(state, min(round_fn.rounds_per_call, rounds - state.round))
        infos += more
    seen = [info._replace(useful=0.0) for info in infos]  # lanes may be fuller or emptier
    return state, {**runs.leaves(state.device), **runs.leaves([info._asdict() for info in seen])}


def apart(left: dict, right: dict) -> float:
    assert list(left) == list(right)
    worst = 0.0
    for name, one in left.items():
        other = right[name]
        assert one.shape == other.shape and one.dtype == other.dtype, name
        if one.size and one.dtype.kind in "iub":
            worst = max(worst, 0.0 if (one == other).all() else np.inf)
        elif one.size:
            one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
            assert (np.isnan(one) == np.isnan(other)).all(), name
            both = np.isfinite(one) | np.isfinite(other)
            worst = max(worst, np.max(np.abs(one - other)[both] / (1e-6 + 1e-4 * np.abs(one[both])), initial=0.0))
    return float(worst)


def compare(experiment, *others) -> dict:
    """One device with two lanes against each (mesh, lanes a device), and how far the parameters moved at all."""
    state, one = play(experiment, None, 2)
    start = ftx.make_round(experiment, ftx.Execution(num_lanes=1, mesh=None)).init()
    moved = max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (start.device, state.device)), strict=True)
                if jnp.issubdtype(a.dtype, jnp.floating) and a.size)  # fmt: skip
    return {"moved": float(moved), "apart": [apart(one, play(experiment, *other)[1]) for other in others or [(EIGHT, 1)]]}


def fed_avg(aggregator):
    return ftx.algorithms.fed_avg(TASK, optax.sgd(0.1, momentum=0.9), aggregator=aggregator)


def noisy():
    return agg.chain(agg.clip_norm(1.0), agg.fixed_mean(3.0), agg.gaussian_noise(0.1))


def integers():
    """Sums of random integers of several types; they wrap around."""

    def encode(update, weight, shared, client_state, client_key, round_key):
        bits = jax.random.bits(client_key, (5,), jnp.uint32)
        return {name: bits.astype(name) for name in ("int32", "uint8", "int16")}, weight, client_state

    def decode(reduced, totals, state, key):
        return reduced, state, reduced

    return problems.one_pass(problems.recorder(1), agg.nothing()._replace(encode=encode, decode=decode))


def keeping():
    """A client that keeps a key, a flag, a small integer, and floats whose bits a sum with zero would change.

    Client 3 stays as it began, since what it would keep is not finite; so is what it has.
    """
    odd = {str(dtype.__name__): jnp.array([-0.0, jnp.nan, jnp.inf], dtype) for dtype in (jnp.float32, jnp.bfloat16)}

    def init_state(broadcast, key):
        return {"key": key, "flag": jnp.bool_(False), "small": jnp.int8(0), "odd": odd}

    def finish(broadcast, info, local):
        finite = jax.tree.map(lambda leaf: jnp.where(jnp.isfinite(leaf) | (info.id == 3), leaf, 1).astype(leaf.dtype), odd)
        state = {**local, "flag": ~local["flag"], "small": local["small"] - 1, "odd": finite}
        return ftx.ClientResult({}, ftx.clients.client_weight(info), state, {})

    take = ftx.ClientTrainer(init_state, lambda b, info, state: state, lambda b, info, local, *_: local, finish)
    return problems.one_pass(take)


def fed_buff():
    cohorts = ftx.data.async_cohorts([1, 2, 5, 3, 4, 2], concurrency=4, buffer_size=2, max_staleness=6)
    algorithm = ftx.algorithms.fed_buff(TASK, optax.sgd(0.1), max_staleness=6)
    return problems.experiment(algorithm, cohorts=cohorts)


def fed_lc():
    """Clients that bring their class counts."""
    counts = ftx.data.class_counts(problems.ragged_clients(), 3)
    algorithm = ftx.algorithms.fed_avg(ftx.tasks.fed_lc(TASK, 1.0), optax.sgd(0.1))
    return problems.experiment(algorithm, cohorts=ftx.data.with_covariates(COHORTS, class_counts=counts))


MEAN = fed_avg(agg.mean())


def methods(names) -> dict:
    """Each reduction, state, pass and start, over more devices than clients and over fewer."""
    algorithms = {
        "mean": (MEAN, (EIGHT, 1), (TWO, 2)),
        "median": (fed_avg(agg.median()), (FIVE, 1)),
        "attacked": (ftx.attacks.alie(fed_avg(agg.centered_clip(1.0)), [3], deviations=1.0), (FIVE, 1)),
        "noise": (fed_avg(noisy()), (EIGHT, 1)),
        "error feedback": (fed_avg(agg.chain(agg.top_k(0.5), agg.mean())), (FIVE, 1)),
        "integers": (integers(), (TWO, 1)),
        "scaffold": (ftx.algorithms.scaffold(TASK, 0.1), (FIVE, 1)),
        "ditto": (ftx.algorithms.ditto(TASK, optax.sgd(0.1), 0.1, 0.5), (FIVE, 1)),
        "mime": (ftx.algorithms.mime(TASK, optax.sgd(0.1, momentum=0.9)), (EIGHT, 1)),
    }
    cases = {name: (problems.experiment(one, cohorts=COHORTS), *others) for name, (one, *others) in algorithms.items()}
    cases |= {"fed_buff": (fed_buff(), (FIVE, 1)), "fed_lc": (fed_lc(), (FIVE, 1))}
    return {name: compare(*cases[name]) for name in names}


def tapers() -> dict:
    """Lanes that halve on each device when its own run dry, against two lanes of one device that never do."""
    data = problems.ragged_clients((16, *(1 + 7 * number % 12 for number in range(18)), 0), seed=5)
    cohorts = ftx.data.fixed_cohorts([range(20), [0, 3, 19], range(1, 20)])
    told = {}
    for name, algorithm, mesh, num_lanes in (("two", MEAN, TWO, 6), ("eight", integers(), EIGHT, 2)):
        experiment = problems.experiment(algorithm, train=data, cohorts=cohorts)
        halving = ftx.Execution(num_lanes=num_lanes, taper=1, mesh=mesh, rounds_per_call=ROUNDS)
        round_fn = ftx.make_round(experiment, halving)
        (schedules,) = round_fn.plan(round_fn.init(), ROUNDS).schedules
        told[name] = {
            "apart": apart(play(experiment, None, 2, taper=0)[1], play(experiment, mesh, num_lanes, taper=1)[1]),
            "narrow": schedules[0].narrow[:, 0].tolist(),
            "ticks": schedules[0].num_ticks.tolist(),
        }
    return told


def bits(state) -> dict:
    return {name: array.tobytes().hex() for name, array in runs.leaves(state.device.clients).items()}


def kept() -> dict:
    """Whether states come back bit for bit."""
    experiment = problems.experiment(keeping(), cohorts=COHORTS)
    one, many = (bits(play(experiment, mesh)[0]) for mesh in (None, EIGHT))
    return {"same": one == many, "change": bits(play(experiment, EIGHT, rounds=1)[0]) != one, "leaves": sorted(one)}


def evaluations() -> dict:
    """Of a state that keeps personal models, wherever it was made, by metrics with groups; more clients than devices."""
    model = ftx.Model(problems.init_logistic, lambda params, x, *, key=None: x @ params["w"] + params["b"])
    scored = ftx.tasks.classification(model, num_classes=3, num_bins=5)
    experiment = problems.experiment(ftx.algorithms.ditto(scored, optax.sgd(0.1), 0.1, 0.5))
    data = problems.ragged_clients((1, 40, 0, 2, 9, 9, 3, 30, 7, 8, 11), seed=7)
    state = {"one": play(experiment, None)[0], "eight": play(experiment, EIGHT)[0]}
    scores = {}
    for name, where, mesh in (("one", "one", None), ("same", "eight", EIGHT), ("less", "eight", TWO)):
        evaluate = ftx.make_evaluation(experiment, data, ftx.Execution(mesh=mesh))
        scores[name] = runs.leaves(dict(evaluate(state[where])))
    told = {name: apart(scores["one"], scores[name]) for name in ("same", "less")}
    return {**told, "names": sorted(scores["one"])}


def placements() -> dict:
    """Data in host memory against data on the two devices of a mesh: the rounds, and an evaluation in pieces."""
    experiment = problems.experiment(MEAN, cohorts=COHORTS)
    data = problems.ragged_clients((1, 40, 0, 2, 9, 9, 3, 30, 7, 8, 11), seed=7)
    told = []
    for where in ("device", "host"):
        execution = ftx.Execution(num_lanes=1, rounds_per_call=2, mesh=TWO, placement=where)
        round_fn = ftx.make_round(experiment, execution)
        state, infos = round_fn.init(), []
        for num_rounds in (2, 1):
            state, more = round_fn.run(state, num_rounds)
            infos += [info._asdict() for info in more]
        placement.BUFFER_BYTES = 60 * placement.row_bytes(data.columns)
        scores = dict(ftx.make_evaluation(experiment, data, execution)(state))
        told.append({**runs.leaves(state.device), **runs.leaves(infos), **runs.leaves(scores)})
    return {"apart": apart(*told), "same": all(told[0][name].tobytes() == told[1][name].tobytes() for name in told[0])}


def copies() -> dict:
    """How many places in memory a large column takes on eight devices, wherever it lay, and whether it is what was given."""
    memory, told = np.arange(400_008.0, dtype=np.float32), {}
    first = -memory.ctypes.data % 64 // 4
    columns = {"as it lies right": memory[first : first + 400_000], "elsewhere": memory[first + 1 : first + 400_001]}
    integers = placement.aligned_zeros((100_000,), np.int64)
    integers[:] = np.arange(100_000)
    columns |= {"of another type": integers, "small": np.arange(7.0, dtype=np.float32)}
    for name, column in columns.items():
        data = ftx.data.FederatedDataset.from_offsets({"x": column}, [0, len(column)])
        placed = placement.place_columns(data, "device", EIGHT)["x"]
        places = {shard.data.unsafe_buffer_pointer() for shard in placed.addressable_shards}
        told[name] = {"places": len(places), "same": bool((np.asarray(placed) == column).all()), "type": str(placed.dtype)}
        told[name]["in place"] = places == {column.ctypes.data}
    return told


def resumed(directory: Path) -> dict:
    """A run on a mesh, stopped after three rounds and gone on with, on the same mesh and on another."""
    told = {}

    def run(rounds, name, mesh):
        execution = ftx.Execution(num_lanes=1, rounds_per_call=2, mesh=mesh)
        return runs.run(rounds, directory / name, execution=execution)

    whole = run(6, "whole", EIGHT)
    run(3, "same", EIGHT)
    shutil.copytree(directory / "same", directory / "another")
    for name, mesh in (("same", EIGHT), ("another", TWO)):
        again = run(6, name, mesh)
        ours, theirs = ({**runs.leaves(r.state.device), **runs.leaves(r.client_metrics)} for r in (whole, again))
        same = all(a.tobytes() == b.tobytes() for a, b in zip(ours.values(), theirs.values(), strict=True))
        history = all(runs.same_record(a, b) for a, b in zip(whole.history, again.history, strict=True))
        told[name] = {"same": same and history, "apart": apart(ours, theirs)}
    return told


def executions() -> dict:
    """How a mesh is chosen, what compiles, and where things are."""
    experiment = problems.experiment(MEAN, cohorts=COHORTS)
    round_fn = ftx.make_round(experiment, ftx.Execution(num_lanes=32, rounds_per_call=ROUNDS))
    state, infos = round_fn.run(round_fn.init(), ROUNDS)
    before = len(COMPILED)
    state, _ = round_fn.run(state, 1)
    compiled = len(COMPILED) - before
    leaf = jax.tree.leaves(state.device.server)[0]
    auto = ftx.make_round(experiment, ftx.Execution(mesh=TWO, rounds_per_call=ROUNDS))
    debugged = ftx.make_round(experiment, ftx.Execution(debug=True))
    return {
        "compiled": compiled,
        "auto": [auto.num_lanes, auto.mesh.size],
        "all": [round_fn.mesh.size, round_fn.num_lanes, len(leaf.sharding.device_set)],
        "useful": infos[0].useful,
        "debug": [debugged.mesh is None, debugged.num_lanes],
    }


def main(names: list[str]) -> None:
    if names:
        print(json.dumps({"methods": methods(names)}))
        return
    with tempfile.TemporaryDirectory() as directory:
        told = {
            "methods": methods(["mean", "error feedback", "integers"]),
            "tapers": tapers(),
            "kept": kept(),
            "evaluations": evaluations(),
            "placements": placements(),
            "copies": copies(),
            "resumed": resumed(Path(directory)),
            "executions": executions(),
        }
    print(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1:])
