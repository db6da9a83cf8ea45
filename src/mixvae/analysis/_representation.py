"""How much the latents reveal about labels: classifiers and clusterings on features of the posterior."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from mixvae import figures
from mixvae._tables import Row, Tabular
from mixvae.progress import SILENT, Progress

LARGEST_SILHOUETTE = 5000
"""Most examples that the silhouette is computed on; it needs all their pairwise distances."""
SINGULAR = 1e-9
"""Variance of standardised features that counts as zero within a class."""
LARGEST_FEATURE = 1e15
"""Size of a feature beyond which the solvers of classifiers fail."""
STARTS: Any = 10
"""Starts of k-means; the best one is kept."""


class ShrunkCovariance:
    """Covariance estimator for scikit-learn, shrunk towards a multiple of the identity that never vanishes.

    Args:
        shrinkage: weight of the identity, which is scaled by the mean variance.

    Example:
        >>> import numpy as np
        >>> from mixvae.analysis import ShrunkCovariance
        >>> ShrunkCovariance(0.1).fit(np.array([[1.0, 0.0], [-1.0, 0.0]])).covariance_.round(4)
        array([[0.95, 0.  ],
               [0.  , 0.05]])
    """

    def __init__(self, shrinkage: float = 0.1):
        self.shrinkage = shrinkage

    def fit(self, x: np.ndarray) -> ShrunkCovariance:
        """Estimate the covariance of features (N, F)."""
        centred = x - x.mean(0)
        empirical = centred.T @ centred / len(x)
        variance = max(float(empirical.trace()) / x.shape[1], 2 * SINGULAR / self.shrinkage)
        self.covariance_ = (1 - self.shrinkage) * empirical + self.shrinkage * variance * np.eye(x.shape[1])
        return self


def classifiers(seed: int = 0) -> dict[str, Callable[[], Any]]:
    """The paper's classifiers by name, each a function that makes one.

    k nearest neighbours (k = 5), a linear support vector machine (C = 0.025), a perceptron with one hidden layer of
    100, and quadratic discriminant analysis with covariances shrunk by 10 %, so that they are invertible even where
    the latents of a class do not vary at all. The last two get standardised features: shrinking would otherwise drown
    the standard deviations, which are smaller than the means.

    References:
        Kviman et al., Cooperation in the Latent Space (2023), https://arxiv.org/abs/2209.15514

    Example:
        >>> from mixvae.analysis import classifiers
        >>> list(classifiers())
        ['knn', 'svm', 'mlp', 'qda']
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
        "qda": lambda: make_pipeline(
            StandardScaler(),
            QuadraticDiscriminantAnalysis(solver="eigen", covariance_estimator=ShrunkCovariance(), tol=SINGULAR),
        ),
    }


def classify(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    using: Mapping[str, Callable[[], Any]] | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Accuracy on test features of classifiers fitted to training features, between 0 and 1.

    Args:
        train: features, (N, F).
        train_labels: labels, (N,).
        test: features, (M, F).
        test_labels: labels, (M,).
        using: classifiers by name; the paper's by default.
        seed: seed of the default classifiers.

    Raises:
        ValueError: there are fewer than two classes, or too few examples of them.

    Example:
        >>> import numpy as np
        >>> from mixvae.analysis import classifiers, classify
        >>> labels = np.arange(20) % 2
        >>> classify(labels[:, None], labels, labels[:, None], labels, {"knn": classifiers()["knn"]})
        {'knn': 1.0}
    """
    classes = _count_classes("classification", train_labels)
    _check_finite(train, test)
    fewest = int(np.unique(train_labels, return_counts=True)[1].min())
    if using is None and (len(train_labels) < 10 * classes or fewest < 2):
        raise ValueError(
            f"the perceptron holds out a tenth of the training examples, so that it needs 10 per class on average and "
            f"2 of each; got {len(train_labels)} examples of {classes} classes, the smallest of {fewest}: take more"
        )
    fitted = {name: make().fit(train, train_labels) for name, make in (using or classifiers(seed)).items()}
    return {name: float((model.predict(test) == test_labels).mean()) for name, model in fitted.items()}


def cluster(
    features: np.ndarray, labels: np.ndarray, seed: int = 0, *, fitted_to: np.ndarray | None = None
) -> dict[str, float]:
    """Agreement of k-means with labels: ARI and NMI of the best of ten starts, ASW of the labels themselves.

    k is the number of labels. The adjusted Rand index is 0 for chance and 1 for agreement, normalised mutual
    information lies between 0 and 1, and the average silhouette width of the labels between −1 and 1.

    Args:
        features: (N, F).
        labels: (N,).
        seed: seed of the starts.
        fitted_to: other features (M, F) to fit the clusters to; the scored ones by default.

    Raises:
        ValueError: there are fewer than two classes, or no more examples than classes.

    Example:
        >>> import numpy as np
        >>> from mixvae.analysis import cluster
        >>> labels = np.arange(20) % 2
        >>> scores = cluster(labels[:, None].astype(float), labels)
        >>> {name: round(score, 4) for name, score in scores.items()}
        {'ari': 1.0, 'nmi': 1.0, 'asw': 1.0}
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_score

    classes = _count_classes("clustering", labels)
    _check_finite(features, features if fitted_to is None else fitted_to)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct points than clusters: the scores show it
        clusters = KMeans(classes, n_init=STARTS, random_state=seed).fit(features if fitted_to is None else fitted_to)
    assigned = clusters.predict(features)
    most = min(len(features), LARGEST_SILHOUETTE)
    return {
        "ari": float(adjusted_rand_score(labels, assigned)),
        "nmi": float(normalized_mutual_info_score(labels, assigned)),
        "asw": float(silhouette_score(features, labels, sample_size=most, random_state=seed)),
    }


def _count_classes(what: str, labels: np.ndarray) -> int:
    """Number of classes; refuses too few of them, or too few examples."""
    classes = len(np.unique(labels))
    if classes < 2 or len(labels) <= classes:
        raise ValueError(
            f"{what} needs at least 2 classes and more examples than classes; got {classes} classes and "
            f"{len(labels)} examples"
        )
    return classes


def _check_finite(*features: np.ndarray) -> None:
    """Refuse features that no classifier can handle."""
    for values in features:
        largest = np.abs(values).max(initial=0.0)
        if not largest < LARGEST_FEATURE:
            raise ValueError(f"the latents hold values up to {largest:.3g}, which nothing can be fitted to")


@dataclass(frozen=True)
class Latents:
    """Latents of N labelled examples.

    Args:
        mean: mean of every component, (N, S, D).
        std: standard deviation of every component, (N, S, D).
        samples: draws side by side, (N, K, D).
        labels: class of every example, (N,).

    Example:
        >>> import numpy as np
        >>> from mixvae.analysis import Latents
        >>> each = np.zeros((10, 3, 2))  # examples, components, latents
        >>> latents = Latents(each, each, np.zeros((10, 6, 2)), np.arange(10) % 2)
        >>> {name: values.shape for name, values in latents.features().items()}
        {'mean and std': (10, 12), 'means': (10, 6), '6 samples': (10, 12)}
    """

    mean: np.ndarray
    std: np.ndarray
    samples: np.ndarray
    labels: np.ndarray

    def features(self) -> dict[str, np.ndarray]:
        """The paper's features [mean, std] of all components, the means alone, and the rival's features, samples."""
        kinds = {
            "mean and std": np.concatenate([self.mean, self.std], 1),
            "means": self.mean,
            f"{self.samples.shape[1]} samples": self.samples,
        }
        return {name: values.reshape(len(values), -1) for name, values in kinds.items()}


@dataclass(frozen=True, repr=False)
class Representation(Tabular):
    """How well latents predict labels, over repetitions.

    Args:
        scores: the value of each repetition, by features and metric.

    Example:
        >>> from mixvae.analysis import Representation
        >>> Representation({"means": {"knn": [0.75, 1.0]}})
        Representation
        features  repetitions    knn  knn_std
           means            2  0.875   0.1768
    """

    scores: dict[str, dict[str, list[float]]]

    @property
    def table(self) -> list[Row]:
        """One row per kind of features: every metric's mean, and its standard deviation as `…_std`."""
        rows = []
        for name, metrics in self.scores.items():
            row: dict[str, Any] = {"features": name, "repetitions": len(next(iter(metrics.values())))}
            for metric, values in metrics.items():
                row |= {metric: float(np.mean(values)), f"{metric}_std": float(np.std(values, ddof=len(values) > 1))}
            rows.append(row)
        return rows

    @property
    def figure(self) -> Figure:
        """Every metric as points, one colour per kind of features."""
        return figures.scores(self.scores, "accuracy, ARI, NMI or ASW")


def represent(
    latents: Callable[[int], tuple[Latents, Latents]],
    seeds: Sequence[int] = (0, 1, 2),
    progress: Progress = SILENT,
) -> Representation:
    """Classify and cluster by latents: fitted to training latents, scored on held-out ones, once per seed.

    The seed affects what is random: the choice of training examples, the samples, the perceptron and the starts of
    k-means. What is not random, such as kNN on the means of all training examples, has no spread.

    Args:
        latents: training and held-out latents for a seed.
        seeds: seeds of the repetitions.
        progress: where progress is reported; silent by default.

    Raises:
        ValueError: there are fewer than two classes, or no more examples than classes.

    References:
        Kviman et al., Cooperation in the Latent Space (2023), https://arxiv.org/abs/2209.15514

    Example:
        >>> import numpy as np
        >>> from mixvae.analysis import Latents, represent
        >>> labels = np.arange(40) % 2
        >>> each = labels[:, None, None] + np.zeros((40, 3, 2))
        >>> latents = Latents(each, each, each, labels)
        >>> represent(lambda seed: (latents, latents), seeds=[0]).scores["means"]["knn"]
        [1.0]
    """
    scores: dict[str, dict[str, list[float]]] = {}
    for repetition, seed in enumerate(seeds):
        train, test = latents(seed)
        fitted, scored = train.features(), test.features()
        for kind, name in enumerate(fitted):
            metrics = classify(fitted[name], train.labels, scored[name], test.labels, seed=seed)
            metrics |= cluster(scored[name], test.labels, seed, fitted_to=fitted[name])
            for metric, value in metrics.items():
                scores.setdefault(name, {}).setdefault(metric, []).append(value)
            done, total = repetition * len(fitted) + kind + 1, len(seeds) * len(fitted)
            progress.update(done, total, "classifying by the latents")
    return Representation(scores)
