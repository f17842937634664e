"""The installed commands: each runs a program of this package as `python -m` does."""

import runpy

from bn_inception.machine import interruption


def train() -> None:
  _run('bn_inception.train')


def evaluate() -> None:
  _run('bn_inception.eval')


def study() -> None:
  _run('bn_inception.study')


def report() -> None:
  _run('bn_inception.study.report')


def claims() -> None:
  _run('bn_inception.claims')


def data() -> None:
  _run('bn_inception.data')


def weights() -> None:
  _run('bn_inception.weights')


def dryrun() -> None:
  _run('bn_inception.dryrun')


def _run(module: str) -> None:
  interruption.watch()
  runpy.run_module(module, run_name='__main__', alter_sys=True)
