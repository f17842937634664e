"""From weights by name to a network, and back.

`python -m bn_inception.weights` makes a checkpoint of a file, and a file of a
checkpoint.
"""

import flax.linen as nn
import jax

from bn_inception.errors import UserError
from bn_inception.experiment import setup_of_checkpoint
from bn_inception.weights import description
from bn_inception.weights.files import Contents
from bn_inception.weights.imported import (
  Imported,
  Weights,
  check_weights,
  count_rows,
)
from bn_inception.weights.pytorch import (
  LAYOUTS,
  differences,
  from_pytorch,
  to_pytorch,
)
from bn_inception.weights.slim import SCOPE, from_slim
from bn_inception.weights.state_dict import (
  as_saved,
  from_state_dict,
  to_state_dict,
)

OWN = 'bn_inception'
EXPORTED = (OWN, *(layout.name for layout in LAYOUTS))


def read_network(
  contents: Contents,
  path: str,
  names_file: str | None = None,
  keep_background: bool = False,
) -> tuple[dict, dict, tuple[str, ...]]:
  """The network in a file of weights, exported or published.

  Args:
    contents: of the file.
    path: of the file, for messages.
    names_file: see `name_classes`; None: the names of the exported checkpoint, or
      ImageNet's.
    keep_background: see `from_slim`.

  Returns:
    (variables, description for `checkpoint.save`, remarks of `Imported`).

  Raises:
    UserError: as `import_weights`, `from_notes` and `name_classes`; to keep the
      background of weights that have none.
  """
  weights, remarks = contents.arrays, ()
  if keep_background and not _is_slim(weights):
    raise UserError(
      f"{path} is not TF-Slim's, so it has no background class: leave out "
      '--keep_background'
    )
  described = description.from_notes(contents.notes, path)
  if described and described.pop('layout') == OWN:
    variables = _import_own(weights, described, path)
  else:
    imported = import_weights(weights, keep_background, path)
    variables, remarks = imported.variables, imported.remarks
    described = described or {
      'config': description.make_config(imported),
      'num_channels': 3,
    }
  num_classes = variables['params']['logits']['bias'].size
  if names_file is None and 'class_names' in described:
    description.check_names(described['class_names'], num_classes, path)
  else:
    described['class_names'] = description.name_classes(num_classes, names_file)
  return variables, described, remarks


def import_weights(
  weights: Weights, keep_background: bool = False, path: str | None = None
) -> Imported:
  """Imports published weights of any known layout, which their names tell.

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
  if _is_slim(weights):
    return from_slim(weights, keep_background, path)
  return from_pytorch(weights, path)


def _is_slim(weights: Weights) -> bool:
  return any(name.startswith(SCOPE) for name in weights)


def _import_own(weights: Weights, described: dict, path: str) -> dict:
  """The variables of the described network, for any number of classes."""
  num_classes = count_rows(weights.get('logits.bias'))
  setup = setup_of_checkpoint(described | {'class_names': range(num_classes)})
  abstract = setup.abstract_state().evaluation_variables
  expected = jax.eval_shape(to_state_dict, abstract)
  weights = check_weights(weights, expected, described['config']['name'], path)
  return from_state_dict(weights, abstract)


def export_weights(
  variables: dict, model: nn.Module, layout: str | None = None
) -> tuple[Weights, str]:
  """The weights of a network by name, for PyTorch.

  Args:
    variables: params and batch_stats.
    model: of any kind for the layout `OWN`, see `state_dict`; for the others see
      `to_pytorch`.
    layout: one of `EXPORTED`; None: that of pretrainedmodels if its network
      computes the same, else `OWN`.

  Returns:
    The weights and their layout.

  Raises:
    UserError: as `to_pytorch`.
  """
  published = {layout.name: layout for layout in LAYOUTS}
  if layout is None:
    layout = OWN if differences(model) else LAYOUTS[0].name
  if layout in published:
    return to_pytorch(variables, model, published[layout]), layout
  return as_saved(to_state_dict(variables)), layout
