"""The presidents' messages: how they are split, what a label follows from, what is refused."""

import numpy as np
import pytest

import fedjax_tx as ftx
from fedjax_tx.data.sources import presidents


def count_words(texts):
    return {"words": np.array([len(text.split()) for text in texts], np.int32)}


@pytest.fixture(scope="module")
def splits():
    return ftx.data.load("presidents", encode=count_words)


def test_no_address_is_in_two_sets_and_none_is_lost(splits):
    passages = presidents.read_passages()
    addresses = [set(zip(data.columns["year"], data.columns["address"], strict=True)) for data in splits[:3]]
    assert splits.report == {"passages": 20_323, "addresses": 237, "train": 13_842, "test": 3_826, "unseen": 2_655}
    assert len(passages) == sum(data.num_examples for data in splits[:3]) == 20_323
    assert sum(map(len, addresses)) == len({passage.address for passage in passages}) == 237


def test_the_last_address_of_each_president_is_test(splits):
    train, test = splits.train, splits.test
    assert train.client_ids.tolist() == test.client_ids.tolist()
    for client in range(test.num_clients):
        held_out = test.client(client)
        assert len(set(held_out["address"])) == 1
        assert train.client(client)["year"].max() <= held_out["year"].min()


def test_unseen_presidents_are_of_all_periods(splits):
    assert set(splits.unseen.client_ids) == {*presidents.UNSEEN_PRESIDENTS, "Zachary Taylor"}
    assert not set(splits.unseen.client_ids) & set(splits.train.client_ids)
    assert set(splits.unseen.columns["period"]) == set(range(6))


def test_a_period_follows_from_the_year(splits):
    first = np.array([*presidents.PERIODS, 3000])
    for data in splits[:3]:
        year, period = data.columns["year"], data.columns["period"]
        assert (first[period] <= year).all() and (year < first[period + 1]).all()


def test_each_client_holds_one_period_or_two_and_all_parts_alike(splits):
    for client in range(splits.train.num_clients):
        columns = splits.train.client(client)
        assert len(set(columns["period"])) <= 2
        shares = np.bincount(columns["part"], minlength=3) / len(columns["part"])
        assert np.abs(shares - 1 / 3).max() < 0.1


def test_passages_are_long_lines_without_digits_other_than_0(splits):
    assert min(data.columns["words"].min() for data in splits[:3]) >= presidents.MIN_WORDS
    texts = [passage.text for passage in presidents.read_passages()]
    assert not any(set("123456789\n") & set(text) for text in texts)
    assert any("0000" in text for text in texts)


def test_an_address_is_cut_in_three_in_the_order_of_its_words():
    first = presidents.read_passages()[0].address
    passages = [passage for passage in presidents.read_passages() if passage.address == first]
    parts = [passage.part for passage in passages]
    assert parts == sorted(parts)
    assert max(np.bincount(parts)) - min(np.bincount(parts)) <= 1
    assert passages[0].text.startswith("I embrace with great satisfaction")


@pytest.mark.parametrize(
    ("encode", "error", "message"),
    [
        ("tokenizer", TypeError, "encode to be a function"),
        (lambda texts: {"period": np.zeros(len(texts))}, ValueError, "no column of ours .*, got 'period'"),
        (lambda texts: {"words": np.zeros(3)}, ValueError, r"column 'words' of encode .*rows, got 3"),
    ],
)
def test_what_is_refused(encode, error, message, unchecked):
    with pytest.raises(error, match=message):
        presidents.load(encode)
