"""A member, 1 to 6, of the ensemble: BN-x30 with small modifications.

  python train.py --config=configs/ensemble.py:1

Paper: 4.9 % top-5 error for all six, with 144 crops (Section 4.2.3, Figure 4).
"""

from configs import compose


def get_config(member_and_task: str = ''):
  return compose.ensemble_member(member_and_task)
