"""Settings spread over the devices of a mesh are their single runs; ``sweep_runs.py`` computes in a process with eight."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def told():
    script = Path(__file__).parent / "sweep_runs.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("mesh", ["two, three a device", "two, one a device", "eight"])
def test_five_settings_over_a_mesh_are_their_single_runs(told, mesh):
    assert told[mesh] < 1
    assert told["differ"] > 0.01


def test_settings_are_dealt_out_evenly_and_no_device_stands_idle_by_choice(told):
    # Five settings: one on each of five devices; on two devices three each, the last of them again.
    assert told["lie"] == [[5, 1, 1], [2, 1, 3]]


def test_a_sweep_goes_on_on_another_mesh(told):
    assert told["resumed"]["begun"] == [[[0, 1, 2, 3, 4], 5]]  # one of them was not done
    assert told["resumed"]["apart"] < 1
