"""Any network of NETWORKS in paper.py, including those without their own file.

python train.py --config=configs/network.py:bn_x5,digits
"""

from configs import compose


def get_config(network_and_task: str = ''):
  return compose.network(network_and_task)
