"""Predicts how a training run uses a TPU pod, on a machine without one."""
