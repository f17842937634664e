"""Imports published weights as a checkpoint, and exports a checkpoint's weights.

    python -m bn_inception.weights --from=FILE --workdir=DIR
    python -m bn_inception.weights --checkpoint=FOLDER --to=FILE

The first reads weights of BN-Inception from pretrainedmodels (Cadene),
pytorchcv or TF-Slim, and writes DIR/checkpoints/0 for `eval.py --workdir=DIR`.
The second writes a safetensors file with the names of pretrainedmodels.
"""

from bn_inception.machine import interruption
from bn_inception.wording import count

if __name__ == '__main__':
  interruption.watch()  # the other imports take seconds

import json
import os
from functools import partial

import jax
import jax.numpy as jnp
from absl import flags

from bn_inception import command_line, presets
from bn_inception.data import augment, imagenet
from bn_inception.data.crops import NUM_CROPS
from bn_inception.errors import UserError, check_choice, check_writable, writing
from bn_inception.experiment import setup_of_checkpoint
from bn_inception.machine import streams
from bn_inception.machine.path_flags import define_path
from bn_inception.runs import (
  checkpoint,
  checkpoint_folder,
  json_files,
  run_directory,
)
from bn_inception.train_state import count_parameters, start_from
from bn_inception.weights import files
from bn_inception.weights.imported import Imported
from bn_inception.weights.layouts import import_weights
from bn_inception.weights.pytorch import to_pytorch

# Notes in the exported file: input and classes, which the weights do not tell.
SCALING_NOTE = 'bn_inception.input_scaling'
CROP_NOTE = 'bn_inception.eval_crop'
CLASSES_NOTE = 'bn_inception.class_names'


def make_config(imported: Imported, dataset: str) -> dict:
  """The config for a checkpoint of imported weights.

  Its training section is the paper's: how they were trained is not known.
  """
  config = presets.compose.preset('bn_baseline', 'imagenet').to_dict()
  config['name'] = f'imported-{imported.name}'
  config['source']['dataset'] = dataset
  config['data']['eval_crop'] = imported.eval_crop
  config['input_scaling'] = imported.input_scaling
  config['model'].update(imported.model)
  return json.loads(json.dumps(config))  # tuples to lists, as in a file


def name_classes(num_classes: int, names_file: str | None) -> list[str]:
  """Class names from a file, or ImageNet's WordNet ids (after 'background').

  Raises:
    UserError: if the file cannot be read, its number of names is not
      `num_classes`, or a name is empty or repeated.
  """
  if names_file is not None:
    names = _read_lines(names_file)
    _check_names(names, num_classes, names_file)
    return names
  imagenet_names = list(imagenet.class_names())
  for names in (imagenet_names, ['background', *imagenet_names]):
    if len(names) == num_classes:
      return names
  raise UserError(
    f'the weights are for {count(num_classes, "class", "classes")}, ImageNet has '
    f'{len(imagenet_names)}: {_NAMES_REMEDY}'
  )


_NAMES_REMEDY = (
  'give the names, one per line in the order of the labels, with '
  '--class_names=FILE'
)


def _check_names(names: list[str], num_classes: int, place: str) -> None:
  """Raises unless every class has a name of its own."""
  number_of = {}
  for number, name in enumerate(names, start=1):
    if not name:
      raise UserError(f'{place}: name {number} is empty: {_NAMES_REMEDY}')
    if name in number_of:
      raise UserError(
        f"{place}: names {number_of[name]} and {number} are both '{name}': "
        f'{_NAMES_REMEDY}'
      )
    number_of[name] = number
  if len(names) != num_classes:
    raise UserError(
      f'the weights are for {count(num_classes, "class", "classes")}, {place} has '
      f'{count(len(names), "name")}: {_NAMES_REMEDY}'
    )


def _read_lines(path: str) -> list[str]:
  try:
    with open(path, encoding='utf-8-sig') as file:
      return [line.strip() for line in file]
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f'{path} cannot be read: {error}') from error


def _read_scaling(note: str, path: str) -> dict:
  """The input scaling in a note of an exported file.

  Raises:
    UserError: if it is damaged or not valid.
  """
  try:
    scaling = json.loads(note)
    image = jax.ShapeDtypeStruct((1, 1, 3), 'uint8')
    jax.eval_shape(partial(augment.scale_image, **scaling), image)
  except (ValueError, TypeError, UserError) as error:
    raise UserError(
      f'{path} cannot be used: its note {SCALING_NOTE} is damaged ({error}): '
      'export it again'
    ) from error
  return scaling


def _read_class_names(note: str, num_classes: int, path: str) -> list[str]:
  """The class names in a note of an exported file; raises as `name_classes`."""
  try:
    names = [str(name) for name in json.loads(note)]
  except (ValueError, TypeError) as error:
    raise UserError(
      f'{path}: its note {CLASSES_NOTE} is damaged ({error}): {_NAMES_REMEDY}'
    ) from error
  _check_names(names, num_classes, path)
  return names


def import_file(
  path: str,
  workdir: str,
  dataset: str,
  names_file: str | None = None,
  keep_background: bool = False,
) -> None:
  """Writes a file of weights as the checkpoint of step 0, and prints a summary.

  Args:
    path: see `files.read`.
    workdir: for the checkpoint; must not hold any.
    dataset: that the network was trained on.
    names_file: see `name_classes`; None: the names in the file's notes, or
      ImageNet's.
    keep_background: see `from_slim`.

  Raises:
    UserError: if the weights cannot be read or the checkpoint cannot be written.
  """
  directory = os.path.join(workdir, run_directory.CHECKPOINTS_FOLDER)
  if checkpoint_folder.list_steps(directory):
    raise UserError(f'{workdir} holds checkpoints: give another --workdir')
  check_writable(
    os.path.join(workdir, run_directory.CONFIG_FILE), 'give another --workdir'
  )
  weights, notes, remarks = files.read(path)
  imported = import_weights(weights, keep_background, path)
  if SCALING_NOTE in notes:
    scaling = _read_scaling(notes[SCALING_NOTE], path)
    imported = imported._replace(input_scaling=scaling)
  if CROP_NOTE in notes:
    check_choice(f'{path}: {CROP_NOTE}', notes[CROP_NOTE], tuple(NUM_CROPS))
    imported = imported._replace(eval_crop=notes[CROP_NOTE])
  if CLASSES_NOTE in notes and names_file is None:
    class_names = _read_class_names(
      notes[CLASSES_NOTE], imported.num_classes, path
    )
  else:
    class_names = name_classes(imported.num_classes, names_file)
  config = make_config(imported, dataset)
  description = {
    'config': config,
    'class_names': class_names,
    'num_channels': 3,
  }
  variables = jax.tree.map(jnp.asarray, imported.variables)
  state = start_from(variables, setup_of_checkpoint(description).optimizer)
  with writing(f'workdir {workdir}', 'give another --workdir'):
    os.makedirs(directory, exist_ok=True)
  with checkpoint.open_checkpoints(directory, 1, 1) as checkpoints:
    checkpoint.save(checkpoints, state, description, top1=None)
  json_files.write_json(
    os.path.join(workdir, run_directory.CONFIG_FILE), config
  )
  for remark in (*remarks, *imported.remarks):
    print(f'{path}: {remark}')
  size = count_parameters(state.params)
  print(
    f'imported {path}: BN-Inception of {imported.name}, '
    f'{imported.num_classes:,} classes, {size:,} parameters'
  )
  print(f'evaluate it with: python eval.py --workdir={workdir}')


def export_checkpoint(path: str, output: str) -> None:
  """Writes a checkpoint's weights in the layout of `pretrainedmodels`.

  Args:
    path: of the checkpoint.
    output: of the safetensors file.

  Raises:
    UserError: if the checkpoint cannot be read, if its network is not the one of
      `pretrainedmodels`, or if the file cannot be written.
  """
  if not output.endswith('.safetensors'):
    raise UserError(f'--to={output} must end with .safetensors')
  run_directory.check_output(output, 'give another --to')
  description = checkpoint.read_description(path)
  setup = setup_of_checkpoint(description)
  state = checkpoint.restore_weights(
    path, setup.abstract_state(), setup.replicated
  )
  weights = to_pytorch(state.evaluation_variables, setup.model)
  notes = {
    SCALING_NOTE: json.dumps(description['config']['input_scaling']),
    CROP_NOTE: description['config']['data']['eval_crop'],
    CLASSES_NOTE: json.dumps(description['class_names']),
  }
  with writing(output, 'give another --to'):
    os.makedirs(os.path.dirname(output) or '.', exist_ok=True)
  files.write_safetensors(output, weights, notes)
  print(f'wrote {output}: weights for bninception of pretrainedmodels')


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
    'imagenet2012',
    'Data set that the imported network was trained on. '
    'Example: --dataset=oxford_flowers102',
  )
  define_path(
    'class_names',
    None,
    'File with the class names, one per line in the order of the labels; '
    "default: ImageNet's. Example: --class_names=flowers.txt",
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
    'Checkpoint to export. Example: --checkpoint=runs/cadene/checkpoints/0',
  )
  define_path(
    'to',
    None,
    'Safetensors file to write. Example: --to=bninception.safetensors',
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
    export_checkpoint(values.checkpoint, target)


if __name__ == '__main__':
  define_flags()
  command_line.run(main)
