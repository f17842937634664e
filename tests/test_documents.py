"""The README and docs/: what they link to is there, and their numbers are those of
results/."""

import csv
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
DOCUMENTS = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
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
  name = 'figure2_fashion_mnist_5k_population.csv'
  with open(TABLES / name, newline='') as file:
    measured = {row['network']: row for row in csv.DictReader(file)}
  section = (ROOT / 'README.md').read_text().split('## Results\n')[1]
  section = section.partition('\n## ')[0]
  rows = [
    [cell.strip() for cell in line.strip('|').split('|')]
    for line in section.splitlines()
    if line.startswith('|')
  ]
  shown = {re.sub(r'[\[\]`]|\(.*\)', '', row[0]): row[1:] for row in rows[2:]}
  assert set(measured) <= set(shown)
  for network, row in measured.items():
    steps, *rest = shown[network][-3:]
    expected = row['steps to the target'].partition(' (')[0]
    reached, seeds = (
      row[f'steps to the target: {name}'] for name in ('reached', 'seeds')
    )
    if reached != seeds:
      expected += f' ({reached} of {seeds} seeds)'
    assert steps == expected
    assert rest == [
      row['best validation accuracy (%)'],
      row['final, population (%)'],
    ]
  target = re.search(
    r'target is ([\d.]+) %', (TABLES.parent / 'report.md').read_text()
  )
  assert f'steps to {target[1]} %' in section
