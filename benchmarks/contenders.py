"""One network in a process of its own, which another one tells when to run.

  python -m benchmarks.contenders NAME TASK BATCH_SIZE IMAGE_SIZE

Says, as lines of JSON, that it is ready; then, for each number that it reads,
takes a given number of steps and says how long they took. `contest.py` has several of
these take turns. Each holds its images on its device already: what is compared
are the networks, not the reading.

JAX's are ours, through the product's own training step, and plain linen.
PyTorch's is `pretrainedmodels`' BNInception, which has a dense stem, projections
of 128 in 4c and 4d, and Caffe's paddings: 'ours (their network)' has these too.
"""

import ctypes
import dataclasses
import importlib.util
import json
import pathlib
import resource
import sys
import time
from collections.abc import Callable

THEIRS = {
  'model.stem': 'dense',
  'model.pool_projection_4cd': 128,
  'model.stride_padding': 'caffe',
  'model.average_includes_padding': True,
}
# One network, the first of which the others are compared with.
PYTORCH_TABLE = (
  'ours (their network)',
  'linen (dense stem)',
  'PyTorch',
  'PyTorch (channels_last)',
  'PyTorch (channels_last kept)',
  'PyTorch (compiled)',
  'PyTorch (channels_last compiled)',
)
NAMES = (
  'ours',
  'ours (distortions)',
  'ours (fashion_mnist)',
  'linen',
  'linen (fashion_mnist)',
  *PYTORCH_TABLE,
)
NUM_CLASSES = 1000


@dataclasses.dataclass(frozen=True)
class Setup:
  name: str
  task: str
  batch_size: int
  image_size: int

  def arguments(self) -> list[str]:
    return [*map(str, dataclasses.astuple(self))]


def make_images(setup: Setup, num_channels: int = 3):
  """Noise, uint8 [N, H, W, C], and labels."""
  import numpy as np

  rng = np.random.default_rng(0)
  size = setup.image_size
  shape = setup.batch_size, size, size, num_channels
  images = rng.integers(0, 256, shape, np.uint8)
  return images, rng.integers(0, 10, setup.batch_size).astype(np.int32)


def ours(setup: Setup, task: str, values: dict) -> Callable[[int], None]:
  """The product's training step, or its folded network."""
  import jax
  import jax.numpy as jnp

  if importlib.util.find_spec(
    'bn_inception.kernels.host'
  ):  # not in older versions
    from bn_inception.kernels import host

    host.keep_memory()  # as train.py does
    # Older versions do so in keep_memory.
    getattr(host, 'run_steps_in_main_thread', lambda: None)()

  from bn_inception import experiment
  from bn_inception.inception import fold_batch_norm
  from configs import compose

  config = compose.preset('bn_x5', task)
  config.batch_size = config.norm_batch_size = setup.batch_size
  config.data.image_size = setup.image_size
  config.augment.photometric_strength = 0.0
  for name, value in values.items():
    section, key = name.split('.')
    config[section][key] = value
  config = config.to_dict()
  is_grey = task == 'fashion_mnist'
  num_classes = 10 if is_grey else NUM_CLASSES
  images, labels = make_images(setup, 1 if is_grey else 3)
  if setup.task == 'inference':
    model = experiment.make_model(config, num_classes)
    x = jnp.asarray(images / 127.5 - 1.0, jnp.float32)
    index = jnp.arange(len(images))
    variables = jax.jit(model.init)(jax.random.key(0), x[:1], index[:1])
    folded, variables = fold_batch_norm(model, variables)
    apply = jax.jit(folded.apply)
    return infer_with(lambda: apply(variables, x, index))
  # Before the Setup, its steps were those of an Update.
  make = getattr(experiment, 'make_setup', None) or experiment.make_update
  made = make(
    config, jax.devices()[:1], num_classes, images.shape[-1], 1_281_167
  )
  state = made.create_state(jax.random.key(0))
  index = jnp.arange(len(images), dtype=jnp.int32)
  batch = {
    'image': images, 'label': labels, 'index': index,
    'mask': jnp.ones(len(images), bool),
  }  # fmt: skip
  _, abstract_batch, _ = made.abstract_arguments()
  batch = {
    name: jax.device_put(batch[name], abstract.sharding)
    for name, abstract in abstract_batch.items()
  }
  rng = jax.random.key(1)

  def run(num_steps):
    nonlocal state
    for _ in range(num_steps):
      state, metrics = made.train_step(state, batch, rng)
    jax.block_until_ready((state, metrics))

  return run


def linen(setup: Setup, **values) -> Callable[[int], None]:
  """`linen_inception`, with optax."""
  import jax
  import jax.numpy as jnp

  from benchmarks.linen_inception import LinenInception, make_training

  is_grey = values.get('stem') == 'small'
  images, labels = make_images(setup, 1 if is_grey else 3)
  num_classes = 10 if is_grey else NUM_CLASSES
  is_train = setup.task == 'train'
  model = LinenInception(num_classes, is_train, **values)
  x = jnp.asarray(images / 127.5 - 1.0, jnp.float32)
  labels = jnp.asarray(labels)
  create, step = make_training(model)
  state = jax.jit(create)(jax.random.key(0), x[:1])
  if not is_train:
    variables, _ = state
    apply = jax.jit(model.apply)
    return infer_with(lambda: apply(variables, x))

  def run(num_steps):
    nonlocal state
    for _ in range(num_steps):
      state, loss = step(state, x, labels)
    jax.block_until_ready((state, loss))

  return run


def infer_with(apply: Callable) -> Callable[[int], None]:
  import jax

  def run(num_steps):
    for _ in range(num_steps):
      logits = apply()
    jax.block_until_ready(logits)

  return run


def pytorch(setup: Setup, options: tuple[str, ...]) -> Callable[[int], None]:
  """`pretrainedmodels`' network, trained as ours."""
  import os

  import torch

  from benchmarks.linen_inception import L2, LEARNING_RATE, MOMENTUM
  from benchmarks.pytorch_inception import make_pytorch_model

  if 'kept' in options:
    # What host.keep_memory does for ours: M_MMAP_MAX and M_TRIM_THRESHOLD.
    ctypes.CDLL(None).mallopt(-4, 0)
    ctypes.CDLL(None).mallopt(-1, -1)
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  torch.manual_seed(0)
  images, labels = make_images(setup)
  x = torch.tensor(images.transpose(0, 3, 1, 2) / 127.5 - 1.0).float()
  x, labels = x.contiguous(), torch.tensor(labels).long()
  model = make_pytorch_model()
  if 'channels_last' in options:
    model = model.to(memory_format=torch.channels_last)
    x = x.to(memory_format=torch.channels_last)
  is_train = setup.task == 'train'
  model.train(is_train)
  if not is_train:
    model = fold_pytorch(model)
  apply = torch.compile(model) if 'compiled' in options else model
  if not is_train:

    def infer(num_steps):
      with torch.inference_mode():
        for _ in range(num_steps):
          apply(x)

    return infer
  optimizer = torch.optim.SGD(
    model.parameters(), LEARNING_RATE, MOMENTUM, weight_decay=L2
  )

  def train(num_steps):
    for _ in range(num_steps):
      optimizer.zero_grad()
      torch.nn.functional.cross_entropy(apply(x), labels).backward()
      optimizer.step()

  return train


def fold_pytorch(model):
  """Batch norm absorbed by the convolutions, as ours is in inference."""
  import torch
  from torch.nn.utils.fusion import fuse_conv_bn_eval

  for name, module in list(model.named_children()):
    norm = getattr(model, f'{name}_bn', None)
    if isinstance(module, torch.nn.Conv2d) and norm is not None:
      setattr(model, name, fuse_conv_bn_eval(module, norm))
      setattr(model, f'{name}_bn', torch.nn.Identity())
  return model


def make(setup: Setup) -> Callable[[int], None]:
  name, _, rest = setup.name.rstrip(')').partition(' (')
  if name == 'ours':
    task = 'fashion_mnist' if rest == 'fashion_mnist' else 'imagenet'
    values = {
      'their network': THEIRS,
      'distortions': {'augment.photometric_strength': 1.0},
    }.get(rest, {})
    return ours(setup, task, values)
  if name == 'linen':
    return linen(
      setup,
      **{
        'dense stem': {'stem': 'dense'},
        'fashion_mnist': {'stem': 'small', 'width': 0.125},
      }.get(rest, {}),
    )
  return pytorch(setup, tuple(rest.split()))


def peak_bytes() -> int:
  """The most memory that was resident, since `forget_peak`."""
  for line in pathlib.Path('/proc/self/status').read_text().splitlines():
    if line.startswith('VmHWM:'):
      return 1024 * int(line.split()[1])
  raise ValueError('/proc/self/status has no VmHWM')


def forget_peak() -> None:
  pathlib.Path('/proc/self/clear_refs').write_text('5')


def main() -> None:
  name, task, *sizes = sys.argv[1:]
  setup = Setup(name, task, *map(int, sizes))
  start = time.monotonic()
  run = make(setup)
  run(1)
  first = time.monotonic() - start
  compiling_peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  ctypes.CDLL(None).malloc_trim(0)  # as our training does, and here for all
  run(1)
  forget_peak()
  ready = {'first_step_seconds': first, 'peak_bytes_compiling': compiling_peak}
  print(json.dumps(ready), flush=True)
  for line in sys.stdin:
    start = time.perf_counter()
    run(int(line))
    seconds = time.perf_counter() - start
    said = {'seconds': seconds, 'peak_bytes': peak_bytes()}
    print(json.dumps(said), flush=True)


if __name__ == '__main__':
  main()
