"""HBM traffic of a training step on a TPU: ours against plain linen.

    pip install -r requirements-pod.txt
    python -m benchmarks.bytes --topology=v5e:2x2 --output=results/bytes.json

Nothing is run: both steps are compiled for the pod, as by bn_inception.dryrun,
and their programs counted. Both get scaled images without distortions, have one
normalisation batch over all chips, the same loss and optimizer.
"""

import dataclasses

import jax
import jax.numpy as jnp
from absl import flags

from benchmarks.contenders import NUM_CLASSES
from benchmarks.linen_inception import LinenInception, make_training
from benchmarks.results import check_output, print_table, write_output
from bn_inception import mesh
from bn_inception.dryrun import hlo_text, prediction
from bn_inception.experiment import make_setup
from bn_inception.programs import command_line
from bn_inception.programs.path_flags import define_path
from configs import compose

HEADER = [
  'step', 'MB of HBM per image', 'MB accessed, by the compiler', 'GFLOP',
  'GiB of temporary memory', 'collectives',
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Count:
  """Of one image, but for temporary memory and collectives: of a step."""

  name: str
  hbm_bytes: float
  accessed_bytes: float
  flops: float
  temporary_bytes: int
  collectives: int


def count(name: str, lowered, images_per_chip: int) -> Count:
  print(f'compiling {name} ...', flush=True)
  compiled = lowered.compile()
  costs, found = compiled.cost_analysis(), hlo_text.count(compiled.as_text())
  return Count(
    name,
    found.hbm_bytes / images_per_chip,
    costs['bytes accessed'] / images_per_chip,
    costs['flops'] / images_per_chip,
    compiled.memory_analysis().temp_size_in_bytes,
    sum(found.collectives.values()),
  )


def lower_ours(devices, batch_size: int, values: dict):
  config = compose.preset('bn_x5', 'imagenet')
  config.batch_size, config.norm_batch_size = batch_size, 0
  config.augment.photometric_strength = 0.0
  config.model.dtype = 'bfloat16'
  for name, value in values.items():
    config.model[name] = value
  setup = make_setup(
    config.to_dict(), devices, NUM_CLASSES, 3, num_examples=1_281_167
  )
  return setup.train_step.lower(*setup.abstract_arguments())


def lower_linen(devices, batch_size: int, stem: str):
  """The step of contenders.py, parallel by the placement of its batch.

  XLA's partitioner then makes the means of `nn.BatchNorm` those of the batch.
  """
  model = LinenInception(NUM_CLASSES, True, stem=stem, dtype='bfloat16')
  create, step = make_training(model)
  device_mesh = mesh.make_evaluation_mesh(devices)

  def place(tree, sharding):
    return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
    )

  image = jax.ShapeDtypeStruct((batch_size, 224, 224, 3), jnp.uint8)
  labels = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
  key = jax.eval_shape(jax.random.key, 0)
  state = jax.eval_shape(create, key, jnp.zeros((1, 224, 224, 3)))

  def step_of_bytes(state, image, labels):
    return step(state, image.astype(jnp.float32) / 127.5 - 1.0, labels)

  return jax.jit(step_of_bytes, donate_argnums=0).lower(
    place(state, mesh.replicated(device_mesh)),
    *place((image, labels), mesh.batch_sharding(device_mesh)),
  )


def main() -> None:
  jax.config.update('jax_platforms', 'cpu')
  values = flags.FLAGS
  check_output(values.output)
  devices = prediction.open_topology(values.topology)
  per_chip = values.images_per_chip
  batch_size = per_chip * len(devices)
  lowered = {
    'linen': lambda: lower_linen(devices, batch_size, 'separable'),
    'ours': lambda: lower_ours(devices, batch_size, {}),
    'linen, dense stem': lambda: lower_linen(devices, batch_size, 'dense'),
    'ours, dense stem': lambda: lower_ours(
      devices, batch_size, {'stem': 'dense'}
    ),
  }
  counts = [
    count(name, lower(), per_chip)
    for name, lower in lowered.items()
    if not values.only or name in values.only
  ]
  lines = [
    [
      c.name, f'{c.hbm_bytes / 1e6:.1f}', f'{c.accessed_bytes / 1e6:.1f}',
      f'{c.flops / 1e9:.2f}', f'{c.temporary_bytes / 2**30:.2f}',
      str(c.collectives),
    ] for c in counts
  ]  # fmt: skip
  print_table(HEADER, lines)
  by_name = {c.name: c for c in counts}
  for suffix in '', ', dense stem':
    if {f'ours{suffix}', f'linen{suffix}'} <= set(by_name):
      own, other = by_name[f'ours{suffix}'], by_name[f'linen{suffix}']
      print(f'ours{suffix} by linen: {own.hbm_bytes / other.hbm_bytes:.3f}')
  write_output(
    values.output,
    {
      'topology': values.topology, 'images_per_chip': per_chip,
      'dtype': 'bfloat16', 'counts': [dataclasses.asdict(c) for c in counts],
    },
  )  # fmt: skip


if __name__ == '__main__':
  flags.DEFINE_string('topology', 'v5e:2x2', 'Pod to compile for.')
  flags.DEFINE_integer('images_per_chip', 128, 'Batch of each chip.')
  flags.DEFINE_list('only', [], 'Steps to count; default: all.')
  define_path('output', None, 'JSON file to write.')
  command_line.run(main)
