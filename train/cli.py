"""corrflow-train: command line of `command.run`."""

from __future__ import annotations

import typer

from corrflow.command_line import with_options
from corrflow.train.options import TrainOptions

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(
    help="""Train an encoder on raw video, without labels and without downloads.

    The same command resumes a stopped run. `tensorboard --logdir RUN` shows curves and images.

    \b
    Examples:
      corrflow-train --data videos/ --preset quarter --minutes 90 --out runs/first
      corrflow-train --data videos/ --images photographs/ --steps 20000 --out runs/second
      corrflow-train --data 'https://host/shard-{000000..004799}.tar' --steps 200000 --out runs/large
      corrflow-train --data videos/ --images photographs/ --objective pixel --stride 8 --steps 100000 --out runs/pixel
      corrflow-train --data videos/ --preset paper --steps 1000000 --out runs/paper
      corrflow-train --data videos/ --preset paper --steps 1000000 --out runs/no-cycle --no-cycle
      corrflow-train --config run.yaml --out runs/third
      torchrun --nproc-per-node 8 -m corrflow.train --data videos/ --preset full --steps 200000 --out runs/full
      corrflow-train distil --teacher runs/full --data videos/ --preset quarter --steps 20000 --out runs/student
      corrflow-export onnx runs/first artifacts/first
    """
)
@with_options
def train(options: TrainOptions) -> None:
    from corrflow.train import command

    command.run(options)


def main() -> None:
    """Run the console command."""
    app()


if __name__ == "__main__":
    main()
