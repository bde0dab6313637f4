"""Training metrics with noise: what clients report of their training is clipped, summed and noised as their updates are.

A loss that a client reports tells of its data as an update does, and an epsilon that was computed for the updates says nothing of
it. With private metrics a client sends, beside its update, each of its d metrics as a number from -1 to 1 over sqrt(d):

    v_k = (2 clip(metric_k, 0, max_metric) / max_metric - 1) / sqrt(d),

a vector of norm 1 at most. The server divides the sum over those who came by a number that does not depend on who came, and
adds Gaussian noise, correlated over rounds if that of the updates is; nothing else of the metrics leaves the clients. Of the
update and this vector together the noise multiplier is z / sqrt(1 + 1 / metrics_noise^2), z that of the update and metrics_noise
times z that of the vector: it is what is accounted for.

What is read off in the end is a mean over clients, each of which counts once (and who did not come as if in the middle of the
range), with noise of standard deviation metrics_noise z sqrt(d) max_metric / (2 expected_clients) if it is new in each round.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from fedjax_tx import check
from fedjax_tx.aggregation import chain, clip_norm, correlated_noise, fixed_mean, gaussian_noise, parts
from fedjax_tx.types import FederatedAlgorithm, Metrics, Pass


def with_private_metrics(
    algorithm: FederatedAlgorithm, expected_clients: float, *, max_metric: float = 10.0, metrics_noise: float = 5.0
) -> FederatedAlgorithm:
    """Returns the algorithm whose clients report their metrics through noise only: ``train/private_loss`` and the like.

    ``ftx.run(..., privacy=Budget(..., private_metrics=True))`` does this; it is for loops of your own. The means are among what
    the server reports, and ``info.metrics`` is empty.

    Args:
      algorithm: of one pass, whose aggregate has noise.
      expected_clients: > 0, how many clients a round is expected to have, by its sampling and not by its data.
      max_metric: > 0; a metric counts as 0 below 0, and as this beyond it or where it is not a number.
      metrics_noise: > 0, the noise multiplier of the metrics over that of the updates.

    Errors: ``ValueError`` for an algorithm of several passes or without noise, or metrics that are no scalars.

    Example:
      >>> import fedjax_tx as ftx, optax
      >>> task = ftx.tasks.next_token(ftx.models.decoder(vocab_size=8, num_layers=1, num_heads=1, width=8, max_length=4))
      >>> private = ftx.aggregation.chain(
      ...     ftx.aggregation.clip_norm(1.0), ftx.aggregation.fixed_mean(10), ftx.aggregation.gaussian_noise(1.0))
      >>> algorithm = with_private_metrics(ftx.algorithms.fed_avg(task, optax.sgd(0.1), aggregator=private), 10)
      >>> round(algorithm.passes[0].aggregator.noise_multiplier, 3)  # 1 / sqrt(1 + 1 / 25)
      0.981
    """
    check.instance("algorithm", algorithm, FederatedAlgorithm, "a FederatedAlgorithm")
    check.number("expected_clients", expected_clients, above=0)
    check.number("max_metric", max_metric, above=0)
    check.number("metrics_noise", metrics_noise, above=0)
    if len(algorithm.passes) != 1:
        check.fail_value("algorithm", "to have one pass", f"{len(algorithm.passes)} passes")
    (a_pass,) = algorithm.passes
    noise, factorization = a_pass.aggregator.noise_multiplier, a_pass.aggregator.factorization
    if noise is None:
        check.fail_value("algorithm", "to have noise on its aggregate", a_pass.aggregator.name)
    strength = metrics_noise * noise
    hiding = gaussian_noise(strength) if factorization is None else correlated_noise(strength, factorization)
    reported = chain(clip_norm(1.0), fixed_mean(expected_clients), hiding)
    aggregator = parts(update=a_pass.aggregator, metrics=reported)
    return algorithm._replace(passes=(_report_through(a_pass, max_metric)._replace(aggregator=aggregator),))


def _report_through(a_pass: Pass, max_metric: float) -> Pass:
    """The pass, its metrics beside its update; the aggregator is still that of the update alone."""

    def finish(broadcast, info, local):
        result = a_pass.trainer.finish(broadcast, info, local)
        return result._replace(update={"update": result.update, "metrics": _to_ball(result.metrics, max_metric)}, metrics={})

    def combine(state, aggregate, key):
        state, said = a_pass.combine(state, aggregate["update"], key)
        return state, {**said, **_from_ball(aggregate["metrics"], max_metric)}

    def travels(broadcast, sent):
        down, up = a_pass.travels(broadcast, sent.parts["update"])
        return down, (up, sent.parts["metrics"])

    return a_pass._replace(trainer=a_pass.trainer._replace(finish=finish), combine=combine, travels=travels)


def _to_ball(metrics: Metrics, max_metric: float) -> dict[str, Array]:
    """Metrics as a vector of norm 1 at most; one that has no weight is in the middle."""
    for name, (value, _) in metrics.items():
        if np.ndim(value):
            check.fail_value(f"the metric {name!r}", "to be a scalar where metrics are private", f"shape {np.shape(value)}")

    def scaled(value, weight):
        share = jnp.clip(jnp.nan_to_num(value, nan=max_metric), 0, max_metric) / max_metric
        return jnp.where(weight > 0, 2 * share - 1, 0) / len(metrics) ** 0.5

    return {name: scaled(*pair) for name, pair in metrics.items()}


def _from_ball(means: dict[str, Array], max_metric: float) -> dict[str, Array]:
    """What the server reports of the noised means, under the names of training metrics."""
    return {f"train/private_{name}": (len(means) ** 0.5 * mean + 1) / 2 * max_metric for name, mean in means.items()}
