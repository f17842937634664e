"""A run is resumed only if nothing of it is missing."""

import json

import pytest

from bn_inception.errors import UserError
from bn_inception.runs import resume


def write_records(workdir, *steps):
  records = [{'kind': 'train', 'step': step} for step in steps]
  records.append({'kind': 'eval', 'step': 9})  # does not count
  text = ''.join(json.dumps(record) + '\n' for record in records)
  (workdir / 'metrics.jsonl').write_text(text)


def test_records_must_reach_the_checkpoint(tmp_path):
  workdir = str(tmp_path)
  resume.check_records(workdir, f'{workdir}/checkpoints/0')  # imported weights
  with pytest.raises(UserError, match='metrics.jsonl is gone'):
    resume.check_records(workdir, f'{workdir}/checkpoints/4')
  write_records(tmp_path, 2, 4)
  resume.check_records(workdir, f'{workdir}/checkpoints/4')
  (tmp_path / 'checkpoints' / '6').mkdir(parents=True)
  with pytest.raises(UserError, match='step 4, .* step 6: (?!.*away)'):
    resume.check_records(workdir, f'{workdir}/checkpoints/6')
  (tmp_path / 'checkpoints' / '3').mkdir()
  with pytest.raises(UserError, match='step 6: .*after step 4 away'):
    resume.check_records(workdir, f'{workdir}/checkpoints/6')


def test_a_new_run_has_no_checkpoint_and_a_finished_one_needs_its_own(tmp_path):
  assert resume.choose_checkpoint(str(tmp_path)) is None
  (tmp_path / 'result.json').write_text('{}')
  with pytest.raises(UserError, match=f'{tmp_path} holds a finished run'):
    resume.choose_checkpoint(str(tmp_path))
  (tmp_path / 'checkpoints' / '6').mkdir(parents=True)
  assert resume.checkpoint_steps(str(tmp_path)) == [6]
  assert resume.choose_checkpoint(str(tmp_path)).endswith('checkpoints/6')
