"""The outcome of a run, result.json, from its records."""

import os
import statistics

from bn_inception import metrics
from bn_inception.optimizer import PAPER_BATCH_SIZE
from bn_inception.runs.display import format_seconds
from bn_inception.runs.json_files import read_json
from bn_inception.runs.run_directory import RESULT_FILE
from bn_inception.wording import count


def make_result(config: dict, records: list[dict], num_examples: int) -> dict:
  """The content of result.json.

  Args:
    config: of the run.
    records: of the whole run, see `logbook`.
    num_examples: of the training split.

  Returns:
    `top1` and `top5`, in percent, are from the last evaluation; `max_top1` is the
    best of all evaluations; `population_top1` and `max_population_top1` are the
    same with population statistics, None if they were not taken;
    `steps_to_target` is the step of the first evaluation that reached the target,
    None if none did; `images_per_second` and `input_wait_fraction` (the fraction
    of the time spent waiting for the host's input) are medians over the logged
    intervals; `seconds_to_first_step` is that of the last start;
    `replaced_examples` counts bad images; `wall_seconds` counts from each start
    to its last record, including compilation.
  """
  train = [r for r in records if r['kind'] == 'train']
  starts = [r for r in records if r['kind'] == 'start']
  evals = [r for r in records if r['kind'] == 'eval']
  bad_step = train[-1]['first_nonfinite_step']
  step = bad_step if bad_step >= 0 else records[-1]['step']
  examples = step * config['batch_size']
  target = config['training']['target_accuracy']
  reached = [r['step'] for r in evals if r['top1'] >= target]
  last = evals[-1] if evals else {}
  return {
    'name': config['name'],
    'config': config,
    'steps': step,
    'epochs': step / (num_examples / config['batch_size']),
    'examples': examples,
    'paper_steps': examples / PAPER_BATCH_SIZE,
    'eval_split': config['source']['eval_split'],
    'eval_examples': last.get('examples'),
    'top1': last.get('top1'),
    'top5': last.get('top5'),
    'loss': last.get('loss'),
    'max_top1': max((r['top1'] for r in evals), default=None),
    'population_top1': last.get('population_top1'),
    'max_population_top1': max(
      (r['population_top1'] for r in evals if 'population_top1' in r),
      default=None,
    ),
    'statistics': metrics.MOVING
    if config['model']['use_batch_norm']
    else metrics.NONE,
    'target_accuracy': target,
    'steps_to_target': reached[0] if reached else None,
    'diverged': bad_step >= 0,
    'first_nonfinite_step': bad_step if bad_step >= 0 else None,
    'images_per_second': _median(train, 'images_per_second'),
    'input_wait_fraction': _median(train, 'input_wait_fraction'),
    'seconds_to_first_step': starts[-1]['seconds_to_first_step']
    if starts
    else None,
    'replaced_examples': sum(r['kind'] == 'replaced' for r in records),
    'wall_seconds': records[-1]['seconds'],
  }


def _median(records: list[dict], name: str) -> float | None:
  values = [r[name] for r in records if r.get(name) is not None]
  return statistics.median(values) if values else None


def print_result(result: dict, workdir: str) -> None:
  """Prints a line; result: see `make_result`."""
  if result['diverged']:
    print(
      f'result: diverged at step {result["first_nonfinite_step"]} '
      f'(written to {workdir}/{RESULT_FILE})'
    )
    return
  reached = result['steps_to_target']
  target = f'{result["target_accuracy"]:g} %'
  print(
    f'result: top-1 {result["top1"]:.2f} % (best {result["max_top1"]:.2f} %) '
    f'on {result["eval_split"]} after '
    f'{count(result["steps"], "step", form="")}; {target} '
    f'{f"reached at step {reached}" if reached else "not reached"}; '
    f'{format_seconds(result["wall_seconds"])} in all; written to '
    f'{workdir}/{RESULT_FILE}'
  )


def diverged_result(workdir: str) -> dict | None:
  """The result of a run that diverged; None for any other."""
  path = os.path.join(workdir, RESULT_FILE)
  if not os.path.exists(path):
    return None
  result = read_json(path)
  return result if result['diverged'] else None
