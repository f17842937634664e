"""Negative control: Inception with sigmoids instead of ReLUs.

  python train.py --config=configs/inception_sigmoid.py:imagenet

Paper: never better than chance, 1/1000 (Section 4.2.2).
"""

from configs import compose


def get_config(task: str = 'imagenet'):
  return compose.preset('inception_sigmoid', task)
