"""BN-x5-Sigmoid: BN-x5 with sigmoids instead of ReLUs.

  python train.py --config=configs/bn_x5_sigmoid.py:imagenet

Paper: at most 69.8 % (Figure 3).
"""

from configs import compose


def get_config(task: str = 'imagenet'):
  return compose.preset('bn_x5_sigmoid', task)
