"""Several processes, resumed runs, several runs: the same network, the same callback."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from typing_extensions import override

from benchmarks.peers.rates import SCHEDULERS, largest_rate_error
from benchmarks.peers.systems import WHOLE_BACKBONE, NotOfferedError, Request, System
from benchmarks.peers.training import (
    BATCHES,
    Batches,
    Run,
    TinyNet,
    fit,
    largest_difference,
    make_model,
    make_trainer,
    moved,
    train,
)


def in_turn(system: System, folder: Path) -> Iterator[float]:
    """Which parameters move in which epoch, against the schedule."""
    request = Request()
    if not system.by_block:
        raise NotOfferedError("it unfreezes the backbone as a whole")
    yield float(out_of_turn(train(system, request, folder), request))


def out_of_turn(run: Run, request: Request) -> int:
    """How often a parameter moved too early, or stood still too late, counted by epochs."""
    started = {name: epoch for epoch, names in request.unfreeze.items() for name in names}
    weights, mistakes = run.seen.weights, 0
    for epoch in range(request.max_epochs):
        names = {name for name, _ in run.model.named_parameters()}
        wanted = {
            name
            for name in names
            if epoch >= min((e for part, e in started.items() if part in name), default=0)
        }
        mistakes += len(wanted ^ moved(weights[epoch - 1], weights[epoch], run.model))
    return mistakes


def compiled(system: System, folder: Path) -> Iterator[float]:
    """The backbone compiled; the schedule names its blocks as in the uncompiled one."""
    request = Request(WHOLE_BACKBONE, max_epochs=2)
    model = make_model(system, request)
    model.backbone = torch.compile(model.backbone, backend="eager")  # type: ignore[assignment]
    run = train(system, request, folder, model=model)
    frozen, free = (run.seen.weights[epoch] for epoch in (0, 1))
    yield float(sum(torch.equal(frozen[n], free[n]) for n, _ in model.named_parameters()))


class Replicas(Callback):
    """Compares the parameters of all processes, and counts the bytes that the first epoch sends."""

    def __init__(self) -> None:
        self.difference = 0.0
        self.bytes = 0

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        flat = torch.cat([p.detach().flatten() for p in pl_module.parameters()])
        gathered = pl_module.all_gather(flat)
        assert isinstance(gathered, Tensor)
        self.difference = max(self.difference, (gathered - flat).abs().max().item())
        wrapper = trainer.strategy.model
        assert isinstance(wrapper, DistributedDataParallel)
        if trainer.current_epoch == 0:
            # Its reducer sends every bucket whole, in each step.
            told = wrapper._get_ddp_logging_data()  # type: ignore[no-untyped-call]  # torch's
            self.bytes = sum(map(int, told["bucket_sizes"].split(",")))


def distributed(system: System, folder: Path) -> Iterator[float]:
    """Two processes train one network, each on batches of its own."""
    request, replicas = Request(), Replicas()
    callbacks = [*system.callbacks(request), replicas]
    run = train(system, request, folder, callbacks=callbacks, devices=2, strategy="ddp")
    yield replicas.difference
    yield float(replicas.bytes - sum(p.numel() * 4 for p in run.model.head.parameters()))


def resumed(system: System, folder: Path) -> Iterator[float]:
    """A run is stopped after each epoch in turn, and resumed from its checkpoint."""
    request = Request()
    whole = train(system, request, folder / "whole")
    last = whole.model.state_dict()
    yield float(sum(not loads_safely(path) for path in whole.checkpoints))
    runs = resumed_from_each(whole, system, request, folder)
    still = 0
    for run in runs:
        start = min(run.seen.weights)
        wanted = moved(whole.seen.weights[start], last, run.model)
        still += len(wanted - moved(run.seen.weights[start], run.model.state_dict(), run.model))
    yield float(still)
    yield max(largest_difference(last, run.model.state_dict()) for run in runs)


def resumed_on_plateau(system: System, folder: Path) -> Iterator[float]:
    """The same, with a scheduler that waits for a metric; the rates are compared."""
    request, scheduled = Request(), SCHEDULERS["ReduceLROnPlateau"]
    model = make_model(system, request, make_scheduler=scheduled.make)
    whole = train(system, request, folder / "whole", model=model)
    wanted = head_rates(whole)
    yield max(
        abs(rate / wanted[-steps_left] - 1)
        for run in resumed_from_each(whole, system, request, folder, make_scheduler=scheduled.make)
        for steps_left, rate in enumerate(reversed(head_rates(run)), start=1)
    )


def head_rates(run: Run) -> list[float]:
    """The head's rate at each step."""
    return [rates["head.weight"] for _, rates in run.seen.rates]


def resumed_from_each(
    whole: Run, system: System, request: Request, folder: Path, **options: Any
) -> list[Run]:
    """Runs that go on from each checkpoint of another but the last, which has nothing left."""
    runs = []
    for path in whole.checkpoints[:-1]:
        model = make_model(system, request, **options)
        runs.append(train(system, request, folder / path.stem, model=model, resume_from=path))
    return runs


def loads_safely(path: Path) -> bool:
    """Whether a checkpoint holds plain data alone."""
    try:
        torch.load(path, weights_only=True)
    except Exception:
        return False
    return True


class SaveAmid(Callback):
    """A checkpoint amid each epoch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @override
    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        if trainer.global_step % BATCHES == BATCHES - 1:
            trainer.save_checkpoint(self.folder / f"step={trainer.global_step}.ckpt")


def resumed_amid(system: System, folder: Path) -> Iterator[float]:
    """A run is stopped amid each epoch in turn, and resumed from there."""
    request = Request()
    callbacks = [*system.callbacks(request), SaveAmid(folder)]
    whole = train(system, request, folder, callbacks=callbacks).model.state_dict()
    runs = [
        train(system, request, folder / path.stem, resume_from=path)
        for path in sorted(folder.glob("step=*.ckpt"))
    ]
    yield max(largest_difference(whole, run.model.state_dict()) for run in runs)


def evaluated_alone(system: System, folder: Path) -> Iterator[float]:
    """Validate, test and predict, without a training."""
    request = Request()
    model = make_model(system, request)
    before = trainable(model)
    for method in ("validate", "test", "predict"):
        trainer = make_trainer(request, folder, system.callbacks(request))
        getattr(trainer, method)(model, Batches(0, 1))
    yield float(len(before ^ trainable(model)))


def tested_after_fit(system: System, folder: Path) -> Iterator[float]:
    """Train, then test, with one Trainer."""
    run = train(system, Request(), folder)
    before = trainable(run.model)
    run.trainer.test(run.model, Batches(0, 1), verbose=False)
    yield float(len(before ^ trainable(run.model)))


def trainable(model: TinyNet) -> set[str]:
    """The parameters that require a gradient."""
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def fitted_twice(system: System, folder: Path) -> Iterator[float]:
    """The same Trainer is told to go on for two epochs more."""
    request = Request()
    run = train(system, request, folder)
    before, steps = run.seen.weights[request.max_epochs - 1], len(run.seen.rates)
    run.trainer.fit_loop.max_epochs = request.max_epochs + 2
    fit(system, run.trainer, run.model)
    names = {name for name, _ in run.model.named_parameters()}
    yield float(len(names - moved(before, run.model.state_dict(), run.model)))
    del run.seen.rates[:steps]
    yield largest_rate_error(run, request)


def second_trainer(system: System, folder: Path) -> Iterator[float]:
    """One callback object trains one network, then another in a Trainer of its own."""
    request = Request()
    callbacks = system.callbacks(request)
    first = train(system, request, folder / "first", callbacks=callbacks)
    second = train(system, request, folder / "second", callbacks=callbacks)
    yield largest_difference(first.model.state_dict(), second.model.state_dict())


TOO_LATE = 9


def too_late(system: System, folder: Path) -> Iterator[float]:
    """A block is to start after the run's last epoch: the user should hear of it."""
    request = Request({1: ("backbone.layer2",), TOO_LATE: ("backbone.layer1",)})
    model = make_model(system, request)
    trainer = make_trainer(request, folder, system.callbacks(request))
    with messages() as heard:
        try:
            fit(system, trainer, model)
        except Exception as error:
            heard.append(str(error))
    yield float(not any("max_epochs" in text and str(TOO_LATE) in text for text in heard))
    yield float(max(0, trainer.current_epoch - request.max_epochs))


@contextmanager
def messages() -> Iterator[list[str]]:
    """All that is logged or warned of meanwhile."""
    heard: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("lightning.pytorch")
    logger.addHandler(handler)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield heard
        finally:
            heard += [str(warning.message) for warning in caught]
            logger.removeHandler(handler)
