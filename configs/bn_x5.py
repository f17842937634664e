"""BN-x5: batch normalization, all seven changes, learning rate x 5.

  python train.py --config=configs/bn_x5.py:imagenet

Paper: 72.2 % after 2.1e6 steps of 32 images, at most 73.0 % (Figure 3).
"""

from configs import compose


def get_config(task: str = 'imagenet'):
  return compose.preset('bn_x5', task)
