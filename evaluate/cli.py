"""corrflow-eval: score trackers and masks on data sets in their published layouts."""

from __future__ import annotations

import typer

from corrflow.command_line import Version, with_options
from corrflow.evaluate.options import (
    BadjaOptions,
    CrossValidateOptions,
    DavisOptions,
    FrontOptions,
    JhmdbOptions,
    KeypointOptions,
    KindsOptions,
    OcclusionOptions,
    ScoreOptions,
    SearchOptions,
    TapVidOptions,
    WarpOptions,
    YouTubeVosOptions,
)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # importing rich would take as long as the rest of --help
)


# Commands import their modules when they run: NumPy and OpenCV would slow --help down.
@app.callback(
    help="""Score trackers on data sets in their published layouts.

    \b
    Examples:
      corrflow-eval davis DAVIS --split val --out results
      corrflow-eval davis DAVIS --split val --protocol crw --baseline identity --baseline flow --workers 2
      corrflow-eval score MASKS --gt DAVIS --split val
      corrflow-eval points video.mp4 labels.slp --labelled 5 --out results
      corrflow-eval search DAVIS --split train --short-side 240,480 --radius 6,8,12 --out search
      corrflow-eval cross-validate sets.yaml --radius 6,8,12 --out folds
    """
)
def corrflow_eval(version: Version = False) -> None: ...


@app.command()
@with_options
def davis(options: DavisOptions) -> None:
    """Track and score the masks of DAVIS.

    The objects of the first frame are tracked. The table shows J, F, J&F (percent) and CPU milliseconds per frame.
    Further columns are the predicted area over the true area at the end, and the number of objects lost in view.
    J and F equal the values of the official DAVIS-2017 code. Means are over objects.
    With several --protocol or with --badja, a further table has a row for each model and a column for each protocol.

    Examples:

        corrflow-eval davis DAVIS --split val --year 2016 --out results

        corrflow-eval davis DAVIS --model models/a --model random-init:quarter --baseline identity --workers 4

        corrflow-eval davis DAVIS --model models/a --model random-init:quarter --protocol published --out results

        corrflow-eval davis DAVIS --model models/a --encoder resnet.onnx --baseline lab --out results

        corrflow-eval davis DAVIS --split train --stride 3

        corrflow-eval davis sets.yaml --model quarter --model fast --out results
    """
    from corrflow.evaluate.commands import run_davis

    run_davis(options)


@app.command()
@with_options
def youtube_vos(options: YouTubeVosOptions) -> None:
    """Track and score the masks of YouTube-VOS.

    Each object is tracked from the frame that first shows it, and scored on all later annotated frames.

    Examples:

        corrflow-eval youtube-vos train --workers 2 --out results

        corrflow-eval youtube-vos train --sequence 003234408d --protocol vfs
    """
    from corrflow.evaluate.commands import run_youtube_vos

    run_youtube_vos(options)


@app.command()
@with_options
def score(options: ScoreOptions) -> None:
    """Score a folder of predicted masks.

    Every scored frame needs a mask of the truth's size with the truth's object ids.

    Examples:

        corrflow-eval score my_masks --gt DAVIS --split val --out results

        corrflow-eval score results/masks/quarter --gt DAVIS --sequence bear
    """
    from corrflow.evaluate.commands import run_score

    run_score(options)


@app.command()
@with_options
def points(options: KeypointOptions) -> None:
    """Track and score the labelled points of a video.

    LABELS is a file of SLEAP, DeepLabCut, COCO or any other readable format, or an .npz of arrays. The first labelled
    frame is the prompt, or with --labelled several frames. All other labelled frames are scored. The table shows PCK
    (percent within a share of a body length), the calibration of confidences, and the time of every method.

    Examples:

        corrflow-eval points video.mp4 labels.slp --out results

        corrflow-eval points video.mp4 CollectedData.csv --labelled 5 --model models/new --model quarter

        corrflow-eval points video.mp4 points.npz --body-length 72 --baseline lk
    """
    from corrflow.evaluate.point_commands import run_points

    run_points(options)


@app.command()
@with_options
def jhmdb(options: JhmdbOptions) -> None:
    """Track and score the joints of JHMDB.

    The joints of the first frame are tracked. The table shows PCKinstance and PCKmax (percent).

    Examples:

        corrflow-eval jhmdb JHMDB --split 1 --workers 2

        corrflow-eval jhmdb JHMDB --split 1 --baseline identity --baseline flow --model quarter --drop-lost
    """
    from corrflow.evaluate.point_commands import run_jhmdb

    run_jhmdb(options)


@app.command()
@with_options
def badja(options: BadjaOptions) -> None:
    """Track and score the joints of BADJA.

    The table shows the percentage of joints within 0.2 * sqrt(area of the true mask) pixels of the truth.

    Examples:

        corrflow-eval badja BADJA/joint_annotations --root BADJA

        corrflow-eval badja bear.json --root BADJA --baseline identity --model quarter
    """
    from corrflow.evaluate.point_commands import run_badja

    run_badja(options)


@app.command()
@with_options
def tapvid(options: TapVidOptions) -> None:
    """Track and score the points of TAP-Vid.

    The table shows average Jaccard, the fraction of points within 1 to 16 pixels, and occlusion accuracy (percent).

    Examples:

        corrflow-eval tapvid tapvid_davis.pkl --queries first --workers 2

        corrflow-eval tapvid tapvid_rgb_stacking.pkl --queries strided --baseline flow
    """
    from corrflow.evaluate.point_commands import run_tapvid

    run_tapvid(options)


@app.command()
@with_options
def warps(options: WarpOptions) -> None:
    """Track and score points of known truth on frames of DAVIS.

    The first frame of each sequence is moved by a random smooth motion, with a change of brightness, noise and a patch
    that hides points. With --real, points of optical flow that is consistent both ways are the truth on real frames,
    which favours flow. The scores are those of TAP-Vid, and the fraction within one pixel (percent).

    Examples:

        corrflow-eval warps DAVIS --split train --workers 2

        corrflow-eval warps DAVIS --sequence bear --model models/new --model quarter --baseline lk

        corrflow-eval warps DAVIS --split train --real
    """
    from corrflow.evaluate.point_commands import run_warps

    run_warps(options)


@app.command()
@with_options
def search(options: SearchOptions) -> None:
    """Choose tracking settings by measured J&F and time.

    The chosen settings go into settings.json, and with --write into a new model.
    Lists of values are separated by commas; an empty list keeps the model's value. --write needs corrflow[export].

    Examples:

        corrflow-eval points video.mp4 labels.slp --labelled 5 --out results
      corrflow-eval search DAVIS --split train --short-side 240,480 --out search --write models/tuned

        corrflow-eval search DAVIS --sequence bear --radius 8,12 --memory-frames 5 --grid --max-seconds 0.5
    """
    from corrflow.evaluate.search import run_search

    run_search(options)


@app.command()
@with_options
def cross_validate(options: CrossValidateOptions) -> None:
    """Choose settings on all folds but one, and score them on that one.

    The tables compare the result with the model as it is: data sets, worst thirds, kinds, sequences. Intervals are
    from a bootstrap over sequences. Without values to try, the command compares --model with --against.

    Examples:

        corrflow-eval cross-validate sets.yaml --model fast --radius 6,8,12 --top-k 5,10 --out folds

        corrflow-eval cross-validate DAVIS --split train --vary redetect=true,false --objective worst-third

        corrflow-eval cross-validate sets.yaml --model models/new --against quarter --out folds
    """
    from corrflow.evaluate.cross_validation import run_cross_validation

    run_cross_validation(options)


@app.command()
@with_options
def front(options: FrontOptions) -> None:
    """Plot the accuracy of models against their CPU time.

    The table has all bundled models and those of --model, and names the models that beat each in both accuracy and
    price. The price is measured on one sequence with one thread and one object, all models in turn on each frame.

    Examples:

        corrflow-eval front sets.yaml --out front

        corrflow-eval front DAVIS --split train --model models/new --workers 2 --out front
    """
    from corrflow.evaluate.front import run_front

    run_front(options)


@app.command()
@with_options
def kinds(options: KindsOptions) -> None:
    """Measure the kinds of difficulty of sequences.

    The measures are computed from true masks and frames. --out writes a file for --attributes.

    Examples:

        corrflow-eval kinds DAVIS --split train --out kinds.json
    """
    from corrflow.evaluate.commands import run_kinds

    run_kinds(options)


@app.command()
@with_options
def occlusion(options: OcclusionOptions) -> None:
    """Track objects behind synthetic occluders.

    With --full an occluder covers the object: the command counts re-detections within ten frames, false masks of
    hidden objects and false losses of visible objects. With --partial a bar crosses the object: the command measures
    J of the visible part.

    Examples:

        corrflow-eval occlusion DAVIS --full --short-side 240

        corrflow-eval occlusion DAVIS --partial --short-side 240 --no-redetect
    """
    from corrflow.evaluate.commands import run_occlusion

    run_occlusion(options)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
