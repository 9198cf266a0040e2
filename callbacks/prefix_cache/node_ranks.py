"""The processes of a run by node: those of one share its files, and those of others may not."""

from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Trainer


@dataclass(frozen=True, slots=True)
class NodeRanks:
    """This process among those of its node."""

    rank: int
    """Its place among them, from 0."""
    size: int
    """How many they are."""
    num_nodes: int
    first: int
    """The global rank of the first of them."""


def node_ranks(trainer: Trainer) -> NodeRanks:
    """This process among those of its node; all processes must ask."""
    nodes = gathered(trainer, trainer.node_rank)
    beside = [rank for rank, node in enumerate(nodes) if node == trainer.node_rank]
    place = beside.index(trainer.global_rank)
    return NodeRanks(place, len(beside), len(set(nodes)), beside[0])


def gathered(trainer: Trainer, value: Any) -> list[Any]:
    """What each process has, by global rank; all processes must ask."""
    if trainer.world_size == 1:
        return [value]
    values: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(values, value)
    return values
