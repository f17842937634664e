"""Progress lines: how often, and the estimate of the time left."""

from bn_inception.data.progress import Progress


def test_a_line_is_printed_after_each_interval(capsys):
  seconds = iter([0, 4, 11, 12, 25])
  progress = Progress('train', 8000, 'images', 10, lambda: next(seconds))
  for _ in range(4):
    progress.advance(1000)
  assert capsys.readouterr().out.splitlines() == [
    '  train: 2,000 of 8,000 images (25%), 0.6 minutes left',
    '  train: 4,000 of 8,000 images (50%), 0.4 minutes left',
  ]
