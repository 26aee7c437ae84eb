"""torchrun ... -m corrflow.train: the same command as corrflow-train, in many processes."""

from corrflow.train.cli import main

main()
