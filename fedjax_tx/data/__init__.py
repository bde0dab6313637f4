"""Clients' data: federated data sets, cohorts, schedules, sources."""

from fedjax_tx.data.audio import log_mel
from fedjax_tx.data.available import available_cohorts
from fedjax_tx.data.classes import class_counts, oversample_classes, sample_classes
from fedjax_tx.data.clock import async_cohorts
from fedjax_tx.data.cohort import (
    all_clients,
    fixed_cohorts,
    poisson_cohorts,
    uniform_cohorts,
    weighted_cohorts,
    with_covariates,
)
from fedjax_tx.data.description import describe
from fedjax_tx.data.federated import FederatedDataset, FederatedSplits
from fedjax_tx.data.formats.clients import from_clients
from fedjax_tx.data.formats.fedjax_sqlite import from_fedjax_sqlite
from fedjax_tx.data.formats.folders import from_folders
from fedjax_tx.data.formats.hugging_face import from_hugging_face
from fedjax_tx.data.formats.leaf import from_leaf
from fedjax_tx.data.formats.pandas_frames import from_pandas
from fedjax_tx.data.formats.parquet import from_parquet
from fedjax_tx.data.formats.splits import make_splits
from fedjax_tx.data.formats.tfds import from_tfds
from fedjax_tx.data.formats.tff_hdf5 import from_tff_hdf5
from fedjax_tx.data.loading import load
from fedjax_tx.data.partition import (
    partition_by,
    partition_dirichlet,
    partition_features,
    partition_iid,
    partition_quantity,
    partition_shards,
)
from fedjax_tx.data.parts import gather_parts, take_part
from fedjax_tx.data.power_of_choice import power_of_choice_cohorts
from fedjax_tx.data.rows import concatenate, keep_rows, row_clients, split_rows
from fedjax_tx.data.separated import separated_cohorts
from fedjax_tx.data.tokens import count_tokens, encode_texts, load_tokenizer
from fedjax_tx.data.uneven import with_deadline, with_dropout, with_stragglers
from fedjax_tx.types import LocalWork

__all__ = [
    "FederatedDataset",
    "FederatedSplits",
    "LocalWork",
    "all_clients",
    "async_cohorts",
    "available_cohorts",
    "class_counts",
    "concatenate",
    "count_tokens",
    "describe",
    "encode_texts",
    "fixed_cohorts",
    "from_clients",
    "from_fedjax_sqlite",
    "from_folders",
    "from_hugging_face",
    "from_leaf",
    "from_pandas",
    "from_parquet",
    "from_tfds",
    "from_tff_hdf5",
    "gather_parts",
    "keep_rows",
    "load",
    "load_tokenizer",
    "log_mel",
    "make_splits",
    "oversample_classes",
    "partition_by",
    "partition_dirichlet",
    "partition_features",
    "partition_iid",
    "partition_quantity",
    "partition_shards",
    "poisson_cohorts",
    "power_of_choice_cohorts",
    "row_clients",
    "sample_classes",
    "separated_cohorts",
    "split_rows",
    "take_part",
    "uniform_cohorts",
    "weighted_cohorts",
    "with_covariates",
    "with_deadline",
    "with_dropout",
    "with_stragglers",
]
