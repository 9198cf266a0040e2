"""ResNet-18 with a new `fc` for ten classes: everything is frozen but `fc`.

    python -m examples.resnet18_new_head
    python -m examples.resnet18_new_head --data_dir photos --weights DEFAULT

Without arguments it takes random weights and a few drawings: seconds.
From the command line: `configs/tutorial_resnet18_new_head.yaml`.
"""

from jsonargparse import auto_cli
from lightning.pytorch import Trainer

from examples.demo_data import shapes
from lit_finetune import FinetuneClassifier
from lit_finetune.callbacks import FreezeUnfreezeCallback
from lit_finetune.datamodules import ImageFolderDataModule


def main(data_dir: str | None = None, *, weights: str | None = None, epochs: int = 2) -> Trainer:
    """Train the new head, and return the Trainer.

    Args:
        data_dir: Folder of photographs, one folder a class; drawings of ten kinds if not given.
        weights: `DEFAULT` downloads those of ImageNet; or a file. Random ones if not given.
        epochs: Length of the run.
    """
    data = ImageFolderDataModule(data_dir, batch_size=32) if data_dir else shapes(num_classes=10)
    model = FinetuneClassifier("resnet18", weights=weights, num_classes=data.num_classes)
    trainer = Trainer(max_epochs=epochs, callbacks=[FreezeUnfreezeCallback("head_only")])
    trainer.fit(model, data)
    return trainer


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
