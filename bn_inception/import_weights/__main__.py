"""Makes a checkpoint of published weights, and weights of a checkpoint.

    python -m bn_inception.import_weights --from=FILE --workdir=DIR
    python -m bn_inception.import_weights --checkpoint=FOLDER --to=FILE

The first takes weights of BN-Inception from pretrainedmodels (Cadene),
pytorchcv or TF-Slim, and writes DIR/checkpoints/0, which eval.py takes with
--workdir=DIR. The second writes the weights of a checkpoint as pretrainedmodels
names them.
"""

import json
import os

import jax
import jax.numpy as jnp
from absl import flags

from bn_inception import checkpoint, command_line, mesh, run_directory
from bn_inception import import_weights as importing
from bn_inception.errors import UserError
from bn_inception.experiment import make_abstract_state, make_model
from bn_inception.import_weights import Imported, files
from bn_inception.optimizer import Optimizer, make_optimizer
from bn_inception.sources import imagenet
from bn_inception.train_state import count_parameters, start_from
from configs import compose

# Of the exported file: what the input and the classes are, which no weight says.
SCALING_NOTE = 'bn_inception.input_scaling'
CROP_NOTE = 'bn_inception.eval_crop'
CLASSES_NOTE = 'bn_inception.class_names'


def make_config(imported: Imported, dataset: str) -> dict:
  """The config of a checkpoint of imported weights.

  Training is the paper's, which is not how they were trained.
  """
  config = compose.preset('bn_baseline', 'imagenet').to_dict()
  config['name'] = f'imported-{imported.name}'
  config['source']['dataset'] = dataset
  config['data']['eval_crop'] = imported.eval_crop
  config['input_scaling'] = imported.input_scaling
  config['model'].update(imported.model)
  return json.loads(json.dumps(config))  # as it will be read: lists


def name_classes(num_classes: int, names_file: str | None) -> list[str]:
  """Those of a file; else ImageNet's WordNet ids, after any background class.

  Raises:
    UserError: if the file cannot be read, or the number of classes is another.
  """
  imagenet_names = list(imagenet.class_names())
  known = [imagenet_names, ['background', *imagenet_names]]
  if names_file is not None:
    known = [_read_lines(names_file)]
  for names in known:
    if len(names) == num_classes:
      return names
  raise UserError(
    f'the weights are for {num_classes} classes and there are names for '
    f'{len(known[0])}: give the names, a line for each in the order of the '
    'labels, with --class_names=FILE'
  )


def _read_lines(path: str) -> list[str]:
  try:
    with open(path) as file:
      return file.read().splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f'{path} cannot be read: {error}') from error


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
  weights, notes = files.read(path)
  imported = importing.import_weights(weights, keep_background)
  if SCALING_NOTE in notes:
    scaling = json.loads(notes[SCALING_NOTE])
    imported = imported._replace(input_scaling=scaling)
  if CROP_NOTE in notes:
    imported = imported._replace(eval_crop=notes[CROP_NOTE])
  if CLASSES_NOTE in notes and names_file is None:
    class_names = json.loads(notes[CLASSES_NOTE])
  else:
    class_names = name_classes(imported.num_classes, names_file)
  directory = os.path.join(workdir, run_directory.CHECKPOINTS_FOLDER)
  if checkpoint.list_steps(directory):
    raise UserError(f'{workdir} holds checkpoints: give another --workdir')
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
  description = checkpoint.read_description(path)
  state = checkpoint.restore(
    path,
    make_abstract_state(
      description['config'],
      len(description['class_names']),
      description['num_channels'],
    ),
    mesh.replicated(mesh.make_evaluation_mesh(jax.devices())),
  )
  model = make_model(description['config'], len(description['class_names']))
  weights = importing.to_pytorch(state.evaluation_variables, model)
  notes = {
    SCALING_NOTE: json.dumps(description['config']['input_scaling']),
    CROP_NOTE: description['config']['data']['eval_crop'],
    CLASSES_NOTE: json.dumps(description['class_names']),
  }
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
  flags.DEFINE_string(
    'from',
    None,
    'File of weights to import: NAME.safetensors, NAME.pth, or a checkpoint of '
    'TensorFlow. Example: --from=bn_inception-52deb4733.pth',
  )
  flags.DEFINE_string(
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
  flags.DEFINE_string(
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
  flags.DEFINE_string(
    'checkpoint',
    None,
    'Checkpoint to export. Example: --checkpoint=runs/cadene/checkpoints/0',
  )
  flags.DEFINE_string(
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
