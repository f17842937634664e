"""The program: which claims run, and what is printed and written."""

import json
import math
import os
import pathlib
import subprocess
import sys

import pytest

from bn_inception.claims import __main__ as claims
from bn_inception.claims.transform import Claim
from bn_inception.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]


def made_up() -> Claim:
  """An experiment of no work, with a number that JSON has not."""
  numbers = {'share with |x| > 4': 0.25, 'nothing': float('nan')}
  return Claim(
    'It is so.',
    'as |x|',
    numbers,
    False,
    'It is not so.',
    lambda figure: figure.subplots().plot([1, 2]),
  )


def test_every_claim_has_a_name_of_its_own():
  names = [function.__name__ for function in claims.CLAIMS]
  assert len(names) == len(set(names))
  assert 'bias_example' in names


def test_unknown_name_lists_the_valid_ones():
  with pytest.raises(UserError) as error:
    claims.check_and_report(only='biased_example')
  message = str(error.value)
  assert "'biased_example'" in message and '\n' not in message
  assert all(function.__name__ in message for function in claims.CLAIMS)


def test_results_figures_and_page_are_written(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(claims, 'CLAIMS', (made_up,))
  output, page = tmp_path / 'new' / 'out.json', tmp_path / 'docs' / 'page.md'
  claims.check_and_report(output=str(output), markdown=str(page))
  (claim,) = json.loads(output.read_text())['claims']
  assert claim['name'] == 'made_up' and claim['held'] is False
  assert claim['numbers'] == {'share with |x| > 4': 0.25, 'nothing': None}
  assert (tmp_path / 'new' / 'out_made_up.png').stat().st_size > 1000
  text = page.read_text()
  assert '| share with \\|x\\| > 4 | 0.25 |' in text
  assert '**not held**' in text and '../new/out_made_up.png' in text
  printed = capsys.readouterr().out
  assert 'NOT HELD: It is not so.' in printed and '0 of 1 held' in printed


def test_the_committed_page_is_made_of_the_committed_numbers():
  output = ROOT / 'results' / 'claims.json'
  results = []
  for claim in json.loads(output.read_text())['claims']:
    name, seconds = claim.pop('name'), claim.pop('seconds')
    figure = pathlib.Path(claims.figure_path(str(output), name))
    numbers = claim.pop('numbers').items()
    claim['numbers'] = {k: math.nan if v is None else v for k, v in numbers}
    claim['draw'] = print if figure.exists() else None
    results.append(claims.Result(name, Claim(**claim), seconds))
  page = claims.to_markdown(results, str(output), str(output.parent))
  assert page == (output.parent / 'claims.md').read_text()


def test_one_claim_goes_to_a_file_of_its_own(tmp_path, monkeypatch):
  monkeypatch.setattr(claims, 'CLAIMS', (made_up,))
  monkeypatch.chdir(tmp_path)
  claims.check_and_report(only='made_up')
  written = sorted(path.name for path in (tmp_path / 'runs').iterdir())
  assert written == ['claims_made_up.json', 'claims_made_up.png']


def test_output_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
  def never() -> Claim:
    raise AssertionError('it is refused before anything runs')

  monkeypatch.setattr(claims, 'CLAIMS', (never,))
  (tmp_path / 'file').touch()
  bad, good = str(tmp_path / 'file' / 'out'), str(tmp_path / 'out')
  with pytest.raises(UserError, match='--output'):
    claims.check_and_report(output=bad)
  with pytest.raises(UserError, match='--markdown'):
    claims.check_and_report(output=good, markdown=bad)
  with pytest.raises(UserError, match='--output too: give another --markdown'):
    claims.check_and_report(output=good, markdown=good)


def run_program(*arguments):
  return subprocess.run(
    [sys.executable, '-m', 'bn_inception.claims', *arguments],
    cwd=ROOT,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
  )


def test_program(tmp_path):
  done = run_program(
    '--only=identity_and_moments', f'--output={tmp_path}/claims.json'
  )
  assert done.returncode == 0, done.stderr
  assert 'HELD' in done.stdout
  assert (tmp_path / 'claims.json').exists()
  failed = run_program('--only=nonsense')
  assert failed.returncode == 2
  assert failed.stderr.startswith("error: unknown claim 'nonsense'")
  assert failed.stderr.count('\n') == 1
