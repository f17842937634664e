"""Negative control: Inception at five times its learning rate.

  python train.py --config=configs/inception_x5.py:imagenet

Paper: the parameters reached machine infinity (Section 4.2.2).
"""

from configs import compose


def get_config(task: str = 'imagenet'):
  return compose.preset('inception_x5', task)
