"""Track one object through a video with an artifact's graphs alone: ONNX Runtime and NumPy, OpenCV for the frames.

    python track_with_onnxruntime.py ARTIFACT_FOLDER VIDEO FIRST_MASK.png FOLDER_FOR_MASKS

Nothing of corrflow is imported, so it can be written again in C++ or JavaScript. Search windows do not move,
objects have no target models, and masks are not refined: corrflow itself does all three. The first mask is as large as
the first frame, and not black on the object. The results are black and white.
"""

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime

if len(sys.argv) != 5:
    sys.exit(__doc__)
artifact, video, first_mask, out = map(Path, sys.argv[1:])
short_side = json.loads((artifact / "artifact.json").read_text())["tracking"]["short_side"]
encode, step = (onnxruntime.InferenceSession(artifact / name) for name in ("encode.onnx", "step.onnx"))
out.mkdir(parents=True, exist_ok=True)

frames, index, keys, values = cv2.VideoCapture(str(video)), 0, np.empty(0), np.empty(0)
while True:
    found, frame = frames.read()  # [H, W, 3] uint8, BGR
    if not found:
        break
    H, W = frame.shape[:2]
    scale = min(1, short_side / min(H, W)) if short_side else 1
    working = cv2.resize(frame, (round(W * scale), round(H * scale)), interpolation=cv2.INTER_AREA)
    height, width = working.shape[:2]
    h, w = -(-height // 4), -(-width // 4)  # cells of 4x4 pixels; the last may reach out of the frame
    if index == 0:
        picture = cv2.imread(str(first_mask), cv2.IMREAD_GRAYSCALE)
        if picture is None or picture.shape != (H, W):
            sys.exit(f"expected a mask of {W}x{H} pixels, as the first frame has, in {first_mask}")
        mask = picture > 0
        covered = cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
        covered = cv2.copyMakeBorder(covered, 0, 4 * h - height, 0, 4 * w - width, cv2.BORDER_REPLICATE)
        values = cv2.resize(covered, (w, h), interpolation=cv2.INTER_AREA)[None, None, None]  # [1, K = 1, N = 1, h, w]
        keys = np.asarray(encode.run(None, {"frame": working[None]})[0])[:, None]  # [1, K = 1, C, h, w]
    else:
        inputs = {"frame": working[None], "keys": keys, "values": values}
        labels, keys, values = map(np.asarray, step.run(None, inputs))
        soft = cv2.resize(labels[0, 0], (4 * w, 4 * h))[:height, :width]  # a cell's centre is at 4i + 1.5 pixels
        mask = cv2.resize(soft, (W, H)) > 0.5
    cv2.imwrite(str(out / f"{index:05d}.png"), mask.astype(np.uint8) * 255)
    index += 1
print(f"{index} masks in {out}" if index else f"no frames in {video}")
