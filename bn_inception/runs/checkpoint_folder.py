"""The folder with a run's checkpoints: which there are, and which to use.

A finished checkpoint is a folder named after its step. It is sealed after it has
been written (see `integrity`).
"""

import os

from bn_inception.errors import UserError
from bn_inception.runs import integrity

DAMAGED_FOLDER = 'damaged_checkpoints'


def list_steps(directory: str) -> list[int]:
  """The steps of the finished checkpoints; [] if there is no such folder."""
  if not os.path.isdir(directory):
    return []
  return sorted(int(n) for n in os.listdir(directory) if n.isdecimal())


def find(directory: str, step: int | None = None) -> str:
  """The path of the checkpoint of a step, or of the newest one.

  Raises:
    UserError: if there is no such checkpoint; lists the steps that exist.
  """
  steps = list_steps(directory)
  if not steps:
    raise UserError(
      f'no checkpoint in {directory}: train first, or give --checkpoint'
    )
  if step is not None and step not in steps:
    raise UserError(
      f'no checkpoint of step {step} in {directory}: there are '
      f'{", ".join(map(str, steps))}'
    )
  return os.path.join(directory, str(steps[-1] if step is None else step))


def newest_intact(directory: str) -> tuple[str, dict[str, str]]:
  """The newest undamaged checkpoint; reads, changes nothing.

  Unsealed checkpoints (interrupted saves, or from older versions of this
  program) are used only if no intact sealed one exists.

  Args:
    directory: with at least one checkpoint.

  Returns:
    Its path, and path -> damage of every newer checkpoint, newest first.

  Raises:
    UserError: if all are damaged; lists the damage of each.
  """
  damage_of, unsealed = {}, []
  for step in reversed(list_steps(directory)):
    path = os.path.join(directory, str(step))
    damage = f'it was not finished: it has no {integrity.MANIFEST_FILE}'
    if integrity.is_sealed(path):
      damage = integrity.find_damage(path)
      if damage is None:
        return path, damage_of
    else:
      unsealed.append(path)
    damage_of[path] = damage
  if not unsealed:
    found = '; '.join(
      f'{os.path.basename(path)}: {damage}'
      for path, damage in damage_of.items()
    )
    raise UserError(
      f'all checkpoints in {directory} are damaged ({found}): restore them from '
      'a backup, or give another --workdir to train again'
    )
  newer = {
    path: damage
    for path, damage in damage_of.items()
    if _step(path) > _step(unsealed[0])
  }
  return unsealed[0], newer


def choose_to_resume(directory: str) -> str:
  """`newest_intact`, after moving damaged checkpoints out of the way.

  Prints what it moved. Call it in one process only: it changes the folder.
  """
  chosen, damage_of = newest_intact(directory)
  for step in list_steps(directory):
    path = os.path.join(directory, str(step))
    # Orbax reads the accuracies of older checkpoints, to keep the best.
    if step < _step(chosen) and integrity.is_sealed(path):
      damage = integrity.find_damage(path)
      if damage is not None:
        damage_of[path] = damage
  for path, damage in damage_of.items():
    place = set_aside(path)
    print(f'checkpoint {path} is damaged ({damage}): moved to {place}')
  return chosen


def set_aside(path: str) -> str:
  """Moves RUN/checkpoints/STEP, so that the step can be written again.

  Returns:
    RUN/damaged_checkpoints/STEP; if that exists, STEP.1, STEP.2, ....

  Raises:
    UserError: if it cannot be moved.
  """
  path = os.path.abspath(path)
  directory, name = os.path.split(path)
  folder = os.path.join(os.path.dirname(directory), DAMAGED_FOLDER)
  place, number = os.path.join(folder, name), 0
  while os.path.exists(place):
    number += 1
    place = os.path.join(folder, f'{name}.{number}')
  try:
    os.makedirs(folder, exist_ok=True)
    os.rename(path, place)
  except OSError as error:
    raise UserError(
      f'damaged checkpoint {path} cannot be moved to {folder} '
      f'({error.strerror}): move it away yourself'
    ) from error
  return place


def _step(path: str) -> int:
  return int(os.path.basename(path))
