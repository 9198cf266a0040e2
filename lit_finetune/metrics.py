"""What is measured of a classifier."""

from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score


def classification_metrics(num_classes: int, prefix: str) -> MetricCollection:
    """Accuracy over pictures and over classes, macro F1, and top-5 accuracy above five classes.

    They count on the device and meet between processes when an epoch ends.

    >>> sorted(classification_metrics(10, "val/"))
    ['val/acc', 'val/acc_macro', 'val/acc_top5', 'val/f1']
    """
    # Validating the arguments would wait for the device at every step.
    common = {"num_classes": num_classes, "validate_args": False}
    metrics = {
        "acc": MulticlassAccuracy(average="micro", **common),
        "acc_macro": MulticlassAccuracy(average="macro", **common),
        "f1": MulticlassF1Score(average="macro", **common),
    }
    if num_classes > 5:
        metrics["acc_top5"] = MulticlassAccuracy(average="micro", top_k=5, **common)
    return MetricCollection(metrics, prefix=prefix)
