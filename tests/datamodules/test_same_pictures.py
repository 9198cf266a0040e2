import pytest
from lightning.pytorch import Trainer

from lit_finetune import FinetuneClassifier
from lit_finetune.datamodules import DigitsDataModule
from tests.callbacks.prefix_runs import Net


class OfItsNode(DigitsDataModule):
    """Pictures that are not the same in each process, as copies on two nodes may be."""

    def read_samples(self, part):
        samples = super().read_samples(part)
        last = len(samples.labels) - self.trainer.global_rank
        return samples.subset(range(last))


@pytest.mark.slow
def test_processes_with_other_pictures_are_refused(tmp_path):
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp_fork",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    model = FinetuneClassifier(Net(), num_classes=2)
    with pytest.raises(Exception, match=r"process 0 has 288, process 1 has 287.*split file"):
        trainer.fit(model, OfItsNode(digits=[0, 1], image_size=8))
