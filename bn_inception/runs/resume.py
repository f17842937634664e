"""Which checkpoint a run is resumed from, and whether it can be."""

import os

from bn_inception.errors import UserError
from bn_inception.runs import checkpoint_folder
from bn_inception.runs.logbook import METRICS_FILE, read_metrics
from bn_inception.runs.run_directory import CHECKPOINTS_FOLDER, RESULT_FILE


def checkpoint_steps(workdir: str) -> list[int]:
  """The steps of a run's checkpoints."""
  return checkpoint_folder.list_steps(os.path.join(workdir, CHECKPOINTS_FOLDER))


def choose_checkpoint(workdir: str) -> str | None:
  """The path of the one to resume from; None: a new run."""
  if checkpoint_steps(workdir):
    return checkpoint_folder.choose_to_resume(
      os.path.join(workdir, CHECKPOINTS_FOLDER)
    )
  if os.path.exists(os.path.join(workdir, RESULT_FILE)):
    raise UserError(
      f'{workdir} holds a finished run whose checkpoints are gone: give '
      'another --workdir, or remove this one to train again'
    )
  return None


def check_records(workdir: str, path: str) -> None:
  """Refuses to resume a run whose records end before its checkpoint.

  Its result would miss some. A step is recorded before it is saved.

  Args:
    workdir: the run directory.
    path: of the checkpoint; imported weights are step 0, without records.

  Raises:
    UserError: if metrics.jsonl is gone, cut short, or damaged.
  """
  step = int(os.path.basename(path))
  if step == 0:
    return
  metrics_path = os.path.join(workdir, METRICS_FILE)
  remedy = 'restore it, or give another --workdir'
  if not os.path.exists(metrics_path):
    raise UserError(f'{metrics_path} is gone, and {path} needs it: {remedy}')
  records = read_metrics(workdir)
  end = max((r['step'] for r in records if r['kind'] == 'train'), default=0)
  if end >= step:
    return
  if any(earlier <= end for earlier in checkpoint_steps(workdir)):
    remedy += f', or move the checkpoints after step {end} away'
  raise UserError(
    f'{metrics_path} was cut short: it ends at step {end}, before the checkpoint '
    f'of step {step}: {remedy}'
  )
