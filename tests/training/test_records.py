"""The files of a run directory: whole or not at all, and told by name when they are damaged."""

import errno
import math
import os

import numpy as np
import problems
import pytest
import runs

from fedjax_tx.training import records


def test_records_come_back_as_they_were(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first, second = {"round": 1, "train/loss": 0.1 + 0.2, "empty": False}, {"round": 2, "train/loss": math.nan}
    records.append_lines(path, [first])
    records.append_lines(path, [second])
    assert runs.same_record(records.read_lines(path)[0], first)
    assert runs.same_record(records.read_lines(path)[1], second)
    assert path.read_text().splitlines()[1] == '{"round": 2, "train/loss": null}'


def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    records.append_lines(path, [{"round": 1}, {"round": 2}])
    whole = path.read_bytes()
    for cut in range(len(whole) - len('{"round": 2}\n'), len(whole)):
        path.write_bytes(whole[:cut])
        assert records.read_lines(path) == [{"round": 1}]


def test_a_line_that_is_no_record_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for line in (b"{broken\n", b"\xff\xfe\n", b"3\n", b"\n"):
        path.write_bytes(b'{"round": 1}\n' + line + b'{"round": 3}\n')
        with pytest.raises(ValueError, match=r"expected line 2 of '.*metrics.jsonl' to be a record, but it is damaged"):
            records.read_lines(path)


def test_a_file_that_can_not_be_replaced_stays_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    records.write_json(path, {"a": 1})

    def full(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        records.write_json(path, {"a": 2})
    assert records.read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_not_there_holds_nothing(tmp_path):
    assert records.read_json(tmp_path / "none.json") is None
    assert records.read_lines(tmp_path / "none.jsonl") == []


def test_the_description_of_data_sees_another_row_another_split_and_another_type():
    data = problems.ragged_clients()
    told = [records.describe_data(data)]
    changed = data.columns["x"].copy()
    changed[7, 1] += 1
    other = [
        {**data.columns, "x": changed},
        {**data.columns, "x": data.columns["x"].astype(np.float64)},
        {name: column for name, column in data.columns.items() if name != "row"},
    ]
    told += [records.describe_data(type(data)(columns, data.offsets, data.client_ids)) for columns in other]
    told.append(records.describe_data(problems.ragged_clients((5, 0, 1, 9, 4, 6))))
    assert len({str(one) for one in told}) == len(told)
    assert records.describe_data(problems.ragged_clients()) == told[0]


def test_a_refusal_lists_five_fields_and_counts_the_rest(tmp_path):
    there, here = {f"f{number}": 0 for number in range(7)}, {f"f{number}": 1 for number in range(7)}
    with pytest.raises(ValueError, match=r"f0 is 0 there and 1 here; .*f4 is 0 there and 1 here; and 2 more$"):
        records.refuse_other(tmp_path, there, here)
