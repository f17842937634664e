"""Speed and memory of inference, ours and others', side by side.

  python -m benchmarks.inference --output=results/inference.json

In float32; batch norm is folded into the convolutions in ours and PyTorch's, not
in plain linen. The contenders take turns: see train_step.py.
"""

from benchmarks import contest
from benchmarks.contenders import PYTORCH_TABLE
from bn_inception.programs import command_line

TABLES = {
  "the paper's network": ('ours', 'linen'),
  "PyTorch's network": PYTORCH_TABLE,
}

if __name__ == '__main__':
  contest.define_flags(TABLES)
  command_line.run(lambda: contest.main('inference', TABLES))
