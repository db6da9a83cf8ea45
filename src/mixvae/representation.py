"""How much the latents tell about labels: classifiers and clusterings on features of the posterior."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

LARGEST_SILHOUETTE = 5000
"""Examples that the silhouette is computed on at most; it needs all their distances."""


STARTS: Any = 10
"""Starts of k-means, of which the best counts."""


def classifiers(seed: int = 0) -> dict[str, Callable[[], Any]]:
    """The paper's classifiers by name, each a function that makes one.

    k nearest neighbours (k = 5), a linear support vector machine (C = 0.025), a perceptron with one hidden layer of
    100, and quadratic discriminant analysis whose covariances are shrunk by 10 % to be invertible.

    References:
        Kviman et al., Cooperation in the Latent Space (2023), https://arxiv.org/abs/2209.15514
    """
    from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    return {
        "knn": lambda: KNeighborsClassifier(5),
        "svm": lambda: SVC(kernel="linear", C=0.025),
        "mlp": lambda: make_pipeline(StandardScaler(), MLPClassifier(random_state=seed, early_stopping=True)),
        "qda": lambda: QuadraticDiscriminantAnalysis(solver="eigen", shrinkage=0.1),
    }


def classify(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    using: Mapping[str, Callable[[], Any]] | None = None,
) -> dict[str, float]:
    """Accuracy on test features of classifiers fitted to training features, between 0 and 1.

    Args:
        train: features, (N, F).
        train_labels: labels, (N,).
        test: features, (M, F).
        test_labels: labels, (M,).
        using: classifiers by name; those of the paper by default.

    Raises:
        ValueError: there are fewer classes than two, or fewer examples than classes.
    """
    _count_classes("classification", train_labels)
    fitted = {name: make().fit(train, train_labels) for name, make in (using or classifiers()).items()}
    return {name: float((model.predict(test) == test_labels).mean()) for name, model in fitted.items()}


def cluster(features: np.ndarray, labels: np.ndarray, seed: int = 0) -> dict[str, float]:
    """Agreement of k-means with labels: ARI and NMI of the best of ten starts, ASW of the labels themselves.

    k is the number of labels. The adjusted Rand index is 0 for chance and 1 for agreement, normalised mutual
    information lies between 0 and 1, and the average silhouette width of the labels between −1 and 1.

    Args:
        features: (N, F).
        labels: (N,).
        seed: seed of the starts.

    Raises:
        ValueError: there are fewer classes than two, or fewer examples than classes.
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_score

    classes = _count_classes("clustering", labels)
    found = KMeans(classes, n_init=STARTS, random_state=seed).fit_predict(features)
    most = min(len(features), LARGEST_SILHOUETTE)
    return {
        "ari": float(adjusted_rand_score(labels, found)),
        "nmi": float(normalized_mutual_info_score(labels, found)),
        "asw": float(silhouette_score(features, labels, sample_size=most, random_state=seed)),
    }


def _count_classes(what: str, labels: np.ndarray) -> int:
    """Number of classes, if there are enough of them and of examples."""
    classes = len(np.unique(labels))
    if classes < 2 or len(labels) <= classes:
        raise ValueError(
            f"{what} needs at least 2 classes and more examples than classes; got {classes} classes and "
            f"{len(labels)} examples"
        )
    return classes
