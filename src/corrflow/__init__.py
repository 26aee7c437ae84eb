"""Track objects and keypoints through video; the encoder behind it was trained without labels."""
