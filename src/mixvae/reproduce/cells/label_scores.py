"""How good predicted probabilities of labels are: accuracy, macro F1, calibration, and two proper scores."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

BINS = 15
"""Bins of the calibration error, as in Guo et al. (2017) and in what scvi-tools logs."""
SMALLEST = float(np.finfo(np.float32).tiny)
"""A probability that float32 rounded to zero counts as this, so that the log loss stays finite."""


def label_scores(probability: Float[np.ndarray, "N Y"], label: Int[np.ndarray, " N"]) -> dict[str, float]:
    r"""Scores of predictions \(p_{iy}\) for cells of the classes \(y_i\); the class predicted is that of the largest.

    accuracy, 1/N Σ_i 1[ŷ_i = y_i]; f1, the mean over classes of 2 TP / (2 TP + FP + FN), of those classes that a cell
    has or is predicted to have; ece, see `calibration_error`; log_loss, −1/N Σ_i log p_{i y_i} in nats; and brier,
    1/N Σ_i Σ_y (p_iy − 1[y = y_i])², from 0 to 2. The last two are proper: no probabilities other than the true ones
    have a smaller expectation.

    Args:
        probability: probabilities, which sum to 1 over the classes.
        label: number of each cell's class.

    Raises:
        ValueError: there are no cells, or a label is not one of the classes.

    Example:
        >>> import numpy as np
        >>> from mixvae.reproduce.cells.label_scores import label_scores
        >>> scores = label_scores(np.array([[0.75, 0.25], [0.5, 0.5]]), np.array([0, 1]))
        >>> {name: round(value, 3) for name, value in scores.items()}
        {'accuracy': 0.5, 'f1': 0.333, 'ece': 0.375, 'log_loss': 0.49, 'brier': 0.312}

    References:
        Gneiting and Raftery, Strictly Proper Scoring Rules, Prediction, and Estimation (2007),
        https://doi.org/10.1198/016214506000001437
    """
    probability, label = np.asarray(probability, np.float64), np.asarray(label)
    cells, classes = probability.shape
    if not cells or len(label) != cells or label.min() < 0 or label.max() >= classes:
        raise ValueError(f"scores need cells with labels from 0 to {classes - 1}; got {cells} cells, labels {label}")
    predicted, own = probability.argmax(1), probability[np.arange(cells), label]
    hits = np.bincount(label[predicted == label], minlength=classes)
    either = np.bincount(label, minlength=classes) + np.bincount(predicted, minlength=classes)  # 2 TP + FP + FN
    there = either > 0
    return {
        "accuracy": float((predicted == label).mean()),
        "f1": float((2 * hits[there] / either[there]).mean()),
        "ece": calibration_error(probability, label),
        "log_loss": float(-np.log(np.maximum(own, SMALLEST)).mean()),
        "brier": float(((probability - np.eye(classes)[label]) ** 2).sum(1).mean()),
    }


def calibration_error(probability: Float[np.ndarray, "N Y"], label: Int[np.ndarray, " N"], bins: int = BINS) -> float:
    r"""Expected calibration error Σ_b n_b/N |accuracy of b − mean confidence of b|.

    A cell's confidence is the largest of its probabilities, and bin b of B holds those in ((b − 1)/B, b/B]. For few
    cells it is biased upwards: it is not zero for true probabilities, and the larger the fewer cells a bin has.

    Args:
        probability: probabilities, which sum to 1 over the classes.
        label: number of each cell's class.
        bins: number of bins B of equal width.

    Example:
        >>> import numpy as np
        >>> from mixvae.reproduce.cells.label_scores import calibration_error
        >>> calibration_error(np.array([[0.75, 0.25], [0.75, 0.25]]), np.array([0, 1]))
        0.25

    References:
        Guo et al., On Calibration of Modern Neural Networks (2017), https://arxiv.org/abs/1706.04599
    """
    confidence = probability.max(1)
    excess = (probability.argmax(1) == label) - confidence
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    return float(np.abs(np.bincount(place, excess, bins)).sum() / len(label))
