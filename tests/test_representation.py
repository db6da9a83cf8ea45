"""Classifiers and clusterings know what is there and do not find what is not."""

import numpy as np
import pytest

from conftest import Recorded, binary, tiny_model
from mixvae.analysis import Latents, classifiers, classify, cluster, draw_latents, encode, represent


def blobs(n, apart, seed=0):
    """Three groups in the plane, and their labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    return apart * np.eye(3)[labels, :2] + rng.normal(size=(n, 2)), labels


def test_groups_that_lie_apart_are_found_and_mixed_ones_are_not():
    x, labels = blobs(300, 30.0)
    new, new_labels = blobs(150, 30.0, seed=1)
    accuracy = classify(x, labels, new, new_labels)
    assert set(accuracy) == set(classifiers()) == {"knn", "svm", "mlp", "qda"}
    assert all(value > 0.98 for value in accuracy.values()), accuracy
    assert cluster(x, labels)["ari"] == cluster(x, labels)["nmi"] == 1
    assert cluster(x, labels)["asw"] > 0.8
    noise, labels = blobs(300, 0.0)
    fair = 5 * np.sqrt(2 / 9 / 150)
    assert all(abs(v - 1 / 3) < fair for v in classify(noise, labels, *blobs(150, 0.0, seed=1)).values())
    assert abs(cluster(noise, labels)["ari"]) < 0.05


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_discriminants_do_not_depend_on_the_scale_of_a_feature(scale):
    """Catches covariances shrunk in the units of the largest feature, or small latents refused as singular."""
    (x, labels), (new, new_labels) = blobs(300, 4.0), blobs(150, 4.0, seed=1)
    qda = {"qda": classifiers()["qda"]}
    wanted = classify(x, labels, new, new_labels, qda)
    assert wanted["qda"] > 0.9
    for units in (np.array([1.0, scale]), np.array([scale, scale])):
        assert classify(x * units, labels, new * units, new_labels, qda) == wanted


@pytest.mark.parametrize("varying", [0, 1])
def test_collapsed_latents_are_found_at_chance(varying):
    """Discriminant analysis ended with a LinAlgError of scikit-learn where no latent of a class varied."""
    labels = np.arange(120) % 3
    x = np.random.default_rng(0).normal(size=(120, 4)) * (np.arange(4) < varying) + 2.0
    found = classify(x, labels, x, labels)
    assert all(abs(value - 1 / 3) < 0.35 for value in found.values()), found
    assert set(cluster(x, labels)) == {"ari", "nmi", "asw"}
    apart = np.eye(3)[labels]
    assert classify(apart, labels, apart, labels, {"qda": classifiers()["qda"]}) == {"qda": 1}


def test_latents_that_are_no_numbers_are_told_in_one_line():
    labels = np.arange(60) % 3
    for value in (np.nan, np.inf, 1e30):
        x = np.full((60, 2), value)
        with pytest.raises(ValueError, match="the latents hold values up to"):
            classify(x, labels, x, labels)
        with pytest.raises(ValueError, match="the latents hold values up to"):
            cluster(x, labels)


@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1, 2, 3]])
def test_too_few_classes_or_examples_are_refused(labels):
    x, labels = np.zeros((4, 2)), np.array(labels)
    with pytest.raises(ValueError, match="classification needs at least 2 classes and more examples than classes"):
        classify(x, labels, x, labels)
    with pytest.raises(ValueError, match="clustering needs at least 2 classes"):
        cluster(x, labels)


def test_too_few_examples_for_the_perceptron_are_told():
    x, labels = np.zeros((25, 2)), np.arange(25) % 3
    with pytest.raises(ValueError, match="got 25 examples of 3 classes, the smallest of 8"):
        classify(x, labels, x, labels)
    assert set(classify(x, labels, x, labels, {"knn": classifiers()["knn"]})) == {"knn"}


def latents(n, seed, components=2, samples=3):
    """Groups in the first latent of the second component's mean; everything else is noise."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    mean, std, drawn = (
        rng.normal(size=(n, components, 2)),
        rng.random((n, components, 2)),
        rng.normal(size=(n, samples, 2)),
    )
    mean[:, 1, 0] += 20 * labels
    return Latents(mean, std, drawn, labels)


def test_features_use_all_components_and_noise_scores_at_chance():
    seen = Recorded()
    found = represent(lambda seed: (latents(200, seed), latents(100, seed + 100)), (0, 1, 2), seen)
    assert [(done, total) for done, total, _ in seen.seen] == [(k, 9) for k in range(1, 10)]
    rows = {row["features"]: row for row in found.table}
    assert set(rows) == {"mean and std", "means", "3 samples"}
    assert all(row["repetitions"] == 3 for row in found.table)
    assert rows["means"]["knn"] > 0.99
    assert rows["mean and std"]["svm"] > 0.99
    assert rows["means"]["ari"] > 0.95, "clusters fitted to training latents fit the others"
    assert abs(rows["3 samples"]["knn"] - 0.5) < 5 * np.sqrt(0.25 / 300)
    np.testing.assert_allclose(rows["means"]["mlp_std"], np.std(found.scores["means"]["mlp"], ddof=1))
    found.figure.canvas.draw()


def test_clusters_are_fitted_to_other_features_than_are_scored():
    x, labels = blobs(300, 30.0)
    far = x + np.array([1000.0, 0])  # all of these lie nearest to one cluster of x
    assert cluster(far, labels)["ari"] == 1
    assert cluster(far, labels, fitted_to=x)["ari"] < 0.6


def test_drawn_latents_cycle_components_and_ignore_other_rows():
    model, x = tiny_model(2), binary(300)
    drawn = draw_latents(model, x, 5, seed=3)
    assert drawn.shape == (300, 5, 2)
    np.testing.assert_array_equal(draw_latents(model, x[:10], 5, seed=3), drawn[:10])
    assert (draw_latents(model, x, 5, seed=4) != drawn).all()
    mean, std = encode(model, x)
    for k in range(5):
        standard = (drawn[:, k] - mean[:, k % 2]) / std[:, k % 2]
        assert abs(float(standard.mean())) < 5 / np.sqrt(600)
        assert abs(float(standard.var()) - 1) < 5 * np.sqrt(2 / 600)
