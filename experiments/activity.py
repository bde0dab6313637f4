"""Which exercise does the wearer of a smartwatch do? A Transformer against a CNN and an LSTM, on people nobody has seen.

Question: ten people's watches learn together to tell seven shoulder exercises from windows of two seconds. How well does the
model know a person whose data nobody had, what does it gain from a little of that person's own, and is a Transformer better at
it than a convolutional or a recurrent network of as many parameters?

Data: the recordings in the PyPI package seglearn (BSD; arXiv 1802.01489), read without running its code: 6 axes at 50 Hz, 2,300
windows. Its authors' random forest names 87.3 % of windows of unseen people, in five folds by person (version 1 of the paper,
of ten people). The forest here, on features of ours and these windows, is for comparison; it has all training data in one place.

Method: five folds, so that each person is unseen once. Federated averaging of all eight others, Adam at the clients, an epoch a
round. The rate is the best of three in a short sweep, by the loss on the last fifths of the eight people's recordings. Then the
first quarters of an unseen person's recordings fine-tune the model at home (``ftx.algorithms.fine_tune``), the second quarters
choose the rate, and on the second halves all are judged; "alone" is the same from a model drawn at random, for longer.
Transformer and LSTM read tenths of a second, the CNN single steps.

Command: pip install -e '.[sensors]' && python experiments/activity.py
Hardware, time and scores: see README.md. It leaves runs and sweeps, which go on if they were stopped, scores.json and scores.png.
"""

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import tyro
from jaxtyping import Float
from matplotlib.figure import Figure

import fedjax_tx as ftx
from fedjax_tx.data.sources import activity

PATCH = 5  # steps, a tenth of a second
RATES = (0.001, 0.003, 0.01)
FINE_RATES = (0.0003, 0.001, 0.003)
PUBLISHED = 0.873


@dataclass(frozen=True)
class Settings:
    """Settings of the study.

    Args:
      run_dir: where everything goes. models: of transformer, cnn and lstm. folds: groups of people that are unseen in turn.
      seeds: of the runs after the sweep. rounds: of a run. sweep_rounds: of a setting of the sweep.
      window: steps of a window, at 50 a second. batch_size: windows of a local step.
      fine_epochs, alone_epochs: through a person's own first quarters, from the common model and from none.
      trees: of the random forest. num_lanes: clients side by side on each device. smoke: a tiny Transformer on long windows.
    """

    run_dir: Path = Path("runs/activity")
    models: tuple[str, ...] = ("transformer", "cnn", "lstm")
    folds: int = 5
    seeds: tuple[int, ...] = (0, 1, 2)
    rounds: int = 40
    sweep_rounds: int = 20
    window: int = 100
    batch_size: int = 16
    fine_epochs: int = 20
    alone_epochs: int = 60
    trees: int = 300
    num_lanes: int = 1
    smoke: bool = False


SMOKE: dict[str, Any] = {
    "models": ("transformer",), "folds": 2, "seeds": (0,), "rounds": 1, "sweep_rounds": 1, "window": 200, "batch_size": 64,
    "fine_epochs": 1, "alone_epochs": 1, "trees": 5,
}  # fmt: skip


class Data(NamedTuple):
    """All people, each whole recording in parts by time; who is trained on, the cohorts say.

    train, test: the first four fifths and the last. early, choice, late: the first quarter, the second, and the second half.
    whole: all of it.
    """

    train: ftx.data.FederatedDataset
    test: ftx.data.FederatedDataset
    early: ftx.data.FederatedDataset
    choice: ftx.data.FederatedDataset
    late: ftx.data.FederatedDataset
    whole: ftx.data.FederatedDataset


def load_data(settings: Settings) -> Data:
    """Reads the windows. All folds share these sets, and with them the compiled programs."""
    splits = ftx.data.load("activity", window=settings.window, unseen=[], test_share=0.2)
    print("\n".join(f"{count:>10,}  {what}" for what, count in splits.report.items()))
    whole = ftx.data.concatenate([splits.train, splits.test])

    def between(low: float, high: float) -> ftx.data.FederatedDataset:
        return ftx.data.keep_rows(whole, (whole.columns["progress"] >= low) & (whole.columns["progress"] < high))

    return Data(splits.train, splits.test, between(0, 0.25), between(0.25, 0.5), between(0.5, 1), between(0, 1))


def make_model(settings: Settings, name: str) -> ftx.Model:
    """Returns one of the models; at the full size each has about 27,000 parameters."""
    channels, classes, window = len(activity.CHANNELS), len(activity.EXERCISES), settings.window
    if name == "transformer":
        size = (1, 1, 8) if settings.smoke else (2, 4, 32)
        return ftx.models.time_series(channels, *size, window, num_classes=classes, patch_length=PATCH)
    if name == "cnn":
        return ftx.models.cnn((window, channels), classes, (32, 64, 48), kernel_size=5, pool=2, hidden_sizes=(), summary="mean")
    width = 8 if settings.smoke else 68
    lstm = ftx.models.recurrent(num_features=PATCH * channels, num_classes=classes, width=width, num_layers=1)

    def apply(params, x, *, key=None):
        return lstm.apply(params, x.reshape(len(x), -1, PATCH * channels), key=key)

    return ftx.Model(lstm.init, apply)


class Study(NamedTuple):
    """A model and how it is trained, together and alone; shared by all of its runs, so that they share compiled programs."""

    settings: Settings
    data: Data
    task: ftx.Task
    together: Any
    at_home: Any
    folder: Path

    def experiment(self, seen: list[int], rounds: int, rate: float, seed: int) -> ftx.Experiment:
        """Federated averaging of the people ``seen``."""
        work = ftx.data.LocalWork(batch_size=self.settings.batch_size, epochs=1)
        cohorts = ftx.data.fixed_cohorts([seen] * rounds)
        return ftx.Experiment(self.together, hyper={"rate": rate}, train=self.data.train, cohorts=cohorts, local=work, seed=seed)

    @property
    def execution(self) -> ftx.Execution:
        """How all of it runs."""
        return ftx.Execution(num_lanes=self.settings.num_lanes)


def make_study(settings: Settings, name: str, data: Data) -> Study:
    """Returns the study of a model."""
    task = ftx.tasks.classification(make_model(settings, name))

    def together(hyper):
        return ftx.algorithms.fed_avg(task, optax.adam(hyper["rate"]))

    def at_home(hyper):
        return ftx.algorithms.fine_tune(task, optax.adam(hyper["rate"]))

    return Study(settings, data, task, together, at_home, settings.run_dir / name)


def choose_rate(study: Study, seen: list[int], folder: Path) -> tuple[float, dict[float, float]]:
    """Returns the rate with the least loss on the last fifths of the people who are trained on, and the loss of each."""
    rounds = study.settings.sweep_rounds
    swept = ftx.sweep(
        study.experiment(seen, rounds, RATES[0], seed=1000),
        rounds,
        {"rate": RATES},
        {"seen": study.data.test.select(seen)},
        execution=study.execution,
        run_dir=folder,
        evaluate_every=rounds,
        settings_at_once=1,
        progress=False,
    )
    return swept.best("seen/loss")["rate"], {row["rate"]: row["seen/loss"] for row in swept.rows}


def at_home(study: Study, start: Any, rates: tuple[float, ...], epochs: int, seed: int, folder: Path, judged: list[int]):
    """Trains a model for each person on their first quarters, all ten at once; returns the best rate, and accuracies with it.

    The rate is that with the least loss on the second quarters of the people ``judged``; accuracies are of all people's second
    halves.
    """
    losses, accuracies = {}, {}
    for rate in rates:
        work = ftx.data.LocalWork(batch_size=study.settings.batch_size, epochs=epochs)
        experiment = ftx.Experiment(
            study.at_home,
            hyper={"rate": rate},
            train=study.data.early,
            cohorts=ftx.data.all_clients(),
            local=work,
            seed=seed,
        )
        evaluate = {"choice": study.data.choice, "late": study.data.late}
        run_dir = folder / f"rate_{rate:g}"
        result = ftx.run(experiment, 1, evaluate, start, study.execution, run_dir, progress=False)
        value, weight = (numbers[judged] for numbers in result.client_metrics["choice"]["loss"])
        losses[rate] = float(np.average(value, weights=weight))
        accuracies[rate] = result.client_metrics["late"]["accuracy"][0]
    best = min(losses, key=losses.__getitem__)
    return best, accuracies[best]


def study_fold(study: Study, fold: int) -> dict[str, Any]:
    """Trains without some people and judges on them; returns accuracies of each, [seed][person]."""
    settings, data = study.settings, study.data
    unseen = list(range(fold, data.train.num_clients, settings.folds))
    seen = [person for person in range(data.train.num_clients) if person not in unseen]
    folder = study.folder / f"fold_{fold}"
    rate, tried = choose_rate(study, seen, folder / "sweep")
    told: dict[str, Any] = {"unseen": unseen, "rate": rate, "tried": tried, "fine_rate": None}
    told |= {name: [] for name in ("seen", "whole", "late", "personal")}
    for seed in settings.seeds:
        result = ftx.run(
            study.experiment(seen, settings.rounds, rate, seed),
            settings.rounds,
            {"test": data.test, "whole": data.whole, "late": data.late},
            execution=study.execution,
            run_dir=folder / f"seed_{seed}",
            evaluate_every=settings.rounds,
            progress=False,
        )
        scores = {name: metrics["accuracy"][0] for name, metrics in result.client_metrics.items()}
        rates = FINE_RATES if told["fine_rate"] is None else (told["fine_rate"],)  # chosen with the first seed
        told["fine_rate"], personal = at_home(
            study, result.params, rates, settings.fine_epochs, seed, folder / f"fine_{seed}", unseen
        )
        told["seen"].append(scores["test"][seen].tolist())
        for name, found in (("whole", scores["whole"]), ("late", scores["late"]), ("personal", personal)):
            told[name].append(found[unseen].tolist())
        late, own = np.mean(told["late"][-1]), np.mean(told["personal"][-1])
        print(f"{study.folder.name}, fold {fold}, seed {seed}, rate {rate:g}: late {late:.3f}, personal {own:.3f}", flush=True)
    return told


def study_model(settings: Settings, name: str, data: Data) -> dict[str, Any]:
    """Everything about one model."""
    study = make_study(settings, name, data)
    everyone = list(range(data.train.num_clients))
    rates: tuple[float, ...] = RATES
    alone = []
    for seed in settings.seeds:
        rate, found = at_home(study, None, rates, settings.alone_epochs, seed, study.folder / f"alone_{seed}", everyone)
        rates = (rate,)
        alone.append(found.tolist())
    folds = [study_fold(study, fold) for fold in range(settings.folds)]
    count = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(study.task.init, jax.random.key(0))[0]))
    told: dict[str, Any] = {"parameters": count, "rates": [fold["rate"] for fold in folds], "folds": folds}
    told |= {"seen": [np.mean([np.mean(fold["seen"][seed]) for fold in folds]) for seed in range(len(settings.seeds))]}
    people = np.argsort(np.concatenate([fold["unseen"] for fold in folds]))
    for part in ("whole", "late", "personal"):  # [seed][person]; each person is unseen in one fold
        told[part] = np.concatenate([fold[part] for fold in folds], axis=1)[:, people].tolist()
    return {**told, "alone": alone, "alone_rate": rates[0]}


def features(x: Float[np.ndarray, "rows time channels"]) -> Float[np.ndarray, "rows features"]:
    """What the random forest sees of a window: ten numbers of each axis."""
    centred, spread = x - x.mean(1, keepdims=True), x.std(1) + 1e-6
    moments = [(centred**power).mean(1) / spread**power for power in (3, 4)]
    crossings = (np.diff(np.sign(centred), axis=1) != 0).mean(1)
    steps = np.abs(np.diff(x, axis=1)).mean(1)
    quartiles = np.quantile(x, (0.25, 0.5, 0.75), axis=1)
    return np.concatenate(
        [x.mean(1), spread, x.min(1), x.max(1), *moments, crossings, steps, quartiles[1], np.ptp(quartiles, 0)], 1
    )


def forest(settings: Settings, data: Data) -> list[list[float]]:
    """A random forest of all training data in one place: accuracy of each person while unseen, on the whole, [seed][person]."""
    from sklearn.ensemble import RandomForestClassifier  # takes seconds to import

    x, y = features(data.whole.columns["x"]), data.whole.columns["y"]
    owner = np.repeat(np.arange(data.whole.num_clients), data.whole.client_sizes)
    told = []
    for seed in settings.seeds:
        found = np.zeros(data.whole.num_clients)
        for fold in range(settings.folds):
            unseen = owner % settings.folds == fold
            trees = RandomForestClassifier(settings.trees, random_state=seed, n_jobs=-1).fit(x[~unseen], y[~unseen])
            right = trees.predict(x) == y
            for person in np.unique(owner[unseen]):
                found[person] = right[owner == person].mean()
        told.append(found.tolist())
    return told


def spread(by_seed: list[Any]) -> str:
    """Mean ± standard deviation over seeds, of what is the mean over people."""
    values = [float(np.mean(one)) for one in by_seed]
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1 if len(values) > 1 else 0):.3f}"


def report(settings: Settings, told: dict[str, dict], trees: list[list[float]]) -> None:
    """Prints the table and draws the picture."""
    parts = ("seen", "whole", "late", "alone", "personal")
    print("\n| model | parameters | seen people, later | unseen people | unseen, second half | alone | fine-tuned |")
    print("|---|---|---|---|---|---|---|")
    for name, one in told.items():
        print(f"| {name} | {one['parameters']:,} | {' | '.join(spread(one[part]) for part in parts)} |")
    print(f"| random forest, pooled |  |  | {spread(trees)} |  |  |  |\n")
    for name, one in told.items():
        fine = [fold["fine_rate"] for fold in one["folds"]]
        print(f"{name}: rates of the folds {one['rates']}, of fine-tuning {fine}, alone {one['alone_rate']}")
    figure = Figure(figsize=(11, 4.2), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, gridspec_kw={"width_ratios": [1, 1.6]})
    shown = {"alone": "alone", "late": "federated, unseen", "personal": "fine-tuned"}
    for number, (name, one) in enumerate(told.items()):
        place = np.arange(len(shown)) + 0.12 * (number - (len(told) - 1) / 2)
        seeds = np.array([[np.mean(found) for found in one[part]] for part in shown])
        left.plot(place, seeds, "o", color=f"C{number}", fillstyle="none")
        left.plot(place, seeds.mean(1), color=f"C{number}", label=name, linewidth=1)
        people = np.arange(1, len(one["late"][0]) + 1) + 0.22 * (number - (len(told) - 1) / 2)
        before, after = np.mean(one["late"], axis=0), np.mean(one["personal"], axis=0)
        right.vlines(people, before, after, color=f"C{number}", linewidth=1)
        right.plot(people, before, "o", color=f"C{number}", fillstyle="none", label=f"{name}, federated")
        right.plot(people, after, "o", color=f"C{number}", label="fine-tuned")
    left.set_xticks(range(len(shown)), list(shown.values()))
    left.set(ylabel="accuracy on the second halves of recordings", title="mean over people, one ring a seed")
    right.set(xlabel="person, who is unseen", title="each person, mean over seeds")
    right.set_xticks(range(1, len(trees[0]) + 1))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8, ncols=len(told) if axes is right else 1, loc="lower right")
    figure.suptitle("Seven exercises from a smartwatch, two seconds at a time: ten people, each unseen in one of five folds")
    figure.savefig(settings.run_dir / "scores.png")


def main(settings: Settings) -> dict[str, dict]:
    """Runs the study."""
    if settings.smoke:
        settings = replace(settings, **SMOKE)
    began = time.perf_counter()
    data = load_data(settings)
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    trees = forest(settings, data)
    print(f"random forest: {spread(trees)} on unseen people; published {PUBLISHED}")
    told = {name: study_model(settings, name, data) for name in settings.models}
    (settings.run_dir / "scores.json").write_text(json.dumps({**told, "forest": trees}, indent=2) + "\n")
    report(settings, told, trees)
    print(f"\n{time.perf_counter() - began:.0f} s; everything is in {settings.run_dir}/")
    return told


if __name__ == "__main__":
    ftx.devices.use_all_cores()
    ftx.devices.use_compilation_cache()
    main(tyro.cli(Settings, description=__doc__))
