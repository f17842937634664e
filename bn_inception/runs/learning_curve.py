"""The plot of a run's learning curves."""

from bn_inception.errors import replacing


def draw(records: list[dict], path: str, title: str) -> None:
  """Writes a PNG file of loss and top-1 accuracy against steps.

  Args:
    records: as from `logbook.read_metrics`.
    path: of the PNG file.
    title: above the plots.

  Raises:
    UserError: if the file cannot be written.
  """
  import matplotlib

  matplotlib.use('agg')
  from matplotlib import pyplot

  def series(kind: str, name: str):
    chosen = [r for r in records if r['kind'] == kind and r[name] is not None]
    return [r['step'] for r in chosen], [r[name] for r in chosen]

  figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4))
  left.plot(*series('train', 'loss'), linewidth=1, label='training')
  left.plot(*series('eval', 'loss'), marker='.', label='evaluation')
  left.set(xlabel='steps', ylabel='cross-entropy', yscale='log')
  right.plot(*series('train', 'top1'), linewidth=1, label='training')
  right.plot(*series('eval', 'top1'), marker='.', label='evaluation')
  right.set(xlabel='steps', ylabel='top-1 accuracy (%)')
  for axes in (left, right):
    axes.grid(alpha=0.3)
    axes.legend()
  figure.suptitle(title)
  figure.tight_layout()
  with replacing(path, 'wb') as file:
    figure.savefig(file, dpi=120, format='png')
  pyplot.close(figure)
