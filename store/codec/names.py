"""The names of the codecs, for settings, command line and metadata: the one list of them, quick to import."""

from typing import Literal, get_args

CodecName = Literal["bf16_planes_v1", "pcodec", "zstd", "blosc", "none"]
CODEC_NAMES: tuple[CodecName, ...] = get_args(CodecName)
