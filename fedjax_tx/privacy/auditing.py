"""What noise really hides: lower bounds on epsilon that are measured on canaries, by the library jax-privacy.

An accountant's epsilon is an upper bound, of the mechanism as it is meant. An audit's is a lower bound, of the program as it is:
a *canary* takes part or does not, and who guesses well which of the two has refuted every smaller epsilon. Where the lower bound
exceeds what is claimed, the program is wrong, but for a chance of 1 - confidence. Where it does not, nothing is proved: a better
canary or guesser may do more, and a finite number of trials can't show an epsilon much above the logarithm of that number.

Two ways to a bound. ``"clopper_pearson"`` (arXiv 2101.04535): each score is of an independent run with or without one canary.
``"one_run"`` (arXiv 2305.08846): all scores are of a single run in which each canary took part by the toss of a coin. For both
the threshold between "in" and "out" is chosen on a quarter of the scores, and the bound is made of the others.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from fedjax_tx import check, prng, tree
from fedjax_tx.aggregation import check_complete
from fedjax_tx.aggregation.apply import aggregate_arrays
from fedjax_tx.privacy.accounting import INSTALL, epsilon, epsilon_of_correlated_noise
from fedjax_tx.types import Aggregator, PyTree

CANARY_WEIGHT = 1e9
"""Of a canary, as it were a client of so many examples: a bound on weights must hold for the heaviest."""
METHODS = ("clopper_pearson", "one_run")
CHOOSING = 0.25  # the share of scores that choose the threshold
LEAST_SCORES = 4  # on either side: one of them chooses it
NUMBERS_AT_ONCE = 1_000_000  # of all updates of the trials that run side by side


class Audit(NamedTuple):
    """What an audit found.

    epsilon: the lower bound at ``delta``, which holds with the given ``confidence``. claimed: the accountant's epsilon, inf where
    there is no noise. scores_in, scores_out: of canaries that took part, and of those that did not.
    """

    epsilon: float
    claimed: float
    delta: float
    confidence: float
    scores_in: Float[np.ndarray, " canary"]
    scores_out: Float[np.ndarray, " canary"]

    @property
    def refuted(self) -> bool:
        """Whether the claim can't be true (but for a chance of 1 - confidence)."""
        return self.epsilon > self.claimed


def epsilon_lower_bound(
    scores_in: ArrayLike, scores_out: ArrayLike, delta: float, *, method: str = "one_run", confidence: float = 0.95
) -> float:
    """Returns the largest epsilon, at ``delta``, that the scores refute, 0 if they refute none.

    Args:
      scores_in, scores_out: [canary], four or more finite numbers each, of canaries that took part and of those that did not;
        larger where one seems to have taken part.
      delta: between 0 and 1. method: ``"one_run"`` or ``"clopper_pearson"``, by how the scores were made; see the module.
      confidence: between 0.5 and 1, the chance that the bound holds.

    Raises:
      TypeError, ValueError: if an argument is of the wrong type or out of range.
      ModuleNotFoundError: if ``jax-privacy`` is not installed.

    Example:
      >>> round(epsilon_lower_bound([1.0] * 100, [0.0] * 100, delta=1e-9), 2)
      3.2
    """
    inside, outside = _scores("scores_in", scores_in), _scores("scores_out", scores_out)
    check.number("delta", delta, above=0, below=1)
    check.one_of("method", method, METHODS)
    check.number("confidence", confidence, above=0.5, below=1)
    auditing = _library()
    auditor = auditing.CanaryScoreAuditor(inside, outside)
    bound = {"one_run": auditor.epsilon_one_run, "clopper_pearson": auditor.epsilon_clopper_pearson}[method]
    return float(bound(1 - confidence, delta, threshold_strategy=auditing.Split(CHOOSING, seed=0)))


def audit_aggregator(
    aggregator: Aggregator,
    canary: PyTree,
    delta: float,
    *,
    clients: int = 2,
    trials: int = 100_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Audit:
    """Audits an aggregator alone: does it hide whether one client more was there, as well as its noise multiplier claims?

    A trial is a first round to which some clients come who send zeros, and in every other trial one more who sends the canary, of
    a weight beyond all bounds (the others have weight 1): noise must hide it whatever number of examples it says it has.
    Its score is the aggregate's coordinate along the canary; with Gaussian noise no other would tell more. The claim is the
    accountant's epsilon of one round to which all come.

    Args:
      aggregator: with noise, such as ``chain(clip_norm(1.0), fixed_mean(10), gaussian_noise(1.0))``.
      canary: the worst update, a pytree of floating-point arrays: as a rule one-hot and longer than what updates are clipped to.
      delta: between 0 and 1. clients: >= 1, who come beside the canary. trials: >= 8. confidence: of the bound, 0.5 to 1.
      seed: names the noise.

    Raises:
      TypeError, ValueError: if an argument is of the wrong type or out of range.
      ModuleNotFoundError: if ``jax-privacy`` or ``dp-accounting`` is not installed.

    Example:
      >>> import fedjax_tx as ftx
      >>> noisy = ftx.aggregation.chain(
      ...     ftx.aggregation.clip_norm(1.0), ftx.aggregation.fixed_mean(3), ftx.aggregation.gaussian_noise(1.0))
      >>> found = audit_aggregator(noisy, {"w": jnp.array([9.0, 0.0])}, delta=1e-5, trials=2_000)
      >>> 0.5 < found.epsilon < found.claimed
      True
    """
    check_complete("aggregator", aggregator)
    canary = _canary(canary)
    check.number("delta", delta, above=0, below=1)
    clients = check.integer("clients", clients, low=1)
    trials = check.integer("trials", trials, low=2 * LEAST_SCORES)
    check.number("confidence", confidence, above=0.5, below=1)
    key = prng.fold(prng.root(check.integer("seed", seed, low=0, high=2**32 - 1)), "audit")
    scores = np.asarray(_trials(aggregator, canary, clients, trials, key))
    inside, outside = scores[0::2], scores[1::2]
    bound = epsilon_lower_bound(inside, outside, delta, method="clopper_pearson", confidence=confidence)
    return Audit(bound, _claimed(aggregator, delta), delta, confidence, inside, outside)


def _claimed(aggregator: Aggregator, delta: float) -> float:
    """The accountant's epsilon of a first round to which all come."""
    noise = aggregator.noise_multiplier
    if noise is None:
        return math.inf
    if aggregator.factorization is not None:
        return epsilon_of_correlated_noise(float(noise), aggregator.factorization, 1, delta)
    return epsilon(float(noise), sampling_rate=1.0, rounds=1, delta=delta)


def _trials(aggregator: Aggregator, canary: PyTree, clients: int, trials: int, key):
    """The scores [trial]; in those of even number the canary takes part."""
    structure = tree.Structure.of(canary)
    direction = structure.ravel(canary)
    direction = direction / jnp.linalg.norm(direction)
    updates = jax.tree.map(lambda leaf: jnp.zeros((clients + 1, *leaf.shape), leaf.dtype).at[0].set(leaf), canary)

    def score(trial):
        takes_part = trial % 2 == 0
        weights = jnp.ones(clients + 1).at[0].set(jnp.where(takes_part, CANARY_WEIGHT, 0))
        aggregate, _, _ = aggregate_arrays(aggregator, updates, weights, None, prng.fold(key, trial))
        return structure.ravel(aggregate) @ direction

    side_by_side = max(1, min(trials, NUMBERS_AT_ONCE // ((clients + 1) * structure.size)))
    return jax.jit(lambda numbers: jax.lax.map(score, numbers, batch_size=side_by_side))(jnp.arange(trials))


def _canary(canary: PyTree) -> PyTree:
    leaves = jax.tree.leaves(canary)
    if not leaves or not all(jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in leaves):
        check.fail_type("canary", "a pytree of floating-point arrays", canary)
    length = np.sqrt(sum(np.square(np.asarray(leaf, np.float64)).sum() for leaf in leaves))
    if not 0 < length < math.inf:
        check.fail_value("canary", "to have a norm that is finite and > 0", float(length))
    return jax.tree.map(jnp.asarray, canary)


def _scores(name: str, scores: ArrayLike) -> np.ndarray:
    array = np.asarray(scores)
    if array.dtype.kind not in "iuf":
        check.fail_type(name, "an array of numbers, one for each canary", scores)
    if array.ndim != 1 or array.size < LEAST_SCORES:
        check.fail_value(name, f"to have shape [canary] with {LEAST_SCORES} canaries or more", array.shape)
    if not np.isfinite(array).all():
        check.fail_value(name, "to be finite", float(array[~np.isfinite(array)][0]))
    return array.astype(np.float64)


def _library():
    try:
        from jax_privacy import auditing
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"expected jax-privacy, which makes the bounds: {INSTALL}") from error
    return auditing
