"""Make the weights file of the quickstart: a `DigitsNet` that knows the digits 0 to 4.

    python -m examples.pretrain_digits

Training takes 15 seconds on two cores, and gives the same file each time on the same machine.
"""

from pathlib import Path

from lightning.pytorch import Trainer, seed_everything
from safetensors.torch import save_file

from examples.digits_net import DigitsNet
from lit_finetune import FinetuneClassifier
from lit_finetune.datamodules import DigitsDataModule

WEIGHTS = Path(__file__).with_name("digits_0_to_4.safetensors")


def pretrain(path: Path = WEIGHTS, *, epochs: int = 20) -> float:
    """Train from scratch, write the weights but the head's, and return the validation accuracy."""
    seed_everything(0, verbose=False)
    data = DigitsDataModule(digits=[0, 1, 2, 3, 4], image_size=16, mean=0.5, std=0.5)
    model = FinetuneClassifier(
        DigitsNet(data.num_classes),
        num_classes=data.num_classes,
        lr=1e-2,
        backbone_lr_ratio=1.0,  # nothing is pretrained yet: all of it learns at one rate
    )
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        deterministic=True,
        logger=False,
        enable_checkpointing=False,
    )
    trainer.fit(model, data)
    weights = model.backbone.state_dict()
    # As many digits are to follow, so this head would fit them, but it knows none of them.
    save_file({k: v for k, v in weights.items() if not k.startswith("head.")}, path)
    return float(trainer.callback_metrics["val/acc"])


if __name__ == "__main__":
    print(f"{WEIGHTS.name}: val/acc {pretrain():.4f}")
