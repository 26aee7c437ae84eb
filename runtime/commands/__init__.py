"""The shells of corrflow-track, corrflow-batch and corrflow-doctor."""
