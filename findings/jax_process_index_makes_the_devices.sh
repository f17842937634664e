#!/usr/bin/env bash
# jax 0.10.2: jax.process_index(), which reads like a question, makes the devices, and
# options of the devices that are set afterwards are taken without a word and have no
# effect. Here jax_cpu_enable_async_dispatch, which decides whether the call of a
# compiled function returns before it is computed. One would have guessed that only a
# computation makes the devices, or that a late option is an error, as it is for
# jax_num_cpu_devices. Seen: a call after a late option still returns at once, in less
# than a tenth of the time that the product takes; after an early one, in all of it.
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat > "$folder/call.py" <<'PYTHON'
import sys
import time

import jax
import jax.numpy as jnp

if sys.argv[1] == 'late':
  print('process', jax.process_index())
jax.config.update('jax_cpu_enable_async_dispatch', False)
multiply = jax.jit(lambda x: x @ x @ x)
x = jnp.ones((2000, 2000))
multiply(x).block_until_ready()
start = time.perf_counter()
y = multiply(x)
called = time.perf_counter() - start
y.block_until_ready()
share = called / (time.perf_counter() - start)
print(f'option set {sys.argv[1]}: the call took {share:.4f} of the time of it all')
assert share < 0.1 if sys.argv[1] == 'late' else share > 0.9
PYTHON
for order in late early; do
  JAX_PLATFORMS=cpu "$folder/venv/bin/python" -W error "$folder/call.py" "$order"
done
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import jax

jax.process_index()
try:
  jax.config.update('jax_num_cpu_devices', 2)
except RuntimeError as error:
  print('jax_num_cpu_devices set late:', error)
else:
  raise SystemExit('jax_num_cpu_devices was taken too')
print('as described')
PYTHON
