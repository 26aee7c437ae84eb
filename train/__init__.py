"""Learning an encoder from raw video alone: clips, colours, model, losses and the training loop."""
