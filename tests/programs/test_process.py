"""What a process sets up: where compiled programs are kept."""

import jax

from bn_inception.errors import UserError
from bn_inception.programs import process


def test_without_a_home_folder_compiled_programs_are_not_kept(
  tmp_path, monkeypatch, capsys
):
  kept = []
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(jax.config, 'update', lambda name, to: kept.append(to))
  monkeypatch.setenv('HOME', str(tmp_path / 'home'))
  process.keep_compiled_programs('~/cache')
  assert capsys.readouterr().out == ''
  process.keep_compiled_programs('~nobody-here/cache')
  (line,) = capsys.readouterr().out.splitlines()
  assert 'not kept: $JAX_COMPILATION_CACHE_DIR=~nobody-here/cache' in line

  def cannot_be_asked(path):
    raise UserError(f'{path} cannot be read')

  monkeypatch.setattr(process, 'is_folder', cannot_be_asked)
  process.keep_compiled_programs('gs://bucket/cache')
  (line,) = capsys.readouterr().out.splitlines()
  assert 'not kept: gs://bucket/cache cannot be read' in line
  monkeypatch.setattr(process, 'is_folder', lambda path: False)
  process.keep_compiled_programs('gs://bucket/cache')  # JAX writes there
  assert capsys.readouterr().out == ''
  assert kept == [str(tmp_path / 'home/cache'), None, None, 'gs://bucket/cache']
  assert [path.name for path in tmp_path.iterdir()] == ['home']
