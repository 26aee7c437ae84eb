"""The report of a video: the weakest frames are those shown, names are inert, and memory stays bounded."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from corrflow.runtime.formats.html_report import MAX_SPANS, ReportSink
from corrflow.runtime.types import Frame, FrameResult, ObjectResult


def write(
    path: Path, confidences: list[float | None], name: str = "cup", title: str = "clip"
) -> tuple[ReportSink, str]:
    sink = ReportSink(path, title)
    image, mask = np.zeros((40, 60, 3), np.uint8), np.zeros((40, 60), np.uint8)
    for index, confidence in enumerate(confidences):
        track = ObjectResult(3, name, confidence or 0.0, confidence is not None)
        sink.write(FrameResult(mask, (track,), Frame(image, index, index / 25, f"{index:05d}")))
    sink.close()
    return sink, path.read_text()


@pytest.mark.parametrize("count", [30, 1000])
def test_the_weakest_frames_are_named_and_apart(tmp_path: Path, count: int) -> None:
    confidences: list[float | None] = [0.95] * count
    confidences[5] = 0.5
    confidences[6] = 0.4
    confidences[-9] = 0.6
    sink, page = write(tmp_path / "report.html", confidences)
    assert sink.suggested() == [6, count - 9]
    assert f"clip/cup/{count - 9:05d}.png" in page and "cup: confidence 0.40" in page
    images = re.findall(r'alt="frame (\d+)"', page)
    assert {"6", str(count - 9)} <= set(images) and len(images) <= 12
    assert page.count("<rect") <= MAX_SPANS


def test_where_an_object_is_lost_is_worth_a_label_and_its_absence_is_not(tmp_path: Path) -> None:
    sink, page = write(tmp_path / "report.html", [0.9] * 20 + [None] * 40)
    assert sink.suggested() == [20] and "cup: out of sight from here" in page


def test_a_frame_is_to_be_labelled_in_a_file_that_can_hold_the_object(tmp_path: Path) -> None:
    sink = ReportSink(tmp_path / "report.html", "clip")
    image, mask = np.zeros((40, 60, 3), np.uint8), np.zeros((40, 60), np.uint8)
    for index in range(40):
        drawn = ObjectResult(1, "cup", 0.2 if index == 5 else 0.9, True)
        sure = 0.3 if index == 30 else 0.9
        if index == 20:
            drawn = ObjectResult(1, "cup", 0.0, False)
        dots = ObjectResult(2, "hand", sure, index != 20, None, np.zeros((1, 2), np.float32), ("a",), np.full(1, sure))
        sink.write(FrameResult(mask, (drawn, dots), Frame(image, index, index / 25, f"{index:05d}")))
    sink.close()
    rows = re.findall(r"<tr><td>(\d+)</td>.*?<code>(.*?)</code>", (tmp_path / "report.html").read_text())
    assert rows == [("20", "clip.csv"), ("5", "clip/cup/00005.png"), ("30", "clip.csv")]


def test_a_sure_video_suggests_nothing(tmp_path: Path) -> None:
    sink, page = write(tmp_path / "report.html", [0.9] * 20)
    assert sink.suggested() == [] and "None stands out" in page


def test_the_memory_of_a_report_does_not_grow_with_the_video(tmp_path: Path) -> None:
    sink, _ = write(tmp_path / "report.html", [0.9] * 5000)
    assert len(sink._spans) <= MAX_SPANS
    assert [span.first for span in sink._spans] == list(range(0, 5000, sink._length))


SCRIPT = '<script>alert("x")</script>'


def test_names_are_text_and_nothing_else(tmp_path: Path) -> None:
    _, page = write(tmp_path / "report.html", [0.1] * 3, SCRIPT, SCRIPT)
    tags: set[str] = set()

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.add(tag)

    Parser().feed(page)
    assert "script" not in tags and "svg" in tags
    # As title and heading; in the advice as reason and twice in the file's name; in the strip; below the image.
    assert page.count("&lt;script&gt;alert(") >= 6
    assert not re.search(r'(src|href)="(?!data:)', page)


@pytest.mark.parametrize(
    ("identity", "name", "file"),
    [
        (1, "", "clip/00009.png"),
        (2, "", "clip/2/00009.png"),
        (2, "cup", "clip/cup/00009.png"),
        (1, "a/b", "clip/00009.png"),
    ],
)
def test_the_file_to_label_in_is_taken_for_that_object(tmp_path: Path, identity: int, name: str, file: str) -> None:
    sink = ReportSink(tmp_path / "report.html", "clip")
    image, mask = np.zeros((40, 60, 3), np.uint8), np.zeros((40, 60), np.uint8)
    for index in range(20):
        track = ObjectResult(identity, name, 0.3 if index == 9 else 0.9, True)
        sink.write(FrameResult(mask, (track,), Frame(image, index, index / 25, f"{index:05d}")))
    sink.close()
    page = (tmp_path / "report.html").read_text()
    assert f"<code>{file}</code>" in page and "white where the object is" in page and "<code>frame,name" not in page


def test_of_several_points_the_least_sure_is_named(tmp_path: Path) -> None:
    sink = ReportSink(tmp_path / "report.html", "clip")
    image, mask = np.zeros((40, 60, 3), np.uint8), np.zeros((40, 60), np.uint8)
    sure = np.array([0.9, 0.1, 0.5])
    dots = ObjectResult(1, "hand", 0.5, True, None, np.zeros((3, 2), np.float32), ("thumb", "palm", "wrist"), sure)
    sink.write(FrameResult(mask, (dots,), Frame(image, 0, 0.0, "00000")))
    sink.close()
    page = (tmp_path / "report.html").read_text()
    assert "hand: confidence 0.50, least palm with 0.10" in page and "<code>frame,name,x,y</code>" in page
