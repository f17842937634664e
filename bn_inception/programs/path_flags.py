"""Flags that are paths: of every program, so that all take ~ alike."""

from absl import flags

from bn_inception.machine import paths

flags.disclaim_key_flags()  # they belong to the program that defines them


class PathParser(flags.ArgumentParser):
  """Of a flag whose value is a path: see `paths.expand`."""

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
    name, default, description, required: as of `flags.DEFINE_string`.
    may_be_bucket: see `paths.expand`.

  Returns:
    Its holder; parsing raises UserError as `paths.expand`.
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
  """A flag that takes several paths, as `define_path`; default: none."""
  return flags.DEFINE_multi(
    PathParser(name, may_be_bucket=False),
    flags.ArgumentSerializer(),
    name,
    [],
    description,
  )
