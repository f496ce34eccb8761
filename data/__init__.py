"""From a list line to a uint8 clip tensor."""

from .dataset import EvalDataset, TrainDataset, collate
from .datasets import DatasetConfig, list_datasets, load_dataset_config
from .modality import RGB, Modality
from .video_list import DataError, Video, read_list

__all__ = [
    "RGB",
    "DataError",
    "DatasetConfig",
    "EvalDataset",
    "Modality",
    "TrainDataset",
    "Video",
    "collate",
    "list_datasets",
    "load_dataset_config",
    "read_list",
]
