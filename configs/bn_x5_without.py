r"""Leave-one-out ablation: BN-x5 without some of its changes.

  python train.py --config=configs/bn_x5_without.py:remove_dropout
  python train.py \
    --config=configs/bn_x5_without.py:remove_dropout,reduce_weight_decay,digits

The names are those of CHANGES in paper.py. Paper: no results.
"""

from configs import compose


def get_config(changes_and_task: str = ''):
  return compose.without('bn_x5', changes_and_task)
