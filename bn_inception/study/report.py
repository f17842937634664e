r"""Makes figures, tables and a page of the results of studies.

  python -m bn_inception.study.report --study=figure2 --runs=runs/study --out=runs/report

Writes report.html, report.md, figures/, tables/ and <study>.jsonl, with one line per
run, from which the report can be made again: --runs=runs/report.
"""

from bn_inception.machine import interruption
from bn_inception.metrics import MOVING, POPULATION
from bn_inception.wording import count

if __name__ == '__main__':
  interruption.watch()  # the other imports take seconds

import csv
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence

import jax
from absl import flags

from bn_inception.errors import UserError, check_writable, writing
from bn_inception.machine import streams
from bn_inception.programs import command_line
from bn_inception.programs.path_flags import define_path
from bn_inception.steps import RESULTS_VERSION
from bn_inception.study import archive
from bn_inception.study import figures as report_figures
from bn_inception.study import flags as study_flags
from bn_inception.study import page as report_page
from bn_inception.study import runs as study_runs
from bn_inception.study.page import Report
from bn_inception.study.plots import Plot, Section, Table
from bn_inception.study.results import Outcome
from bn_inception.study.sections import make_section

_COMMIT_DIGITS = 10  # the manifest has all of them
_REMEDY = 'give another --out'


def make_report(
  names: Sequence[str],
  selection: study_runs.Selection,
  out: str,
  cores_per_run: int = 1,
) -> None:
  """Writes the report of some studies, and the archive of their runs.

  Args:
    names: names of studies of configs/studies.py.
    selection: which of their runs; its root holds run directories or an archive.
    out: folder to write to, made if absent.
    cores_per_run: number of cores a run had, for the cost.

  Raises:
    UserError: if a name is unknown, the root has no finished runs of these
      studies, or `out` cannot be written.
  """
  check_writable(os.path.join(out, 'report.html'), _REMEDY)
  archived = archive.read(selection.root)
  sections = [
    make_section(n, study_runs.list_runs(n, selection), archived) for n in names
  ]
  unique = list({o.name: o for s in sections for o in s.outcomes}.values())
  problems = list(dict.fromkeys(line for s in sections for line in s.problems))
  for line in problems:
    print(f'damaged: {line}')
  if not unique and not problems:
    num_others = len(study_runs.others([], selection.root)) + len(archived)
    raise UserError(_describe_absence(names, selection.root, num_others))
  for folder in (report_page.FIGURES_FOLDER, report_page.TABLES_FOLDER):
    with writing(out, _REMEDY):
      os.makedirs(os.path.join(out, folder), exist_ok=True)
  files = archive.write({s.name: s.outcomes for s in sections}, out, _REMEDY)
  report = Report(
    facts=_facts(unique) | _describe_problems(problems, selection.root),
    costs=_costs(sections, unique, cores_per_run),
    cost_rule=(
      'Core-hours: seconds that training and its evaluations took (wall_seconds '
      f'of the result) times the {cores_per_run} core(s) that a run had. A run '
      'of several studies counts in each, and once in the sum.'
    ),
    sections=sections,
    figures=_write_figures_and_tables(sections, files, out),
    files=files,
  )
  _write_text(os.path.join(out, 'report.html'), report_page.make_html(report))
  _write_text(os.path.join(out, 'report.md'), report_page.make_markdown(report))
  for name, done, *_ in report.costs[1:]:
    print(f'{name:20} {done} runs')
  print(f'written to {os.path.join(out, "report.html")}')


def _describe_absence(names: Sequence[str], root: str, num_others: int) -> str:
  of_others = ''
  if num_others:
    of_others = (
      f', but {count(num_others, "other")}: from other studies or settings '
      '(--quick, --task, --seeds, --set), unfinished, or from another version of '
      'this code'
    )
  is_one = len(names) == 1
  return (
    f'{root} holds no finished runs of {names[0] if is_one else "these studies"}'
    f'{of_others}: train some with `python -m bn_inception.study '
    f'--study={names[0]} --runs={shlex.quote(root)}`, or give another --runs'
  )


def _describe_problems(problems: Sequence[str], root: str) -> dict[str, str]:
  """A fact of the report that lists the problems, with relative paths; or {}."""
  text = '; '.join(problems).replace(os.path.join(root, ''), '')
  return {'damaged': text} if problems else {}


def _facts(outcomes: Sequence[Outcome]) -> dict[str, str]:
  """Dates, code, versions and devices of the runs."""
  starts = [start for outcome in outcomes for start in outcome.starts]
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
  sections: Sequence[Section], files: Mapping[str, str], out: str
) -> dict[str, list[str]]:
  """Name of a plot -> names of its files."""
  figures, points, folder = {}, [], os.path.join(out, report_page.TABLES_FOLDER)
  for part in (part for section in sections for part in section.parts):
    for plot in part.plots:
      report_figures.draw(plot, os.path.join(out, report_page.FIGURES_FOLDER))
      figures[plot.name] = list(report_figures.file_names(plot).values())
      points += _points(plot)
    for table in part.tables:
      _write_csv(os.path.join(folder, f'{table.name}.csv'), _numbers(table))
  _write_csv(os.path.join(folder, 'curves.csv'), points)
  rows = [row for section in sections for row in _each_run(section, files)]
  _write_csv(os.path.join(folder, 'runs.csv'), rows)
  return figures


def _points(plot: Plot) -> list[dict]:
  """The numbers of a plot: points of its curves, or its bars."""
  bars = [
    {
      'plot': plot.name, 'label': bar.label, 'note': bar.text,
      'mean': bar.value, 'margin': bar.margin,
    }
    for bar in plot.bars
  ]  # fmt: skip
  return bars + [
    {
      'plot': plot.name,
      'statistics': kind,
      'label': curve.label,
      'note': curve.note,
      'x_label': plot.x_label,
      'x': point.x,
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
  """The texts of a table, their numbers, and the runs behind them."""
  rows = []
  for group, cells in table.rows:
    row = {}
    for column, cell in zip(table.columns, cells, strict=True):
      row[column] = cell.text
      row |= {f'{column}: {name}': n for name, n in cell.numbers.items()}
    names = ' '.join(outcome.name for outcome in group.outcomes)
    rows.append(row | {'runs': group.state(), 'names of runs': names})
  return rows


def _each_run(section: Section, files: Mapping[str, str]) -> list[dict]:
  finished = {outcome.name: outcome for outcome in section.outcomes}
  rows = []
  runs = ((run, group) for group in section.groups for run in group.runs)
  for run, group in runs:
    name = os.path.basename(run.folder)
    outcome = finished.get(name)
    if run.seed in group.problems:
      status = 'damaged'
    else:
      status = study_runs.FINISHED if outcome else run.status()
    row = {
      'study': section.name, 'task': run.task, 'arm': run.arm, 'seed': run.seed,
      'status': status, 'run': name,
    }  # fmt: skip
    if outcome:
      row['file'] = files[outcome.name]
      row['diverged_at'] = outcome.diverged_at
      for kind in (MOVING, POPULATION):
        row[f'last validation top1, {kind}'] = outcome.last(kind)
        row[f'best validation top1, {kind}'] = outcome.best(kind)
        row[f'final top1, {kind}'] = outcome.final(kind)
      row['wall_seconds'] = outcome.result['wall_seconds']
    rows.append(row)
  return rows


def _write_csv(path: str, rows: Sequence[dict]) -> None:
  """Writes rows; columns are in order of first appearance."""
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
    'Number of cores a run had, for its cost. Example: --cores_per_run=2',
    lower_bound=1,
  )


def main() -> None:
  streams.continue_without_stdout()
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
