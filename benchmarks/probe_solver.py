"""The probe's L-BFGS beside scipy's, on features of a pretrained network.

    LIT_FINETUNE_DATA=FOLDER python -m benchmarks.probe_solver

Both get the same objective with the same gradient, and stop at the same value: scipy's as soon as
it is as low as ours. A figure is CPU time; evaluations are passes over the features. Takes two
minutes, most of them for the features.
"""

import os
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from scipy.optimize import minimize as scipy_minimize
from torch import Tensor

from lit_finetune import FinetuneClassifier
from lit_finetune.datamodules import ImageFolderDataModule
from lit_finetune.probe.criterion import make_criterion
from lit_finetune.probe.features import HeadFeatures, collect_features
from lit_finetune.probe.fit import L2_PATH
from lit_finetune.probe.lbfgs import minimize
from lit_finetune.probe.loss import LabelledFeatures, ProbeLoss
from lit_finetune.probe.standardize import make_feature_space

SETS = {"ants and bees": "hymenoptera", "flowers12": "flowers12-224", "CIFAR-10": "cifar10"}
PER_CLASS = 1000
"""Images of each class of CIFAR-10; a fifth of them is set aside for validation."""
Solve = Callable[[ProbeLoss, Tensor], tuple[float, int]]


def unpack_cifar10(root: Path, target: Path) -> None:
    """The training images of each class, in folders."""
    with zipfile.ZipFile(root / "cifar10-jpg.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        counts: Counter[str] = Counter()
        for name in names:
            part, label = Path(name).parts[-3:-1]
            if part == "train" and counts[label] < PER_CLASS:
                counts[label] += 1
                file = target / label / Path(name).name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(archive.read(name))


def features_of(root: Path, folder: str) -> LabelledFeatures:
    """The training features of SqueezeNet 1.1 at 128 pixels, as `fit_linear_probe` fits them."""
    with tempfile.TemporaryDirectory() as temporary:
        photos = root / folder
        if folder == "cifar10":
            photos = Path(temporary)
            unpack_cifar10(root, photos)
        return features_of_folder(photos, root)


def features_of_folder(photos: Path, root: Path) -> LabelledFeatures:
    """The features of the images in a folder, with the weights in another."""
    data = ImageFolderDataModule(photos, train_augmentation="none", image_size=128, num_workers=0)
    data.setup("fit")
    weights = str(root / "weights/squeezenet1_1-imagenet.safetensors")
    model = FinetuneClassifier("squeezenet1_1", num_classes=data.num_classes, weights=weights)
    batches = ((batch[0], batch[1]) for batch in data.plain_train_dataloader())
    features, labels = collect_features(
        HeadFeatures(model.eval(), f"backbone.{model.head_name}"), batches
    )
    space = make_feature_space(features)
    criterion = make_criterion(labels, data.num_classes, None, 0.0)
    scaler = space.inner_scaler
    return LabelledFeatures(space.project(features), labels, scaler=scaler, criterion=criterion)


def ours(loss: ProbeLoss, start: Tensor) -> tuple[float, int]:
    """The objective and the number of evaluations of `lit_finetune.probe.lbfgs`."""
    count = 0

    def evaluate(solution: Tensor) -> tuple[float, Tensor]:
        nonlocal count
        count += 1
        return loss(solution)

    found = minimize(
        evaluate, start, precondition=loss.precondition, tolerance=1e-8, max_iterations=500
    )
    return found.value, count


def scipy_until(target: float) -> Solve:
    """L-BFGS-B of scipy, stopped at the first objective that is not above the target."""

    def solve(loss: ProbeLoss, start: Tensor) -> tuple[float, int]:
        lowest, count = float("inf"), 0

        def evaluate(solution: object) -> tuple[float, object]:
            nonlocal lowest, count
            count += 1
            value, gradient = loss(torch.as_tensor(solution).view_as(start))
            lowest = min(lowest, value)
            return value, gradient.numpy().ravel()

        def stop(_: object) -> None:
            if lowest <= target:
                raise StopIteration

        options = {"maxiter": 5000, "maxfun": 20000, "ftol": 0.0, "gtol": 0.0}
        x = start.numpy().ravel()
        scipy_minimize(evaluate, x, jac=True, method="L-BFGS-B", callback=stop, options=options)
        return lowest, count

    return solve


def timed(solve: Solve, data: LabelledFeatures, l2: float) -> tuple[float, int, float]:
    """The objective, the evaluations and the seconds of CPU of a fit from zero."""
    num_classes = int(data.labels.max()) + 1
    start = torch.zeros(num_classes, data.features.shape[1] + 1, dtype=torch.float64)
    loss, begin = ProbeLoss(data, l2=l2), time.process_time()
    value, count = solve(loss, start)
    return value, count, time.process_time() - begin


def rows(root: Path) -> Iterator[str]:
    """A line for each set and strength."""
    for name, folder in SETS.items():
        data = features_of(root, folder)
        for l2 in L2_PATH[1:]:
            value, count, seconds = timed(ours, data, l2)
            _, other_count, other = timed(scipy_until(value), data, l2)
            yield (
                f"{name}, L2 {l2:g}: ours {count} evaluations, {seconds:.3f} s;"
                f" scipy {other_count}, {other:.3f} s; scipy / ours {other / seconds:.2f}"
            )


if __name__ == "__main__":
    torch.set_num_threads(1)
    with torch.no_grad():
        for row in rows(Path(os.environ["LIT_FINETUNE_DATA"])):
            print(row, flush=True)
