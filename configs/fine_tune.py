r"""Fine-tuning: trains a trained or imported network on another data set.

  python train.py --config=configs/fine_tune.py:runs/a/checkpoints/9,fashion_mnist
  python train.py --data_dir=/data/birds \
    --config=configs/fine_tune.py:runs/cadene/checkpoints/0,image_folder

The network and the scaling of its input are those of the checkpoint's run; FINE_TUNING
in paper.py has the rest. If the classes differ, the last layer is new. Paper: none.
"""

from configs import compose


def get_config(checkpoint_and_dataset: str = ''):
  return compose.fine_tune(checkpoint_and_dataset)
