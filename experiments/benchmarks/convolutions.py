"""How much sooner is a convolution of 3 x 3 by tiles than XLA's direct one, and what does its rounding cost?

Question: on which images and channels does ``models/winograd.py`` pay on a CPU? Each row is one layer of a network: its output
and the gradients by its input and by its kernel, in float32, with stride 1 and without padding, as one jitted program. Both ways
take turns; ratios are within a turn. Rounding is the largest error of the kernel's gradient against NumPy's in float64, over that
gradient's standard deviation.

Command: taskset -c 0 python experiments/benchmarks/convolutions.py
Time: 15 seconds on one CPU core. Score: the table it prints.
"""

import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import lax

from fedjax_tx.models import winograd

# (batch, side of the image, channels in, channels out): from few channels to many, and from large images to small
SHAPES = (
    *((20, 28, 3, 32), (20, 26, 32, 64), (20, 34, 16, 16), (20, 18, 32, 32), (20, 10, 64, 64), (20, 6, 128, 128)),
    *((4, 66, 8, 16), (8, 16, 64, 128), (100, 12, 32, 64)),
)


@dataclass(frozen=True)
class Settings:
    """What is measured.

    shapes: (batch, side, channels in, channels out) of each layer. repeats: turns; the median is shown, and the lowest and
    highest. calls: in a row, a turn. smoke: one small layer, two turns. out: a JSON file for the figures.
    """

    shapes: tuple[tuple[int, int, int, int], ...] = SHAPES
    repeats: int = 11
    calls: int = 5
    smoke: bool = False
    out: Path | None = None


def convolve_directly(x, kernel):
    """XLA's own convolution."""
    return lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))


WAYS: dict[str, Callable] = {"direct": convolve_directly, "by tiles": winograd.convolve_by_tiles}


def make_layer(convolve: Callable) -> Callable:
    """Returns ``layer(x, kernel, slope) -> (y, gradient by x, gradient by the kernel)``."""

    @jax.jit
    def layer(x, kernel, slope):
        y, pull_back = jax.vjp(convolve, x, kernel)
        return y, *pull_back(slope)

    return layer


def draw(shape: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An image, a kernel and a slope of the output, standard normal."""
    batch, side, inputs, outputs = shape
    generator = np.random.default_rng(0)
    shapes = (batch, side, side, inputs), (3, 3, inputs, outputs), (batch, side - 2, side - 2, outputs)
    image, kernel, slope = (generator.standard_normal(size, dtype=np.float32) for size in shapes)
    return image, kernel, slope


def exact_gradient(x: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """The gradient by the kernel, in float64."""
    rows, columns = slope.shape[1:3]
    parts = [[x[:, i : i + rows, j : j + columns] for j in range(3)] for i in range(3)]
    wide = slope.astype(np.float64)
    return np.array([[np.tensordot(part.astype(np.float64), wide, ((0, 1, 2), (0, 1, 2))) for part in row] for row in parts])


def measure(settings: Settings, shape: tuple[int, int, int, int]) -> dict[str, Any]:
    """Milliseconds of a layer by way and turn, and each way's rounding."""
    given = draw(shape)
    exact = exact_gradient(given[0], given[2])
    arrays, layers = tuple(map(jnp.asarray, given)), {name: make_layer(convolve) for name, convolve in WAYS.items()}
    gradients = {name: np.asarray(layer(*arrays)[2], np.float64) for name, layer in layers.items()}
    rounding = {name: float(np.abs(gradient - exact).max() / exact.std()) for name, gradient in gradients.items()}
    milliseconds: dict[str, list[float]] = {name: [] for name in layers}
    for _ in range(settings.repeats):
        for name, layer in layers.items():
            began = time.process_time()
            for _ in range(settings.calls):
                jax.block_until_ready(layer(*arrays))
            milliseconds[name].append(1e3 * (time.process_time() - began) / settings.calls)
    return {"shape": shape, "milliseconds": milliseconds, "rounding": rounding}


def main(settings: Settings) -> list[dict[str, Any]]:
    """Measures and prints the table."""
    if settings.smoke:
        settings = Settings(((2, 8, 3, 4),), 2, 1, True, settings.out)
    figures = [measure(settings, shape) for shape in settings.shapes]
    print(f"\n{platform.machine()}, {jax.devices()[0].platform}, {settings.repeats} turns\n")
    print("| batch, side, channels in, out | direct, ms | by tiles, ms | times as soon | rounding, direct | by tiles |")
    print("|---|---|---|---|---|---|")
    for found in figures:
        direct, tiles = (np.array(found["milliseconds"][name]) for name in WAYS)
        ratio = direct / tiles
        print(
            f"| {', '.join(map(str, found['shape']))} | {np.median(direct):.2f} | {np.median(tiles):.2f} "
            f"| {np.median(ratio):.2f} ({ratio.min():.2f}–{ratio.max():.2f}) "
            f"| {found['rounding']['direct']:.1e} | {found['rounding']['by tiles']:.1e} |"
        )
    if settings.out is not None:
        settings.out.write_text(json.dumps(figures, indent=2))
    return figures


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
