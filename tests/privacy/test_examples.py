"""What DP-SGD costs an example, against the accountant called by hand, for each way of making batches."""

import numpy as np
import pytest

from fedjax_tx import privacy
from fedjax_tx.types import LocalWork

DELTA = 1e-4


def spent(local, num_examples=40, rounds=3, noise=1.5, accountant="rdp"):
    return privacy.epsilon_of_examples(noise, local, num_examples, rounds, DELTA, accountant)


def test_drawn_batches_are_poisson_samples_in_every_step():
    drawn = LocalWork(batch_size=40, steps=10, expected_batch=4)
    assert spent(drawn) == privacy.epsilon(1.5, 0.1, 30, DELTA, "rdp")
    assert spent(drawn, num_examples=3) == privacy.epsilon(1.5, 1.0, 30, DELTA, "rdp")  # all of them, every time
    assert spent(drawn, rounds=0) == 0


@pytest.mark.parametrize(
    ("options", "appearances"),
    # 40 examples are 5 batches of 8: of 12 steps an example may see 3.
    [({"epochs": 2}, 2), ({"steps": 5}, 1), ({"steps": 6}, 2), ({"steps": 12}, 3), ({"steps": 5, "shuffle": False}, 1)],
)
def test_batches_of_epochs_cost_as_often_as_an_example_comes(options, appearances):
    assert spent(LocalWork(batch_size=8, **options)) == privacy.epsilon(1.5, 1.0, 3 * appearances, DELTA, "rdp")


def test_a_batch_with_less_room_than_examples_is_accounted_for_by_pld_alone():
    with pytest.raises(ValueError, match="accountant to be 'pld' where a batch has less room"):
        spent(LocalWork(batch_size=8, steps=10, expected_batch=4))
    with pytest.raises(TypeError, match=r"local.steps to be an integer, that of one client"):
        spent(LocalWork(batch_size=8, steps=np.array([1, 2])))


@pytest.mark.slow
def test_little_room_costs_more_and_large_room_nothing():
    def of_room(room):
        return spent(LocalWork(batch_size=room, steps=10, expected_batch=4), accountant="pld")

    assert of_room(6) > 1.05 * of_room(40)
    assert of_room(20) == pytest.approx(of_room(40), rel=1e-3)
    limits = {"population": 40, "max_clients": 6}
    assert of_room(6) == privacy.epsilon(1.5, 0.1, 30, DELTA, **limits)
