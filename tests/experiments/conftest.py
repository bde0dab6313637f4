"""Experiments are scripts: they are found by path, as ``python experiments/NAME.py`` finds what stands beside them."""

import sys
from pathlib import Path

EXPERIMENTS = Path(__file__).parent.parent.parent / "experiments"
sys.path[:0] = [str(EXPERIMENTS), str(EXPERIMENTS / "benchmarks"), str(EXPERIMENTS / "benchmarks" / "peers")]
