"""Which digit does somebody say? A Transformer against an LSTM, on a speaker nobody has heard.

Question: six speakers' devices learn together to tell spoken digits apart from log-mel features. How well does the model hear a
speaker who took no part, and is a Transformer better at it than a recurrent network of about as many parameters?

Data: tensorflow-datasets' spoken_digit (the Free Spoken Digit Dataset, CC BY-SA 4.0), 3,000 recordings; with --made, tones that
are made here, of which no score says anything. tensorflow-datasets downloads and prepares the recordings on first use, for which
it needs TensorFlow. Where this was written nothing could be downloaded: it ran on made tones only, and there are no scores.

Method: each speaker is unseen in turn. Federated averaging of all others, Adam at the clients, an epoch a round. The rate is the
best of three in a short sweep, by the loss on recordings 5 to 9 of each digit; recordings 0 to 4 are test.

Command: pip install -e . tensorflow && python experiments/spoken_digits.py
Without data: python experiments/spoken_digits.py --made. It leaves runs and sweeps, which go on if they were stopped, scores.json
and scores.png.
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
from matplotlib.figure import Figure

import fedjax_tx as ftx
from fedjax_tx.data.sources import spoken_digits

RATES = (0.001, 0.003, 0.01)
CHOICE = 10
"""Recordings of a digit up to this number, behind those of the test, choose the rate."""


@dataclass(frozen=True)
class Settings:
    """Settings of the study.

    Args:
      run_dir: where everything goes. data_dir: where tensorflow-datasets keeps its data. made: recordings that are made here.
      models: of transformer and lstm. unseen: speakers who are left out in turn; none named: all.
      seeds: of the runs after the sweep. rounds: of a run. sweep_rounds: of a setting of the sweep.
      batch_size: recordings of a local step. num_lanes: clients side by side on each device. smoke: a tiny Transformer on tones.
    """

    run_dir: Path = Path("runs/spoken_digits")
    data_dir: Path | None = None
    made: bool = False
    models: tuple[str, ...] = ("transformer", "lstm")
    unseen: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    rounds: int = 40
    sweep_rounds: int = 20
    batch_size: int = 16
    num_lanes: int = 1
    smoke: bool = False


SMOKE: dict[str, Any] = {
    "made": True, "models": ("transformer",), "unseen": ("eve",), "seeds": (0,), "rounds": 1, "sweep_rounds": 1, "batch_size": 40,
}  # fmt: skip


class Data(NamedTuple):
    """All speakers; who is trained on, the cohorts say. whole: all recordings."""

    train: ftx.data.FederatedDataset
    choice: ftx.data.FederatedDataset
    test: ftx.data.FederatedDataset
    whole: ftx.data.FederatedDataset


def load_data(settings: Settings) -> Data:
    """Reads the recordings. All folds share these sets, and with them the compiled programs."""
    builder: Any = "spoken_digit"
    if settings.made:
        builder = spoken_digits.made_digits(settings.run_dir / "made", each=CHOICE + 2)
    splits = ftx.data.load("spoken_digits", name_or_builder=builder, unseen=[], data_dir=settings.data_dir)
    print("\n".join(f"{count:>10,}  {what}" for what, count in splits.report.items()))
    whole = ftx.data.concatenate([splits.train, splits.test])
    numbers = whole.columns["number"]

    def numbered(low: int, high: int) -> ftx.data.FederatedDataset:
        return ftx.data.keep_rows(whole, (numbers >= low) & (numbers < high))

    most = int(numbers.max()) + 1
    first = spoken_digits.TEST_RECORDINGS
    return Data(numbered(CHOICE, most), numbered(first, CHOICE), numbered(0, first), numbered(0, most))


def make_model(settings: Settings, name: str, frames: int) -> ftx.Model:
    """Returns one of the models of ``{"series", "valid"}``; at the full size each has about 30,000 parameters."""
    bands = spoken_digits.NUM_BANDS
    if name == "transformer":
        size = (1, 1, 8) if settings.smoke else (2, 4, 32)
        return ftx.models.time_series(bands, *size, frames, num_classes=10, patch_length=4)
    lstm = ftx.models.recurrent(num_features=bands, num_classes=10, width=72, num_layers=1)

    def apply(params, inputs, *, key=None):
        return lstm.apply(params, {"x": inputs["series"], "valid": inputs["valid"]}, key=key)

    return ftx.Model(lstm.init, apply)


def study_model(settings: Settings, name: str, data: Data) -> dict[str, Any]:
    """Chooses rates and trains without each speaker in turn; accuracies are [seed][speaker who is unseen]."""
    task = ftx.tasks.classification(make_model(settings, name, data.train.columns["series"].shape[1]), inputs=("series", "valid"))

    def make_algorithm(hyper):
        return ftx.algorithms.fed_avg(task, optax.adam(hyper["rate"]))

    execution = ftx.Execution(num_lanes=settings.num_lanes)
    speakers = data.train.client_ids.tolist()
    told: dict[str, Any] = {"rates": {}, "seen": [], "unseen": []}
    for unseen in settings.unseen or speakers:
        seen = [number for number, speaker in enumerate(speakers) if speaker != unseen]

        def experiment(rounds: int, rate: float, seed: int, seen=seen) -> ftx.Experiment:
            cohorts, work = ftx.data.fixed_cohorts([seen] * rounds), ftx.data.LocalWork(batch_size=settings.batch_size)
            return ftx.Experiment(make_algorithm, hyper={"rate": rate}, train=data.train, cohorts=cohorts, local=work, seed=seed)

        folder, rounds = settings.run_dir / name / f"without_{unseen}", settings.sweep_rounds
        swept = ftx.sweep(
            experiment(rounds, RATES[0], seed=1000),
            rounds,
            {"rate": RATES},
            {"choice": data.choice.select(seen)},
            execution=execution,
            run_dir=folder / "sweep",
            evaluate_every=rounds,
            settings_at_once=1,
            progress=False,
        )
        rate = told["rates"][unseen] = swept.best("choice/loss")["rate"]
        runs = [
            ftx.run(
                experiment(settings.rounds, rate, seed),
                settings.rounds,
                {"test": data.test, "whole": data.whole},
                execution=execution,
                run_dir=folder / f"seed_{seed}",
                evaluate_every=settings.rounds,
                progress=False,
            ).client_metrics
            for seed in settings.seeds
        ]
        told["seen"].append([float(metrics["test"]["accuracy"][0][seen].mean()) for metrics in runs])
        told["unseen"].append([float(metrics["whole"]["accuracy"][0][speakers.index(unseen)]) for metrics in runs])
        print(f"{name} without {unseen}, rate {rate:g}: {np.mean(told['unseen'][-1]):.3f}", flush=True)
    told["parameters"] = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(task.init, jax.random.key(0))[0]))
    return {**told, "seen": np.transpose(told["seen"]).tolist(), "unseen": np.transpose(told["unseen"]).tolist()}


def spread(by_seed: list[Any]) -> str:
    """Mean ± standard deviation over seeds, of what is the mean over speakers."""
    values = [float(np.mean(one)) for one in by_seed]
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1 if len(values) > 1 else 0):.3f}"


def report(settings: Settings, told: dict[str, dict]) -> None:
    """Prints the table and draws the picture."""
    print("\n| model | parameters | rates | seen speakers, test | unseen speaker |\n|---|---|---|---|---|")
    for name, one in told.items():
        rates = ", ".join(f"{rate:g}" for rate in one["rates"].values())
        print(f"| {name} | {one['parameters']:,} | {rates} | {spread(one['seen'])} | {spread(one['unseen'])} |")
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    speakers = list(next(iter(told.values()))["rates"])
    for number, (name, one) in enumerate(told.items()):
        place = np.arange(len(speakers)) + 0.1 * (number - (len(told) - 1) / 2)
        axes.plot(place, np.transpose(one["unseen"]), "o", color=f"C{number}", fillstyle="none")
        axes.plot([], [], "o", color=f"C{number}", fillstyle="none", label=name)
    axes.set_xticks(range(len(speakers)), speakers)
    axes.set(xlabel="speaker, who is unseen", ylabel="accuracy, one ring a seed", ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    figure.suptitle("Made tones: nothing follows from this" if settings.made else "Spoken digits, each speaker unseen in turn")
    figure.savefig(settings.run_dir / "scores.png")


def main(settings: Settings) -> dict[str, dict]:
    """Runs the study."""
    if settings.smoke:
        settings = replace(settings, **SMOKE)
    began = time.perf_counter()
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    data = load_data(settings)
    told = {name: study_model(settings, name, data) for name in settings.models}
    (settings.run_dir / "scores.json").write_text(json.dumps(told, indent=2) + "\n")
    report(settings, told)
    print(f"\n{time.perf_counter() - began:.0f} s; everything is in {settings.run_dir}/")
    return told


if __name__ == "__main__":
    ftx.devices.use_all_cores()
    ftx.devices.use_compilation_cache()
    main(tyro.cli(Settings, description=__doc__))
