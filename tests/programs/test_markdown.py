"""Markdown tables, character by character."""

import pytest

from bn_inception.programs import markdown


def test_table():
  text = markdown.table(['network', 'steps'], [['BN-x5', '12'], ['', 'a|b']])
  assert text.split('\n') == [
    '| network | steps |',
    '|---|---|',
    '| BN-x5 | 12 |',
    r'|  | a\|b |',
  ]


def test_table_whose_columns_line_up():
  text = markdown.table(
    ['a', 'steps'], [['BN-x5', '12'], ['b', '']], align=True
  )
  assert text.split('\n') == [
    '| a     | steps |',
    '| ----- | ----- |',
    '| BN-x5 | 12    |',
    '| b     |       |',
  ]


def test_table_without_rows_is_its_head():
  assert markdown.table(['a'], []) == '| a |\n|---|'


@pytest.mark.parametrize('row', [['1'], ['1', '2', '3']])
def test_row_of_another_length(row):
  with pytest.raises(ValueError):
    markdown.table(['a', 'b'], [row])
