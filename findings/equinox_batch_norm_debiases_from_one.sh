#!/usr/bin/env bash
# equinox 0.13.8: BatchNorm(mode='batch') divides its moving averages by
# 1 - momentum^t, as is right for averages that start at 0; but the variance starts
# at 1. After t steps it is too large by momentum^t / (1 - momentum^t), at the default
# momentum of 0.99 by 99 after the first. Evaluation early in training shrinks its
# outputs so much; training is not affected. One would have guessed that a start at 1
# is not debiased, or a debiased average starts at 0.
# Seen, on data of mean 0 and variance 1: std of the outputs 1.00 in training; in
# evaluation 0.10 after 1 step, 0.22 after 5, 0.63 after 50, 0.93 after 200.
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  equinox==0.13.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import equinox as eqx
import jax
import numpy as np

print('equinox', eqx.__version__)
x = np.random.default_rng(0).normal(size=(1000, 4)).astype(np.float32)
layer, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(
  4, 'batch', mode='batch', channelwise_affine=False
)
evaluated = eqx.nn.inference_mode(layer)
for step in range(1, 201):
  y, state = jax.vmap(
    lambda x, state: layer(x, state),
    in_axes=(0, None),
    out_axes=(0, None),
    axis_name='batch',
  )(x, state)
  if step in (1, 5, 50, 200):
    outputs = jax.vmap(lambda x, state: evaluated(x, state)[0], (0, None))(x, state)
    # Before dividing, the average of 1, 1, ... is 1.
    expected = np.sqrt(1 - 0.99**step)
    print(
      f'step {step}: std {y.std():.2f} in training, {outputs.std():.2f} in '
      f'evaluation (explained: {expected:.2f})'
    )
    assert abs(y.std() - 1) < 1e-3 and abs(outputs.std() - expected) < 1e-2
print('as described')
PYTHON
