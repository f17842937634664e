"""Figure 1: three layers of 100 sigmoids on binary images, with or without BN.

  python train.py --config=configs/mnist.py:batch_norm
  python train.py --config=configs/mnist.py:plain,fashion_mnist

Paper: higher accuracy, sooner, with BN (Section 4.1 gives no numbers).
"""

from configs import compose


def get_config(network_and_dataset: str = 'batch_norm'):
  return compose.perceptron(network_and_dataset)
