"""BN-x5 with additional changes.

  python train.py --config=configs/bn_x5_with.py:NAME,digits

The names are those of TRIAL_CHANGES in paper.py. Add your own changes there.
"""

from configs import compose


def get_config(changes_and_task: str = ''):
  return compose.with_changes('bn_x5', changes_and_task)
