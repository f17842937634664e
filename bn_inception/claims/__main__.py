"""The claims of the paper's Sections 1 to 3 as small experiments.

    python -m bn_inception.claims [--only NAME] [--output FILE] [--markdown FILE]

Prints what the paper says, what was measured and whether the claim held. Writes
the numbers as JSON, and figures next to it. Takes a minute on two cores.
"""

from bn_inception.machine import interruption

if __name__ == '__main__':
  interruption.watch()  # the other imports take seconds

import math
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from absl import flags

from bn_inception.claims import networks, transform
from bn_inception.claims.transform import Claim
from bn_inception.errors import (
  UserError,
  make_parent_folder,
  replacing,
  writing,
)
from bn_inception.machine import streams
from bn_inception.programs import command_line
from bn_inception.programs.markdown import table
from bn_inception.programs.path_flags import define_path
from bn_inception.runs.json_files import write_json
from bn_inception.runs.run_directory import check_output, manifest

CLAIMS: tuple[Callable[[], Claim], ...] = (
  networks.gradient_estimate,
  networks.depth,
  networks.internal_covariate_shift,
  networks.noise_after_bn,
  networks.saturation,
  transform.bias_example,
  networks.whitening,
  transform.identity_and_moments,
  transform.scale_invariance,
  networks.weight_norms,
  networks.jacobian_singular_values,
  networks.batch_mates,
)
DEFAULT_OUTPUT = 'runs/claims.json'


class Result(NamedTuple):
  """An experiment's name, its outcome and its duration in seconds."""

  name: str
  claim: Claim
  seconds: float

  @property
  def verdict(self) -> str:
    return 'held' if self.claim.held else 'not held'


def choose(only: str | None) -> tuple[Callable[[], Claim], ...]:
  """All experiments, or the one with this name.

  Raises:
    UserError: if there is none; lists the names.
  """
  if only is None:
    return CLAIMS
  by_name = {function.__name__: function for function in CLAIMS}
  if only not in by_name:
    raise UserError(f"unknown claim '{only}': use one of {', '.join(by_name)}")
  return (by_name[only],)


def run_one(function: Callable[[], Claim]) -> Result:
  """Runs and times an experiment."""
  start = time.perf_counter()
  claim = function()
  return Result(function.__name__, claim, time.perf_counter() - start)


def figure_path(output: str, name: str) -> str:
  """results/claims.json -> results/claims_NAME.png."""
  stem = os.path.splitext(output)[0]
  return f'{stem.removesuffix(f"_{name}")}_{name}.png'


def write_results(results: list[Result], output: str) -> None:
  """Writes the JSON file, and a figure next to it for each claim that has one.

  NaN and infinities become null. Makes missing folders.

  Raises:
    UserError: if a file cannot be written.
  """
  described = manifest()
  value = {
    'packages': described['packages'],
    'commit': described['commit'],
    'claims': [
      {
        'name': result.name,
        'sentence': result.claim.sentence,
        'criterion': result.claim.criterion,
        'held': bool(result.claim.held),
        'finding': result.claim.finding,
        'numbers': {
          key: float(number) if math.isfinite(number) else None
          for key, number in result.claim.numbers.items()
        },
        'seconds': round(result.seconds, 2),
      }
      for result in results
    ],
  }
  remedy = 'give another --output'
  make_parent_folder(output, remedy)
  write_json(output, value, remedy)
  for result in results:
    if result.claim.draw is not None:
      path = figure_path(output, result.name)
      with writing(path, remedy):
        draw(result.claim, path)


def draw(claim: Claim, path: str) -> None:
  """Saves the figure of a claim."""
  import matplotlib

  matplotlib.use('agg')
  from matplotlib import pyplot

  figure = pyplot.figure(figsize=(10, 4))
  claim.draw(figure)
  figure.tight_layout()
  figure.savefig(path, dpi=90)
  pyplot.close(figure)


def print_result(result: Result, console: Any) -> None:
  """Prints the claim, the numbers and the verdict."""
  from rich.table import Table

  numbers = Table(show_header=False, box=None, padding=(0, 2))
  for key, number in result.claim.numbers.items():
    numbers.add_row(key, f'{number:.4g}')
  console.rule(f'{result.name} ({result.seconds:.0f} s)')
  console.print(f'Paper:     {result.claim.sentence}', highlight=False)
  console.print(f'Criterion: {result.claim.criterion}', highlight=False)
  console.print(numbers)
  console.print(
    f'[bold]{result.verdict.upper()}[/bold]: {result.claim.finding}',
    highlight=False,
  )


def print_summary(results: list[Result], console: Any) -> None:
  """Prints a table with a line per claim."""
  from rich.table import Table

  verdicts = Table('claim', 'verdict', 'finding')
  for result in results:
    verdicts.add_row(result.name, result.verdict, result.claim.finding)
  console.print(verdicts)
  num_held = sum(result.claim.held for result in results)
  seconds = sum(result.seconds for result in results)
  console.print(f'{num_held} of {len(results)} held; {seconds:.0f} s')


def to_markdown(results: list[Result], output: str, folder: str) -> str:
  """The page results/claims.md.

  Args:
    results: see `run_one`.
    output: the JSON file, which has the figures next to it.
    folder: of the page, for links to the figures.
  """
  head = ['claim', 'the paper, in our words', 'verdict', 'finding']
  rows = []
  for name, claim, _ in results:
    verdict = 'held' if claim.held else '**not held**'
    rows.append([f'[{name}](#{name})', claim.sentence, verdict, claim.finding])
  lines = [
    '# The claims of Sections 1 to 3, measured',
    '',
    'Written by',
    '',
    '```bash',
    'python -m bn_inception.claims --output=results/claims.json --markdown=results/claims.md',
    '```',
    '',
    'which runs one small experiment per claim, with perceptrons on the digits of',
    'scikit-learn or with synthetic data. A claim holds if it meets the criterion,',
    'which was fixed in advance. Timings are those of the machine that ran it.',
    '',
    table(head, rows),
  ]
  for name, claim, _ in results:
    lines += ['', f'## {name}', '', claim.sentence, '']
    lines += [f'Criterion: {claim.criterion}.', '']
    lines += [
      f'**{"Held" if claim.held else "Not held"}.** {claim.finding}',
      '',
    ]
    if claim.draw is not None:
      path = os.path.relpath(figure_path(output, name), folder or '.')
      lines += [f'![{name}]({path})', '']
    numbers = [[key, f'{number:.4g}'] for key, number in claim.numbers.items()]
    lines.append(table(['measured', ''], numbers))
  return '\n'.join(lines) + '\n'


def check_and_report(
  only: str | None = None,
  output: str | None = None,
  markdown: str | None = None,
) -> list[Result]:
  """Runs the experiments, prints and writes the results.

  Args:
    only: name of the only one to run.
    output: path of the JSON file; default: `DEFAULT_OUTPUT`, or
      runs/claims_NAME.json with `only`.
    markdown: path of a page to write.

  Raises:
    UserError: for an unknown name or a path that cannot be written.
  """
  from rich.console import Console

  functions = choose(only)
  console = Console()
  if output is None:
    output = DEFAULT_OUTPUT
    if only is not None:
      output = f'{os.path.splitext(output)[0]}_{only}.json'
  for path, flag in ((output, '--output'), (markdown, '--markdown')):
    if path is not None:
      check_output(path, f'give another {flag}')
  if markdown is not None and os.path.realpath(markdown) == os.path.realpath(
    output
  ):
    raise UserError(f'{markdown} is --output too: give another --markdown')
  results = []
  for function in functions:
    results.append(run_one(function))
    print_result(results[-1], console)
  print_summary(results, console)
  write_results(results, output)
  console.print(f'wrote {output} and the figures next to it')
  if markdown is not None:
    remedy = 'give another --markdown'
    make_parent_folder(markdown, remedy)
    with replacing(markdown, remedy=remedy) as file:
      file.write(to_markdown(results, output, os.path.dirname(markdown)))
  return results


def define_flags() -> None:
  """Defines the flags; not done on import."""
  flags.DEFINE_string(
    'only',
    None,
    'Name of one claim to run; default: all. Example: --only=bias_example',
  )
  define_path(
    'output',
    None,
    f'JSON file to write, with figures next to it; default: {DEFAULT_OUTPUT}, or '
    'runs/claims_NAME.json with --only. Example: --output=claims.json',
  )
  define_path(
    'markdown',
    None,
    'Markdown page to write; default: none. '
    'Example: --markdown=results/claims.md',
  )


def main() -> None:
  streams.continue_without_stdout()
  values = flags.FLAGS
  check_and_report(values.only, values.output, values.markdown)


if __name__ == '__main__':
  define_flags()
  command_line.run(main)
