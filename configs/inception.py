"""Inception without batch normalization, the baseline of Section 4.2.

  python train.py --config=configs/inception.py:imagenet --config.training.num_epochs=775

Paper: 72.2 % after 31.0e6 steps of 32 images (Figure 3).
"""

from configs import compose


def get_config(task: str = 'imagenet'):
  return compose.preset('inception', task)
