#!/usr/bin/env bash
# orbax-checkpoint 0.12.8, etils 1.15.0: a checkpoint saved in a folder with brackets
# in its name, such as lr=[0.1], cannot be restored. Orbax looks with Path.glob for the
# files that each process wrote; that of etils takes the folder itself for a part of
# the pattern, where pathlib's does not, and finds none. The save ends without an
# error, a line of the log apart. One would have guessed that the names of folders
# mean nothing, or that a save that merges no files fails.
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  orbax-checkpoint==0.12.8 etils==1.15.0 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - "$folder" <<'PYTHON'
import pathlib
import sys

import numpy as np
import orbax.checkpoint as ocp
from etils import epath

for name in ('lr=0.1', 'lr=[0.1]'):
  folder = pathlib.Path(sys.argv[1]) / name
  with ocp.CheckpointManager(folder) as manager:
    manager.save(1, args=ocp.args.StandardSave({'a': np.arange(3)}))
    manager.wait_until_finished()
    steps = manager.all_steps()
  found = len(list((folder / '1').glob('*')))
  found_by_etils = len(list((epath.Path(folder) / '1').glob('*')))
  try:
    with ocp.CheckpointManager(folder) as manager:
      manager.restore(1, args=ocp.args.StandardRestore({'a': np.arange(3)}))
    outcome = 'restored'
  except ValueError as error:
    outcome = str(error)[:60]
  print(f'{name}: steps {steps}, files {found} (etils: {found_by_etils}); {outcome}')
  assert steps == [1] and found > 0
  is_pattern = '[' in name
  assert (found_by_etils == 0) == is_pattern
  assert (outcome == 'restored') == (not is_pattern)
print('as described')
PYTHON
