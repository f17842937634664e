r"""Add-one-in ablation: BN-Baseline with some of the changes.

  python train.py --config=configs/bn_baseline_with.py:remove_dropout
  python train.py \
    --config=configs/bn_baseline_with.py:shuffle_more_thoroughly,fashion_mnist

The names are those of CHANGES and TRIAL_CHANGES in paper.py. Paper: no results.
"""

from configs import compose


def get_config(changes_and_task: str = ''):
  return compose.with_changes('bn_baseline', changes_and_task)
