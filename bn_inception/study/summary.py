"""The findings of a report in sentences, the most telling studies first."""

from collections.abc import Iterable, Sequence

from bn_inception.study.figures import is_resolved
from bn_inception.study.plots import Bar, Cell, Part, Section, Table

# The paper's claims come first, choices of learning rates last, others between.
_FIRST = (
  'figure2', 'learning_rates', 'leave_one_out', 'add_one_in',
  'batch_statistics', 'figure1_small_rates', 'figure1',
)  # fmt: skip
_LAST = 'figure1_rates', 'base_rate'
_FEW = 8  # more rows than this are cut to the best and the worst


def in_order(sections: Iterable[Section]) -> list[Section]:
  """Sections as a report shows them, the most telling first."""

  def place(section: Section) -> int:
    if section.name in _FIRST:
      return _FIRST.index(section.name)
    is_last = section.name in _LAST
    return len(_FIRST) + (1 + _LAST.index(section.name) if is_last else 0)

  return sorted(sections, key=place)


def find(part: Part) -> str:
  """The finding of one study for one task; '' if no run is finished."""
  bars = [bar for plot in part.plots for bar in plot.bars]
  if any(bar.value is not None for bar in bars):
    return _describe_bars(bars)
  for table in part.tables:
    if text := _describe_speed(table) or _describe_means(table):
      return text
  return ''


def _describe_bars(bars: Sequence[Bar]) -> str:
  resolved = [bar for bar in bars if bar.value is not None and is_resolved(bar)]
  resolved.sort(key=lambda bar: -abs(bar.value))
  texts = '; '.join(f'{bar.label}: {bar.text}' for bar in resolved)
  rest = len(bars) - len(resolved)
  return (
    'Differences that the seeds resolve, in percentage points: '
    f'{texts or "none"}. Not resolved: {rest} of {len(bars)}.'
  )


def _describe_speed(table: Table) -> str:
  """How many times fewer steps than the first row, next to the paper's number."""
  factors = _column(table, 'factor')
  if factors is None:
    return ''
  (base, base_cells), *others = table.rows
  texts = []
  for group, cells in others:
    paper, base_paper = _find(cells, 'steps'), _find(base_cells, 'steps')
    if paper and base_paper:  # the paper's networks got there too
      expected = base_paper.numbers['steps'] / paper.numbers['steps']
      text = cells[factors].text
      texts.append(f'{group.name}: {text} (paper: {expected:.1f})')
  if not texts:
    return ''
  return (
    f'Times fewer steps to the best accuracy of {base.name}: '
    f'{"; ".join(texts)}. {_describe_means(table)}'
  )


def _describe_means(table: Table) -> str:
  """Lists the first column of means over seeds, highest first."""
  found = [(group, _find(cells, 'margin')) for group, cells in table.rows]
  rows = [(group, cell) for group, cell in found if cell is not None]
  if not rows:
    return ''
  rows.sort(key=lambda row: -row[1].numbers['mean'])
  texts = [f'{group.name}: {cell.text}' for group, cell in rows]
  if len(texts) > _FEW:
    texts = [texts[0], '...', texts[-1]]
  texts += [f'{g.name}: {g.absence()}' for g, cell in found if cell is None]
  head = table.columns[_column(table, 'margin')]
  return f'{head[0].upper()}{head[1:]}: {"; ".join(texts)}.'


def _find(cells: Sequence[Cell], number: str) -> Cell | None:
  """The first cell that has a number of this name."""
  return next((cell for cell in cells if number in cell.numbers), None)


def _column(table: Table, number: str) -> int | None:
  """The first column with a cell that has a number of this name."""
  found = [
    column
    for _, cells in table.rows
    for column, cell in enumerate(cells)
    if number in cell.numbers
  ]
  return min(found, default=None)
