"""Speed and memory of a training step, ours and others', side by side.

  python -m benchmarks.train_step --output=results/train_step.json

A step is forward, backward and the update (momentum, L2), in float32. The
contenders take turns in one run (see contest.py); the ratios are the medians,
over the rounds, of the first one's speed by the other's in the same round. Those
of PyTorch need requirements-bench.txt (`make benchmarks`).
"""

from benchmarks import contest
from benchmarks.contenders import PYTORCH_TABLE
from bn_inception.programs import command_line

# Each table compares its first contender with the others.
TABLES = {
  "the paper's network": ('ours', 'ours (distortions)', 'linen'),
  "PyTorch's network": PYTORCH_TABLE,
  'fashion_mnist': (
    'ours (fashion_mnist)',
    '2 x ours (fashion_mnist)',
    'linen (fashion_mnist)',
  ),
}

if __name__ == '__main__':
  contest.define_flags(TABLES)
  command_line.run(lambda: contest.main('train', TABLES))
