"""What an evaluation prints, and the files that it writes."""

import csv
import hashlib
import os
import re
from collections.abc import Sequence

from bn_inception.data import imagenet
from bn_inception.errors import UserError, make_parent_folder, replacing
from bn_inception.evaluation import scores
from bn_inception.evaluation.checkpoints import (
  EvaluationOptions,
  Member,
  PopulationOptions,
)
from bn_inception.evaluation.predictions import Predictions
from bn_inception.metrics import POPULATION
from bn_inception.runs import json_files, run_directory
from bn_inception.wording import count

NUM_WORST_CLASSES = 5
_MOST_STEPS = 8  # of an ensemble, in the name of a file
_REMEDY = 'give another --output'
_VERSION = re.compile(r'\d+\.\d+\.\d+')  # of TFDS, in the name of a folder


def default_output(
  members: Sequence[Member], options: EvaluationOptions, folder: str
) -> str:
  """evaluation[_NON_DEFAULTS]_SPLIT_STEP.json in a folder.

  The name holds every option that changes the content. Data that are not in the
  place of the run's own, or whose place is unknown, add their folder and a digest
  of its path.

  Args:
    members: from `checkpoints.prepare`.
    options: that they were prepared with.
    folder: of the file.

  Raises:
    UserError: if the manifest of the run is damaged.
  """
  first = members[0]
  facts, usual, special = first.facts, first.usual, []
  if len(members) > 1:
    paths = [os.path.realpath(member.path) for member in members]
    special += ['ensemble', _digest('\n'.join(paths))]
  if POPULATION in first.kinds:
    special += _name_statistics(first, options.statistics)
  if facts['dataset'] != usual['dataset']:
    special.append(facts['dataset'])
  run = os.path.dirname(os.path.dirname(os.path.abspath(first.path)))
  trained_on = run_directory.read_origin(run, _REMEDY)
  special += _name_data(facts['data'], trained_on)
  if facts['crops'] != usual['crops']:
    special.append(f'{facts["crops"]}_crops')
  if facts['folded']:
    special.append('folded')
  if facts['dtype'] != usual['dtype']:
    special.append(facts['dtype'])
  if options.real:
    special.append('real')
  steps = [os.path.basename(os.path.abspath(m.path)) for m in members]
  if len(steps) > _MOST_STEPS:
    steps = [f'{len(steps)}_members']
  parts = ['evaluation', *special, facts['split'], *steps]
  return os.path.join(folder, '_'.join(parts).replace('/', '-') + '.json')


def _name_statistics(member: Member, statistics: str) -> list[str]:
  """The kind of statistics, with number and seed if not the defaults."""
  given, default = member.population, PopulationOptions()
  # With both, the file has moving averages too.
  parts = ['both'] if statistics == 'both' else []
  parts += [POPULATION, given.dataset, given.split]
  if given.num_batches != default.num_batches:
    parts.append(f'{given.num_batches}_batches')
  if given.seed != default.seed:
    parts.append(f'seed_{given.seed}')
  return parts


def _name_data(origin: dict, trained_on: dict) -> list[str]:
  """Parts of the name that distinguish data sets of the same name.

  Args:
    origin: see `Source.origin`.
    trained_on: the origin of the run's own data; {}: unknown.
  """
  parts = []
  path = _path(origin)
  is_own = _split_path(path) == _split_path(_path(trained_on))
  if origin['dataset'] == 'image_folder':
    is_own = False  # it may hold any images: always name it
  if path is not None and not is_own:
    data_dir, _ = _split_path(path)
    parts.append(f'{os.path.basename(data_dir)}-{_digest(path)}')
  if 'shrunk' in origin:
    shrunk = origin['shrunk']
    parts.append(f'shrunk_{shrunk["short_side"]}_{shrunk["quality"]}')
  return parts


def _path(origin: dict) -> str | None:
  """The file or folder of the data; None: there is none, or it is unknown."""
  path = origin.get('archive') or origin.get('folder')
  is_local = path is not None and '://' not in path
  return os.path.realpath(path) if is_local else path


def _split_path(path: str | None) -> tuple[str, str] | None:
  """The data_dir of a path, and the folder in it that all splits share.

  TFDS puts all splits into NAME/VERSION; image folders have one for each split.
  """
  if path is None:
    return None
  folder, name = os.path.split(path)
  if not _VERSION.fullmatch(name):
    return folder, ''
  data_dir, dataset = os.path.split(folder)
  return data_dir, f'{dataset}/{name}'


def _digest(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()[:8]


def check_files(
  outputs: Sequence[str], remedy: str, inputs: Sequence[str] = ()
) -> None:
  """Makes the folders of files, and refuses those that could not all be written.

  Args:
    outputs: files to write.
    remedy: for messages.
    inputs: files that are read.

  Raises:
    UserError: as `run_directory.check_output`; if an output is also another
      output or an input.
  """
  for path in outputs:
    run_directory.check_output(path, remedy)
  real_paths = [os.path.realpath(path) for path in (*outputs, *inputs)]
  for path in outputs:
    if real_paths.count(os.path.realpath(path)) > 1:
      raise UserError(f'{path} would be two files in one: {remedy}')
  for path in outputs:
    make_parent_folder(path, remedy)


def print_table(result: dict) -> None:
  """Prints a result of `evaluate_members`, a column for each kind of statistics."""
  members, speed = result['members'], result['images_per_second']
  folded = ', batch norm folded' if result['folded'] else ''
  own = members[0]['results'].values()
  for member in members:
    _print_row('run', [f'{member["name"]}, step {member["step"]}{folded}'])
  for name, values in (
    ('split', [f'{result["dataset"]} {result["split"]}']),
    ('examples', [f'{result["examples"]:,}']),
    ('crops', [f'{result["num_crops"]} ({result["crops"]})']),
    ('statistics', list(result['results'])),
    ('batches', [str(r.get('statistics_num_batches', '-')) for r in own]),
  ):
    if values != ['-']:
      _print_row(name, values)
  print_accuracies(list(result['results'].values()))
  _print_row('images/s', [f'{speed:.0f}' if speed else 'not measured'])
  if len(members) == 1:
    return
  for kind in result['results']:
    alone = [member['results'][kind]['top1'] for member in members]
    print(
      f'top-1 of each member, {kind}: {", ".join(f"{v:.2f}" for v in alone)} %; '
      f'their mean {sum(alone) / len(alone):.2f} %'
    )


def print_accuracies(results: list[dict]) -> None:
  """Prints rows with a column for each result of `scores.summary`.

  If they have `real`, a result of `scores.label_set_summary`, also its rows.
  """

  def or_not_finite(values: list[float | None], form: str) -> list[str]:
    return ['not finite' if v is None else form.format(v) for v in values]

  for name, title in (('top1', 'top-1'), ('top5', 'top-5')):
    _print_accuracy(title, results, name)
    _print_row('  error', [f'{100 - r[name]:.2f} %' for r in results])
  if 'real' in results[0]:
    real = [r['real'] for r in results]
    _print_accuracy('ReaL', real, 'top1')
    _print_row('  examples', [f'{r["examples"]:,}' for r in real])
  _print_row('loss', or_not_finite([r['loss'] for r in results], '{:.4f}'))
  _print_row('ECE', or_not_finite([r['ece'] for r in results], '{:.2f} %'))


def _print_accuracy(title: str, results: list[dict], name: str) -> None:
  """Prints a row of accuracies, and one of their intervals."""
  _print_row(title, [f'{r[name]:.2f} %' for r in results])
  intervals = [r[f'{name}_interval'] for r in results]
  _print_row('  95 %', [f'{low:.2f} - {high:.2f} %' for low, high in intervals])


def _print_row(name: str, values: list[str]) -> None:
  columns = ''.join(f'{value:17}' for value in values)
  print(f'{name:12}{columns}'.rstrip())


def print_worst_classes(predictions: Predictions) -> None:
  """Prints the classes with the lowest top-1 accuracy, and their confusions."""
  found = scores.class_scores(predictions.log_probabilities, predictions.labels)
  names = [imagenet.readable(name) for name in predictions.class_names]
  print(f'worst of {count(len(found), "class", "classes")}:')
  for score in found[:NUM_WORST_CLASSES]:
    # Names hold commas and numbers.
    confused = ''
    if score.num_confused:
      confused = f', {score.num_confused} as {names[score.confused_with]}'
    print(
      f'  {names[score.label]}: {score.top1:.2f} % of '
      f'{score.num_examples}{confused}'
    )


def write_classes(predictions: Predictions, path: str) -> None:
  """Writes a CSV file with a row for each class, the worst first.

  Raises:
    UserError: if the file cannot be written.
  """
  found = scores.class_scores(predictions.log_probabilities, predictions.labels)
  class_names = predictions.class_names
  header = (
    'label', 'class', 'name', 'examples', 'top1', 'top5', 'confused_with',
    'confused',
  )  # fmt: skip
  with replacing(path, remedy=_REMEDY) as file:
    writer = csv.writer(file)
    writer.writerow(header)
    for score in found:
      confused = score.confused_with
      name = class_names[score.label]
      writer.writerow(
        [
          score.label,
          name,
          imagenet.readable(name),
          score.num_examples,
          f'{score.top1:.4f}',
          f'{score.top5:.4f}',
          class_names[confused] if confused >= 0 else '',
          score.num_confused,
        ]
      )
  print(f'written to {path}')


def write_result(result: dict, path: str) -> None:
  """Writes a result of `evaluate_members` as JSON, and prints the path.

  Raises:
    UserError: if the file cannot be written.
  """
  json_files.write_json(path, result, remedy=_REMEDY)
  print(f'written to {path}')
