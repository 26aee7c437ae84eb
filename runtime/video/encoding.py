"""H.264 encoding that browsers play, with correct colours."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import av
import cv2
import numpy as np
from av.container import OutputContainer
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream

# x264's macroblock tree reads memory that nobody wrote, so that equal runs have other bytes. Without the tree, a rate
# factor of 21 has the size and the quality of 20 with it.
_OPTIONS = {"preset": "veryfast", "crf": "21", "x264-params": "mbtree=0"}


def add_h264_stream(
    container: OutputContainer,
    rate: Fraction,
    size: tuple[int, int],
    options: Mapping[str, str],
    sample_aspect_ratio: Fraction | None = None,
) -> VideoStream:
    """Add a stream to a container.

    size:                even (height, width), as `encodable` makes frames
    sample_aspect_ratio: width of a pixel over its height; None for square pixels
    """
    stream = container.add_stream("libx264", rate=rate, options={**_OPTIONS, **options})
    stream.height, stream.width = size
    stream.pix_fmt = "yuv420p"
    context = stream.codec_context
    # Without these tags, players choose the colour space by the height of the frame.
    context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
    if sample_aspect_ratio:
        context.sample_aspect_ratio = sample_aspect_ratio.limit_denominator(65535)  # of H.264
    context.color_primaries = context.color_trc = 1  # BT.709 in both lists of the standard
    return stream


def encodable(image: np.ndarray) -> av.VideoFrame:
    """Convert an image [H, W, 3] uint8, BGR, for the encoder. Odd sides are made even by repeating the last pixels."""
    height, width = image.shape[:2]
    # 4:2:0 subsampling needs even sides; cropping would lose pixels of objects.
    image = cv2.copyMakeBorder(image, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
    return av.VideoFrame.from_ndarray(np.asarray(image, np.uint8), format="bgr24").reformat(
        format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
    )


VIDEO_FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
"""FFmpeg's container format by suffix."""
