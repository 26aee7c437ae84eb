"""Studies of training: ablations, curves."""
