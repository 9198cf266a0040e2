"""Data modules: pictures and labels for training, validation, testing and prediction."""

from .base import ImageDataModule as ImageDataModule
from .cifar import CIFARDataModule as CIFARDataModule
from .digits import DigitsDataModule as DigitsDataModule
from .image_folder import ImageFolderDataModule as ImageFolderDataModule
from .litdata_shards import write_shards as write_shards
from .streaming import StreamingImageDataModule as StreamingImageDataModule
