"""Weights of others, in and out, and the first weights of a run."""
