"""Evaluates trained networks: on data sets, as ensembles, on single images."""
