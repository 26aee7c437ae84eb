"""`python -m corrflow.train`, the same command as corrflow-train, which torchrun starts in many processes."""

from corrflow.train.cli import main

main()
