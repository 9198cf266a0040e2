"""Fine-tune image classifiers with PyTorch Lightning."""

from lit_finetune.blocks.block import Block as Block
from lit_finetune.blocks.block import list_blocks as list_blocks
from lit_finetune.classifier import FinetuneClassifier as FinetuneClassifier
from lit_finetune.images.data_config import DataConfig as DataConfig
from lit_finetune.probe.fit import ProbeFit as ProbeFit
from lit_finetune.probe.fit import fit_linear_probe as fit_linear_probe
from lit_finetune.weights.load import load_weights as load_weights
from lit_finetune.weights.report import LoadReport as LoadReport
