"""Evaluates checkpoints: `bn_inception.eval`, for use without installing."""

import pathlib
import runpy
import sys

if __name__ == '__main__':
  # Python's option -P, or $PYTHONSAFEPATH, leaves this folder out.
  sys.path.insert(0, str(pathlib.Path(__file__).parent.resolve()))
  runpy.run_module('bn_inception.eval', run_name='__main__', alter_sys=True)
