"""Video files in and out: streaming, in the source's own bit depth, with everything but the picture copied.

info = probe("shaky.mp4")
with VideoReader("shaky.mp4") as reader, VideoWriter("steady.mp4", like=reader, config=EncodeConfig()) as writer:
    for frame in reader:
        writer.write(frame)
"""

from vs3r.engine.media.bars import Inset, find_inset
from vs3r.engine.media.info import ColorTags, HdrMetadata, MediaInfo
from vs3r.engine.media.reader import VideoReader, probe
from vs3r.engine.media.writer import VideoWriter

__all__ = ["ColorTags", "HdrMetadata", "Inset", "MediaInfo", "VideoReader", "VideoWriter", "find_inset", "probe"]
