"""The documents: links lead somewhere, numbers are those of results/, code runs."""

import ast
import csv
import json
import pathlib
import re

import numpy as np
import pytest
import yaml

from configs import compose, paper

ROOT = pathlib.Path(__file__).parent.parent
DOCUMENTS = [
  *sorted(ROOT.glob('*.md')),
  *sorted((ROOT / 'docs').glob('*.md')),
  *sorted((ROOT / 'results').glob('*.md')),
  ROOT / 'findings' / 'README.md',
  ROOT / 'results' / 'study' / 'report.md',
]
README = (ROOT / 'README.md').read_text()
TABLES = ROOT / 'results' / 'study' / 'tables'


def anchors(text: str) -> set[str]:
  """The names that GitHub gives to headings."""
  headings = re.findall(r'^#+ (.*)$', text, re.MULTILINE)
  return {
    re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-')
    for heading in headings
  }


@pytest.mark.parametrize(
  'path', DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT))
)
def test_what_is_linked_to_is_there(path):
  text = path.read_text()
  targets = re.findall(r'\]\(([^)\s]+)\)', text)
  targets += re.findall(r'(?:src|href)="([^"]+)"', text)
  for target in targets:
    if '://' in target:
      continue
    name, _, anchor = target.partition('#')
    file = path.parent / name if name else path
    assert file.exists(), target
    if anchor and file.suffix == '.md':
      assert anchor in anchors(file.read_text()), target


def test_every_document_is_in_the_index():
  index = (ROOT / 'docs' / 'README.md').read_text()
  for path in sorted((ROOT / 'docs').glob('*.md')):
    assert path.name == 'README.md' or f']({path.name})' in index
  for path in sorted((ROOT / 'results').glob('*.md')):
    assert f'](../results/{path.name})' in index


def test_make_targets_of_the_documents_are_in_the_makefile():
  makefile = (ROOT / 'Makefile').read_text()
  targets = set(re.findall(r'^([a-z-]+):', makefile, re.MULTILINE))
  for path in DOCUMENTS:
    named = re.findall(
      r'(?:`|^)make\s+([a-z-]+)', path.read_text(), re.MULTILINE
    )
    assert set(named) <= targets, path


def test_presets_of_the_documents_are_in_configs():
  for path in DOCUMENTS:
    for name in re.findall(r'configs/(\w+\.py)', path.read_text()):
      assert (ROOT / 'configs' / name).exists(), (path, name)


def test_documents_that_the_code_names_are_there():
  for path in sorted((ROOT / 'bn_inception').rglob('*.py')):
    for name in re.findall(r'\b(?:docs|results)/[\w/]+\.md', path.read_text()):
      assert (ROOT / name).exists(), (path, name)


def test_names_of_the_index_are_in_the_files_next_to_them():
  text = (ROOT / 'docs' / 'README.md').read_text()
  ((_, *rows),) = read_tables(text, 'Where to find what')
  pairs = [
    (name, file)
    for _, answer in rows
    for name, file in re.findall(r'`(\w+)`[^;|`]* in \[.*?\]\((.*?)\)', answer)
  ]
  assert len(pairs) >= 5
  for name, file in pairs:
    code = (ROOT / 'docs' / file).read_text()
    assert re.search(
      rf'^(?:  )?(?:def {name}\(|{name} = )', code, re.MULTILINE
    ), name


def test_flags_of_the_commands_are_defined():
  code = '\n'.join(
    path.read_text()
    for folder in ('bn_inception', 'benchmarks')
    for path in (ROOT / folder).rglob('*.py')
  )
  defined = set(re.findall(r"(?:DEFINE|define)_\w+\(\s*'(\w+)'", code))
  for path in DOCUMENTS:
    text = path.read_text().replace('\\\n', ' ')
    for block in re.findall(r'```bash\n(.*?)```', text, re.DOTALL):
      for command in re.findall(r'python (?:-m |\w+\.py).*', block):
        flags = set(re.findall(r' --(\w+)', command.partition('#')[0]))
        assert flags - {'config'} <= defined, (path, command)


def test_fenced_code_names_its_language():
  for path in DOCUMENTS:
    fences = re.findall(r'^ *```(.*)$', path.read_text(), re.MULTILINE)
    assert all(fences[::2]) and not any(fences[1::2]), path


def test_the_readme_is_short():
  assert len(README.splitlines()) <= 150


def read_tables(text: str, heading: str) -> list[list[list[str]]]:
  """The tables below a heading: rows of cells, the head first."""
  section = re.split(rf'^#+ {heading}\n', text, flags=re.MULTILINE)[1]
  section = re.split(r'^#', section, flags=re.MULTILINE)[0]
  blocks = re.findall(r'(?:^\|.*\n)+', section, re.MULTILINE)
  return [
    [
      [cell.strip() for cell in line.strip('|').split('|')]
      for i, line in enumerate(block.splitlines())
      if i != 1
    ]
    for block in blocks
  ]


def find_column(head: list[str], name: str) -> int:
  (found,) = (i for i, cell in enumerate(head) if cell.startswith(name))
  return found


def read_figure2(task: str) -> dict[str, dict[str, str]]:
  """{network: {column: cell}}, with population statistics."""
  path = TABLES / f'figure2_{task}_population.csv'
  with open(path, newline='') as file:
    return {row['network']: row for row in csv.DictReader(file)}


STUDY = (ROOT / 'docs' / 'study.md').read_text()


@pytest.mark.parametrize(
  ('text', 'heading', 'task', 'prefix'),
  [
    (README, 'Results', 'fashion_mnist_5k_xavier', 'here: '),
    (STUDY, 'Figures 2 and 3', 'fashion_mnist_5k_xavier', 'Xavier: '),
    (STUDY, 'Figures 2 and 3', 'fashion_mnist_5k', 'He: '),
  ],
)
def test_results_are_those_of_the_study(text, heading, task, prefix):
  ((head, *rows),) = read_tables(text, heading)
  shown = {row[0]: row for row in rows}
  report = (TABLES.parent / 'report.md').read_text()
  steps = find_column(head, f'{prefix}steps')
  best = find_column(head, f'{prefix}best')
  measured = read_figure2(task)
  assert set(measured) <= set(shown)
  for network, row in measured.items():
    assert shown[network][steps] == _describe_steps(row)
    assert shown[network][best] == row['best validation accuracy (%)']
  goal = re.search(
    f'{task}: Figure 3 .*population; the target is ([^ ]*)', report
  )
  assert head[steps].endswith(f'steps to {goal[1]} %')


def test_results_of_the_paper_are_those_of_the_report():
  ((head, *rows),) = read_tables(README, 'Results')
  steps, best = (find_column(head, f'paper: {n}') for n in ('steps', 'best'))
  measured = read_figure2('fashion_mnist_5k')
  for row in rows:
    known = measured[row[0]]
    millions = known['paper: steps to 72.2 %: steps']
    if millions:
      factor = re.search(r'\(([\d.]+) times', known['paper: steps to 72.2 %'])
      expected = f'{float(millions) / 1e6:.1f}e6'
      expected += f' (÷ {factor[1]})' if factor else ''
      assert row[steps] == expected
    if known['paper: best'].endswith(' %') and ',' not in known['paper: best']:
      assert row[best] == known['paper: best']


def test_factors_from_he_weights_in_the_readme():
  measured = read_figure2('fashion_mnist_5k')
  shown = re.findall(r'÷\s([\d.]+)\sfor\s(\S*\w)', README)
  assert {network: factor for factor, network in shown} == {
    network: measured[network]['times fewer than Inception']
    for network in ('BN-Baseline', 'BN-x5')
  }
  assert measured['BN-x30']['steps to the target'] == 'not reached'


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


def test_changes_of_the_readme_are_those_of_the_configs():
  ((_, *rows),) = read_tables(README, 'Ablate')
  assert [row[0].strip('`') for row in rows] == list(paper.CHANGES)
  for name, key, *values in rows:
    (changed,) = paper.CHANGES[name.strip('`')]
    assert key.strip('`') == changed
    section, field = changed.split('.')
    for network, value in zip(('bn_baseline', 'bn_x5'), values, strict=True):
      actual = compose.preset(network, 'imagenet')[section][field]
      if isinstance(actual, float):
        assert float(value) == pytest.approx(actual, rel=1e-4)
      else:
        assert value == str(actual)


def test_the_layer_of_the_readme():
  (block,) = re.findall(r'```python\n(.*?)```', README, re.DOTALL)
  scope = {}
  exec(block, scope)
  # The first 32 examples are normalised by their own statistics.
  group = np.asarray(scope['y'][:32], np.float64)
  np.testing.assert_allclose(group.mean((0, 1, 2)), 0, atol=1e-5)
  np.testing.assert_allclose(group.var((0, 1, 2)), 1, rtol=2e-3)
  assert int(scope['updates']['batch_stats']['num_updates']) == 1


@pytest.mark.parametrize('file', ['faults.json', 'machine_faults.json'])
def test_faults_are_those_of_the_results(file):
  text = (ROOT / 'docs' / 'runs.md').read_text()
  rows = [
    row for table in read_tables(text, 'Injected faults') for row in table
  ]
  results = json.loads((ROOT / 'results' / file).read_text())['results']
  for measured in results.values():
    survived = f'{measured["survived"]} of {measured["tried"]}'
    row = [measured['fault'], survived, str(measured['steps_lost'])]
    assert row in rows


def strings_of(folder):
  """All strings in the code of a folder, with {} for values."""
  for path in folder.rglob('*.py'):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.JoinedStr):
        parts = (getattr(part, 'value', '{}') for part in node.values)
        yield ''.join(p if isinstance(p, str) else '{}' for p in parts)
      elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value


def test_messages_of_several_hosts_are_those_of_the_code():
  text = (ROOT / 'docs' / 'runs.md').read_text()
  text = re.sub('```.*?```', '', text, flags=re.DOTALL)
  (table,) = read_tables(text, 'Several hosts')
  code = '\n'.join(strings_of(ROOT / 'bn_inception' / 'machine'))
  of_systems = {
    'connection refused', 'no route to host', 'name or service not known',
    'timed out', 'Unknown flag in',
  }  # fmt: skip
  # Between values, which the documents show: names, numbers, what is waited for.
  values = r"\.\.\.|[\d():;,='.]+|--\w+|[A-Z_]{5,}|waiting for|torchrun"
  parts = {
    part.strip()
    for seen, _ in table
    for message in re.findall('`([^`]+)`', seen)
    for part in re.split(values, message)
    if len(part.split()) > 1
  }
  assert len(parts) > 10
  assert {part for part in parts if part not in code} <= of_systems


def test_citation_names_the_paper_and_the_software():
  citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
  assert citation['authors'] == [{'name': 'The bn_inception authors'}]
  assert citation['preferred-citation']['year'] == 2015
