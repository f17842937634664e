"""Flags for paths, so that all programs expand ~ in the same way."""

from absl import flags

from bn_inception.machine import paths

flags.disclaim_key_flags()  # they belong to the program that defines them


class PathParser(flags.ArgumentParser):
  """Parses a path with `paths.expand`."""

  def __init__(self, name: str, may_be_bucket: bool):
    self._name, self._may_be_bucket = name, may_be_bucket

  def parse(self, argument: str) -> str:
    return paths.expand(argument, f'--{self._name}', self._may_be_bucket)


def define_path(
  name: str,
  default: str | None,
  description: str,
  may_be_bucket: bool = False,
  required: bool = False,
) -> flags.FlagHolder:
  """A flag that takes a path.

  Args:
    name, default, description, required: as for `flags.DEFINE_string`.
    may_be_bucket: see `paths.expand`.

  Returns:
    The flag's holder; parsing raises UserError as `paths.expand`.
  """
  return flags.DEFINE(
    PathParser(name, may_be_bucket),
    name,
    default,
    description,
    serializer=flags.ArgumentSerializer(),
    required=required,
  )


def define_paths(name: str, description: str) -> flags.FlagHolder:
  """Like `define_path`, for several paths; default: none."""
  return flags.DEFINE_multi(
    PathParser(name, may_be_bucket=False),
    flags.ArgumentSerializer(),
    name,
    [],
    description,
  )
