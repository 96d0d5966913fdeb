"""How good the named types are: confusion, sensitivity and specificity, calibration, severity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from iqa_ray.distortion_types.settings import Outputs
from iqa_ray.training.evaluation import measure_calibration_error

# Share of the validation images, those of the least probable answers, that would be called none.
_NONE_SHARE = 0.01


def compute_probabilities(
    logits: NDArray[np.floating], temperature: float, outputs: Outputs
) -> NDArray[np.float64]:
    """(n, C) probabilities of (n, C) logits that are divided by the temperature first.

    Sigmoid outputs are divided by their sum, so that they are comparable with softmax.
    """
    scaled = logits.astype(np.float64) / temperature
    if outputs == "softmax":
        scaled = scaled - np.logaddexp.reduce(scaled, axis=1, keepdims=True)
        return np.asarray(np.exp(scaled))
    # in logarithms: all outputs may be next to 0
    log_values = -np.logaddexp(0, -scaled)
    return np.asarray(np.exp(log_values - np.logaddexp.reduce(log_values, axis=1, keepdims=True)))


def fit_temperature(
    logits: NDArray[np.floating], labels: NDArray[np.int64], outputs: Outputs
) -> float:
    """The temperature of the least mean cross-entropy (Guo et al., section 4.2), 0.05 to 20."""

    def measure(log_temperature: float) -> float:
        probabilities = compute_probabilities(logits, np.exp(log_temperature), outputs)
        own = probabilities[np.arange(len(labels)), labels]
        return float(-np.log(np.maximum(own, 1e-300)).mean())

    bounds = (np.log(0.05), np.log(20))
    found = optimize.minimize_scalar(measure, bounds=bounds, method="bounded")
    return float(np.exp(found.x))


def find_none_below(probabilities: NDArray[np.float64]) -> float:
    """Below which probability the most probable type is `none`: 1% of validation images are."""
    return float(np.quantile(probabilities.max(axis=1), _NONE_SHARE))


def count_confusions(
    labels: NDArray[np.int64], predicted: NDArray[np.int64], num_classes: int
) -> NDArray[np.int64]:
    """(C, C) numbers of images: the true class by row, the predicted one by column."""
    counts = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def measure_classes(confusion: NDArray[np.int64]) -> list[dict[str, float | None]]:
    """Sensitivity and specificity of each class (Elaraby et al., Table 4).

    Sensitivity is the share of a class's images that are named so, specificity the share of the
    others that are not; None where there are no such images.
    """
    rows = []
    for place in range(len(confusion)):
        own, named = confusion[place].sum(), confusion[:, place].sum()
        hits, others = confusion[place, place], confusion.sum() - own
        rows.append(
            {
                "sensitivity": float(hits / own) if own else None,
                "specificity": float((others - (named - hits)) / others) if others else None,
            }
        )
    return rows


def evaluate_outputs(
    logits: NDArray[np.floating],
    severities: NDArray[np.floating],
    labels: NDArray[np.int64],
    true_severities: NDArray[np.floating],
    classes: Sequence[str],
    temperature: float,
    none_below: float,
    outputs: Outputs,
) -> dict[str, Any]:
    """All figures of a test.

    Args:
        logits: (n, C).
        severities: (n,) as the network has them.
        labels: (n,) true classes.
        true_severities: (n,); NaN where unknown.
        classes: their C names.
        temperature: of the probabilities.
        none_below: the probability below which an image is like none.
        outputs: of the network.

    Returns:
        num_images, accuracy (of the most probable type), share_none, calibration_error_before and
        _after the temperature, confusion, classes (name, num_images, sensitivity, specificity),
        severity_srcc (Spearman's, of distorted images; None where there are too few).
    """
    probabilities = compute_probabilities(logits, temperature, outputs)
    raw = compute_probabilities(logits, 1.0, outputs)
    predicted = probabilities.argmax(axis=1)
    confusion = count_confusions(labels, predicted, len(classes))
    is_distorted = true_severities > 0
    ranked = severities[is_distorted], true_severities[is_distorted]
    srcc = None
    if all(len(np.unique(values)) > 1 for values in ranked):
        srcc = round(float(stats.spearmanr(*ranked)[0]), 4)
    return {
        "num_images": len(labels),
        "accuracy": round(float((predicted == labels).mean()), 4),
        "share_none": round(float((probabilities.max(axis=1) < none_below).mean()), 4),
        "calibration_error_before": round(measure_calibration_error(raw, labels), 4),
        "calibration_error_after": round(measure_calibration_error(probabilities, labels), 4),
        "severity_srcc": srcc,
        "confusion": confusion.tolist(),
        "classes": [
            {"name": name, "num_images": int(row.sum()), **found}
            for name, row, found in zip(classes, confusion, measure_classes(confusion), strict=True)
        ],
    }


def format_evaluation(figures: dict[str, Any]) -> str:
    """The confusion matrix with sensitivity and specificity a class, as a table for people."""
    names = [entry["name"] for entry in figures["classes"]]
    header = "".join(f"{name[:12]:>13}" for name in names)
    lines = [f"{'true, then named':17}{header}  sens.  spec."]
    for entry, row in zip(figures["classes"], figures["confusion"], strict=True):
        cells = "".join(f"{number:>13}" for number in row)
        shares = "".join(
            f"{'–' if entry[key] is None else format(entry[key], '.2f'):>7}"
            for key in ("sensitivity", "specificity")
        )
        lines.append(f"{entry['name']:17}{cells}{shares}")
    srcc = figures["severity_srcc"]
    lines.append(
        f"accuracy {figures['accuracy']:.1%} of {figures['num_images']:,} images; like none: "
        f"{figures['share_none']:.1%}; expected calibration error "
        f"{figures['calibration_error_before']:.3f}, {figures['calibration_error_after']:.3f} with "
        f"temperature; severity SRCC {'–' if srcc is None else format(srcc, '.2f')}"
    )
    return "\n".join(lines)
