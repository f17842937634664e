"""The training loop."""

import contextlib
import dataclasses
import json
import os
import signal
import statistics
import time

import jax

from bn_inception import mesh, metrics
from bn_inception.data import data_facts
from bn_inception.data.input_pipeline import DeviceBatches
from bn_inception.errors import UserError
from bn_inception.evaluation.passes import (
  evaluate,
  with_population_statistics,
)
from bn_inception.experiment import Experiment, make_experiment
from bn_inception.kernels import native
from bn_inception.kernels.host import release_memory
from bn_inception.machine import accelerators, distributed
from bn_inception.machine.interruption import Interrupted, StopRequests
from bn_inception.optimizer import PAPER_BATCH_SIZE
from bn_inception.runs import (
  checkpoint,
  checkpoint_folder,
  json_files,
  learning_curve,
  logbook,
  run_directory,
)
from bn_inception.runs.display import ProgressDisplay, format_seconds
from bn_inception.train_state import TrainState, count_parameters
from bn_inception.weights.initial_weights import (
  check_first_weights,
  start_from_checkpoint,
)
from bn_inception.wording import count

# If the host ran further ahead, batches would pile up on the devices, and waiting
# for the devices would look like waiting for input.
MAX_STEPS_AHEAD = 2
_SECONDS_BETWEEN_DRAWINGS = 30.0  # of the learning curve, at least
_STOP_PROMISE = (
  'stopping after the step or evaluation in progress, which is saved; Ctrl-C '
  'again ends the run at once'
)


def train_and_evaluate(
  config: dict, workdir: str, data_dir: str | None = None
) -> dict:
  """Trains a network, or resumes its training, and writes its result.

  Args:
    config: the plain nested dict of configs/.
    workdir: the run directory; a run in it with the same config is resumed.
    data_dir: where TFDS data sets are; None: TFDS's default.

  Returns:
    The content of result.json: see `_result`.

  Raises:
    UserError: for whatever the caller can fix; nothing is lost.
  """
  entry_time = time.monotonic()
  config = json.loads(json.dumps(config))  # as it will be read: lists
  experiment = make_experiment(config, data_dir)
  source, data = experiment.source, _data_facts(experiment)
  if config['init_from'] and not _checkpoint_steps(workdir):
    # Before a folder is made.
    check_first_weights(config['init_from'], config, source.num_channels)
  with contextlib.ExitStack() as stack:
    run_lock = run_directory.open_run(workdir, config, data)
    distributed.from_first(lambda: stack.enter_context(run_lock))
    finished = distributed.from_first(lambda: _diverged_result(workdir))
    if finished:
      _print_result(finished, workdir)
      return finished
    path = distributed.from_first(lambda: _choose_checkpoint(workdir))
    if path is not None:
      saved = checkpoint.read_description(path)
      run_directory.check_same_run(path, saved, config, data)
      distributed.from_first(lambda: _check_records(workdir, path))
    distributed.from_first(
      lambda: run_directory.record_start(workdir, config, data, source.origin())
    )
    state = _create_or_restore(experiment, path)
    _print_summary(experiment, state)
    records = _train(experiment, workdir, state, entry_time)
    result = distributed.from_first(
      lambda: _write_result(experiment, records, workdir)
    )
    _print_result(result, workdir)
    return result


def _train(
  experiment: Experiment, workdir: str, state: TrainState, entry_time: float
) -> list[dict]:
  """Trains to the end; returns the records of the whole run."""
  options, first_step = experiment.options, int(state.step)
  with (
    StopRequests(_STOP_PROMISE) as stop_requests,
    checkpoint.open_checkpoints(
      os.path.join(workdir, run_directory.CHECKPOINTS_FOLDER),
      options.keep_last_checkpoints,
      options.keep_best_checkpoints,
    ) as checkpoints,
    logbook.Logbook(workdir, first_step, distributed.is_first()) as book,
    ProgressDisplay(
      first_step, experiment.num_steps, experiment.steps_per_epoch
    ) as display,
  ):
    earlier = book.records[-1]['seconds'] if book.records else 0.0
    loop = _Loop(
      experiment=experiment,
      workdir=workdir,
      checkpoints=checkpoints,
      book=book,
      display=display,
      stop_requests=stop_requests,
      entry_time=entry_time,
      seconds_before=earlier,
    )
    loop.train(state)
    return book.records


def _write_result(
  experiment: Experiment, records: list[dict], workdir: str
) -> dict:
  result = _result(experiment, records)
  json_files.write_json(
    os.path.join(workdir, run_directory.RESULT_FILE), result
  )
  _draw_learning_curve(experiment, records, workdir)
  return result


def _draw_learning_curve(
  experiment: Experiment, records: list[dict], workdir: str
) -> None:
  path = os.path.join(workdir, 'learning_curve.png')
  learning_curve.draw(records, path, experiment.setup.config['name'])


def _checkpoint_steps(workdir: str) -> list[int]:
  return checkpoint_folder.list_steps(
    os.path.join(workdir, run_directory.CHECKPOINTS_FOLDER)
  )


def _diverged_result(workdir: str) -> dict | None:
  """The result of a run that diverged; None for any other."""
  path = os.path.join(workdir, run_directory.RESULT_FILE)
  if not os.path.exists(path):
    return None
  result = json_files.read_json(path)
  return result if result['diverged'] else None


def _create_or_restore(experiment: Experiment, path: str | None) -> TrainState:
  """The state to train from; path: of the checkpoint to resume from, if any."""
  setup, source = experiment.setup, experiment.source
  if path is not None:
    print(f'resuming from {path}')
    return checkpoint.restore(path, setup.abstract_state(), setup.replicated)
  state = experiment.create_state()
  init_from = setup.config['init_from']
  if init_from:
    state, taken = start_from_checkpoint(
      state,
      init_from,
      setup.config,
      source.class_names,
      source.num_channels,
      setup.replicated,
    )
    print(f'first weights  {taken}')
  return state


def _choose_checkpoint(workdir: str) -> str | None:
  """The path of the one to resume from; None: a new run."""
  if _checkpoint_steps(workdir):
    return checkpoint_folder.choose_to_resume(
      os.path.join(workdir, run_directory.CHECKPOINTS_FOLDER)
    )
  if os.path.exists(os.path.join(workdir, run_directory.RESULT_FILE)):
    raise UserError(
      f'{workdir} holds a finished run whose checkpoints are gone: give '
      'another --workdir, or remove this one to train again'
    )
  return None


def _check_records(workdir: str, path: str) -> None:
  """Refuses to resume a run whose records end before its checkpoint.

  Its result would miss some. A step is recorded before it is saved.

  Args:
    workdir: the run directory.
    path: of the checkpoint; imported weights are step 0, without records.

  Raises:
    UserError: if metrics.jsonl is gone, cut short, or damaged.
  """
  step = int(os.path.basename(path))
  if step == 0:
    return
  metrics_path = os.path.join(workdir, logbook.METRICS_FILE)
  remedy = 'restore it, or give another --workdir'
  if not os.path.exists(metrics_path):
    raise UserError(f'{metrics_path} is gone, and {path} needs it: {remedy}')
  records = logbook.read_metrics(workdir)
  end = max((r['step'] for r in records if r['kind'] == 'train'), default=0)
  if end >= step:
    return
  if any(earlier <= end for earlier in _checkpoint_steps(workdir)):
    remedy += f', or move the checkpoints after step {end} away'
  raise UserError(
    f'{metrics_path} was cut short: it ends at step {end}, before the checkpoint '
    f'of step {step}: {remedy}'
  )


@dataclasses.dataclass
class _Loop:
  """The loop of one process and its clock. "Step" means updates done.

  Attributes:
    experiment, workdir: of the run.
    checkpoints, book, display, stop_requests: open until the loop ends.
    entry_time: when this process began with the run.
    seconds_before: spent by earlier processes.
    next_drawing: when the learning curve may be drawn again.
  """

  experiment: Experiment
  workdir: str
  checkpoints: checkpoint.Checkpoints
  book: logbook.Logbook
  display: ProgressDisplay
  stop_requests: StopRequests
  entry_time: float
  seconds_before: float
  next_drawing: float = dataclasses.field(
    default_factory=lambda: time.monotonic() + _SECONDS_BETWEEN_DRAWINGS
  )

  @property
  def seconds(self) -> float:
    """Spent on the run so far, by all its processes one after the other."""
    return self.seconds_before + time.monotonic() - self.entry_time

  def train(self, state: TrainState) -> None:
    """Trains to the last step, or to the first non-finite one."""
    experiment, step = self.experiment, int(state.step)
    if step >= experiment.num_steps:
      if not distributed.from_first(self._has_evaluation):
        self._evaluate(step, state)
      return
    with contextlib.closing(experiment.batches(step)) as batches:
      self._train_on(batches, state, step)

  def _has_evaluation(self) -> bool:
    return any(r['kind'] == 'eval' for r in self.book.records)

  def _train_on(
    self, batches: DeviceBatches, state: TrainState, step: int
  ) -> None:
    experiment, options = self.experiment, self.experiment.options
    pending, logged_step, first_step = [], step, step + 1
    self.display.compiling()
    interval_start = None  # the first interval would measure compilation
    for batch in batches:
      state, step_metrics = experiment.train_step(state, batch, experiment.rng)
      pending.append(step_metrics)
      if len(pending) > MAX_STEPS_AHEAD:
        jax.block_until_ready(pending[-1 - MAX_STEPS_AHEAD])
      step += 1
      if step == first_step:
        self._log_first_step(step, step_metrics)
        self.stop_requests.begin()
      stop_signal = self.stop_requests.reached(step)
      is_last = step == experiment.num_steps
      is_eval = step % options.eval_every_steps == 0 or is_last
      is_save = step % options.checkpoint_every_steps == 0 or is_last
      is_save |= stop_signal is not None
      if not (is_eval or is_save or step % options.log_every_steps == 0):
        continue
      # Fetching waits for the devices; until here the host only ran ahead.
      fetched, pending = jax.device_get(pending), []
      self._log_replaced(step, batches.take_replaced())
      speed, waited = {}, batches.take_wait_seconds()
      if interval_start is not None:
        seconds = time.monotonic() - interval_start
        num_examples = (step - logged_step) * experiment.batch_size
        speed = {
          'images_per_second': num_examples / seconds,
          'input_wait_fraction': waited / seconds,
        }
      self._log(step, fetched, speed)
      if fetched[-1]['first_nonfinite_step'] >= 0:
        return
      self._evaluate_and_save(step, state, is_eval, is_save)
      if stop_signal is not None and not is_last:
        self._stop(step, stop_signal)
      interval_start, logged_step = time.monotonic(), step

  def _stop(self, step: int, stop_signal: int) -> None:
    self.checkpoints.wait()  # what stops a run may not wait for a picture
    if distributed.is_first():
      self._draw()
    raise Interrupted(
      f'stopped by {signal.Signals(stop_signal).name} after step {step}, '
      'which is saved: the same command resumes from there',
      stop_signal,
    )

  def _log_first_step(self, step: int, step_metrics: dict) -> None:
    jax.block_until_ready(step_metrics)
    release_memory()
    seconds = time.monotonic() - self.entry_time
    self.book.write(
      'start', step, seconds_to_first_step=seconds, seconds=self.seconds
    )
    self.display.message(
      f'first step after {seconds:.1f} s, including start and compilation'
    )

  def _evaluate_and_save(
    self, step: int, state: TrainState, is_eval: bool, is_save: bool
  ) -> None:
    self.checkpoints.check()  # the last save may have failed by now
    if is_eval or is_save:
      self._check_replicas(step, state)
    top1, is_evaluated = None, False
    try:
      if is_eval:
        top1 = self._evaluate(step, state)
      is_evaluated = True
    finally:
      # An evaluation that fails must not cost the steps since the last save.
      if is_save or not is_evaluated:
        description = _description(self.experiment)
        checkpoint.save(self.checkpoints, state, description, top1)

  def _check_replicas(self, step: int, state: TrainState) -> None:
    differing = mesh.differing_leaves(state, self.experiment.setup.device_mesh)
    if differing:
      raise UserError(
        f'after step {step} the copies of {count(len(differing), "array")}, such '
        f'as {differing[0]}, differ between devices, so a device or a link is '
        'faulty: give the same command again, which resumes from the newest '
        'checkpoint, or starts over if there is none'
      )

  def _log_replaced(self, step: int, replaced: list[int]) -> None:
    """Names the bad examples that others stood in for."""
    for index in distributed.gather(replaced):
      self.book.write('replaced', step, index=index)
      self.display.message(
        f'replaced a bad image: {self.experiment.source.describe(index)}'
      )

  def _log(self, step: int, fetched: list[dict], speed: dict) -> None:
    averages = metrics.averages(metrics.add_sums(fetched))
    measured = metrics.percentiles([f['measurements'] for f in fetched])
    latest = fetched[-1]
    bad_step = int(latest['first_nonfinite_step'])
    self.book.write(
      'train',
      step,
      **averages,
      **measured,
      learning_rate=float(latest['learning_rate']),
      gradient_norm=float(latest['gradient_norm']),
      first_nonfinite_step=bad_step,
      seconds=self.seconds,
      **speed,
    )
    if bad_step >= 0:
      self.display.message(
        f'diverged: loss or gradient was not finite at step {bad_step}'
      )
      return
    if speed:
      rate = speed['images_per_second']
      left = (self.experiment.num_steps - step) * self.experiment.batch_size
      self.display.update(
        step,
        averages['loss'],
        averages['top1'],
        rate,
        speed['input_wait_fraction'],
        left / rate,
      )

  def _evaluate(self, step: int, state: TrainState) -> float:
    """Evaluates and records; returns top-1 with moving averages, in percent."""
    experiment, variables = self.experiment, state.evaluation_variables
    values = self._evaluate_with(variables)
    population, note = {}, ''
    num_batches = experiment.options.population_batches
    if num_batches and experiment.setup.norm_batch_size:
      found = self._evaluate_with(
        with_population_statistics(
          experiment.setup,
          variables,
          experiment.source,
          num_batches,
          experiment.setup.config['seed'],
        )
      )
      population = {
        f'population_{name}': found[name] for name in ('loss', 'top1', 'top5')
      }
      note = f'; population statistics: top-1 {found["top1"]:.2f} %'
    self.book.write('eval', step, **values, **population, seconds=self.seconds)
    self.display.message(
      f'evaluation at step {step}: top-1 {values["top1"]:.2f} %, top-5 '
      f'{values["top5"]:.2f} %, loss {values["loss"]:.4f} '
      f'({count(values["examples"], "example", form="")}){note}'
    )
    if distributed.is_first() and time.monotonic() >= self.next_drawing:
      self._draw()
    return values['top1']

  def _evaluate_with(self, variables: dict) -> dict[str, float]:
    setup, source = self.experiment.setup, self.experiment.eval_source
    return evaluate(
      setup.eval_step, variables, setup.eval_batches(source), len(source)
    )

  def _draw(self) -> None:
    """Draws the learning curve so far, at most for 1 % of the time."""
    start = time.monotonic()
    _draw_learning_curve(self.experiment, self.book.records, self.workdir)
    end = time.monotonic()
    pause = max(_SECONDS_BETWEEN_DRAWINGS, 100 * (end - start))
    self.next_drawing = end + pause


def _description(experiment: Experiment) -> dict:
  """What is stored with a checkpoint, enough to evaluate it anywhere."""
  return {'config': experiment.setup.config, **_data_facts(experiment)}


def _data_facts(experiment: Experiment) -> dict:
  names = experiment.setup.config['source']
  return data_facts.describe(
    experiment.source,
    names['train_split'],
    experiment.eval_source,
    names['eval_split'],
  )


def _print_summary(experiment: Experiment, state: TrainState) -> None:
  setup, config = experiment.setup, experiment.setup.config
  batch_size, num_steps = experiment.batch_size, experiment.num_steps
  device = jax.devices()[0].device_kind
  micro_batches = processes = ''
  if setup.optimizer.accumulate_steps > 1:
    micro_batches = f' in {setup.optimizer.accumulate_steps} micro-batches'
  if jax.process_count() > 1:
    processes = f', in {jax.process_count()} processes'
  lines = {
    'run': config['name'],
    'data': _in_lines(*_describe_data(config['source'], experiment)),
    'devices': _in_lines(
      f'{jax.device_count()} x {device}{processes}', *accelerators.remarks()
    ),
    'convolutions': native.describe(),
    'batch': f'{count(batch_size, "example")}{micro_batches}',
    'normalisation': _describe_normalisation(setup.norm_batch_size),
    'order': _describe_order(experiment),
    'learning rate': _describe_learning_rate(experiment),
    'L2': f'{config["optimizer"]["weight_decay"]:g} on kernels',
    'steps': (
      f'{num_steps} = '
      f'{count(num_steps / experiment.steps_per_epoch, "epoch", form="g")} '
      '= '
      f'{count(num_steps * batch_size / PAPER_BATCH_SIZE, "step", form="g")} '
      'of the paper '
      f'({PAPER_BATCH_SIZE} examples each)'
    ),
    'parameters': f'{count_parameters(state.params):,}',
  }
  for name, value in lines.items():
    print(f'{name:14} {value}')


def _describe_normalisation(size: int | None) -> str:
  if not size:
    return 'none'
  if size == 1:
    return 'statistics of each example by itself'
  return f'{count(size, "example")} share statistics'


def _describe_order(experiment: Experiment) -> str:
  options = experiment.setup.input_options
  shards = ''
  if options.shuffle != 'global':
    shards = f', {count(options.num_shards, "shard", form="")}'
  return (
    f'{options.shuffle}{shards}: '
    f'{100 * experiment.met_again_fraction:.3g} % of the pairs in a mini-batch '
    'meet again in the next epoch'
  )


def _describe_learning_rate(experiment: Experiment) -> str:
  options = experiment.setup.config['optimizer']
  rule = ''
  if options['learning_rate_per_32']:
    rule = f' ({options["learning_rate"]:g} per {PAPER_BATCH_SIZE} examples)'
  period = count(options['decay_epochs'], 'epoch', form='.3g')
  decay = f'x {options["decay_factor"]:g} every {period}'
  if options['schedule'] == 'cosine':
    decay = f'a cosine to 0 in {period}'
  if options['warmup_epochs']:
    warmup = count(options['warmup_epochs'], 'epoch', form='.3g')
    decay += f', {warmup} of warm-up'
  return (
    f'{experiment.setup.optimizer.learning_rate:g}{rule}, {decay}, '
    f'momentum {options["momentum"]:g}'
  )


def _in_lines(*texts: str) -> str:
  """Texts below each other, right of a name of the summary."""
  return f'\n{"":14} '.join(texts)


def _describe_data(names: dict, experiment: Experiment) -> list[str]:
  """What was found and what was left out, one line each."""
  train, evaluated = experiment.source, experiment.eval_source
  sources = {names['train_split']: train, names['eval_split']: evaluated}
  return [
    f'{train.name}: {count(len(train), "image")} of '
    f'{count(len(train.class_names), "class", "classes")} '
    f'({names["train_split"]}), {len(evaluated):,} ({names["eval_split"]})',
    *(
      f'{split}: {remark}'
      for split, source in sources.items()
      for remark in source.remarks()
    ),
  ]


def _result(experiment: Experiment, records: list[dict]) -> dict:
  """The outcome of a run, from its records.

  Returns:
    `top1` and `top5`, in percent, are from the last evaluation; `max_top1` is the
    best of all evaluations; `population_top1` and `max_population_top1` are the
    same with population statistics, None if they were not taken;
    `steps_to_target` is the step of the first evaluation that reached the target,
    None if none did; `images_per_second` and `input_wait_fraction` (the fraction
    of the time spent waiting for the host's input) are medians over the logged
    intervals; `seconds_to_first_step` is that of the last start;
    `replaced_examples` counts bad images; `wall_seconds` counts from each start
    to its last record, including compilation.
  """
  config = experiment.setup.config
  train = [r for r in records if r['kind'] == 'train']
  starts = [r for r in records if r['kind'] == 'start']
  evals = [r for r in records if r['kind'] == 'eval']
  bad_step = train[-1]['first_nonfinite_step']
  step = bad_step if bad_step >= 0 else records[-1]['step']
  examples = step * experiment.batch_size
  target = experiment.options.target_accuracy
  reached = [r['step'] for r in evals if r['top1'] >= target]
  last = evals[-1] if evals else {}
  return {
    'name': config['name'],
    'config': config,
    'steps': step,
    'epochs': step / experiment.steps_per_epoch,
    'examples': examples,
    'paper_steps': examples / PAPER_BATCH_SIZE,
    'eval_split': config['source']['eval_split'],
    'eval_examples': last.get('examples'),
    'top1': last.get('top1'),
    'top5': last.get('top5'),
    'loss': last.get('loss'),
    'max_top1': max((r['top1'] for r in evals), default=None),
    'population_top1': last.get('population_top1'),
    'max_population_top1': max(
      (r['population_top1'] for r in evals if 'population_top1' in r),
      default=None,
    ),
    'statistics': metrics.MOVING
    if experiment.setup.norm_batch_size
    else metrics.NONE,
    'target_accuracy': target,
    'steps_to_target': reached[0] if reached else None,
    'diverged': bad_step >= 0,
    'first_nonfinite_step': bad_step if bad_step >= 0 else None,
    'images_per_second': _median(train, 'images_per_second'),
    'input_wait_fraction': _median(train, 'input_wait_fraction'),
    'seconds_to_first_step': starts[-1]['seconds_to_first_step']
    if starts
    else None,
    'replaced_examples': sum(r['kind'] == 'replaced' for r in records),
    'wall_seconds': records[-1]['seconds'],
  }


def _median(records: list[dict], name: str) -> float | None:
  values = [r[name] for r in records if r.get(name) is not None]
  return statistics.median(values) if values else None


def _print_result(result: dict, workdir: str) -> None:
  if result['diverged']:
    print(
      f'result: diverged at step {result["first_nonfinite_step"]} '
      f'(written to {workdir}/{run_directory.RESULT_FILE})'
    )
    return
  reached = result['steps_to_target']
  target = f'{result["target_accuracy"]:g} %'
  print(
    f'result: top-1 {result["top1"]:.2f} % (best {result["max_top1"]:.2f} %) '
    f'on {result["eval_split"]} after '
    f'{count(result["steps"], "step", form="")}; {target} '
    f'{f"reached at step {reached}" if reached else "not reached"}; '
    f'{format_seconds(result["wall_seconds"])} in all; written to '
    f'{workdir}/{run_directory.RESULT_FILE}'
  )
