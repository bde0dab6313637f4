"""A mesh never changes what is computed; JAX has one device here, so ``mesh_runs.py`` computes in a process with eight."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

METHODS = ["mean", "error feedback"]  # a sum, client states in a chain
MORE_METHODS = ["mime", "median", "attacked", "noise", "scaffold", "ditto", "fed_buff", "fed_lc"]


def tell(*names):
    script = Path(__file__).parent / "mesh_runs.py"
    done = subprocess.run([sys.executable, str(script), *names], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def told():
    return tell()


@pytest.mark.parametrize("method", [*METHODS, "integers"])
def test_rounds_over_a_mesh_are_those_of_one_device(told, method):
    # Rounds of 6 clients, of 3 and of none; states, parameters and every client's metrics.
    assert max(told["methods"][method]["apart"]) < 1
    assert told["methods"].keys() == {*METHODS, "integers"}


@pytest.mark.slow
@pytest.mark.parametrize("method", MORE_METHODS)
def test_rounds_of_more_methods_over_a_mesh_are_those_of_one_device(method):
    methods = tell(method)["methods"]
    assert methods.keys() == {method}
    assert max(methods[method]["apart"]) < 1
    assert methods[method]["moved"] > 0.01


def test_sums_of_integers_over_a_mesh_are_those_of_one_device_bit_for_bit(told):
    assert told["methods"]["integers"]["apart"] == [0.0]


@pytest.mark.parametrize("method", METHODS)
def test_the_rounds_compared_train(told, method):
    assert told["methods"][method]["moved"] > 0.01


def test_lanes_halve_on_each_device_when_its_own_run_dry(told):
    for devices, name in ((2, "two"), (8, "eight")):
        narrow, ticks = told["tapers"][name]["narrow"], told["tapers"][name]["ticks"]
        assert len(narrow) == devices and len(set(zip(narrow, ticks, strict=True))) > 1
        assert all(0 < first <= last for first, last in zip(narrow, ticks, strict=True))
    assert told["tapers"]["two"]["apart"] < 1
    assert told["tapers"]["eight"]["apart"] == 0  # sums of integers


def test_client_states_come_back_bit_for_bit(told):
    # Keys, flags, small integers, and floats that adding zero would change.
    assert told["kept"]["same"]
    assert told["kept"]["change"]  # from round to round
    assert len(told["kept"]["leaves"]) == 5


def test_evaluations_over_a_mesh_are_those_of_one_device(told):
    assert max(told["evaluations"][name] for name in ("same", "less")) < 1
    assert {"['loss'][0]", "['recall'].value", "['global_calibration_error'].weight"} <= set(told["evaluations"]["names"])


def test_data_in_host_memory_gives_what_it_gives_on_the_devices_of_a_mesh_bit_for_bit(told):
    assert told["placements"] == {"apart": 0.0, "same": True}


def test_data_lies_in_the_memory_of_a_cpu_once_for_all_its_devices(told):
    once = {"places": 1, "same": True, "type": "float32", "in place": False}
    assert told["copies"]["as it lies right"] == once | {"in place": True}
    assert told["copies"]["elsewhere"] == once
    assert told["copies"]["of another type"] == once | {"type": "int32"}
    assert told["copies"]["small"]["same"]


def test_a_run_resumed_on_the_same_mesh_is_the_uninterrupted_one_bit_for_bit(told):
    assert told["resumed"]["same"] == {"same": True, "apart": 0.0}


def test_a_run_resumed_on_another_mesh_is_the_same_to_tolerance(told):
    assert told["resumed"]["another"]["apart"] < 1


def test_the_second_call_over_a_mesh_compiles_nothing(told):
    assert told["executions"]["compiled"] == 0


def test_lanes_are_counted_by_device_and_chosen_by_measuring(told):
    lanes, devices = told["executions"]["auto"]
    assert devices == 2 and lanes in (1, 2)


def test_by_default_all_local_devices_share_the_lanes(told):
    # Six clients over eight devices: one lane each, whatever was asked for; the state is on all of them.
    assert told["executions"]["all"] == [8, 1, 8]
    assert 0 < told["executions"]["useful"] <= 1


def test_debugging_runs_on_one_device_and_one_lane(told):
    assert told["executions"]["debug"] == [True, 1]
