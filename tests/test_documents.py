"""The documents: what they link to is there, and the README's results are those of
results/."""

import csv
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
DOCUMENTS = [
  ROOT / 'README.md',
  *sorted((ROOT / 'docs').glob('*.md')),
  ROOT / 'findings' / 'README.md',
  ROOT / 'results' / 'study' / 'report.md',
]
TABLES = ROOT / 'results' / 'study' / 'tables'


@pytest.mark.parametrize('path', DOCUMENTS, ids=lambda path: path.name)
def test_what_is_linked_to_is_there(path):
  text = path.read_text()
  targets = re.findall(r'\]\(([^)\s]+)\)', text)
  targets += re.findall(r'(?:src|href)="([^"]+)"', text)
  local = [t.partition('#')[0] for t in targets if '://' not in t]
  missing = [t for t in local if t and not (path.parent / t).exists()]
  assert not missing


def test_make_targets_of_the_documents_are_in_the_makefile():
  makefile = (ROOT / 'Makefile').read_text()
  targets = set(re.findall(r'^([a-z-]+):', makefile, re.MULTILINE))
  for path in DOCUMENTS:
    named = re.findall(
      r'(?:`|^)make\s+([a-z-]+)', path.read_text(), re.MULTILINE
    )
    assert set(named) <= targets, path


def test_results_in_the_readme_are_those_of_the_study():
  section = (ROOT / 'README.md').read_text().split('## Results\n')[1]
  head, _, *rows = [
    [cell.strip() for cell in line.strip('|').split('|')]
    for line in section.partition('\n## ')[0].splitlines()
    if line.startswith('|')
  ]
  shown = {row[0]: row for row in rows}
  report = (TABLES.parent / 'report.md').read_text()
  for task, first in ('fashion_mnist_5k', 4), ('fashion_mnist_5k_xavier', 6):
    with open(TABLES / f'figure2_{task}_population.csv', newline='') as file:
      measured = {row['network']: row for row in csv.DictReader(file)}
    assert set(measured) < set(shown)
    for network, row in measured.items():
      steps, best = shown[network][first : first + 2]
      assert steps == _describe_steps(row)
      assert best == row['best validation accuracy (%)']
    goal = re.search(
      f'{task}: Figure 3 .*population; the target is ([^ ]*)', report
    )
    assert head[first].endswith(f'steps to {goal[1]} %')


def _describe_steps(row: dict[str, str]) -> str:
  """'1,500 (÷ 2.04)', or of how many seeds."""
  steps = re.match(r'[\d,]*\d|not reached', row['steps to the target'])[0]
  reached, seeds = (
    row[f'steps to the target: {name}'] for name in ('reached', 'seeds')
  )
  if reached != seeds:
    return f'{steps} ({reached} of {seeds} seeds)'
  if not reached:
    return steps
  return f'{steps} (÷ {row["times fewer than Inception"]})'
