"""How large each object is in every frame: python object_area.py VIDEO MASK.png"""

import sys

import corrflow.runtime


def main(video: str, mask: str) -> None:
    for tracks in corrflow.runtime.track(video, masks=mask):
        pixels = [(result.mask == found.id).sum() for found in result.objects]
        print(f"{tracks.frame.time:.3f} s:", *pixels)


if __name__ == "__main__":
    main(*sys.argv[1:])
