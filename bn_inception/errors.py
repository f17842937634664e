"""The one exception that stands for bad input."""


class UserError(Exception):
  """Something the caller can mend: one line that names the thing and the remedy.

  The programs print it without a traceback and exit non-zero; every other
  exception is a defect and keeps its traceback.
  """
