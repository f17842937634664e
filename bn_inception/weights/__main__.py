"""Imports weights as a checkpoint, and exports a checkpoint's weights.

    python -m bn_inception.weights --checkpoint=FOLDER --to=FILE
    python -m bn_inception.weights --from=FILE --workdir=DIR

The first writes a safetensors file with the weights of any network in PyTorch's
conventions. The second reads such a file, or BN-Inception from pretrainedmodels
(Cadene), pytorchcv or TF-Slim, and writes DIR/checkpoints/0 for
`eval.py --workdir=DIR`.
"""

from bn_inception.machine import interruption

if __name__ == '__main__':
  interruption.watch()  # the other imports take seconds

import os

import jax
import jax.numpy as jnp
from absl import flags

from bn_inception.errors import (
  UserError,
  check_writable,
  make_parent_folder,
  writing,
)
from bn_inception.experiment import setup_of_checkpoint
from bn_inception.machine import streams
from bn_inception.programs import command_line
from bn_inception.programs.path_flags import define_path
from bn_inception.runs import (
  checkpoint,
  checkpoint_folder,
  json_files,
  run_directory,
)
from bn_inception.train_state import count_parameters, initial_state
from bn_inception.weights import description, files, layouts

# Flags of one direction only, besides those that choose it.
_IMPORT_FLAGS = 'from', 'workdir', 'dataset', 'class_names', 'keep_background'
_EXPORT_FLAGS = 'checkpoint', 'to', 'layout'


def import_file(
  path: str,
  workdir: str,
  dataset: str | None = None,
  names_file: str | None = None,
  keep_background: bool = False,
) -> None:
  """Writes a file of weights as the checkpoint of step 0, and prints a summary.

  Args:
    path: see `files.read`.
    workdir: for the checkpoint; must not hold any, nor a run.
    dataset: that the network was trained on; None: that of the exported
      checkpoint, or ImageNet.
    names_file: see `name_classes`; None: the names of the exported checkpoint,
      or ImageNet's.
    keep_background: see `from_slim`.

  Raises:
    UserError: if the weights cannot be read or the checkpoint cannot be written.
  """
  directory = os.path.join(workdir, run_directory.CHECKPOINTS_FOLDER)
  if checkpoint_folder.list_steps(directory):
    raise UserError(f'{workdir} holds checkpoints: give another --workdir')
  config_path = os.path.join(workdir, run_directory.CONFIG_FILE)
  if os.path.exists(config_path):  # of a run without checkpoints, as diverged
    raise UserError(f'{workdir} holds a run: give another --workdir')
  check_writable(config_path, 'give another --workdir')
  contents = files.read(path)
  variables, described, remarks = layouts.read_network(
    contents, path, names_file, keep_background
  )
  config = described['config']
  name = config['name'].removeprefix('imported-')
  config['name'] = f'imported-{name}'
  config['init_from'] = ''  # the weights are these
  config['source']['dataset'] = dataset or config['source']['dataset']
  variables = jax.tree.map(jnp.asarray, variables)
  state = initial_state(variables, setup_of_checkpoint(described).optimizer)
  with writing(f'workdir {workdir}', 'give another --workdir'):
    os.makedirs(directory, exist_ok=True)
  with checkpoint.open_checkpoints(directory, 1, 1) as checkpoints:
    checkpoint.save(checkpoints, state, described, top1=None)
  json_files.write_json(config_path, config)
  for remark in (*contents.remarks, *remarks):
    print(f'{path}: {remark}')
  num_classes, size = (
    len(described['class_names']),
    count_parameters(state.params),
  )
  print(
    f'imported {path}: {name}, {num_classes:,} classes, {size:,} parameters'
  )
  print(f'evaluate it with: python eval.py --workdir={workdir}')


def export_checkpoint(
  path: str, output: str, layout: str | None = None
) -> None:
  """Writes a checkpoint's weights and what `import_file` needs besides.

  Args:
    path: of the checkpoint.
    output: of the safetensors file.
    layout: see `layouts.export_weights`.

  Raises:
    UserError: if the checkpoint cannot be read, if its network does not have this
      layout, or if the file cannot be written.
  """
  if not output.endswith('.safetensors'):
    raise UserError(f'--to={output} must end with .safetensors')
  run_directory.check_output(output, 'give another --to')
  described = checkpoint.read_description(path)
  setup = setup_of_checkpoint(described)
  state = checkpoint.restore_weights(
    path, setup.abstract_state(), setup.replicated
  )
  weights, layout = layouts.export_weights(
    state.evaluation_variables, setup.model, layout
  )
  step = int(state.step)
  make_parent_folder(output, 'give another --to')
  files.write_safetensors(
    output, weights, description.to_notes(described, layout, step)
  )
  print(
    f'wrote {output}: {described["config"]["name"]}, step {step}, '
    f'{len(weights)} arrays, layout {layout}'
  )


def define_flags() -> None:
  """Defines the flags; not done on import."""
  define_path(
    'from',
    None,
    'File of weights to import: safetensors, a file of torch.save, or a '
    'TensorFlow checkpoint. '
    'Example: --from=bn_inception-52deb4733.pth',
  )
  define_path(
    'workdir',
    None,
    'Folder for the imported checkpoint. Example: --workdir=runs/cadene',
  )
  flags.DEFINE_string(
    'dataset',
    None,
    'Data set that the imported network was trained on; default: that of the '
    "exported checkpoint, or ImageNet's. "
    'Example: --dataset=oxford_flowers102',
  )
  define_path(
    'class_names',
    None,
    'File with the class names, one per line in the order of the labels; '
    "default: those of the exported checkpoint, or ImageNet's. "
    'Example: --class_names=flowers.txt',
  )
  flags.DEFINE_bool(
    'keep_background',
    False,
    "Keep the first of TF-Slim's 1,001 classes, which ImageNet does not have. "
    'Example: --keep_background',
  )
  define_path(
    'checkpoint',
    None,
    'Checkpoint to export. Example: --checkpoint=runs/digits/checkpoints/1802',
  )
  define_path(
    'to',
    None,
    'Safetensors file to write. Example: --to=digits.safetensors',
  )
  flags.DEFINE_enum(
    'layout',
    None,
    layouts.EXPORTED,
    "Names of the exported weights; default: pretrainedmodels' where its network "
    'computes the same, else ours. Example: --layout=bn_inception',
  )


def main() -> None:
  values = flags.FLAGS
  source, target = values['from'].value, values.to
  is_import = bool(source and values.workdir)
  is_export = bool(values.checkpoint and target)
  if is_import == is_export:
    raise UserError(
      'give --from and --workdir to import, or --checkpoint and --to to export'
    )
  for name in _EXPORT_FLAGS if is_import else _IMPORT_FLAGS:
    if values[name].present:
      raise UserError(
        f'--{name} has no effect when a '
        f'{"file is imported" if is_import else "checkpoint is exported"}: '
        'leave it out'
      )
  streams.continue_without_stdout()
  if is_import:
    import_file(
      source,
      values.workdir,
      values.dataset,
      values.class_names,
      values.keep_background,
    )
  else:
    export_checkpoint(values.checkpoint, target, values.layout)


if __name__ == '__main__':
  define_flags()
  command_line.run(main)
