"""Classifiers and clusterings know what is there and do not find what is not."""

import numpy as np
import pytest

from mixvae.representation import classifiers, classify, cluster


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


@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1, 2, 3]])
def test_too_few_classes_or_examples_are_refused(labels):
    x, labels = np.zeros((4, 2)), np.array(labels)
    with pytest.raises(ValueError, match="classification needs at least 2 classes and more examples than classes"):
        classify(x, labels, x, labels)
    with pytest.raises(ValueError, match="clustering needs at least 2 classes"):
        cluster(x, labels)
