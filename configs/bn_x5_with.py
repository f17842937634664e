"""BN-x5 with some changes that it does not include.

  python train.py --config=configs/bn_x5_with.py:NAME,digits

The names are those of TRIAL_CHANGES in paper.py, the place to add your own.
"""

from configs import compose


def get_config(changes_and_task: str = ''):
  return compose.with_changes('bn_x5', changes_and_task)
