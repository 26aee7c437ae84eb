"""Training of an encoder on raw video: clips, colours, model, losses and the training loop."""
