"""From a folder of photographs to a classifier, in ten lines.

    python -m examples.ten_lines
    python -m examples.ten_lines --data_dir photos --weights DEFAULT

`photos` has a folder for each class. Without arguments it takes random weights and a few drawings:
seconds.
"""

from jsonargparse import auto_cli
from lightning.pytorch import Trainer

from examples.demo_data import shapes
from lit_finetune import FinetuneClassifier
from lit_finetune.callbacks import FreezeUnfreezeCallback
from lit_finetune.datamodules import ImageFolderDataModule


def main(
    data_dir: str | None = None, *, weights: str | None = None, epochs: int = 6
) -> FinetuneClassifier:
    """Train from the head down, look at one picture, and return the classifier.

    Args:
        data_dir: Folder of photographs, one folder a class; drawings if not given.
        weights: `DEFAULT` downloads those of ImageNet; or a file. Random ones if not given.
        epochs: Length of the run; the blocks start to train one after the other, evenly spread.
    """
    data = ImageFolderDataModule(data_dir, batch_size=32) if data_dir else shapes(num_classes=3)
    model = FinetuneClassifier("resnet18", weights=weights, num_classes=data.num_classes)
    trainer = Trainer(max_epochs=epochs, callbacks=[FreezeUnfreezeCallback("gradual")])
    trainer.fit(model, data)
    trainer.validate(model, data)
    picture = data.data_dir / data.read_samples("val").names[0]
    print(picture, model.predict_image(picture))
    return model


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
