"""Reads clips: from a line of a list file to a uint8 tensor."""

from .dataset import EvalDataset, TrainDataset, collate
from .description import DatasetConfig, list_datasets, load_dataset_config
from .frame_folder import FrameFolder
from .frame_source import FrameSource
from .modality import RGB, Modality
from .one_video import open_one_video
from .packed import PackedStore
from .sources import register_source
from .video_file import VideoFile
from .video_list import DataError, Video, VideoList, read_list

__all__ = [
    "RGB",
    "DataError",
    "DatasetConfig",
    "EvalDataset",
    "FrameFolder",
    "FrameSource",
    "Modality",
    "PackedStore",
    "TrainDataset",
    "Video",
    "VideoFile",
    "VideoList",
    "collate",
    "list_datasets",
    "load_dataset_config",
    "open_one_video",
    "read_list",
    "register_source",
]
