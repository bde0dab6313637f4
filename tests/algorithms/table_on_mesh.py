# ruff: noqa: E402  two devices come before all else
"""Whether the rows of the table of algorithms are on two devices what they are on one; run by ``test_algorithm_properties.py``.

With names of rows as arguments it looks at these alone. Prints a JSON dict: of each row, whether it is.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(Path(__file__).parent), str(ROOT)]

import jax

jax.config.update("jax_num_cpu_devices", 2)

from test_algorithm_properties import TABLE, close, experiment, rounds_of


def same(row) -> bool:
    """Whether server and clients come out alike of one device with two lanes and of two with one."""
    one, both = (rounds_of(experiment(row), num_lanes=lanes, mesh=mesh)[1].device for lanes, mesh in ((2, None), (1, MESH)))
    return close(one, both)


if __name__ == "__main__":
    MESH = jax.sharding.Mesh(jax.devices(), ("clients",))
    print(json.dumps({name: same(TABLE[name]) for name in sys.argv[1:] or TABLE}))
