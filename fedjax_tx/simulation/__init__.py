"""The one executor for training, evaluation and statistics."""

from fedjax_tx.simulation.evaluate import make_evaluation, summarise
from fedjax_tx.simulation.experiment import Experiment
from fedjax_tx.simulation.rounds import RoundFunction, RoundInfo, RoundState, make_round

__all__ = ["Experiment", "RoundFunction", "RoundInfo", "RoundState", "make_evaluation", "make_round", "summarise"]
