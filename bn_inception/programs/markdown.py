"""Markdown tables."""

from collections.abc import Container, Sequence


def table(
  head: Sequence[str],
  rows: Sequence[Sequence[str]],
  align: bool = False,
  right: Container[int] = (),
) -> str:
  """A table in GitHub's Markdown, without a newline at the end.

  Args:
    head: the columns' names.
    rows: a text for each column. Bars in texts are escaped.
    align: pad cells so that columns line up in a terminal.
    right: indices of the columns to align to the right.

  Raises:
    ValueError: if a row has more or fewer cells than `head`.
  """
  cells = [[text.replace('|', r'\|') for text in row] for row in (head, *rows)]
  columns = list(zip(*cells, strict=True))
  ends = [':' if i in right else '-' for i in range(len(columns))]
  if not align:
    rule = f'|{"|".join("--" + end for end in ends)}|'
    lines = [f'| {" | ".join(row)} |' for row in cells]
    return '\n'.join([lines[0], rule, *lines[1:]])
  widths = [max(3, *map(len, column)) for column in columns]
  rule = ['-' * (w - 1) + end for w, end in zip(widths, ends, strict=True)]
  cells.insert(1, rule)
  pads = [str.rjust if end == ':' else str.ljust for end in ends]
  return '\n'.join(
    f'| {" | ".join(p(c, w) for p, c, w in zip(pads, row, widths, strict=True))} |'
    for row in cells
  )
