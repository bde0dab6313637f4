"""Spoken digits through tensorflow-datasets' data sources, on a made data set of the same features."""

import numpy as np
import pytest

import fedjax_tx as ftx
from fedjax_tx.data.sources import spoken_digits


@pytest.fixture(scope="module")
def builder(tmp_path_factory):
    return spoken_digits.made_digits(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def splits(builder):
    return ftx.data.load("spoken_digits", name_or_builder=builder, unseen=["eve"], seconds=0.5)


def recordings():
    return list(spoken_digits._make_recordings(["ann", "bob", "eve"], 7))


def test_speakers_are_clients_and_the_first_five_recordings_of_a_digit_are_test(splits):
    assert splits.train.client_ids.tolist() == splits.test.client_ids.tolist() == ["ann", "bob"]
    assert splits.unseen.client_ids.tolist() == ["eve"]
    for data, numbers in ((splits.train, [5, 6]), (splits.test, [0, 1, 2, 3, 4]), (splits.unseen, list(range(7)))):
        for client in range(data.num_clients):
            own = data.client(client)
            assert sorted(zip(own["number"].tolist(), own["y"].tolist(), strict=True)) == [
                (number, digit) for number in numbers for digit in range(10)
            ]
    long = sum(len(recording.samples) > 4_000 for recording in recordings())
    counts = {"speakers": 3, "recordings": 210, "recordings cut": long}
    assert splits.report == {**counts, "recordings train": 40, "recordings test": 100, "recordings unseen": 70}


def test_a_row_is_the_log_mel_of_its_recording_and_zero_behind_its_end(splits):
    own = splits.unseen.client(0)
    last = sorted(recordings()[-10:], key=lambda recording: len(recording.samples))
    assert len(last[0].samples) < 4_000 < len(last[-1].samples)
    for recording in (last[0], last[-1]):
        (row,) = np.flatnonzero((own["y"] == recording.digit) & (own["number"] == 6))
        heard = recording.samples[:4_000] / 32_768
        want = np.asarray(ftx.data.log_mel(heard[None].astype(np.float32), 8_000, num_bands=32))[0]
        assert own["valid"][row].sum() == len(want)
        np.testing.assert_allclose(own["series"][row, : len(want)], want, rtol=1e-4, atol=1e-4)
        assert not own["series"][row, len(want) :].any() and not own["valid"][row, len(want) :].any()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"unseen": "eve"}, TypeError, "unseen to be a list of speakers"),
        ({"unseen": ["theo"]}, ValueError, "a speaker of unseen"),
        ({"unseen": ["ann", "bob", "eve"]}, ValueError, "unseen to leave somebody to train on"),
        ({"seconds": 0.01}, ValueError, "expected seconds >= 0.025"),
    ],
)
def test_what_is_refused_of_spoken_digits(builder, options, error, message, unchecked):
    with pytest.raises(error, match=message):
        spoken_digits.load(builder, **{"unseen": [], **options})


def test_a_name_without_a_speaker_is_refused():
    with pytest.raises(ValueError, match=r"to be like 7_jackson_32.wav, got 'seven.wav'"):
        spoken_digits._parse("seven.wav")
