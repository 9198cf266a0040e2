"""Two processes train, and one of them is given a picture that is no number."""

from pathlib import Path

from torch.utils.data import DataLoader, DistributedSampler

from tests.training.test_nonfinite import BATCH, model
from tests.training.test_reference_scores import make_trainer, pictures


def main(folder: Path) -> None:
    """Write down what each process ends with."""
    data = pictures(8 * BATCH, 3)
    data.tensors[0][2 * BATCH + 1] = float("nan")  # of the second process, in its second batch
    trainer = make_trainer(devices=2, strategy="ddp")
    sampler: DistributedSampler[int] = DistributedSampler(
        data, 2, int(trainer.global_rank), shuffle=False
    )
    try:
        trainer.fit(model(), DataLoader(data, BATCH, sampler=sampler))
    except ValueError as error:
        (folder / f"{trainer.global_rank}.txt").write_text(str(error))
