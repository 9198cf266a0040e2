"""Fine-tune image classifiers with PyTorch Lightning."""

from lit_finetune.blocks import Block as Block
from lit_finetune.blocks import list_blocks as list_blocks
from lit_finetune.classifier import FinetuneClassifier as FinetuneClassifier
from lit_finetune.data_config import DataConfig as DataConfig
from lit_finetune.probe import ProbeFit as ProbeFit
from lit_finetune.probe import fit_linear_probe as fit_linear_probe
from lit_finetune.weights import LoadReport as LoadReport
from lit_finetune.weights import load_weights as load_weights
