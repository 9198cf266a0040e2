"""ResNet-18 for three classes, with Adam on the head alone, or on `layer4` alone.

    python -m examples.resnet18_three_classes
    python -m examples.resnet18_three_classes --train layer4
    python -m examples.resnet18_three_classes --train layer4,head --data_dir photos

The optimizer holds what trains, and nothing else. With `layer4` alone the new head stays as chance
made it: that is the tutorial's variant, while `layer4,head` is what serves.
Without arguments it takes random weights and a few drawings: seconds.
From the command line: `configs/tutorial_resnet18_three_classes.yaml`.
"""

import torch
from jsonargparse import auto_cli
from lightning.pytorch import Trainer

from examples.demo_data import shapes
from lit_finetune import FinetuneClassifier
from lit_finetune.callbacks import FreezeUnfreezeCallback
from lit_finetune.datamodules import ImageFolderDataModule


def main(
    data_dir: str | None = None,
    *,
    train: str = "head",
    weights: str | None = None,
    epochs: int = 2,
) -> Trainer:
    """Train a part of the network, and return the Trainer.

    Args:
        data_dir: Folder of photographs, one folder a class; drawings of three kinds if not given.
        train: The blocks that train, with commas between them.
        weights: `DEFAULT` downloads those of ImageNet; or a file. Random ones if not given.
        epochs: Length of the run.
    """
    data = ImageFolderDataModule(data_dir, batch_size=32) if data_dir else shapes(num_classes=3)
    model = FinetuneClassifier(
        "resnet18",
        weights=weights,
        num_classes=data.num_classes,
        optimizer=torch.optim.Adam,
        lr=0.001,
        backbone_lr_ratio=1.0,  # one rate for all, as in the tutorial
    )
    trainer = Trainer(max_epochs=epochs, callbacks=[FreezeUnfreezeCallback({0: train.split(",")})])
    trainer.fit(model, data)
    return trainer


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
