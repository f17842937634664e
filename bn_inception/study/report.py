r"""Figures, tables and a page of what the runs of the studies found.

  python -m bn_inception.study.report --study=figure2 --runs=runs/study --out=runs/report

Writes report.html, report.md, figures/ and tables/, and copies what the runs
wrote, but for their checkpoints, into runs/, from which the report can be made
again: --runs=runs/report/runs.
"""

from bn_inception.machine import interruption

if __name__ == '__main__':
  interruption.watch()  # the other imports take seconds

import csv
import datetime
import os
import shlex
from collections.abc import Iterable, Sequence

import jax
from absl import flags

from bn_inception import command_line
from bn_inception.errors import UserError, writing
from bn_inception.evaluation.passes import MOVING, POPULATION
from bn_inception.machine import streams
from bn_inception.machine.path_flags import define_path
from bn_inception.runs import run_directory
from bn_inception.runs.logbook import METRICS_FILE
from bn_inception.steps import RESULTS_VERSION
from bn_inception.study import figures as report_figures
from bn_inception.study import flags as study_flags
from bn_inception.study import page as report_page
from bn_inception.study import runs as study_runs
from bn_inception.study.page import RUNS_FOLDER, Report
from bn_inception.study.results import Outcome
from bn_inception.study.sections import Plot, Section, Table, make_section

_COMMIT_DIGITS = 10  # manifest.json has all of them
_FILES = (
  run_directory.CONFIG_FILE, study_runs.LOG_FILE, METRICS_FILE,
  run_directory.RESULT_FILE, study_runs.EVALUATION_FILE,
  run_directory.MANIFEST_FILE,
)  # fmt: skip
_REMEDY = 'give another --out'


def make_report(
  names: Sequence[str],
  selection: study_runs.Selection,
  out: str,
  cores_per_run: int = 1,
) -> None:
  """Writes the report of some studies.

  Args:
    names: of configs/studies.py.
    selection: of their runs.
    out: folder to write to, made if absent.
    cores_per_run: that a run had, for the cost.

  Raises:
    UserError: for names that are not there, a folder without finished runs of
      them, or one that cannot be written.
  """
  sections = [
    make_section(n, study_runs.list_runs(n, selection)) for n in names
  ]
  unique = list(
    {o.run.folder: o for s in sections for o in s.outcomes}.values()
  )
  problems = list(dict.fromkeys(line for s in sections for line in s.problems))
  starts, lacking = _read_starts(unique)
  problems += lacking
  for line in problems:
    print(f'damaged: {line}')
  if not unique and not problems:
    raise UserError(_describe_absence(names, selection.root))
  for folder in (
    RUNS_FOLDER,
    report_page.FIGURES_FOLDER,
    report_page.TABLES_FOLDER,
  ):
    with writing(out, _REMEDY):
      os.makedirs(os.path.join(out, folder), exist_ok=True)
  files = {o.folder_name: _copy(o, selection.root, out) for o in unique}
  report = Report(
    facts=_facts(unique, starts) | _describe_problems(problems, selection.root),
    costs=_costs(sections, unique, cores_per_run),
    cost_rule=(
      'Core-hours: seconds that training and its evaluations took (wall_seconds '
      f'of result.json) times the {cores_per_run} core(s) that a run had. A run '
      'of several studies counts in each, and once in the sum.'
    ),
    sections=sections,
    figures=_write_figures_and_tables(sections, out),
    files=files,
  )
  _write_text(os.path.join(out, 'report.html'), report_page.make_html(report))
  _write_text(os.path.join(out, 'report.md'), report_page.make_markdown(report))
  for name, done, *_ in report.costs[1:]:
    print(f'{name:20} {done} runs')
  print(f'written to {os.path.join(out, "report.html")}')


def _describe_absence(names: Sequence[str], root: str) -> str:
  others = len(study_runs.others([], root))
  of_others = ''
  if others:
    of_others = (
      f', but {others} others: of other studies or settings (--quick, --task, '
      '--seeds, --set), unfinished, or of another version of this code'
    )
  is_one = len(names) == 1
  return (
    f'{root} holds no finished runs of {names[0] if is_one else "these studies"}'
    f'{of_others}: train some with `python -m bn_inception.study '
    f'--study={names[0]} --runs={shlex.quote(root)}`, or give another --runs'
  )


def _copy(outcome: Outcome, root: str, out: str) -> list[str]:
  """Copies the files of a run; the names of those that it has.

  Paths into `root` are those of the copies then, so that what is published tells
  nothing of the machine's folders.
  """
  source = outcome.run.folder
  target = os.path.join(out, RUNS_FOLDER, outcome.folder_name)
  names = [n for n in _FILES if os.path.exists(os.path.join(source, n))]
  if os.path.exists(target) and os.path.samefile(source, target):
    return names
  with writing(target, _REMEDY):
    os.makedirs(target, exist_ok=True)
    for name in names:
      # A damaged file may hold anything.
      with open(os.path.join(source, name), errors='surrogateescape') as file:
        text = file.read()
      text = text.replace(f'{os.path.abspath(root)}/', f'{RUNS_FOLDER}/')
      path = os.path.join(target, name)
      with open(path, 'w', errors='surrogateescape') as file:
        file.write(text)
  return names


def _read_starts(outcomes: Sequence[Outcome]) -> tuple[list[dict], list[str]]:
  """What the manifests say of every start, and which cannot be read."""
  starts, problems = [], []
  for outcome in outcomes:
    path = outcome.run.path(run_directory.MANIFEST_FILE)
    try:
      found = run_directory.read_json(path, 'restore it').get('starts')
    except UserError as error:
      problems.append(str(error))
      continue
    if isinstance(found, list) and all(map(_is_start, found)):
      starts += found
    else:
      problems.append(f'{path} lacks what is known of its starts')
  return starts, problems


def _is_start(value) -> bool:
  if not isinstance(value, dict):
    return False
  texts = value.get('time'), value.get('python'), value.get('platform')
  devices = value.get('devices')
  return (
    all(isinstance(text, str) for text in texts)
    and isinstance(value.get('commit'), str | None)
    and isinstance(value.get('packages'), dict)
    and isinstance(devices, list)
    and len(devices) > 0
  )


def _describe_problems(problems: Sequence[str], root: str) -> dict[str, str]:
  """A fact of the report, if there are any, without the machine's folders."""
  text = '; '.join(problems).replace(os.path.join(root, ''), f'{RUNS_FOLDER}/')
  return {'damaged': text} if problems else {}


def _facts(
  outcomes: Sequence[Outcome], starts: Sequence[dict]
) -> dict[str, str]:
  """Of the report, and of the manifests of its runs."""
  days = sorted(start['time'][:10] for start in starts) or ['none']
  python = [f'python {start["python"]}' for start in starts]
  packages = [
    f'{package} {version}'
    for start in starts
    for package, version in start['packages'].items()
    if version is not None
  ]
  devices = [
    f'{len(start["devices"])} x {start["devices"][0]}' for start in starts
  ]
  return {
    'date': datetime.date.today().isoformat(),
    'runs': f'{len(outcomes)}, of {days[0]} to {days[-1]}',
    'results version': str(RESULTS_VERSION),
    'commit': _distinct(
      (start['commit'] or 'unknown')[:_COMMIT_DIGITS] for start in starts
    ),
    'devices': _distinct(devices),
    'platform': _distinct(start['platform'] for start in starts),
    'versions': _distinct(python + packages),
  }


def _distinct(texts: Iterable[str]) -> str:
  return ', '.join(dict.fromkeys(texts))


def _costs(
  sections: Sequence[Section], unique: Sequence[Outcome], cores_per_run: int
) -> list[list[str]]:
  def row(name: str, outcomes: Sequence[Outcome], total: int) -> list[str]:
    hours = sum(o.result['wall_seconds'] for o in outcomes) / 3600
    diverged = sum(o.diverged_at is not None for o in outcomes)
    done = f'{len(outcomes)} of {total}'
    return [
      name, done, str(diverged), f'{hours:.2f}', f'{hours * cores_per_run:.2f}'
    ]  # fmt: skip

  def folders(section: Section) -> set[str]:
    return {run.folder for group in section.groups for run in group.runs}

  return [
    ['study', 'finished runs', 'diverged', 'hours', 'core-hours'],
    *(row(s.name, s.outcomes, len(folders(s))) for s in sections),
    row('all', unique, len(set().union(*map(folders, sections)))),
  ]


def _write_figures_and_tables(
  sections: Sequence[Section], out: str
) -> dict[str, list[str]]:
  """Name of a plot -> names of its files."""
  figures, folder = {}, os.path.join(out, report_page.TABLES_FOLDER)
  for part in (part for section in sections for part in section.parts):
    for plot in part.plots:
      report_figures.draw(plot, os.path.join(out, report_page.FIGURES_FOLDER))
      figures[plot.name] = list(report_figures.file_names(plot).values())
      _write_csv(os.path.join(folder, f'curves_{plot.name}.csv'), _points(plot))
    for table in part.tables:
      _write_csv(os.path.join(folder, f'{table.name}.csv'), _numbers(table))
  rows = [row for section in sections for row in _each_run(section)]
  _write_csv(os.path.join(folder, 'runs.csv'), rows)
  return figures


def _points(plot: Plot) -> list[dict]:
  if plot.bars:
    return [
      {'label': b.label, 'value': b.value, 'margin': b.margin, 'text': b.text}
      for b in plot.bars
    ]
  return [
    {
      'statistics': kind,
      'label': curve.label,
      'note': curve.note,
      plot.x_label: point.x,
      'mean': point.value,
      'lowest': point.low,
      'highest': point.high,
      'seeds': point.count,
    }
    for kind, curves in plot.variants.items()
    for curve in curves
    for point in curve.points
  ]


def _numbers(table: Table) -> list[dict]:
  """The texts of a table, the numbers in them, and where they come from."""
  rows = []
  for group, cells in table.rows:
    row = {}
    for column, cell in zip(table.columns, cells, strict=True):
      row[column] = cell.text
      row |= {f'{column}: {name}': n for name, n in cell.numbers.items()}
    folders = ' '.join(o.folder_name for o in group.outcomes)
    rows.append(row | {'runs': group.state(), 'folders': folders})
  return rows


def _each_run(section: Section) -> list[dict]:
  finished = {o.run.folder: o for o in section.outcomes}
  rows = []
  runs = ((run, group) for group in section.groups for run in group.runs)
  for run, group in runs:
    status = 'damaged' if run.seed in group.problems else run.status()
    row = {
      'study': section.name, 'task': run.task, 'arm': run.arm, 'seed': run.seed,
      'status': status, 'folder': os.path.basename(run.folder),
    }  # fmt: skip
    if outcome := finished.get(run.folder):
      row['diverged_at'] = outcome.diverged_at
      for kind in (MOVING, POPULATION):
        row[f'last validation top1, {kind}'] = outcome.last(kind)
        row[f'best validation top1, {kind}'] = outcome.best(kind)
        row[f'final top1, {kind}'] = outcome.final(kind)
      row['wall_seconds'] = outcome.result['wall_seconds']
    rows.append(row)
  return rows


def _write_csv(path: str, rows: Sequence[dict]) -> None:
  """Columns in the order in which they first come."""
  columns = list(dict.fromkeys(key for row in rows for key in row))
  with writing(path, _REMEDY), open(path, 'w', newline='') as file:
    writer = csv.DictWriter(file, columns, lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)


def _write_text(path: str, text: str) -> None:
  with writing(path, _REMEDY), open(path, 'w') as file:
    file.write(text)


def define_flags() -> None:
  """The program's flags, in the program but not on import."""
  study_flags.define()
  define_path(
    'out', 'runs/report', 'Folder to write to. Example: --out=runs/figure2'
  )
  flags.DEFINE_integer(
    'cores_per_run',
    1,
    'Cores that a run had, for its cost. Example: --cores_per_run=2',
    lower_bound=1,
  )


def main() -> None:
  streams.go_on_without_stdout()
  jax.config.update('jax_platforms', 'cpu')
  values = flags.FLAGS
  make_report(
    study_flags.names(),
    study_flags.selection(),
    values.out,
    values.cores_per_run,
  )


if __name__ == '__main__':
  define_flags()
  command_line.run(main)
