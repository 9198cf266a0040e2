"""Trainings that begin with a trained head, on data of another order and of other names."""

from pathlib import Path

import torch
from lightning.pytorch import seed_everything

from tests.classes.test_by_name import NAMES, ORDERS, OTHERS, Data, Pictures, classifier, trainer


def main(folder: Path, checkpoint: Path, devices: int) -> None:
    """Train on each data and validate."""
    content = {}
    for what, classes in {"reordered": ORDERS[1], "renewed": OTHERS}.items():
        run = trainer(devices=devices, strategy="ddp" if devices > 1 else "auto")
        # Processes that draw otherwise must have one new head all the same.
        seed_everything(run.global_rank, verbose=False)
        model = classifier(weights=str(checkpoint), lr=1e-12)
        run.fit(model, Data(classes))
        content[what] = {
            "classes": model.classes,
            "head": {name: p.detach().clone() for name, p in model.backbone.fc.named_parameters()},
            "val/acc": run.callback_metrics["val/acc"],
            "said": model(Pictures(NAMES).images).detach(),
        }
    torch.save(content, folder / f"{devices}-{run.global_rank}.pt")
