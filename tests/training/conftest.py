"""Runs that several tests compare with."""

import pytest
import runs


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """A run of eleven rounds that nothing interrupted, and its directory."""
    directory = tmp_path_factory.mktemp("runs") / "whole"
    return runs.run(runs.ROUNDS, directory), directory


@pytest.fixture(scope="session")
def stopped(tmp_path_factory):
    """The directory of such a run with a checkpoint after each round, as it was after eight of them."""
    directory = tmp_path_factory.mktemp("runs") / "stopped"
    runs.run(8, directory, checkpoint_every=1)
    return directory
