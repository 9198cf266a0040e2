import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, top_k_accuracy_score

from lit_finetune.training.eval_metrics import accuracy, classification_metrics


@pytest.mark.parametrize("num_classes", [2, 5, 6, 10])
def test_metrics_over_batches_are_those_of_scikit_learn_over_all(num_classes: int) -> None:
    logits, labels = torch.randn(57, num_classes), torch.randint(num_classes, (57,))
    metrics = classification_metrics(num_classes, "val/")
    for start in range(0, 57, 10):
        metrics.update(logits[start : start + 10], labels[start : start + 10])

    predicted, scores = logits.argmax(1).numpy(), logits.softmax(1).numpy()
    expected = {
        "val/acc": accuracy_score(labels, predicted),
        "val/acc_macro": balanced_accuracy_score(labels, predicted),
        "val/f1": f1_score(labels, predicted, average="macro"),
    }
    if num_classes > 5:
        expected["val/acc_top5"] = top_k_accuracy_score(
            labels, scores, k=5, labels=range(num_classes)
        )
    assert {key: value.item() for key, value in metrics.compute().items()} == pytest.approx(
        expected
    )


def test_a_class_without_pictures_does_not_count_against_the_mean_over_classes() -> None:
    metric = accuracy(3, average="macro")
    metric.update(torch.eye(3)[[0, 1, 1]], torch.tensor([0, 1, 1]))
    assert metric.compute() == 1.0


def test_a_first_batch_without_a_mistake_ties_no_two_metrics_together() -> None:
    metrics = classification_metrics(10, "val/")
    metrics.update(torch.eye(10), torch.arange(10))
    metrics.update(torch.arange(10.0).repeat(10, 1), torch.full((10,), 8))  # right but for one

    found = metrics.compute()

    assert (found["val/acc"], found["val/acc_top5"]) == (0.5, 1.0)
