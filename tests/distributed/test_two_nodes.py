"""Processes of two nodes, which do not see each other's files; here they are on one machine."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("two_processes.py")

DATA = {"train_augmentation": "none", "num_workers": 0}


def run(folder: Path, *options: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """What each node's process wrote down at the end of each epoch; options of one node each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), str(folder), json.dumps(of_node)],
            cwd=folder,
            env={**environment, "NODE_RANK": str(node), "TMPDIR": str(folder / f"tmp{node}")},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for node, of_node in enumerate(options)
    ]
    for process in processes:
        told = process.communicate(timeout=500)[1]
        assert process.returncode == 0, told[-3000:]
    return [
        [torch.load(folder / f"rank{node}-epoch{i}.pt", weights_only=True) for i in range(3)]
        for node in (0, 1)
    ]


def node(**cache: Any) -> dict[str, Any]:
    """The options of a node."""
    kept = {"cache": cache["cache"]} if cache else {}
    return {"devices": 1, "trainer": {"num_nodes": 2}, "data": DATA, **kept}


@pytest.mark.slow
@pytest.mark.sweep
def test_each_node_trains_on_whole_tables(tmp_path: Path) -> None:
    ways = {"plain": [], "of this run": [{}, {}]}
    ways["shared"] = [{"cache_dir": str(tmp_path / "kept")}] * 2
    results = {}
    for name, caches in ways.items():
        folder = tmp_path / name.replace(" ", "-")
        for part in ("", "tmp0", "tmp1"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        nodes = [node(cache=cache) for cache in caches] or [node(), node()]
        results[name] = run(folder, *nodes)

    for name, result in results.items():
        for rank in (0, 1):
            for one, other in zip(results["plain"][rank], result[rank], strict=True):
                for key, value in one["weights"].items():
                    assert torch.equal(value, other["weights"][key]), (name, rank, key)
    assert len(list((tmp_path / "kept").iterdir())) == 8  # head and layer2, two parts, two nodes
