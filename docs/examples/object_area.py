"""Print the area of each object in every frame: python object_area.py VIDEO MASK.png"""

import sys

import corrflow


def main(video: str, mask: str) -> None:
    for result in corrflow.track(video, masks=mask):
        areas = [(result.mask == one.id).sum() for one in result.objects]
        print(f"{result.frame.time:.3f} s:", *areas)


if __name__ == "__main__":
    main(*sys.argv[1:])
