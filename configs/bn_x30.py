"""BN-x30: BN-x5 with learning rate x 30 instead of x 5.

  python train.py --config=configs/bn_x30.py:imagenet

Paper: 72.2 % after 2.7e6 steps of 32 images, 74.8 % after 6e6 (Figure 3).
"""

from configs import compose


def get_config(task: str = 'imagenet'):
  return compose.preset('bn_x30', task)
