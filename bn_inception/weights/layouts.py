"""Published weights of BN-Inception as variables of `Inception`.

`python -m bn_inception.weights` makes a checkpoint of a file.
"""

from bn_inception.weights.imported import Imported, Weights
from bn_inception.weights.pytorch import from_pytorch
from bn_inception.weights.slim import SCOPE, from_slim


def import_weights(
  weights: Weights, keep_background: bool = False, path: str | None = None
) -> Imported:
  """Imports weights of any known layout, which their names tell.

  Known are the PyTorch models of Cadene (`pretrainedmodels.bninception`) and
  Semery (`pytorchcv`), and TF-Slim's `inception_v2`.

  Args:
    weights: by name.
    keep_background: see `from_slim`.
    path: of their file, for messages.

  Raises:
    UserError: if the names are of no known layout; as `from_pytorch` and
      `from_slim`.
  """
  if any(name.startswith(SCOPE) for name in weights):
    return from_slim(weights, keep_background, path)
  return from_pytorch(weights, path)
