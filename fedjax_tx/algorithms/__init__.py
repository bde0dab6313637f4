"""Federated methods, one file a paper."""

from fedjax_tx.algorithms.agnostic import agnostic
from fedjax_tx.algorithms.apfl import apfl
from fedjax_tx.algorithms.ccvr import ccvr
from fedjax_tx.algorithms.delayed_nesterov import delayed_nesterov
from fedjax_tx.algorithms.diloco import diloco
from fedjax_tx.algorithms.ditto import ditto
from fedjax_tx.algorithms.dp_sgd import dp_sgd
from fedjax_tx.algorithms.fed_ac import fed_ac
from fedjax_tx.algorithms.fed_async import fed_async
from fedjax_tx.algorithms.fed_avg import fed_avg
from fedjax_tx.algorithms.fed_babu import fed_babu
from fedjax_tx.algorithms.fed_buff import fed_buff
from fedjax_tx.algorithms.fed_dyn import fed_dyn
from fedjax_tx.algorithms.fed_ex_lora import fed_ex_lora
from fedjax_tx.algorithms.fed_exp import fed_exp
from fedjax_tx.algorithms.fed_nova import fed_nova
from fedjax_tx.algorithms.fed_opt import fed_adagrad, fed_adam, fed_ams, fed_avgm, fed_yogi
from fedjax_tx.algorithms.fed_per import fed_per
from fedjax_tx.algorithms.fed_prox import adaptive_fed_prox, fed_prox
from fedjax_tx.algorithms.fed_rep import fed_rep
from fedjax_tx.algorithms.fed_sam import fed_sam
from fedjax_tx.algorithms.fine_tune import fine_tune
from fedjax_tx.algorithms.fit_temperature import fit_temperature
from fedjax_tx.algorithms.het_lora import het_lora
from fedjax_tx.algorithms.ifca import ifca
from fedjax_tx.algorithms.mime import mime, mime_lite
from fedjax_tx.algorithms.moon import moon
from fedjax_tx.algorithms.p_fed_me import p_fed_me
from fedjax_tx.algorithms.per_fed_avg import per_fed_avg, per_fed_avg_fo, per_fed_avg_hf
from fedjax_tx.algorithms.q_fed_avg import q_fed_avg
from fedjax_tx.algorithms.reptile import reptile
from fedjax_tx.algorithms.scaffold import scaffold
from fedjax_tx.algorithms.server import optax_server

__all__ = [
    "adaptive_fed_prox",
    "agnostic",
    "apfl",
    "ccvr",
    "delayed_nesterov",
    "diloco",
    "ditto",
    "dp_sgd",
    "fed_ac",
    "fed_adagrad",
    "fed_adam",
    "fed_ams",
    "fed_async",
    "fed_avg",
    "fed_avgm",
    "fed_babu",
    "fed_buff",
    "fed_dyn",
    "fed_ex_lora",
    "fed_exp",
    "fed_nova",
    "fed_per",
    "fed_prox",
    "fed_rep",
    "fed_sam",
    "fed_yogi",
    "fine_tune",
    "fit_temperature",
    "het_lora",
    "ifca",
    "mime",
    "mime_lite",
    "moon",
    "optax_server",
    "p_fed_me",
    "per_fed_avg",
    "per_fed_avg_fo",
    "per_fed_avg_hf",
    "q_fed_avg",
    "reptile",
    "scaffold",
]
