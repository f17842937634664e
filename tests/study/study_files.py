"""Made-up runs of studies, with the files that training and evaluation leave."""

import json
import pathlib

from bn_inception.runs import json_files
from bn_inception.runs.result import make_result
from bn_inception.study.runs import Run, Selection, list_runs

MANIFEST = {
  'time': '2026-01-02T03:04:05+00:00',
  'python': '3.11.9',
  'platform': 'Linux-6',
  'packages': {'jax': '0.10.2', 'libtpu': None},
  'commit': 'c0ffee' + '0' * 34,
  'devices': ['cpu', 'cpu'],
  'native_convolutions': True,
  'process_count': 1,
  'data': {},
}


def write_run(
  run: Run,
  top1: dict[int, float],
  population: dict[int, float] | None = None,
  final: float = 50.0,
  final_population: float | None = None,
  diverged_at: int | None = None,
  loss: float = 1.5,
  wall_seconds: float = 1800.0,
) -> None:
  """Writes a finished run into its folder.

  Args:
    run: which.
    top1: step -> accuracy of the evaluations, in percent.
    population: the same with population statistics; None: not taken.
    final: of evaluation.json; the network has batch norm if `population`.
    final_population: of evaluation.json; None: the same.
    diverged_at: step; then there is no evaluation.json.
    loss: of the evaluations.
    wall_seconds: of result.json.
  """
  records = [{'kind': 'start', 'step': 1, 'seconds_to_first_step': 3.0}]
  for step, value in top1.items():
    records.append(_train_record(run, step, -1))
    record = {'kind': 'eval', 'step': step, 'top1': value, 'top5': value}
    record |= {'loss': loss, 'examples': 2000, 'seconds': 1.0}
    if population is not None:
      record |= {'population_loss': loss - 0.5, 'population_top5': value}
      record['population_top1'] = population[step]
    records.append(record)
  if diverged_at is not None:
    records.append(_train_record(run, diverged_at + 9, diverged_at))
  records[-1]['seconds'] = wall_seconds
  result = make_result(
    run.config, records, num_examples=100 * run.config['batch_size']
  )
  folder = pathlib.Path(run.folder)
  folder.mkdir(parents=True, exist_ok=True)
  _write(folder / 'config.json', run.config)
  _write(folder / 'manifest.json', {'starts': [MANIFEST]})
  _write(folder / 'result.json', result)
  text = ''.join(json.dumps(record) + '\n' for record in records)
  (folder / 'metrics.jsonl').write_text(text)
  (folder / 'train.log').write_text(f'run {run.config["name"]}\n')
  if diverged_at is None:
    kinds = {'none': final}
    if run.config['model']['use_batch_norm']:
      if final_population is None:
        final_population = final
      kinds = {'moving averages': final, 'population': final_population}
    results = {k: {'top1': v, 'loss': 1.0} for k, v in kinds.items()}
    evaluation = {'dataset': 'made up', 'split': 'test', 'results': results}
    _write(folder / 'evaluation.json', evaluation)


def _train_record(run: Run, step: int, bad_step: int) -> dict:
  record = {'kind': 'train', 'step': step, 'first_nonfinite_step': bad_step}
  record |= {'loss': 1.0, 'seconds': 1.0}
  if run.config['architecture'] == 'perceptron':
    record |= {
      f'sigmoid_input_p{percentile}': factor * step / 100
      for percentile, factor in ((15, -1.0), (50, 0.25), (85, 1.0))
    }
  return record


def _write(path: pathlib.Path, value: dict) -> None:
  json_files.write_json(str(path), value)


def study_runs(
  name: str,
  root: pathlib.Path,
  seeds: tuple[int, ...] = (0, 1, 2),
  tasks: tuple[str, ...] = ('digits',),
) -> dict[tuple[str, int], Run]:
  """(arm, seed) -> run, of one task of a study."""
  selection = Selection(str(root), tasks=tuple(tasks), seeds=tuple(seeds))
  runs = list_runs(name, selection)
  return {(run.arm, run.seed): run for run in runs}


def write_many(runs, speed: float = 0.004) -> None:
  """Finishes runs with smooth curves, each arm and seed another.

  The sixth arm diverges. Runs that are there stay as they are.
  """
  arms = list(dict.fromkeys(run.arm for run in runs))
  for run in runs:
    if run.result() is not None:
      continue
    number = arms.index(run.arm)
    # Some studies have the seed 100, and accuracies end at 100 %.
    top = 92.0 - 2.5 * number + 0.8 * (run.seed % 10)
    steps = range(100, 2001, 100)
    top1 = {s: top - 60.0 / (1.0 + speed * s) for s in steps}
    population = None
    if run.config['model']['use_batch_norm']:
      population = {s: top + 2.0 - 45.0 / (1.0 + speed * s) for s in steps}
    diverged_at = 441 if number == 5 else None
    if diverged_at is not None:
      top1 = {s: v for s, v in top1.items() if s < diverged_at}
    final = top - 5.0 + 0.1 * (len(run.arm) * (run.seed + 1) % 7)
    write_run(run, top1, population, final, final + 1.0, diverged_at)
