"""The README and docs/: what they link to is there, and their numbers are those of
results/."""

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
