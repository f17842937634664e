"""The plot of the learning curves."""

from bn_inception.runs import learning_curve


def test_learning_curve_is_a_picture_of_the_records(tmp_path):
  records = [
    {'kind': kind, 'step': step, 'loss': 1 / step, 'top1': 50.0}
    for kind in ('train', 'eval')
    for step in range(1, 5)
  ]
  path = tmp_path / 'curve.png'
  learning_curve.draw(records, str(path), 'a run')
  assert path.read_bytes().startswith(b'\x89PNG')
  assert list(tmp_path.iterdir()) == [path]
  empty = tmp_path / 'empty.png'
  learning_curve.draw([], str(empty), 'a run')
  assert path.stat().st_size > empty.stat().st_size + 1000
