"""A checkpoint knows its network, its classes and its pictures: nobody has to say them again."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from torch import Tensor, nn

from lit_finetune import FinetuneClassifier
from lit_finetune.callbacks import FreezeUnfreezeCallback, LinearProbe, PredictionWriter
from lit_finetune.cli.command_line import main
from lit_finetune.datamodules import ImageFolderDataModule

QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
PICTURES: dict[str, Any] = {"image_size": 20, "mean": 0.2, "std": 0.4, "interpolation": "bicubic"}


class Net(nn.Module):
    """A network that would take other pictures than the run gives it."""

    def __init__(self, num_classes: int = 2) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.fc = nn.Linear(8, num_classes)
        self.data_config = {"image_size": [32, 32], "resize_size": 32}

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.conv(images).relu().mean((2, 3)))


NET = f"{__name__}.Net"


def make_pictures(folder: Path, count: int, channel: int, seed: int = 0) -> Path:
    folder.mkdir(parents=True)
    rng = np.random.default_rng([channel, seed])
    for number in range(count):
        pixels = rng.integers(0, 120, (40, 48, 3), dtype=np.uint8)
        pixels[..., channel] += 100
        Image.fromarray(pixels).save(folder / f"{channel}{number}.png")
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for part, count in (("train", 8), ("val", 4), ("test", 5)):
        for channel, name in enumerate(("ants", "bees")):
            make_pictures(tmp_path / "photos" / part / name, count, channel, seed=count)
    return tmp_path / "photos"


@pytest.fixture
def new(tmp_path: Path) -> Path:
    """A folder of pictures and of nothing else."""
    return make_pictures(tmp_path / "new", 3, 1)


def make_trainer(**options: Any) -> Trainer:
    return Trainer(**{"logger": False, "enable_checkpointing": False, **QUIET, **options})


def train(photos: Path, backbone: Any, **options: Any) -> tuple[Path, FinetuneClassifier]:
    """A run of one epoch, and its checkpoint."""
    data = ImageFolderDataModule(photos, num_workers=0, batch_size=4, **PICTURES)
    model = FinetuneClassifier(backbone, num_classes=2, lr=0.01, **options)
    trainer = make_trainer(max_epochs=1, callbacks=[FreezeUnfreezeCallback({0: "all"})])
    trainer.fit(model, data)
    trainer.save_checkpoint("last.ckpt")
    return Path("last.ckpt"), model


def probabilities(trainer: Trainer, *args: Any, **kwargs: Any) -> Tensor:
    return torch.cat(trainer.predict(*args, **kwargs))


@pytest.mark.parametrize("loads", ["by the class", "by the Trainer"])
@pytest.mark.parametrize("run", ["validate", "predict", "test"])
def test_a_checkpoint_brings_the_pictures_of_its_run(run: str, loads: str, photos: Path) -> None:
    path, trained = train(photos, NET)
    same = ImageFolderDataModule(photos, num_workers=0, batch_size=4, **PICTURES)
    unsaid = ImageFolderDataModule(photos, num_workers=0, batch_size=3)
    if loads == "by the class":
        model, options = FinetuneClassifier.load_from_checkpoint(path, backbone=NET), {}
    else:
        model, options = FinetuneClassifier(NET, num_classes=2), {"ckpt_path": path}
    if run == "predict":
        found = probabilities(make_trainer(), model, unsaid, **options)
        assert torch.allclose(found, probabilities(make_trainer(), trained, same), atol=1e-6)
    else:
        (expected,) = getattr(make_trainer(), run)(trained, same)
        (found,) = getattr(make_trainer(), run)(model, unsaid, **options)
        assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("cache", ["none", "ram", "disk"])
def test_a_resumed_run_goes_on_with_the_pictures_of_its_checkpoint(
    cache: Any, photos: Path
) -> None:
    def go_on(**said: Any) -> dict[str, Tensor]:
        data = ImageFolderDataModule(photos, num_workers=0, batch_size=4, cache=cache, **said)
        model = FinetuneClassifier(NET, num_classes=2, lr=0.01)
        trainer = make_trainer(max_epochs=2, callbacks=[FreezeUnfreezeCallback({0: "all"})])
        trainer.fit(model, data, ckpt_path=path)
        assert model.data_config.image_size == (20, 20)
        return model.state_dict()

    path, _ = train(photos, NET)
    found, expected = go_on(), go_on(**PICTURES)
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


@pytest.mark.parametrize("run", ["fit", "validate", "predict"])
def test_pictures_of_another_kind_than_the_checkpoints_are_told(run: str, photos: Path) -> None:
    path, _ = train(photos, NET)
    data = ImageFolderDataModule(photos, num_workers=0, **{**PICTURES, "image_size": 24})
    model = FinetuneClassifier(NET, num_classes=2)
    trainer = make_trainer(max_epochs=1, callbacks=[FreezeUnfreezeCallback({0: "all"})])
    with pytest.warns(match=r"`image_size` \(24, 24\) and not \(20, 20\)"):
        getattr(trainer, run)(model, datamodule=data, ckpt_path=path)


def table(path: Path) -> tuple[list[str], dict[str, list[float]]]:
    with path.open(newline="") as file:
        head, *rows = csv.reader(file)
    return head, {Path(row[0]).name: [float(cell) for cell in row[2:]] for row in rows}


def run_cli(command: str, *words: Any) -> None:
    flags = [f"--trainer.{key}={str(value).lower()}" for key, value in QUIET.items()]
    main(args=[command, "--trainer.logger=false", *flags, *map(str, words)])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("from_file", "data"),
    [
        (False, lambda new: [f"--data.predict_dir={new}"]),
        (True, lambda new: ["--data=ImageFolderDataModule", f"--data.predict_dir={new}"]),
    ],
)
def test_predict_needs_a_checkpoint_and_pictures(
    from_file: bool, data: Callable[[Path], list[str]], photos: Path, new: Path, tmp_path: Path
) -> None:
    path, trained = train(photos, "squeezenet1_1", head="mlp", drop_rate=0.1)
    expected = {file.name: trained.predict_image(file) for file in new.iterdir()}
    (tmp_path / "c.yaml").write_text(f"ckpt_path: {path}\n")
    said = ["--config=c.yaml"] if from_file else ["--ckpt_path", path]
    run_cli("predict", *said, *data(new), "--predictions.path=table.csv")
    head, rows = table(tmp_path / "table.csv")
    assert head[2:] == ["ants", "bees"]
    assert rows.keys() == expected.keys()
    for name, row in rows.items():
        assert row == pytest.approx([expected[name]["ants"], expected[name]["bees"]], abs=1e-4)


@pytest.mark.slow
def test_validate_needs_a_checkpoint_and_class_folders(
    photos: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, trained = train(photos, "squeezenet1_1", label_smoothing=0.2)
    data = ImageFolderDataModule(photos, num_workers=0, **PICTURES)
    (expected,) = make_trainer().validate(trained, data)
    capfd.readouterr()
    run_cli("validate", f"--ckpt_path={path}", f"--data.data_dir={photos}")
    assert f"{expected['val/loss']:.4f}" in capfd.readouterr().out


@pytest.mark.slow
def test_the_command_line_names_what_the_file_may_not(
    photos: Path, new: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = train(photos, NET)
    said = "lit_finetune.checkpoints.trusted_hparams._TRUSTED_NAMES"
    monkeypatch.setattr(said, set())  # as in a new program
    words = [f"--ckpt_path={path}", f"--data.predict_dir={new}", "--predictions.path=table.csv"]
    with pytest.raises(SystemExit, match="2"):
        run_cli("predict", *words)
    assert f"--model.backbone {NET}" in capsys.readouterr().err
    assert not Path("table.csv").exists()
    run_cli("predict", *words, "--model.backbone", NET)
    assert len(table(Path("table.csv"))[1]) == 3


def test_a_checkpoint_that_is_not_there_is_named(
    new: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(photos, NET)
    with pytest.raises(SystemExit, match="2"):
        run_cli("predict", "--ckpt_path=lost.ckpt", f"--data.predict_dir={new}")
    assert "last.ckpt" in capsys.readouterr().err


def test_pictures_alone_are_refused_without_a_checkpoint(
    new: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data=ImageFolderDataModule", f"--data.predict_dir={new}"]
    with pytest.raises(SystemExit, match="2"):
        run_cli("predict", f"--model.backbone={NET}", *words)
    assert "checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_predict_refuses_a_head_that_was_never_trained(
    head: str, photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = FinetuneClassifier("squeezenet1_1", num_classes=2, head=head, image_size=32)
    data = ImageFolderDataModule(photos, num_workers=0)
    with pytest.raises(ValueError, match="never trained"):
        make_trainer(callbacks=[PredictionWriter("table.csv")]).predict(model, data)
    assert not Path("table.csv").exists()
    with pytest.raises(ValueError, match="never trained"):
        model.predict_image(next(photos.rglob("*.png")))
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        make_trainer().validate(model, data)
    assert "never trained" in caplog.text


def trained_by_hand(model: FinetuneClassifier) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.rand(2, 3, 32, 32)).square().sum().backward()
    optimizer.step()


def filled_from_a_state_dict(model: FinetuneClassifier) -> None:
    model.load_state_dict(
        {k: v + 1 if "num_" not in k else v for k, v in model.state_dict().items()}
    )


def fitted(model: FinetuneClassifier) -> None:
    data = ImageFolderDataModule("photos", num_workers=0)
    make_trainer(max_epochs=1, limit_train_batches=1).fit(model, data)


def probed(model: FinetuneClassifier) -> None:
    data = ImageFolderDataModule("photos", num_workers=0)
    make_trainer(max_epochs=0, callbacks=[LinearProbe()]).fit(model, data)


@pytest.mark.parametrize("act", [trained_by_hand, filled_from_a_state_dict, fitted, probed])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_that_was_trained_in_any_way_predicts(
    act: Callable[[FinetuneClassifier], None], dtype: torch.dtype, photos: Path
) -> None:
    model = FinetuneClassifier("squeezenet1_1", num_classes=2, image_size=32)
    act(model)
    scores = model.to(dtype).predict_image(next(photos.rglob("*.png")))

    assert sum(scores.values()) == pytest.approx(1, abs=0.02)
    assert len(scores) == 2


def test_half_precision_hides_no_new_head(photos: Path) -> None:
    model = FinetuneClassifier("squeezenet1_1", num_classes=2, image_size=32).bfloat16()
    with pytest.raises(ValueError, match="never trained"):
        model.predict_image(next(photos.rglob("*.png")))
    model.reset_classifier(3)
    with pytest.raises(ValueError, match="never trained"):
        model.predict_image(next(photos.rglob("*.png")))


@pytest.mark.parametrize("backbone", [Net(), NET], ids=["a network of one's own", "an import path"])
def test_a_network_of_ones_own_may_have_been_trained_elsewhere(backbone: Any, photos: Path) -> None:
    model = FinetuneClassifier(backbone, num_classes=2)
    data = ImageFolderDataModule(photos, num_workers=0)
    batches = make_trainer().predict(model, data)

    assert sum(map(len, batches or [])) == len(data.predict_names) > 0


@pytest.fixture
def untrained(photos: Path, tmp_path: Path) -> Path:
    """The checkpoint of a run that ended before its first step."""
    model = FinetuneClassifier("squeezenet1_1", num_classes=2, image_size=32)
    trainer = make_trainer(max_epochs=0)
    trainer.fit(model, ImageFolderDataModule(photos, num_workers=0))
    trainer.save_checkpoint(tmp_path / "untrained.ckpt")
    return tmp_path / "untrained.ckpt"


def test_a_checkpoint_from_before_the_first_step_knows_that_its_head_is_new(
    untrained: Path, photos: Path
) -> None:
    picture = next(photos.rglob("*.png"))
    loaded = FinetuneClassifier.load_from_checkpoint(untrained)
    with pytest.raises(ValueError, match="never trained"):
        loaded.predict_image(picture)
    data = ImageFolderDataModule(photos, num_workers=0)
    fresh = FinetuneClassifier("squeezenet1_1", num_classes=2, image_size=32)
    with pytest.raises(ValueError, match="never trained"):
        make_trainer().predict(fresh, data, ckpt_path=untrained, weights_only=True)
    as_weights = {"num_classes": 2, "image_size": 32, "weights": str(untrained)}
    with pytest.raises(ValueError, match="never trained"):
        FinetuneClassifier("squeezenet1_1", **as_weights).predict_image(picture)

    make_trainer(max_epochs=1, limit_train_batches=1).fit(loaded, data)
    loaded.predict_image(picture)


def test_a_checkpoint_that_does_not_say_so_predicts_as_before(
    untrained: Path, photos: Path
) -> None:
    content = torch.load(untrained, weights_only=True)
    del content["lit_finetune"]["untrained_head"]
    torch.save(content, untrained)
    FinetuneClassifier.load_from_checkpoint(untrained).predict_image(next(photos.rglob("*.png")))


def test_a_network_of_ones_own_that_has_never_seen_a_picture_is_warned_of(photos: Path) -> None:
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3),
        torch.nn.BatchNorm2d(4),
        torch.nn.Flatten(),
        torch.nn.LazyLinear(2),
    )
    model = FinetuneClassifier(network, num_classes=2, image_size=32)
    with pytest.warns(UserWarning, match="random weights.*mean nothing"):
        model.predict_image(next(photos.rglob("*.png")))
    network[1].running_mean += 1
    FinetuneClassifier(network, num_classes=2, image_size=32).predict_image(
        next(photos.rglob("*.png"))
    )
