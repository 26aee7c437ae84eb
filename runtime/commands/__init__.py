"""Command lines of corrflow-track, corrflow-batch, corrflow-label and corrflow-doctor."""
