"""LocalSoftCopy: scores in a local window, softmax, weighted copy. One folder, every form a neighbour."""
