"""The config of an earlier run, or of imported weights, to fine-tune them.

Values that depend on the size of the data are reset: the order has no shards, and the
run logs, evaluates and saves once an epoch.

  python train.py --config=configs/from_run.py:runs/a \
    --init_from=runs/a/checkpoints/9 --config.training.num_epochs=10
"""

from configs import compose


def get_config(workdir: str = ''):
  return compose.from_run(workdir)
