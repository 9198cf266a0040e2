"""A ResNet-50 written by hand and a weights file: train its last layer, `fc`, and nothing else.

    python -m examples.handwritten_resnet50
    python -m examples.handwritten_resnet50 --data_dir photos --weights resnet50.pth --width 64

Without arguments it takes a thin network, a file of random weights and a few drawings: seconds.
From the command line: `configs/tutorial_handwritten_resnet50.yaml`.
"""

from pathlib import Path

import torch
from jsonargparse import auto_cli
from lightning.pytorch import Trainer

from examples.demo_data import shapes
from examples.resnet50 import ResNet50
from lit_finetune import FinetuneClassifier
from lit_finetune.callbacks import FreezeUnfreezeCallback
from lit_finetune.datamodules import ImageFolderDataModule


def main(
    data_dir: str | None = None, *, weights: str | None = None, width: int = 8, epochs: int = 2
) -> Trainer:
    """Train the head of a network of one's own, and return the Trainer.

    Args:
        data_dir: Folder of photographs, one folder a class; drawings if not given.
        weights: The pretrained weights; a file of random ones is made if not given.
        width: Channels of the network's stem: 64 for the real ResNet-50.
        epochs: Length of the run.
    """
    data = ImageFolderDataModule(data_dir, batch_size=32) if data_dir else shapes(num_classes=2)
    model = FinetuneClassifier(
        "examples.resnet50.ResNet50",
        backbone_kwargs={"width": width},
        weights=weights or random_weights_file(width),
        num_classes=data.num_classes,  # whatever the constructor's default is, and the file's head
        optimizer=torch.optim.SGD,
        lr=0.01,
    )
    trainer = Trainer(max_epochs=epochs, callbacks=[FreezeUnfreezeCallback({0: "fc"})])
    trainer.fit(model, data)
    return trainer


def random_weights_file(width: int) -> str:
    """Stand in for the file of a pretrained network, of 1,000 other classes."""
    path = Path("data", f"resnet50_width{width}.pth")
    path.parent.mkdir(exist_ok=True)
    torch.save(ResNet50(num_classes=1000, width=width).state_dict(), path)
    return str(path)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
