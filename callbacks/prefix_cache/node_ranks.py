"""The processes of a run by node: only the processes of one node are sure to share files."""

from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Trainer


@dataclass(frozen=True, slots=True)
class NodeRanks:
    """The rank of this process within its node."""

    rank: int
    """Of this process within its node, from 0."""
    size: int
    """Processes of this node."""
    num_nodes: int
    first: int
    """The global rank of the node's first process."""


def node_ranks(trainer: Trainer) -> NodeRanks:
    """The rank of this process within its node; a collective call."""
    nodes = all_gather(trainer, trainer.node_rank)
    same_node = [rank for rank, node in enumerate(nodes) if node == trainer.node_rank]
    rank = same_node.index(trainer.global_rank)
    return NodeRanks(rank, len(same_node), len(set(nodes)), same_node[0])


def all_gather(trainer: Trainer, value: Any) -> list[Any]:
    """The value of each process, by global rank; a collective call."""
    if trainer.world_size == 1:
        return [value]
    values: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(values, value)
    return values
