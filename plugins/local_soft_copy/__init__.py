"""LocalSoftCopy: top-k local (neighbourhood) cross-attention, also called label propagation, in all its forms."""
