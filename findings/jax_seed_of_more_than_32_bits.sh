#!/usr/bin/env bash
# jax 0.10.2 without 64-bit mode, its default: jax.random.key(seed) drops the bits
# above the lowest 32 without a word, so that seeds 2**32 apart give the same numbers.
# NumPy's generator tells the same seeds apart. One would have guessed an error, as
# for a seed that overflows elsewhere. Seen: key(2**32) == key(0),
# key(2**32 + 7) == key(7).
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$folder/venv/bin/python" -W error - <<'PYTHON'
import jax
import numpy as np

print('jax', jax.__version__, 'x64:', jax.config.jax_enable_x64)
for large, small in ((2**32, 0), (2**32 + 7, 7)):
  same = [jax.random.key_data(jax.random.key(s)).tolist() for s in (large, small)]
  print(f'key({large}) {same[0]}   key({small}) {same[1]}')
  assert same[0] == same[1]
  drawn = [np.random.default_rng(s).integers(2**31) for s in (large, small)]
  assert drawn[0] != drawn[1]
print('as described')
PYTHON
