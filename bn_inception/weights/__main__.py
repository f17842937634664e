"""Makes a checkpoint of published weights, and weights of a checkpoint.

    python -m bn_inception.weights --from=FILE --workdir=DIR
    python -m bn_inception.weights --checkpoint=FOLDER --to=FILE

The first takes weights of BN-Inception from pretrainedmodels (Cadene),
pytorchcv or TF-Slim, and writes DIR/checkpoints/0, which eval.py takes with
--workdir=DIR. The second writes the weights of a checkpoint as pretrainedmodels
names them.
"""

from bn_inception.machine import interruption

if __name__ == '__main__':
  interruption.watch()  # the other imports take seconds

import json
import os
from functools import partial

import jax
import jax.numpy as jnp
from absl import flags

from bn_inception import command_line, mesh, presets
from bn_inception.data import augment, imagenet
from bn_inception.data.crops import NUM_CROPS
from bn_inception.errors import UserError, check_choice, check_writable, writing
from bn_inception.experiment import make_abstract_state, make_model
from bn_inception.machine import streams
from bn_inception.machine.path_flags import define_path
from bn_inception.optimizer import Optimizer, make_optimizer
from bn_inception.runs import checkpoint, run_directory
from bn_inception.train_state import count_parameters, start_from
from bn_inception.weights import files
from bn_inception.weights import layouts as importing
from bn_inception.weights.layouts import Imported

# Of the exported file: what the input and the classes are, which no weight says.
SCALING_NOTE = 'bn_inception.input_scaling'
CROP_NOTE = 'bn_inception.eval_crop'
CLASSES_NOTE = 'bn_inception.class_names'


def make_config(imported: Imported, dataset: str) -> dict:
  """The config of a checkpoint of imported weights.

  Training is the paper's, which is not how they were trained.
  """
  config = presets.compose.preset('bn_baseline', 'imagenet').to_dict()
  config['name'] = f'imported-{imported.name}'
  config['source']['dataset'] = dataset
  config['data']['eval_crop'] = imported.eval_crop
  config['input_scaling'] = imported.input_scaling
  config['model'].update(imported.model)
  return json.loads(json.dumps(config))  # as it will be read: lists


def name_classes(num_classes: int, names_file: str | None) -> list[str]:
  """Those of a file; else ImageNet's WordNet ids, after any background class.

  Raises:
    UserError: if the file cannot be read, if the number of classes is another,
      or if a name is missing or comes twice.
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
    f'the weights are for {num_classes} classes and there are names for '
    f'{len(imagenet_names)}: {_NAMES_REMEDY}'
  )


_NAMES_REMEDY = (
  'give the names, a line for each in the order of the labels, with '
  '--class_names=FILE'
)


def _check_names(names: list[str], num_classes: int, place: str) -> None:
  """Refuses what does not name each class, each by a name of its own."""
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
      f'the weights are for {num_classes} classes and {place} has names for '
      f'{len(names)}: {_NAMES_REMEDY}'
    )


def _read_lines(path: str) -> list[str]:
  try:
    with open(path, encoding='utf-8-sig') as file:
      return [line.strip() for line in file]
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f'{path} cannot be read: {error}') from error


def _read_scaling(note: str, path: str) -> dict:
  """The scaling of the input that an exported file notes.

  Raises:
    UserError: if it is damaged, or scales no image.
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
  """The class names that an exported file notes; raises as `name_classes`."""
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
  """Writes the checkpoint of a file of weights under step 0, and says so.

  Args:
    path: of the file: see `files.read`.
    workdir: for the checkpoint; must hold none.
    dataset: that it was trained on.
    names_file: see `name_classes`; None: those that the file notes, or
      ImageNet's.
    keep_background: see `from_slim`.

  Raises:
    UserError: if there are no weights to be had, or no place for them.
  """
  directory = os.path.join(workdir, run_directory.CHECKPOINTS_FOLDER)
  if checkpoint.list_steps(directory):
    raise UserError(f'{workdir} holds checkpoints: give another --workdir')
  check_writable(
    os.path.join(workdir, run_directory.CONFIG_FILE), 'give another --workdir'
  )
  weights, notes, remarks = files.read(path)
  imported = importing.import_weights(weights, keep_background, path)
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
  state = start_from(variables, _make_optimizer(config))
  try:
    os.makedirs(directory, exist_ok=True)
  except OSError as error:
    raise UserError(
      f'workdir {workdir} cannot be written ({error.strerror}): give another '
      '--workdir'
    ) from error
  with checkpoint.open_checkpoints(directory, 1, 1) as checkpoints:
    checkpoint.save(checkpoints, state, description, top1=None)
  run_directory.write_json(
    os.path.join(workdir, run_directory.CONFIG_FILE), config
  )
  for remark in (*remarks, *imported.remarks):
    print(f'{path}: {remark}')
  size = count_parameters(state.params)
  print(
    f'imported {path}: BN-Inception as of {imported.name}, '
    f'{imported.num_classes:,} classes, {size:,} parameters'
  )
  print(f'evaluate it with: python eval.py --workdir={workdir}')


def export_checkpoint(path: str, output: str) -> None:
  """Writes the weights of a checkpoint as a safetensors file, and says so.

  Args:
    path: of the checkpoint.
    output: of the file, in the layout of `pretrainedmodels`.

  Raises:
    UserError: if the checkpoint cannot be read or is of another network than
      that layout's, or if the file cannot be written.
  """
  if not output.endswith('.safetensors'):
    raise UserError(f'--to={output} must end with .safetensors')
  run_directory.check_output(output, 'give another --to')
  description = checkpoint.read_description(path)
  state = checkpoint.restore_weights(
    path,
    make_abstract_state(
      description['config'],
      len(description['class_names']),
      description['num_channels'],
    ),
    mesh.replicated(mesh.make_evaluation_mesh(jax.devices())),
  )
  model = make_model(description['config'], len(description['class_names']))
  variables = state.evaluation_variables
  weights = importing.to_pytorch(variables, model)
  notes = {
    SCALING_NOTE: json.dumps(description['config']['input_scaling']),
    CROP_NOTE: description['config']['data']['eval_crop'],
    CLASSES_NOTE: json.dumps(description['class_names']),
  }
  with writing(output, 'give another --to'):
    os.makedirs(os.path.dirname(output) or '.', exist_ok=True)
  files.write_safetensors(output, weights, notes)
  print(f'written to {output}: weights for bninception of pretrainedmodels')


def _make_optimizer(config: dict) -> Optimizer:
  # The schedule is in no state, so that any length of an epoch will do.
  return make_optimizer(
    steps_per_epoch=1.0,
    batch_size=config['batch_size'],
    **config['optimizer'],
  )


def define_flags() -> None:
  """The flags of the program, but not on import."""
  define_path(
    'from',
    None,
    'File of weights to import, whatever its name: of safetensors, of '
    'torch.save, or a checkpoint of TensorFlow. '
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
    'File with the names of the classes, a line for each in the order of the '
    "labels; default: ImageNet's. Example: --class_names=flowers.txt",
  )
  flags.DEFINE_bool(
    'keep_background',
    False,
    "Of TF-Slim's 1,001 classes keep the first, which is none of ImageNet's. "
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
    'Safetensors file to export to. Example: --to=bninception.safetensors',
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
  streams.go_on_without_stdout()
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
