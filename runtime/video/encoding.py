"""Pictures as H.264 that browsers play, with the colours they had."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import av
import cv2
import numpy as np
from av.container import OutputContainer
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream


def add_h264_stream(
    container: OutputContainer, rate: Fraction, size: tuple[int, int], options: Mapping[str, str]
) -> VideoStream:
    """A stream for pictures of an even (height, width) as `encodable` returns them."""
    stream = container.add_stream("libx264", rate=rate, options={"preset": "veryfast", "crf": "20", **options})
    stream.height, stream.width = size
    stream.pix_fmt = "yuv420p"
    context = stream.codec_context
    # Without the tags, players guess by the picture's height and show other colours.
    context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
    context.color_primaries = context.color_trc = 1  # BT.709 in both lists of the standard
    return stream


def encodable(picture: np.ndarray) -> av.VideoFrame:
    """A picture [H, W, 3] uint8, BGR, as a frame for the encoder, its last row and column repeated to even sides."""
    height, width = picture.shape[:2]
    # Half the pixels carry no colour of their own in 4:2:0, which needs even sides; cropping would lose tracks.
    picture = cv2.copyMakeBorder(picture, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
    return av.VideoFrame.from_ndarray(np.asarray(picture, np.uint8), format="bgr24").reformat(
        format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
    )


VIDEO_FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
