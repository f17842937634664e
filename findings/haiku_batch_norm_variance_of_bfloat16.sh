#!/usr/bin/env bash
# dm-haiku 0.0.17: BatchNorm that was initialised with float32 and is given bfloat16
# computes E[x^2] - E[x]^2 in bfloat16. Where the mean is 20 std, the variance comes
# out as 0 or 2 instead of 1; with 0 the outputs are hundreds of std. There is no
# error and no warning. Moving averages and output are float32, so that one would have
# guessed float32 statistics, as flax, PyTorch and TensorFlow have.
# Seen, on the same bfloat16 numbers: variances 0 and 2, outputs of std about 220; given
# as float32: variances 1.00, std 1.00.
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  dm-haiku==0.0.17 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

print('haiku', hk.__version__)
network = hk.transform_with_state(
  lambda x: hk.BatchNorm(True, True, decay_rate=0.99)(x, is_training=True)
)
x = 20 + np.random.default_rng(0).normal(size=(32, 28, 28, 4))
x = jnp.asarray(x, jnp.bfloat16)  # exact variances 0.99 to 1.01
params, state = network.init(None, x.astype(jnp.float32))
found = {}
for dtype in (jnp.float32, jnp.bfloat16):
  y, updated = network.apply(params, state, None, x.astype(dtype))
  (name,) = (key for key in updated if key.endswith('var_ema'))
  variance = np.ravel(updated[name]['average'])
  std = float(np.std(np.asarray(y, np.float64)))
  print(f'{dtype.__name__}: variances {variance}, outputs {y.dtype} of std {std:.2f}')
  assert y.dtype == variance.dtype == np.float32
  found[dtype] = variance, std
variance, std = found[jnp.float32]
assert np.abs(variance - 1).max() < 0.05 and abs(std - 1) < 0.01
variance, std = found[jnp.bfloat16]
assert np.abs(variance - 1).min() > 0.5 and std > 100
print('as described')
PYTHON
