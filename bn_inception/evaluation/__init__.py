"""Accuracies of checkpoints: single crops, many crops, ensembles, one's own images."""
