"""What headings mean, in every table that has them."""

WORDS = {
    "S": "components of the mixture",
    "JSD": "Jensen–Shannon divergence of the components, nats, 0 if they are equal, log S if they are far apart",
    "effective S": "exp(JSD), how many components differ, 1 to S",
    "validation bound": "best bound on log p(x) of validation examples, nats, higher is better",
    "NLL": "−log p(x), estimated from above, nats, lower is better, ± standard error over examples",
    "KNN": "accuracy of k nearest neighbours, k = 5",
    "SVM": "accuracy of a linear support vector machine",
    "MLP": "accuracy of a perceptron with one hidden layer",
    "QDA": "accuracy of quadratic discriminant analysis",
    "ARI": "adjusted Rand index of k-means and the labels, 0 by chance, 1 if they agree",
    "NMI": "normalised mutual information of k-means and the labels, 0 to 1",
    "ASW": "average silhouette width of the labels, −1 to 1",
}
"""Meanings of headings, for columns that do not say so themselves."""
