"""Every Python block of the documentation runs, on smaller pictures and without a download."""

from typing import Any

import pytest
import torch

from lit_finetune import FinetuneClassifier
from lit_finetune.callbacks import FreezeUnfreezeCallback
from tests.docs.pages import code_blocks

OFFLINE = {
    'weights="DEFAULT", ': "",
    '"photos", batch_size=32': '"photos", batch_size=32, image_size=32',
    "max_epochs=10": "max_epochs=6",
    "Trainer(devices": "Trainer(accelerator='cpu', logger=False, devices",
}
NEEDS = {"docs/adapting.md": "peft", "docs/data.md": "litdata"}
ELSEWHERE = "docs/get_started.md"  # test_get_started.py: it goes on from a training
PYTHON_PAGES = sorted({block.page for block in code_blocks("python")} - {ELSEWHERE})


def run_page(page: str) -> dict[str, Any]:
    """Run the blocks of a page one after the other, and return their names."""
    names: dict[str, Any] = {"unfreeze": FreezeUnfreezeCallback("head_only")}
    for block in code_blocks("python", page=page):
        text = block.text
        for there, here in OFFLINE.items():
            text = text.replace(there, here)
        exec(compile("\n" * block.line + text, page, "exec"), names)
    return names


@pytest.mark.slow
@pytest.mark.usefixtures("photos")
@pytest.mark.parametrize("page", PYTHON_PAGES)
def test_the_python_blocks_of_a_page_run(page, capsys):
    if page in NEEDS:
        pytest.importorskip(NEEDS[page])

    names = run_page(page)

    if page in CHECKS:
        CHECKS[page](names, capsys.readouterr().out)


def check_ten_lines(names: dict[str, Any], printed: str) -> None:
    (block,) = code_blocks("python", page="README.md")
    assert len([line for line in block.text.splitlines() if line]) <= 10
    assert isinstance(names["model"], FinetuneClassifier)
    assert len(names["model"].classes) == 2


def check_loss(names: dict[str, Any], printed: str) -> None:
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 5))
    model = names["Focal"](network, num_classes=2)
    assert model.loss(torch.zeros(3, 2), torch.tensor([0, 1, 0])) > 0


def check_adapting(names: dict[str, Any], printed: str) -> None:
    images, _ = next(iter(names["loader"]))
    assert images.shape[1] == 12
    assert names["network"].state_dict().keys() == torch.load("merged.pth").keys()


def check_splits(names: dict[str, Any], printed: str) -> None:
    assert set(eval(printed).values()) == {None}


CHECKS = {
    "README.md": check_ten_lines,
    "docs/adapting.md": check_adapting,
    "docs/frozen_prefix.md": check_splits,
    "docs/subclassing.md": check_loss,
}
