"""The report as one HTML page, and as Markdown.

The page works from a file, without network: style, script and the numbers of the
plots are in it. Only the lines of the runs and the figures are next to it.
"""

import dataclasses
import html
import json
import pathlib
import string
import urllib.parse
from collections.abc import Mapping, Sequence

from bn_inception import markdown
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
  """All that the page says.

  Attributes:
    facts: label -> text, of code, versions and devices.
    costs: rows of texts; the first one is their heads.
    cost_rule: how costs were counted.
    sections: the studies.
    figures: name of a plot -> names of its files, without extension.
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
  """The page, for the folder that holds `RUNS_FOLDER` and the others."""
  beside = pathlib.Path(__file__)
  template, style, script = (
    beside.with_suffix(suffix).read_text() for suffix in ('.html', '.css', '.js')
  )  # fmt: skip
  plots = {
    plot.name: dataclasses.asdict(plot)
    for section in report.sections
    for part in section.parts
    for plot in part.plots
  }
  contents = [
    f'<li><a href="#{_escape(s.name)}">{_escape(s.name)}</a>: '
    f'{_escape(s.title)}</li>'
    for s in report.sections
  ]
  return string.Template(template).substitute(
    title=_escape(TITLE),
    style=style,
    contents='\n'.join([*contents, '<li><a href="#cost">cost</a></li>']),
    body='\n'.join(
      [
        _facts(report.facts),
        f'<p>{_escape(RULES)}</p>',
        *(_section(section, report) for section in report.sections),
        '<h2 id="cost">Cost</h2>',
        f'<p>{_escape(report.cost_rule)}</p>',
        f'<p>{_EACH_RUN} <a href="{_RUNS_TABLE}">{_RUNS_TABLE}</a></p>',
        _rows('Cost of the studies', report.costs[0], map(_cells, report.costs[1:])),
      ]
    ),
    # No text of it can end the element that it stands in.
    plots=json.dumps(plots, allow_nan=False).replace('<', '\\u003c'),
    script=script,
  )  # fmt: skip


_escape = html.escape


def _facts(facts: Mapping[str, str]) -> str:
  items = [
    f'<dt>{_escape(label)}</dt><dd>{_escape(text)}</dd>'
    for label, text in facts.items()
  ]
  return f'<dl>{"".join(items)}</dl>'


def _section(section: Section, report: Report) -> str:
  name, title = _escape(section.name), _escape(section.title)
  lines = [f'<h2 id="{name}">{name}</h2>', f'<p>{title}.</p>']
  for part in section.parts:
    lines.append(f'<h3>{_escape(part.task)}</h3>')
    lines += [f'<p>{_escape(note)}</p>' for note in part.notes]
    lines += [_figure(plot, report) for plot in part.plots]
    lines += [_table(table, report) for table in part.tables]
  return '\n'.join(lines)


def _figure(plot: Plot, report: Report) -> str:
  images = [
    _address(FIGURES_FOLDER, f'{name}.svg')
    for name in report.figures[plot.name]
  ]
  images.append(_CURVES_TABLE)
  files = ', '.join(
    f'<a href="{image}">{_escape(image.rpartition("/")[2])}</a>'
    for image in images
  )
  return (
    f'<figure data-plot="{_escape(plot.name)}">'
    f'<figcaption>{_escape(plot.title)}</figcaption>'
    f'<div class="chart"></div><div class="files">{files}</div>'
    f'<noscript><img src="{images[0]}" alt="{_escape(plot.title)}"></noscript>'
    '</figure>'
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
  """A table in a container of its own, that scrolls; `rows` are of HTML."""
  head = ''.join(f'<th scope="col">{_escape(c)}</th>' for c in columns)
  body = ''.join(f'<tr>{"".join(row)}</tr>\n' for row in rows)
  return (
    f'<div class="scroll" tabindex="0"><table><caption>{_escape(title)}'
    f'</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
  )


# Markdown.


def make_markdown(report: Report) -> str:
  """The same numbers, for readers of the repository."""
  lines = [f'# {TITLE}', '', _ABOUT, '']
  lines += [f'- {label}: {text}' for label, text in report.facts.items()]
  lines += ['', RULES]
  for section in report.sections:
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
