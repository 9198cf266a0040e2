"""Freeze the first six children of torchvision's ResNet-50, and train the others.

    python -m examples.first_children_frozen
    python -m examples.first_children_frozen --data_dir photos --weights DEFAULT

The children are `conv1`, `bn1`, `relu`, `maxpool`, `layer1` and `layer2`, counted as in the loop
over `model.children()` that this replaces.
Without arguments it takes random weights and a few drawings: seconds.
From the command line: `configs/tutorial_first_children_frozen.yaml`.
"""

import torch
from jsonargparse import auto_cli
from lightning.pytorch import Trainer

from examples.demo_data import shapes
from lit_finetune import FinetuneClassifier
from lit_finetune.callbacks import FreezeUnfreezeCallback
from lit_finetune.datamodules import ImageFolderDataModule


def main(data_dir: str | None = None, *, weights: str | None = None, epochs: int = 1) -> Trainer:
    """Train all but the first six children, and return the Trainer.

    Args:
        data_dir: Folder of photographs, one folder a class; drawings if not given.
        weights: `DEFAULT` downloads those of ImageNet; or a file. Random ones if not given.
        epochs: Length of the run.
    """
    data = ImageFolderDataModule(data_dir, batch_size=32) if data_dir else shapes(num_classes=2)
    model = FinetuneClassifier(
        "resnet50",
        weights=weights,
        num_classes=data.num_classes,
        optimizer=torch.optim.SGD,
        lr=0.001,
        backbone_lr_ratio=1.0,  # one rate for all, as in the tutorial
    )
    trainer = Trainer(max_epochs=epochs, callbacks=[FreezeUnfreezeCallback({0: "children[6:]"})])
    trainer.fit(model, data)
    return trainer


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
