#!/usr/bin/env bash
# jax 0.10.2 does not expand ~ in JAX_COMPILATION_CACHE_DIR. A shell does not either
# in `env NAME=~/x`, a Dockerfile's ENV or a service's file, so that the compiled
# programs land in a folder named ~ of whatever folder the program was started in,
# another one each time. One would have guessed the home folder.
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
mkdir "$folder/home" "$folder/work"
cd "$folder/work"
HOME="$folder/home" JAX_COMPILATION_CACHE_DIR='~/cache' JAX_PLATFORMS=cpu \
  JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 "$folder/venv/bin/python" - <<'PYTHON'
import jax

print('jax', jax.__version__, jax.jit(lambda x: x + 1)(1))
PYTHON
ls -d "$folder"/work/'~'/cache/*
test ! -e "$folder/home/cache"
echo as described
