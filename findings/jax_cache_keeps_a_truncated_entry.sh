#!/usr/bin/env bash
# jax 0.10.2: an entry of the persistent compilation cache that was cut short, as by
# a process that was killed or a disk that was full while it was written, is never
# written again. Every later process warns, compiles, finds that the entry exists,
# and leaves it as it is. One would have guessed that an entry appears whole or not
# at all, or that an unreadable one is replaced. Seen: the warning "Error reading
# persistent compilation cache entry" in each of two runs, and the file unchanged.
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat > "$folder/step.py" <<'PYTHON'
import sys

import jax
import jax.numpy as jnp

jax.config.update('jax_compilation_cache_dir', sys.argv[1])
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
print(jax.jit(lambda x: jnp.tanh(x @ x).sum())(jnp.eye(64)))
PYTHON
export JAX_PLATFORMS=cpu
run() { "$folder/venv/bin/python" "$folder/step.py" "$folder/cache" 2>&1; }
run
entry=$(ls "$folder"/cache/jit__lambda*-cache)
truncate --size=$(($(stat --format=%s "$entry") / 2)) "$entry"
before=$(sha256sum < "$entry")
for i in 1 2; do
  run | tee "$folder/output"
  grep --quiet 'Error reading persistent compilation cache entry' "$folder/output"
  test "$(sha256sum < "$entry")" = "$before"
done
echo 'as described'
