"""Where the tables of a run are stored, and under which key later runs find them."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lit_finetune.feature_cache.key import content_digest, network_digest
from lit_finetune.files.fingerprint import digest

from .config import CacheConfig
from .node_ranks import NodeRanks, node_ranks
from .run import Run
from .samples import LoaderSamples
from .storage import remove, shared_temporary_folder

_FORMAT = 3
"""Part of each key: increase it when tables change."""


class TableFolders:
    """The folders of the tables of one loader.

    Args:
        samples: The images of the loader.
        config: Names the folder that later runs share, if there is one.
    """

    def __init__(self, samples: LoaderSamples, config: CacheConfig) -> None:
        self._samples = samples
        self._config = config
        self._temporary: Path | None = None
        self._ranks: NodeRanks | None = None
        self._data_digest: str | None = None

    def folder(self, run: Run, name: str, first: Sequence[Tensor]) -> Path:
        """The folder of a table: shared with later runs, or of this run alone.

        Args:
            run: The run.
            name: The block.
            first: Images and labels of the first samples.
        """
        shared = self.shared_folder(run, name, first)
        if shared is not None:
            return shared
        if self._temporary is None:
            self._temporary = shared_temporary_folder(run.trainer, self.ranks(run))
        return self._temporary / f"{self._samples.part}-{name}"

    def shared_folder(self, run: Run, name: str, first: Sequence[Tensor]) -> Path | None:
        """The folder in which later runs look; None where the images cannot be identified."""
        if self._config.cache_dir is None:
            return None
        if self._data_digest is None:
            self._data_digest = content_digest(self._samples.loader.dataset) or ""
        if not self._data_digest:
            return None
        samples, module = self._samples, run.module
        key = digest(
            [_FORMAT, torch.__version__, name, samples.part, samples.views],
            [str(self._config.dtype), run.trainer.precision, first[0].device.type],
            [samples.batch_size, module.hparams.get("channels_last")],
            [type(module.backbone).__qualname__, self._data_digest, *first],
            network_digest(module.backbone, run.tensors(name)),
        )
        node = f"-{run.trainer.node_rank}" if self.ranks(run).num_nodes > 1 else ""
        return self._config.cache_dir / f"{name}-{key}{node}"

    def ranks(self, run: Run) -> NodeRanks:
        """The rank of this process within its node."""
        if self._ranks is None:
            self._ranks = node_ranks(run.trainer)
        return self._ranks

    def close(self) -> None:
        """Remove the tables of this run alone."""
        if self._temporary is not None:
            remove(self._temporary)
        self._temporary = None
