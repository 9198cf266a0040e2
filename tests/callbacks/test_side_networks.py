"""Networks beside the one that trains stay as they are: weights, statistics, modes, gradients."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.tuner import Tuner
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import Metric

from lit_finetune import FinetuneClassifier
from lit_finetune.callbacks import FreezeUnfreezeCallback


class Net(nn.Module):
    """A network with statistics, for pictures."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU())
        self.layer1 = nn.Sequential(nn.Conv2d(width, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer1(self.stem(x)).mean((2, 3)))


class Perceptual(Metric):
    """A metric with a network inside."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net().eval()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, x: Tensor) -> None:
        with torch.no_grad():
            self.total += self.net(x).sum()

    def compute(self) -> Tensor:
        return self.total


def frozen_net() -> nn.Module:
    return Net(6).requires_grad_(False).eval()


class Beside(LightningModule):
    """A student that something stands beside, registered before it or after it."""

    def __init__(self, other: nn.Module, order: str) -> None:
        super().__init__()
        for name in order.split():
            setattr(self, name, Net() if name == "student" else other)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        with torch.no_grad():
            target = self.other(batch[0])
        logits = self.student(batch[0])
        target = logits.detach() * 0 if target is None or target.ndim < 2 else target
        return F.mse_loss(logits, target)

    def configure_optimizers(self) -> Optimizer:
        return AdamW(self.student.parameters(), lr=0.1)


OTHERS = {
    "a teacher": frozen_net,
    "a teacher in training mode": lambda: Net(6).requires_grad_(False),
    "a teacher that requires gradients": lambda: Net(6).eval(),
    "a copy": lambda: Net().requires_grad_(False).eval(),
    "an averaged copy": lambda: AveragedModel(Net()).eval(),
    "a metric": Perceptual,
}


class Watch(Callback):
    """What moved in each epoch, by the module's child and its child."""

    def __init__(self) -> None:
        self.moved: list[set[str]] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.before = {name: p.detach().clone() for name, p in pl_module.named_parameters()}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        now = dict(pl_module.named_parameters())
        names = [name for name in now if not torch.equal(now[name], self.before[name])]
        self.moved.append({".".join(name.split(".")[:2]) for name in names})


def fit(module: LightningModule, schedule: Any, **options: Any) -> tuple[Trainer, Watch]:
    data = TensorDataset(torch.randn(8, 3, 8, 8), torch.arange(8) % 3)
    watch = Watch()
    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[FreezeUnfreezeCallback(schedule, **options), watch],
    )
    trainer.fit(module, DataLoader(data, batch_size=4))
    return trainer, watch


STEM, LAYER1, HEAD = "student.stem", "student.layer1", "student.fc"
ALL = {STEM, LAYER1, HEAD}
SCHEDULES: dict[str, tuple[Any, dict[str, Any], list[set[str]]]] = {
    "full": ("full", {}, [ALL] * 3),
    "gradual": ("gradual", {}, [{HEAD}, {HEAD, LAYER1}, ALL]),
    "head_only": ("head_only", {}, [{HEAD}] * 3),
    "by name": ({0: "student.fc", 1: "all"}, {}, [{HEAD}, ALL, ALL]),
    "by index": ({0: -1, 1: 0, 2: 1}, {}, [{HEAD}, {HEAD, STEM}, ALL]),
    "train_bn": ("head_only", {"train_bn": True}, [ALL] * 3),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    ("other", "order"),
    [
        ("a teacher", "other student"),
        ("a teacher", "student other"),
        ("a teacher in training mode", "other student"),
        ("a teacher that requires gradients", "student other"),
        ("a copy", "student other"),
        ("an averaged copy", "student other"),
        ("a metric", "other student"),
    ],
)
def test_a_network_beside_the_student_stays_as_it_is(other: str, order: str, schedule: str) -> None:
    beside = OTHERS[other]()
    module = Beside(beside, order)
    state = {name: value.clone() for name, value in beside.state_dict().items()}
    gradients = [parameter.requires_grad for parameter in beside.parameters()]
    modes = [each.training for each in beside.modules()]
    words, options, moves = SCHEDULES[schedule]

    trainer, watch = fit(module, words, **options)

    assert watch.moved == moves
    now = beside.state_dict()
    assert [name for name in state if not torch.equal(state[name], now[name])] == []
    assert [parameter.requires_grad for parameter in beside.parameters()] == gradients
    assert [each.training for each in beside.modules()] == modes
    held = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert held.isdisjoint(map(id, beside.parameters()))


class Pair(nn.Module):
    """Student and teacher in a module of somebody's own."""

    def __init__(self, networks: dict[str, nn.Module]) -> None:
        super().__init__()
        for name, network in networks.items():
            setattr(self, name, network)

    def __getitem__(self, name: str) -> nn.Module:
        return getattr(self, name)


class InList(nn.ModuleList):
    """Both in a list."""

    def __init__(self, networks: dict[str, nn.Module]) -> None:
        super().__init__(networks.values())
        self.names = list(networks)

    def __getitem__(self, name: Any) -> Any:
        return super().__getitem__(self.names.index(name) if isinstance(name, str) else name)


class Deeper(nn.Module):
    """Both one level further down."""

    def __init__(self, networks: dict[str, nn.Module]) -> None:
        super().__init__()
        self.inner = Pair(networks)

    def __getitem__(self, name: str) -> nn.Module:
        return self.inner[name]


PLACES = {"a dict": nn.ModuleDict, "an own class": Pair, "a list": InList, "deeper": Deeper}


class Within(LightningModule):
    """A student that learns from a teacher, both inside another module."""

    def __init__(self, networks: Any, *, averages: bool = False) -> None:
        super().__init__()
        self.net = networks
        self.averages = averages

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        with torch.no_grad():
            target = self.net["teacher"](batch[0])
        return F.mse_loss(self.net["student"](batch[0]), target)

    @torch.no_grad()
    def on_train_batch_end(self, *_: Any) -> None:
        if self.averages:
            pairs = zip(*(self.net[n].parameters() for n in ("teacher", "student")), strict=True)
            for mean, new in pairs:
                mean.lerp_(new, 0.5)

    def configure_optimizers(self) -> Optimizer:
        return AdamW(self.net["student"].parameters(), lr=0.1)


def pair(order: str, teacher: nn.Module, place: str) -> Any:
    networks = {name: Net() if name == "student" else teacher for name in order.split()}
    return PLACES[place](networks)


TEACHERS = {
    "fixed": frozen_net,
    "fixed, in training mode": lambda: Net(6).requires_grad_(False),
    "in eval mode": lambda: Net(6).eval(),
    "in training mode and in no optimizer": lambda: Net(6),
}


class Student(Callback):
    """What of the student moved in each epoch, and the teacher's modes then."""

    def __init__(self) -> None:
        self.moved: list[set[str]] = []

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.before = copy.deepcopy(pl_module.net["student"].state_dict())

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        now = pl_module.net["student"].state_dict()
        names = {name for name in now if not torch.equal(now[name], self.before[name])}
        self.moved.append({name.split(".")[0] for name in names})
        self.before = copy.deepcopy(now)
        self.modes = [each.training for each in pl_module.net["teacher"].modules()]


GRADUAL = [{"fc"}, {"fc", "layer1"}, {"fc", "layer1", "stem"}]


def fit_pair(module: LightningModule, schedule: Any = "gradual", **options: Any) -> Student:
    data = TensorDataset(torch.randn(8, 3, 8, 8), torch.arange(8) % 3)
    student = Student()
    settings = {"max_epochs": 3, "accelerator": "cpu", "logger": False}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    ckpt_path = options.pop("ckpt_path", None)
    extra = options.pop("callbacks", [])
    callbacks = [FreezeUnfreezeCallback(schedule), student, *extra]
    settings = {**settings, **quiet, "enable_checkpointing": False, **options}
    trainer = Trainer(callbacks=callbacks, **settings)
    trainer.fit(module, DataLoader(data, batch_size=4), ckpt_path=ckpt_path, weights_only=True)
    held = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert held.isdisjoint(map(id, module.net["teacher"].parameters()))
    return student


@pytest.mark.parametrize("kind", TEACHERS)
@pytest.mark.parametrize("order", ["teacher student", "student teacher"])
@pytest.mark.parametrize("place", PLACES)
def test_a_teacher_inside_any_module_stays_as_it_is(place: str, order: str, kind: str) -> None:
    teacher = TEACHERS[kind]()
    state = copy.deepcopy(teacher.state_dict())
    gradients = [parameter.requires_grad for parameter in teacher.parameters()]
    modes = [each.training for each in teacher.modules()]

    student = fit_pair(Within(pair(order, teacher, place)))

    assert student.moved == GRADUAL
    assert student.modes == modes == [each.training for each in teacher.modules()]
    assert [parameter.requires_grad for parameter in teacher.parameters()] == gradients
    now = teacher.state_dict()
    assert [name for name in state if not torch.equal(state[name], now[name])] == []


@pytest.mark.parametrize(
    "schedule", ["full", "head_only", {0: "fc", 1: "layer1"}, {0: -1, 1: -2}, {0: 2, 1: 1}]
)
def test_every_kind_of_schedule_passes_over_a_teacher_that_no_optimizer_holds(
    schedule: Any,
) -> None:
    student = fit_pair(Within(pair("student teacher", Net(6), "an own class")), schedule)
    expected = {"full": [GRADUAL[-1]] * 3, "head_only": [{"fc"}] * 3}
    named = [{"fc"}, {"fc", "layer1"}, {"fc", "layer1"}]
    assert student.moved == (expected[schedule] if isinstance(schedule, str) else named)


def test_the_lp_ft_strategy_passes_over_it_as_well() -> None:
    module = Within(pair("student teacher", Net(6), "a list"))
    moved = fit_pair(module, {"lp_ft": {"head_epochs": 1}}).moved
    assert moved == [{"fc"}, GRADUAL[-1], GRADUAL[-1]]


@pytest.mark.parametrize("place", PLACES)
def test_a_teacher_that_a_hook_averages_is_that_average(place: str) -> None:
    torch.manual_seed(0)
    module = Within(pair("student teacher", Net(), place), averages=True)
    reference = copy.deepcopy(module.net["teacher"])

    class Average(Callback):
        @torch.no_grad()
        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
            pairs = zip(reference.parameters(), pl_module.net["student"].parameters(), strict=True)
            for mean, new in pairs:
                mean.lerp_(new, 0.5)

    assert fit_pair(module, callbacks=[Average()]).moved == GRADUAL
    found = module.net["teacher"].parameters()
    assert all(torch.equal(a, b) for a, b in zip(found, reference.parameters(), strict=True))


class Momentum(LightningModule):
    """A network in training mode that follows the student, in a hook of the module."""

    def __init__(self, hook: str, average: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.student = Net()
        self.target = copy.deepcopy(self.student).requires_grad_(False)
        setattr(self, hook, lambda *_: self.follow(average))

    @torch.no_grad()
    def follow(self, average: Any) -> None:
        for mean, new in zip(self.target.parameters(), self.student.parameters(), strict=True):
            average(mean, new)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        with torch.no_grad():
            target = self.target(batch[0])
        return F.mse_loss(self.student(batch[0]), target + 1)

    def configure_optimizers(self) -> Optimizer:
        return SGD(self.student.parameters(), lr=0.1)


def by_lerp(mean: Tensor, new: Tensor) -> None:
    mean.lerp_(new, 0.1)


def by_data(mean: Tensor, new: Tensor) -> None:
    mean.data.mul_(0.9).add_(new.data, alpha=0.1)


def by_new_data(mean: Tensor, new: Tensor) -> None:
    mean.data = mean.data * 0.9 + new.data * 0.1


@pytest.mark.parametrize(
    ("hook", "average"),
    [
        ("on_train_batch_start", by_data),
        ("on_before_zero_grad", by_new_data),
        ("on_train_batch_end", by_lerp),
        ("on_train_batch_end", by_data),
        ("on_train_batch_end", by_new_data),
    ],
)
def test_a_network_that_a_hook_lets_follow_is_as_without_a_schedule(
    hook: str, average: Any
) -> None:
    module, alone = Momentum(hook, average), Momentum(hook, average)
    data = DataLoader(TensorDataset(torch.randn(8, 3, 8, 8), torch.arange(8) % 3), batch_size=2)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    options = {"max_epochs": 2, "accelerator": "cpu", "enable_checkpointing": False, **quiet}
    Trainer(callbacks=[FreezeUnfreezeCallback("full")], **options).fit(module, data)
    Trainer(**options).fit(alone, data)
    found, expected = module.state_dict(), alone.state_dict()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def test_a_run_beside_a_teacher_that_no_optimizer_holds_resumes_to_the_same_end(
    tmp_path: Path,
) -> None:
    class Save(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")

    def module() -> Within:
        torch.manual_seed(0)
        return Within(pair("student teacher", Net(6), "an own class"))

    def run(**options: Any) -> Within:
        found = module()
        torch.manual_seed(1)
        fit_pair(found, **options)
        return found

    whole = run(callbacks=[Save()])
    for step in (1, 2, 3):
        state = run(ckpt_path=tmp_path / f"{step}.ckpt").state_dict()
        assert all(torch.equal(state[name], value) for name, value in whole.state_dict().items())


def test_a_network_that_trains_is_not_taken_for_one_beside_in_silence() -> None:
    class Filtered(Within):
        def configure_optimizers(self) -> Optimizer:
            return AdamW([p for p in self.parameters() if p.requires_grad], lr=0.1)

    module = Filtered(pair("student teacher", Net(6), "an own class"))
    with pytest.raises(ValueError, match=r"gives gradients.*Name in the schedule what should"):
        fit_pair(module)


def test_the_best_weights_of_a_phase_do_not_bring_a_teachers_statistics_back() -> None:
    class Validated(Within):
        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            self.log("loss", float(self.current_epoch))

    plateau = {"on_plateau": {"monitor": "loss", "patience": 1, "mode": "min"}}
    schedule = [{"modules": "fc"}, {**plateau, "modules": "layer1", "restore_best": True}]
    teacher = Net().requires_grad_(False)
    module = Validated(pair("teacher student", teacher, "an own class"), averages=True)
    data = DataLoader(TensorDataset(torch.randn(8, 3, 8, 8), torch.arange(8) % 3), batch_size=4)
    trainer = Trainer(
        max_epochs=4,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[FreezeUnfreezeCallback(schedule)],
    )
    trainer.fit(module, data, data)
    assert teacher.stem[1].num_batches_tracked == 4 * len(data)


class TeacherOfClassifier(FinetuneClassifier):
    """A classifier beside a teacher of its own."""

    def __init__(self, **options: Any) -> None:
        super().__init__(Net(), num_classes=3, lr=0.1, **options)
        self.teacher = frozen_net()


def test_a_classifiers_teacher_is_in_no_block_no_group_and_no_depth_of_layer_decay() -> None:
    module, alone = TeacherOfClassifier(layer_decay=0.5), FinetuneClassifier(Net(), num_classes=3)
    assert [block.name for block in module.blocks] == [block.name for block in alone.blocks]
    assert module.param_groups()[-1].lr_ratio == 0.05
    before = copy.deepcopy(module.teacher.state_dict())

    trainer, watch = fit(module, "gradual")

    expected = [{"backbone.fc"}, {"backbone.fc", "backbone.layer1"}]
    assert watch.moved[:2] == expected
    assert all(torch.equal(before[n], v) for n, v in module.teacher.state_dict().items())
    names = [group["name"] for group in trainer.optimizers[0].param_groups]
    assert not [name for name in names if "teacher" in name]


class Transfer(LightningModule):
    """A backbone that is frozen by hand, and a head of one or two layers beside it."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.features.requires_grad_(False)
        self.classifier = head

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.classifier(self.features(batch[0])), batch[1])

    def configure_optimizers(self) -> Optimizer:
        return SGD(self.parameters(), lr=0.1)


def test_a_frozen_backbone_is_no_network_beside_its_head() -> None:
    _, watch = fit(Transfer(nn.Linear(8, 3)), {0: "head", 1: "all"})
    features = {"features.0", "features.2"}
    assert watch.moved[1] == {"classifier.weight", "classifier.bias", *features}

    head = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    _, watch = fit(Transfer(head), {0: "classifier", 1: "features"})
    assert watch.moved[1] == {"classifier.0", "classifier.2", *features}


def test_a_network_that_the_schedule_names_trains() -> None:
    module = Beside(frozen_net(), "other student")
    with pytest.warns(UserWarning, match=r"No gradient has reached the block other \(other\.stem"):
        trainer, _ = fit(module, {0: "student.fc", 1: "other"})
    held = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert held.issuperset(map(id, module.other.parameters()))


def test_the_tuner_tries_the_phase_without_a_teacher_that_no_optimizer_holds() -> None:
    module = Within(pair("student teacher", Net(6), "an own class"))
    module.lr = 0.1
    data = TensorDataset(torch.randn(24, 3, 8, 8), torch.arange(24) % 3)
    student = Student()
    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[FreezeUnfreezeCallback("gradual"), student],
    )
    loader, options = DataLoader(data, batch_size=4), {"num_training": 5, "update_attr": False}
    Tuner(trainer).lr_find(module, loader, early_stop_threshold=None, **options)
    assert all(parameter.requires_grad for parameter in module.parameters())

    trainer.fit(module, loader)
    assert student.moved == GRADUAL


class AloneWithTeacher(FinetuneClassifier):
    """A classifier with a teacher in training mode, and perhaps a new head in epoch 1."""

    def __init__(self, new_head: bool = False) -> None:
        super().__init__(Net(), num_classes=3)
        self.teacher = Net(6).requires_grad_(False)
        self.new_head = new_head

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        self.teacher(torch.randn(4, 3, 8, 8))
        return super().loss(logits, target)

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        if self.new_head and self.current_epoch == 1:
            self.backbone.fc = nn.Linear(8, 3)


def fit_alone(module: LightningModule) -> None:
    data = DataLoader(TensorDataset(torch.randn(8, 3, 8, 8), torch.arange(8) % 3), batch_size=2)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    options = {"max_epochs": 2, "accelerator": "cpu", "enable_checkpointing": False, **quiet}
    Trainer(**options).fit(module, data)


def test_a_classifiers_teacher_in_training_mode_stays_as_it_is_without_a_schedule() -> None:
    module = AloneWithTeacher()
    before = copy.deepcopy(module.teacher.state_dict())
    fit_alone(module)
    assert all(torch.equal(before[n], v) for n, v in module.teacher.state_dict().items())


def test_a_classifiers_head_that_is_exchanged_amid_the_training_is_refused_without_a_schedule() -> (
    None
):
    with pytest.raises(ValueError, match=r"before step 4 in epoch 1: backbone\.fc\.weight"):
        fit_alone(AloneWithTeacher(new_head=True))
