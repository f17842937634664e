"""BN-Baseline: Inception with BN before each nonlinearity, no other change.

  python train.py --config=configs/bn_baseline.py:imagenet --config.training.num_epochs=775

Paper: 72.2 % after 13.3e6 steps of 32 images, at most 72.7 % (Figure 3).
"""

from configs import compose


def get_config(task: str = 'imagenet'):
  return compose.preset('bn_baseline', task)
