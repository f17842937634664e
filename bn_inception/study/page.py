"""The report as one HTML page, and as Markdown.

The page needs no network: style, scripts and the plots' numbers are in it. It links
to the lines of runs, figures and tables next to it.
"""

import dataclasses
import html
import itertools
import pathlib
import string
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence

from bn_inception.programs import markdown
from bn_inception.study import charts, figures, summary
from bn_inception.study.plots import Plot, Section, Table
from bn_inception.study.results import Group

TITLE = 'Batch normalization: the studies'
FIGURES_FOLDER, TABLES_FOLDER = 'figures', 'tables'
_RUNS_TABLE = f'{TABLES_FOLDER}/runs.csv'
_CURVES_TABLE = f'{TABLES_FOLDER}/curves.csv'
_ABOUT = (
  '`python -m bn_inception.study.report` makes this, and an interactive page of it, '
  '`report.html`, from the files `*.jsonl`, which have a line a run. Links go to '
  'the file, and name the run.'
)
_EACH_RUN = (
  'Every run, with its accuracies, its seconds and the file of its line:'
)
RULES = (
  'Numbers are means over seeds, ± the 95 % interval of the mean (Student) where '
  'there are two seeds or more. Bands reach from the lowest to the highest seed. '
  'Moving averages and population statistics (Algorithm 2) are what batch '
  'normalization uses when it is evaluated; networks without it have one '
  'accuracy, which stands in both places. Only finished runs count.'
)


@dataclasses.dataclass(frozen=True)
class Report:
  """The page's contents.

  Attributes:
    facts: label -> text, on code, versions and devices.
    costs: rows of texts; the first row is the head.
    cost_rule: how costs were counted.
    sections: the studies, in any order.
    figures: name of a plot -> names of its files, without suffix.
    files: name of a run -> name of the file that has its line.
  """

  facts: Mapping[str, str]
  costs: Sequence[Sequence[str]]
  cost_rule: str
  sections: Sequence[Section]
  figures: Mapping[str, Sequence[str]]
  files: Mapping[str, str]

  def links(self, group: Group) -> list[tuple[str, list[tuple[str, str]]]]:
    """For each finished run 'seed 0' and its line: (name, address)."""
    return [
      (
        f'seed {outcome.run.seed}',
        [
          (outcome.name, f'{_address(self.files[outcome.name])}#{outcome.name}')
        ],
      )
      for outcome in group.outcomes
    ]


def _address(*parts: str) -> str:
  return urllib.parse.quote('/'.join(parts))


# HTML.


def make_html(report: Report) -> str:
  """The page, to be saved next to the figures, tables and lines of runs."""
  template = pathlib.Path(__file__).with_name('page.html').read_text()
  chart_numbers = itertools.count()
  body = [
    *(
      _section(section, report, chart_numbers)
      for section in summary.in_order(report.sections)
    ),
    '<h2 id="cost">Cost</h2>',
    f'<p>{_escape(report.cost_rule)}</p>',
    f'<p>{_EACH_RUN} <a href="{_RUNS_TABLE}">{_RUNS_TABLE}</a></p>',
    _rows('Cost of the studies', report.costs[0], map(_cells, report.costs[1:])),
    '<h2 id="origin">Origin</h2>',
    _facts(report.facts),
  ]  # fmt: skip
  return string.Template(template).substitute(
    title=_escape(TITLE),
    summary=_summary(report),
    body='\n'.join(body),
  )


_escape = html.escape


def _summary(report: Report) -> str:
  """The findings, with a link to each study, and how to read the numbers."""
  items = []
  for section in summary.in_order(report.sections):
    name = _escape(section.name)
    link = f'<a href="#{name}">{name}</a>: {_escape(section.title)}.'
    found = [
      f'<li>{_escape(part.task)}: {_escape(text)}</li>'
      for part in section.parts
      if (text := summary.find(part))
    ]
    found = f'<ul>{"".join(found)}</ul>' if found else ''
    items.append(f'<li>{link}{found}</li>')
  return (
    f'<ul class="summary">{"".join(items)}</ul><p>{_escape(RULES)} '
    '<a href="#cost">Cost</a>. <a href="#origin">Origin</a>.</p>'
  )


def _facts(facts: Mapping[str, str]) -> str:
  items = [
    f'<dt>{_escape(label)}</dt><dd>{_escape(text)}</dd>'
    for label, text in facts.items()
  ]
  return f'<dl>{"".join(items)}</dl>'


def _section(
  section: Section, report: Report, chart_numbers: Iterator[int]
) -> str:
  name, title = _escape(section.name), _escape(section.title)
  lines = [f'<h2 id="{name}">{name}</h2>', f'<p>{title}.</p>']
  for part in section.parts:
    lines.append(f'<h3>{_escape(part.task)}</h3>')
    lines += [f'<p>{_escape(note)}</p>' for note in part.notes]
    for plot in part.plots:
      lines += [
        _figure(plot, kind, name, next(chart_numbers))
        for kind, name in zip(
          plot.variants or [''], report.figures[plot.name], strict=True
        )
      ]
    lines += [_table(table, report) for table in part.tables]
  return '\n'.join(lines)


def _figure(plot: Plot, kind: str, name: str, chart_number: int) -> str:
  image = _address(FIGURES_FOLDER, f'{name}.svg')
  files = ', '.join(
    f'<a href="{address}">{_escape(address.rpartition("/")[2])}</a>'
    for address in (image, _CURVES_TABLE)
  )
  title = _escape(figures.title(plot, kind))
  chart = charts.to_html(
    charts.make_chart(plot, kind), f'chart-{chart_number}', chart_number > 0
  )
  return (
    f'<figure><figcaption>{title}</figcaption>{chart}'
    f'<div class="files">{files}</div>'
    f'<noscript><img src="{image}" alt="{title}"></noscript></figure>'
  )


def _table(table: Table, report: Report) -> str:
  rows = [
    [*_cells(cell.text for cell in cells), _runs_cell(group, report)]
    for group, cells in table.rows
  ]
  return _rows(table.title, [*table.columns, 'runs'], rows)


def _cells(texts) -> list[str]:
  return [f'<td>{_escape(text)}</td>' for text in texts]


def _runs_cell(group: Group, report: Report) -> str:
  state, lines = _escape(group.state()), []
  for seed, links in report.links(group):
    files = ' '.join(
      f'<a href="{address}">{_escape(name)}</a>' for name, address in links
    )
    lines.append(f'<br>{seed}: {files}')
  if not lines:
    return f'<td>{state}</td>'
  return (
    f'<td><details><summary>{state}</summary>{"".join(lines)}</details></td>'
  )


def _rows(title: str, columns: Sequence[str], rows) -> str:
  """A table in a box that scrolls; `rows` hold HTML cells."""
  title = _escape(title)
  head = ''.join(f'<th scope="col">{_escape(c)}</th>' for c in columns)
  body = ''.join(f'<tr>{"".join(row)}</tr>\n' for row in rows)
  return (
    f'<figure><figcaption>{title} <span class="hint">scroll sideways →</span>'
    f'</figcaption><div class="scroll" tabindex="0" aria-label="{title}"><table>'
    f'<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></figure>'
  )


# Markdown.


def make_markdown(report: Report) -> str:
  """The same numbers, for readers of the repository."""
  sections = summary.in_order(report.sections)
  lines = [f'# {TITLE}', '', _ABOUT, '', '## Summary', '']
  for section in sections:
    lines.append(f'- [{section.name}](#{section.name}): {section.title}.')
    lines += [
      f'  - {part.task}: {text}'
      for part in section.parts
      if (text := summary.find(part))
    ]
  lines += ['', RULES]
  for section in sections:
    lines += ['', f'## {section.name}', '', f'{section.title}.']
    for part in section.parts:
      lines += ['', f'### {part.task}']
      for note in part.notes:
        lines += ['', note]
      for plot in part.plots:
        for name in report.figures[plot.name]:
          address = _address(FIGURES_FOLDER, f'{name}.svg')
          lines += ['', f'![{plot.title}]({address})']
      for table in part.tables:
        rows = [
          [*(cell.text for cell in cells), _markdown_links(group, report)]
          for group, cells in table.rows
        ]
        lines += ['', f'{table.title}:', '']
        lines.append(markdown.table([*table.columns, 'runs'], rows))
  lines += ['', '## Cost', '', report.cost_rule, '']
  lines += [f'{_EACH_RUN} [{_RUNS_TABLE}]({_RUNS_TABLE})', '']
  lines.append(markdown.table(report.costs[0], report.costs[1:]))
  lines += ['', '## Origin', '']
  lines += [f'- {label}: {text}' for label, text in report.facts.items()]
  return '\n'.join(lines) + '\n'


def _markdown_links(group: Group, report: Report) -> str:
  """The state of a group, with links to its runs in a fold."""
  runs = [
    f'<br>{seed}: '
    + ' '.join(f'[{name}]({address})' for name, address in links)
    for seed, links in report.links(group)
  ]
  if not runs:
    return group.state()
  return f'<details><summary>{group.state()}</summary>{"".join(runs)}</details>'
