"""Handwriting recognised where it was written: a Vision Transformer against a convolutional network, federated by writer.

Question: with about as many parameters, and rates tuned within the same budget, which of the two learns better from clients that
hold few images each; and what becomes of both as clients' shares of the classes get less alike?

Data: (1) scikit-learn's digits (UCI's "Optical Recognition of Handwritten Digits", CC BY 4.0): 1,797 images of 8 x 8, which come
with scikit-learn. Their writers are not told, so 20 clients are made by ``partition_dirichlet`` (arXiv 1909.06335) at several
alpha, from iid to one class a client; a fifth of the images is test. (2) FEMNIST (LEAF, arXiv 1812.01097; from NIST Special
Database 19, US government work): characters of 62 classes, 28 x 28, a client a writer. No package brings it: ``--femnist PATH``
names the folder ``data`` that LEAF's ``preprocess.sh`` wrote (it holds ``train`` and ``test``), a folder with TensorFlow
Federated's ``fed_emnist_train.h5`` and ``fed_emnist_test.h5``, or an ``.npz`` with the arrays x [image, 784] of 0 (ink) to 255,
y, client and test (True: a test image). Without it the study of the digits runs alone, and says so.

Method: in each round some clients make a few local steps of SGD, weighted by their numbers of images; the server gives the mean
of their updates to Adam, which warms up and decays (FedAdam, arXiv 2003.00295). Rates of a model are the best of a grid in a
short sweep, by the loss on a tenth of each client's training images; then it trains with all of them, with each seed. Beside them
stands the nearest neighbour in pixels (of FEMNIST, means of 2 x 2) among the training images of all clients together.

Command: pip install -e '.[vision]' && python experiments/handwriting.py --femnist PATH
Hardware, time and scores: see README.md. It leaves runs and sweeps, which go on if they were stopped, scores.json and scores.png.
"""

import json
import time
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
import tyro
from matplotlib.figure import Figure

import fedjax_tx as ftx
from fedjax_tx.data import FederatedDataset

DIGITS_SEED = 0
INK_SCALE = {"digits": 0.4, "femnist": 0.2}
"""About the standard deviation of ink, 0 to 1; inputs are divided by it."""


@dataclass(frozen=True)
class Plan:
    """How long one of the data sets is trained on.

    Args:
      rounds: of a run. sweep_rounds: of a setting of the sweep. clients_per_round, batch_size, local_steps: of a round.
      client_rates, server_rates: those tried, each with each. (Behind a single local step the server's Adam undoes the client's
      rate, so that one is enough.)
    """

    rounds: int
    sweep_rounds: int
    clients_per_round: int
    batch_size: int
    local_steps: int
    client_rates: tuple[float, ...]
    server_rates: tuple[float, ...]


DIGITS = Plan(400, 150, 10, 8, 4, client_rates=(0.003, 0.01, 0.03, 0.1), server_rates=(0.003, 0.01, 0.03))
WRITERS = Plan(800, 100, 10, 16, 1, client_rates=(0.1,), server_rates=(0.002, 0.004, 0.008, 0.016))
SMOKE = Plan(2, 1, 2, 2, 1, client_rates=(0.1,), server_rates=(0.001, 0.01))


@dataclass(frozen=True)
class Settings:
    """Settings of the study.

    Args:
      run_dir: where everything goes. femnist: where FEMNIST lies, see above. models: of vit and cnn. seeds: of the runs.
      alphas: of the digits' clients; inf: iid, 0: one class a client. digits, writers: how long each is trained on.
      num_lanes: clients side by side on each device. smoke: tiny models and two rounds, to see that everything runs.
    """

    run_dir: Path = Path("runs/handwriting")
    femnist: Path | None = None
    models: tuple[str, ...] = ("vit", "cnn")
    seeds: tuple[int, ...] = (0, 1, 2)
    alphas: tuple[float, ...] = (np.inf, 1.0, 0.0)
    digits: Plan = DIGITS
    writers: Plan = WRITERS
    num_lanes: int = 1
    smoke: bool = False


class Source(NamedTuple):
    """One data set: who trains on what, who is judged on what, its models, and how long it is trained on."""

    name: str
    train: FederatedDataset
    test: FederatedDataset
    models: dict[str, ftx.Model]
    plan: Plan


def as_columns(ink: np.ndarray, labels: np.ndarray, scale: float) -> dict[str, np.ndarray]:
    """Returns images [image, side, side, 1] float32 and their classes."""
    side = int(np.sqrt(ink[0].size))
    return {"x": (ink.reshape(-1, side, side, 1) / scale).astype(np.float32), "y": np.asarray(labels, np.int32)}


def read_digits(alpha: float) -> tuple[FederatedDataset, FederatedDataset]:
    """Returns 20 clients of digits for training, and the test images as one client."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    columns = as_columns(pixels / 16, labels, INK_SCALE["digits"])
    order = np.random.default_rng(DIGITS_SEED).permutation(len(labels))
    test, train = ({name: column[rows] for name, column in columns.items()} for rows in np.split(order, [len(order) // 5]))
    clients = ftx.data.partition_dirichlet(train["y"], 20, alpha, seed=DIGITS_SEED)
    return FederatedDataset.from_columns(train, clients), FederatedDataset.from_columns(test, np.zeros(len(test["y"]), int))


def read_femnist(path: Path) -> tuple[FederatedDataset, FederatedDataset]:
    """Returns the writers' training and test images, from any of the three forms."""
    if path.is_file():
        with np.load(path) as arrays:
            ink, labels, writers, is_test = 1 - arrays["x"] / np.float32(255), arrays["y"], arrays["client"], arrays["test"]
        columns = as_columns(ink, labels, INK_SCALE["femnist"])
        train, test = (
            FederatedDataset.from_columns({name: column[rows] for name, column in columns.items()}, writers[rows])
            for rows in (~is_test, is_test)
        )
        return train, test
    if (path / "train").is_dir():
        parts = [ftx.data.from_leaf(path / part) for part in ("train", "test")]
    elif (path / "fed_emnist_train.h5").is_file():
        parts = [ftx.data.from_tff_hdf5(path / f"fed_emnist_{part}.h5") for part in ("train", "test")]
    else:
        raise SystemExit(f"expected --femnist to be an .npz, or a folder of LEAF's or TensorFlow Federated's, got {path}")
    x, y = ("x", "y") if "x" in parts[0].columns else ("pixels", "label")
    train, test = (part.map(lambda one: as_columns(1 - one[x], one[y], INK_SCALE["femnist"])) for part in parts)
    return train, test


def make_models(image_size: int, num_classes: int, smoke: bool) -> dict[str, ftx.Model]:
    """Returns a ViT and a CNN of about as many parameters."""
    large = image_size == 28
    patch, width, hidden, pool = (7, 64, 64, (2, 2)) if large else (2, 32, 40, (1, 2))
    layers, heads, channels = 2, 4, (16, 32)
    if smoke:
        width, hidden, layers, heads, channels = 4, 4, 1, 1, (2, 2)
    shape = (image_size, image_size, 1)
    return {
        "vit": ftx.models.vit(image_size, patch, num_classes, layers, heads, width, channels=1, pool="mean"),
        "cnn": ftx.models.cnn(shape, num_classes, channels, pool=pool, padding="SAME", hidden_sizes=(hidden,)),
    }


def hold_out(data: FederatedDataset) -> tuple[FederatedDataset, FederatedDataset]:
    """Returns nine tenths of each client's images, and a tenth on which rates are judged."""
    held = np.zeros(data.num_examples, bool)
    generator = np.random.default_rng(0)
    for start, size in zip(data.offsets, data.client_sizes, strict=False):
        held[start + generator.permutation(size)[: size // 10]] = True
    return ftx.data.keep_rows(data, ~held), ftx.data.keep_rows(data, held)


def nearest_neighbour(source: Source) -> float:
    """Returns the test accuracy of the nearest of all training images, by Euclidean distance of pixels."""
    from sklearn.neighbors import KNeighborsClassifier

    def pixels(data: FederatedDataset) -> np.ndarray:
        x = data.columns["x"]
        if x.shape[1] == 28:
            x = x.reshape(-1, 14, 2, 14, 2).mean((2, 4))
        return x.reshape(len(x), -1)

    neighbour = KNeighborsClassifier(1).fit(pixels(source.train), source.train.columns["y"])
    return float(neighbour.score(pixels(source.test), source.test.columns["y"]))


@cache
def make_algorithm(model: ftx.Model, rounds: int):
    """Returns ``make(hyper)``: FedAdam whose rate rises for a tenth of the rounds, then falls to 0. One object: compiled once."""
    task = ftx.tasks.classification(model)

    def make(hyper):
        def rate(step):
            return hyper["server_lr"] * jnp.interp(step / rounds, jnp.array([0.0, 0.1, 1.0]), jnp.array([0.1, 1.0, 0.0]))

        return ftx.algorithms.fed_avg(task, optax.sgd(hyper["client_lr"]), optax.adam(rate))

    return make


def make_experiment(make, plan: Plan, train: FederatedDataset, rates: dict[str, float], seed: int) -> ftx.Experiment:
    """Returns one run."""
    return ftx.Experiment(
        make,
        hyper=rates,
        train=train,
        cohorts=ftx.data.uniform_cohorts(min(plan.clients_per_round, train.num_clients)),
        local=ftx.data.LocalWork(batch_size=plan.batch_size, steps=plan.local_steps),
        seed=seed,
    )


def choose_rates(settings: Settings, source: Source, name: str) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Returns a model's best rates on a tenth of each client's training images, and all that were tried."""
    plan = source.plan
    rest, tenth = hold_out(source.train)
    first = {"client_lr": plan.client_rates[0], "server_lr": plan.server_rates[0]}
    swept = ftx.sweep(
        make_experiment(make_algorithm(source.models[name], plan.sweep_rounds), plan, rest, first, seed=1000),
        plan.sweep_rounds,
        {"client_lr": plan.client_rates, "server_lr": plan.server_rates},
        {"validation": tenth},
        execution=ftx.Execution(num_lanes=settings.num_lanes),
        run_dir=settings.run_dir / source.name / name / "sweep",
        evaluate_every=plan.sweep_rounds,
        settings_at_once=1,
    )
    return swept.best("validation/loss"), [
        {key: row[key] for key in ("client_lr", "server_lr", "validation/loss", "validation/accuracy")} for row in swept.rows
    ]


def study(settings: Settings, source: Source, name: str) -> dict[str, Any]:
    """Chooses a model's rates and trains with each seed; returns what is told of it."""
    plan, model = source.plan, source.models[name]
    began = time.perf_counter()
    rates, tried = choose_rates(settings, source, name)
    told: dict[str, Any] = {"rates": rates, "tried": tried, "sweep_seconds": time.perf_counter() - began, "runs": []}
    costs = ftx.models.describe(model, source.test.columns["x"][:1])
    told |= {"parameters": costs.num_parameters, "training_flops": costs.training_flops}
    for seed in settings.seeds:
        began = time.perf_counter()
        result = ftx.run(
            make_experiment(make_algorithm(model, plan.rounds), plan, source.train, rates, seed),
            plan.rounds,
            {"test": source.test},
            execution=ftx.Execution(num_lanes=settings.num_lanes),
            run_dir=settings.run_dir / source.name / name / f"seed_{seed}",
            evaluate_every=max(plan.rounds // 10, 1),
        )
        scored = [line for line in result.history if "test/accuracy" in line]
        last = {score: scored[-1][score] for score in ("test/accuracy", "test/loss", "test/accuracy/client_p10")}
        curve = [(line["round"], line["test/accuracy"]) for line in scored]
        told["runs"].append({**last, "curve": curve, "seconds": time.perf_counter() - began})
    return told


def spread(values: list[float]) -> str:
    """Mean ± standard deviation over seeds."""
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1 if len(values) > 1 else 0):.3f}"


def scores(one: dict[str, Any], name: str) -> list[float]:
    """Returns a score of each seed."""
    return [run[name] for run in one["runs"]]


def report(settings: Settings, told: dict[str, Any]) -> None:
    """Prints the table and draws the picture."""
    columns = "label skew | parameters | MFLOPs of training on an image | client rate, server rate | test accuracy"
    print(f"\n| images | nearest neighbour | model | {columns} | tenth writer's |\n|{'---|' * 9}")
    for source, whole in told.items():
        for name, one in whole["models"].items():
            size = f"{one['parameters']:,} | {one['training_flops'] / 1e6:.1f}"
            rates = f"{one['rates']['client_lr']:g}, {one['rates']['server_lr']:g}"
            tenth = spread(scores(one, "test/accuracy/client_p10")) if source == "femnist" else ""
            accuracy = spread(scores(one, "test/accuracy"))
            about = f"{source} | {whole['neighbour']:.3f} | {name} | {whole['skew']:.2f}"
            print(f"| {about} | {size} | {rates} | {accuracy} | {tenth} |")
    with_writers = "femnist" in told
    figure = Figure(figsize=(11 if with_writers else 5.5, 4), dpi=120, layout="constrained")
    panels = figure.subplots(1, 1 + with_writers, squeeze=False)[0]
    digits = [digits_name(alpha) for alpha in settings.alphas]
    ticks = [f"{alpha:g}\n({told[source]['skew']:.2f})" for alpha, source in zip(settings.alphas, digits, strict=True)]
    panels[0].set_xticks(range(len(digits)), ticks)
    panels[0].set(xlabel="alpha of 20 clients (label skew)", ylabel="test accuracy, one point a seed", title="digits, 8 × 8")
    for number, name in enumerate(settings.models):
        found = np.array([scores(told[source]["models"][name], "test/accuracy") for source in digits])
        panels[0].plot(range(len(digits)), found.mean(1), color=f"C{number}", label=name)
        panels[0].plot(range(len(digits)), found, "o", color=f"C{number}", fillstyle="none")
        if with_writers:
            curves = np.array([run["curve"] for run in told["femnist"]["models"][name]["runs"]])
            rounds, found = curves[0, :, 0], curves[..., 1]
            panels[1].plot(rounds, found.mean(0), color=f"C{number}", label=name)
            panels[1].fill_between(rounds, found.min(0), found.max(0), color=f"C{number}", alpha=0.2)
    if with_writers:
        panels[1].set(xlabel="round", ylabel="test accuracy, band over seeds", title="FEMNIST, 28 × 28, a client a writer")
    for panel, source in zip(panels, (digits[0], "femnist"), strict=False):
        panel.axhline(told[source]["neighbour"], color="grey", linewidth=0.8, linestyle="--", label="nearest neighbour, all data")
        panel.grid(alpha=0.3)
        panel.legend(frameon=False, fontsize=8)
    figure.savefig(settings.run_dir / "scores.png")


def digits_name(alpha: float) -> str:
    """Returns what the digits of clients of some alpha are called."""
    return f"digits_{alpha:g}"


def load_sources(settings: Settings) -> list[Source]:
    """Returns the data sets, and says which is missing."""
    models = make_models(8, 10, settings.smoke)
    sources = [Source(digits_name(alpha), *read_digits(alpha), models, settings.digits) for alpha in settings.alphas]
    if settings.femnist is None:
        print("FEMNIST is not read: it comes with no package; --femnist PATH names where it lies (--help says how to get it)")
        return sources
    return [Source("femnist", *read_femnist(settings.femnist), make_models(28, 62, settings.smoke), settings.writers), *sources]


def main(settings: Settings) -> dict[str, Any]:
    """Runs the study."""
    if settings.smoke:
        settings = replace(settings, seeds=(0,), alphas=(0.0,), digits=SMOKE, writers=SMOKE)
    began = time.perf_counter()
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    told: dict[str, Any] = {}
    for source in load_sources(settings):
        described = ftx.data.describe(source.train)
        print(f"\n{source.name}: {described}")
        ftx.report.plot_clients(source.train, settings.run_dir / f"{source.name}_clients.png", title=source.name)
        assert described.labels is not None
        told[source.name] = {"skew": described.labels.skew, "neighbour": nearest_neighbour(source)}
        told[source.name]["models"] = {name: study(settings, source, name) for name in settings.models}
        (settings.run_dir / "scores.json").write_text(json.dumps(told, indent=2) + "\n")
    report(settings, told)
    print(f"\n{time.perf_counter() - began:.0f} s; everything is in {settings.run_dir}/")
    return told


if __name__ == "__main__":
    ftx.devices.use_all_cores()
    ftx.devices.use_compilation_cache()
    main(tyro.cli(Settings, description=__doc__))
