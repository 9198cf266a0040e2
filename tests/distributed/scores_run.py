"""Two processes train, validate and test, and write down what was logged."""

import json
from pathlib import Path

from torch.utils.data import DataLoader

from lit_finetune import FinetuneClassifier
from tests.training.test_reference_scores import STILL, logged, make_trainer, network, pictures


def main(folder: Path) -> None:
    """Loaders of a user's own: Lightning gives them samplers that repeat pictures."""
    options = {"class_weights": [0.25, 3.0, 1.0], **STILL}
    model = FinetuneClassifier(network(3), num_classes=3, **options)
    trainer = make_trainer(devices=2, strategy="ddp")
    trainer.fit(model, DataLoader(pictures(10, 3), 2), DataLoader(pictures(13, 3), 3))
    found = {"fit": logged(trainer, "train", "val")}
    trainer.validate(model, DataLoader(pictures(1, 3), 3), verbose=False)
    found["validate"] = logged(trainer, "val")
    trainer.test(model, DataLoader(pictures(5, 3), 1), verbose=False)
    found["test"] = logged(trainer, "test")
    if trainer.is_global_zero:
        (folder / "found.json").write_text(json.dumps(found))
