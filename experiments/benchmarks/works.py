"""The two works on which federated systems are compared, as files: data, cohorts and initial parameters, nothing drawn later.

Work A, a character Transformer: clients with log-normal sizes hold rows of uniform random tokens. Work B, a convolutional
network for 28 x 28 images in 62 classes (EMNIST's shapes): uniform random pixels and labels. What is learned does not matter
here, only that every system does the same arithmetic. Both are federated averaging: in round r the clients ``cohorts[r]`` start
from the server's parameters and make one epoch of SGD (learning rate 0.1) over their examples in stored order, in batches of
``batch_size``, the last one short; a batch's loss is the mean over its examples; the server takes the average of the
clients' parameters, weighted by their numbers of examples.

A file holds the columns (``tokens``, or ``x`` and ``y``), ``offsets`` (client i holds rows offsets[i]:offsets[i + 1]),
``cohorts`` [round, client] and the parameters as ``p/NAME``, matrices as [in, out], convolutions as [height, width, in, out].

Needs only NumPy, for it is read in the environments of all systems. Command: python experiments/benchmarks/works.py DIRECTORY
"""

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

LEARNING_RATE = 0.1
BATCH_SIZE = {"A": 8, "B": 20}
ROUNDS = 13
VOCAB_SIZE, CLASSES = 96, 62


class Work(NamedTuple):
    """A work as read from its file; ``columns`` are those of the examples, in the order in which a loss takes them."""

    name: str
    columns: dict[str, np.ndarray]
    offsets: np.ndarray
    cohorts: np.ndarray
    params: dict[str, np.ndarray]

    @property
    def batch_size(self) -> int:
        return BATCH_SIZE[self.name]

    @property
    def sizes(self) -> np.ndarray:
        """How many examples each client holds."""
        return np.diff(self.offsets)

    def examples(self, number: int) -> int:
        """How many examples round ``number`` trains on."""
        return int(self.sizes[self.cohorts[number]].sum())

    def steps(self, clients) -> np.ndarray:
        """How many batches each of some clients makes in an epoch."""
        return -(-self.sizes[np.asarray(clients)] // self.batch_size)


def share_out(costs, workers: int) -> list[list[int]]:
    """Shares out jobs among workers: the costliest first, each to the worker with the least so far; returns job numbers.

    Example:
      >>> share_out([1, 4, 2, 3], 2)
      [[1, 0], [3, 2]]
    """
    shares: list[list[int]] = [[] for _ in range(workers)]
    loads = [0] * workers
    for job in np.argsort(-np.asarray(costs), kind="stable").tolist():
        least = loads.index(min(loads))
        shares[least].append(job)
        loads[least] += int(costs[job])
    return shares


# ---- the files


def make_transformer_work(clients=512, per_round=32, median=32.0, layers=2, width=128, length=64) -> dict[str, np.ndarray]:
    """Returns the arrays of work A; other arguments make a smaller one for a test."""
    draw = np.random.default_rng(0)
    sizes = np.round(np.exp(np.log(median) + draw.standard_normal(clients)))
    offsets = bounds(np.clip(sizes, 4, 512))
    tokens = draw.integers(0, VOCAB_SIZE, size=(offsets[-1], length + 1), dtype=np.int32)
    cohorts = draw_cohorts(draw, clients, per_round)
    params = transformer_params(np.random.default_rng(1), layers, width, length)
    return {"tokens": tokens, "offsets": offsets, "cohorts": cohorts, **prefixed(params)}


def make_convolution_work(clients=200, per_round=10, median=100.0, channels=(32, 64), hidden=128) -> dict[str, np.ndarray]:
    """Returns the arrays of work B; other arguments make a smaller one for a test."""
    draw = np.random.default_rng(0)
    sizes = np.round(np.exp(np.log(median) + 0.5 * draw.standard_normal(clients)))
    offsets = bounds(np.maximum(sizes, 1))
    x = draw.random((offsets[-1], 28, 28, 1), dtype=np.float32)
    y = draw.integers(0, CLASSES, size=offsets[-1], dtype=np.int32)
    cohorts = draw_cohorts(draw, clients, per_round)
    params = convolution_params(np.random.default_rng(1), channels, hidden)
    return {"x": x, "y": y, "offsets": offsets, "cohorts": cohorts, **prefixed(params)}


def bounds(sizes) -> np.ndarray:
    return np.append(0, np.cumsum(sizes.astype(np.int64)))


def draw_cohorts(draw, clients: int, per_round: int) -> np.ndarray:
    return np.stack([draw.choice(clients, per_round, replace=False) for _ in range(ROUNDS)]).astype(np.int32)


def transformer_params(draw, layers: int, width: int, length: int) -> dict[str, np.ndarray]:
    """Matrices from N(0, 0.02^2), gains 1, biases 0; drawn in the order in which they stand here."""

    def matrix(*shape):
        return (0.02 * draw.standard_normal(shape)).astype(np.float32)

    one, zero = np.ones(width, np.float32), np.zeros(width, np.float32)
    params = {"wte": matrix(VOCAB_SIZE, width), "wpe": matrix(length, width), "lnf_g": one, "lnf_b": zero}
    params["wout"] = matrix(width, VOCAB_SIZE)
    for layer in range(layers):
        block = {"ln1_g": one, "ln1_b": zero, "wqkv": matrix(width, 3 * width), "bqkv": np.zeros(3 * width, np.float32)}
        block |= {"wo": matrix(width, width), "bo": zero, "ln2_g": one, "ln2_b": zero}
        block |= {"w1": matrix(width, 4 * width), "b1": np.zeros(4 * width, np.float32)}
        block |= {"w2": matrix(4 * width, width), "b2": zero}
        params |= {f"l{layer}_{name}": value for name, value in block.items()}
    return params


def convolution_params(draw, channels: tuple[int, int], hidden: int) -> dict[str, np.ndarray]:
    """Kernels from N(0, 2 / inputs) (He), biases 0. Two valid 3 x 3 convolutions leave 24 x 24 pixels, the pooling 12 x 12."""
    first, second = channels
    shapes = {"c1": (3, 3, 1, first), "c2": (3, 3, first, second), "d1": (144 * second, hidden), "d2": (hidden, CLASSES)}
    params: dict[str, np.ndarray] = {}
    for name, shape in shapes.items():
        kernel = np.sqrt(2.0 / np.prod(shape[:-1])) * draw.standard_normal(shape)
        params |= {f"{name}_w": kernel.astype(np.float32), f"{name}_b": np.zeros(shape[-1], np.float32)}
    return params


def prefixed(params: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"p/{name}": value for name, value in params.items()}


def write(directory: Path) -> dict[str, Path]:
    """Writes both works into a directory, where they are not there yet; returns their files by name."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = {"A": directory / "work.npz", "B": directory / "workB.npz"}
    for name, path in paths.items():
        if not path.exists():
            partial = path.with_suffix(".part.npz")
            arrays: dict = make_transformer_work() if name == "A" else make_convolution_work()
            np.savez(partial, **arrays)
            partial.rename(path)
            print(f"work {name}: {path}")
    return paths


def read(path: str | Path, name: str) -> Work:
    """Reads the file of work ``name``."""
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    params = {key.removeprefix("p/"): value for key, value in arrays.items() if key.startswith("p/")}
    columns = {key: arrays[key] for key in (("tokens",) if name == "A" else ("x", "y"))}
    return Work(name, columns, arrays["offsets"], arrays["cohorts"], params)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
