"""Read a batch, and explain what is wrong with one that a classifier does not accept."""

from typing import Any

from torch import Tensor, nn

from lit_finetune.training.metric_values import describe


def split_batch(batch: Any) -> tuple[Any, Any]:
    """The images and the target of a batch.

    >>> import torch
    >>> split_batch((torch.zeros(2), 1))[1]
    1

    Raises:
        ValueError: The batch is not a pair.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise ValueError(
            f"A batch is a pair of images and labels, but the loader gives {describe_batch(batch)}."
            " Make pairs in the dataset or the `collate_fn`, or override `training_step` and"
            " `validation_step`."
        )
    return batch[0], batch[1]


def images_of(batch: Any) -> Any:
    """The images of a batch, with or without labels.

    Raises:
        ValueError: The batch is neither images nor a tuple that begins with them.
    """
    if isinstance(batch, Tensor):
        return batch
    if not isinstance(batch, tuple | list) or not batch:
        raise ValueError(
            "A batch to predict is images, or a tuple that begins with them, but the loader gives"
            f" {describe_batch(batch)}. Override `predict_step` for other batches."
        )
    return batch[0]


def describe_batch(batch: Any) -> str:
    """The type of a batch, in words.

    >>> describe_batch({"image": 1, "label": 2})
    'a dict of image, label'
    """
    if isinstance(batch, dict):
        return f"a dict of {', '.join(map(str, batch))}"
    return describe(batch)


def logits_for(module: Any, images: Any, *, channels: int) -> Tensor:
    """A classifier's logits of images.

    Raises:
        ValueError: The classifier fails because of the images.
    """
    try:
        logits: Tensor = module(images)
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        if problem := images_problem(images, module.backbone, channels=channels):
            raise ValueError(problem) from error
        raise
    return logits


def images_problem(images: Any, network: nn.Module, *, channels: int) -> str | None:
    """What is wrong with images that a network failed on, in words; None if unknown.

    >>> import torch
    >>> images_problem(torch.zeros(4, 8, 8, 3), nn.Conv2d(3, 1, 1), channels=3)[:66]
    'The images are (4, 8, 8, 3), channels last: `permute(0, 3, 1, 2)` '
    """
    if hasattr(images, "_fields"):  # the cached output of the first blocks
        return None
    if not isinstance(images, Tensor):
        return f"Images are a float tensor (N, {channels}, H, W), but the loader gives" + (
            f" {describe(images)}."
        )
    shape, wanted = tuple(images.shape), f"(N, {channels}, H, W)"
    if images.dim() == 4 and images.shape[1] != channels == images.shape[3]:
        return (
            f"The images are {shape}, channels last: `permute(0, 3, 1, 2)` makes them {wanted},"
            " `torchvision.transforms.ToTensor` floats from 0 to 1 as well."
        )
    if images.dim() != 4 or images.shape[1] != channels:
        return (
            f"The images are {shape}, but the network takes {wanted}. Give `in_chans` for another"
            " number of channels."
        )
    parameter = next((p for p in network.parameters() if p.is_floating_point()), None)
    if not images.is_floating_point():
        return (
            f"The images are {images.dtype}, but floats are needed, scaled from 0 to 1 and"
            " normalized as the network was trained: see"
            " `torchvision.transforms.v2.ToDtype(torch.float32, scale=True)`."
        )
    if parameter is not None and images.dtype != parameter.dtype:
        return (
            f"The images are {images.dtype}, but the network is {parameter.dtype}: convert one of"
            " them, as by `.float()`."
        )
    return None


def check_loss(loss: Any) -> Tensor:
    """The loss of a subclass, if it is a scalar tensor.

    Raises:
        TypeError: It is not.
    """
    if isinstance(loss, Tensor) and loss.dim() == 0 and loss.is_floating_point():
        return loss
    if isinstance(loss, Tensor) and loss.is_floating_point():
        advice = f"a tensor {tuple(loss.shape)}: take its mean (`reduction='mean'`)"
    elif isinstance(loss, Tensor):
        advice = f"a tensor of {loss.dtype}"
    else:
        advice = describe_batch(loss)
    raise TypeError(f"`loss` returns one float tensor, the batch's mean loss, but gave {advice}.")
