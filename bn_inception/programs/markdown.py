"""Markdown tables."""

from collections.abc import Sequence


def table(
  head: Sequence[str], rows: Sequence[Sequence[str]], align: bool = False
) -> str:
  """A table in GitHub's Markdown, without a newline at the end.

  Args:
    head: the columns' names.
    rows: a text for each column. Bars in texts are escaped.
    align: pad cells so that columns line up in a terminal.

  Raises:
    ValueError: if a row has more or fewer cells than `head`.
  """
  cells = [[text.replace('|', r'\|') for text in row] for row in (head, *rows)]
  columns = list(zip(*cells, strict=True))
  if not align:
    rule = f'|{"---|" * len(columns)}'
    lines = [f'| {" | ".join(row)} |' for row in cells]
    return '\n'.join([lines[0], rule, *lines[1:]])
  widths = [max(3, *map(len, column)) for column in columns]
  cells.insert(1, ['-' * width for width in widths])
  padded = (map(str.ljust, row, widths) for row in cells)
  return '\n'.join(f'| {" | ".join(row)} |' for row in padded)
