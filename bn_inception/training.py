"""The training loop."""

import contextlib
import dataclasses
import json
import os
import signal
import time

import jax

from bn_inception import config_keys, mesh
from bn_inception.data import data_facts
from bn_inception.data.input_pipeline import DeviceBatches
from bn_inception.errors import UserError
from bn_inception.evaluation.passes import (
  evaluate,
  with_population_statistics,
)
from bn_inception.experiment import Experiment, make_experiment
from bn_inception.kernels.host import release_memory
from bn_inception.machine import distributed
from bn_inception.machine.interruption import Interrupted, StopRequests
from bn_inception.runs import checkpoint, json_files, resume, run_directory
from bn_inception.runs.profiler import Profiler, check_folder
from bn_inception.runs.recorder import (
  Recorder,
  draw_learning_curve,
  open_recorder,
)
from bn_inception.runs.result import (
  diverged_result,
  make_result,
  print_result,
)
from bn_inception.runs.summary import print_summary
from bn_inception.train_state import TrainState, count_parameters
from bn_inception.weights.initial_weights import (
  check_initial_weights,
  start_from_checkpoint,
)
from bn_inception.wording import count

# If the host ran further ahead, batches would pile up on the devices, and waiting
# for the devices would look like waiting for input.
MAX_STEPS_AHEAD = 2
_STOP_PROMISE = (
  'stopping after the step or evaluation in progress, which is saved; press '
  'Ctrl-C again to end the run at once'
)


def train_and_evaluate(
  config: dict,
  workdir: str,
  data_dir: str | None = None,
  profile: str | None = None,
) -> dict:
  """Trains a network, or resumes its training, and writes its result.

  Args:
    config: the plain nested dict of configs/.
    workdir: the run directory. If it holds a run with this config, that resumes.
    data_dir: folder of TFDS data sets or of images; None: TFDS's default.
    profile: folder for a profile of some steps, see `Profiler`; None for no profile.

  Returns:
    The content of result.json: see `result.make_result`.

  Raises:
    UserError: for anything that the caller can fix; saved steps are kept.
  """
  entry_time = time.monotonic()
  if profile is not None:
    check_folder(profile)
  config_keys.check_config(config)
  # As if read from a file: lists for tuples, Python's numbers for NumPy's.
  config = json.loads(json.dumps(config, default=lambda value: value.item()))
  experiment = make_experiment(config, data_dir)
  source, data = experiment.source, _data_facts(experiment)
  if config['init_from'] and not resume.checkpoint_steps(workdir):
    # A bad checkpoint fails before the run folder is made.
    check_initial_weights(config['init_from'], config, source.num_channels)
  with contextlib.ExitStack() as stack:
    run_lock = run_directory.open_run(workdir, config, data)
    distributed.from_first(lambda: stack.enter_context(run_lock))
    finished = distributed.from_first(lambda: diverged_result(workdir))
    if finished:
      print_result(finished, workdir)
      return finished
    path = distributed.from_first(lambda: resume.choose_checkpoint(workdir))
    if path is not None:
      saved = checkpoint.read_description(path)
      run_directory.check_same_run(path, saved, config, data)
      distributed.from_first(lambda: resume.check_records(workdir, path))
    distributed.from_first(
      lambda: run_directory.record_start(workdir, config, data, source.origin())
    )
    state = _create_or_restore(experiment, path)
    print_summary(experiment, count_parameters(state.params))
    records = _train(experiment, workdir, state, entry_time, profile)
    result = distributed.from_first(
      lambda: _write_result(experiment, records, workdir)
    )
    print_result(result, workdir)
    return result


def _train(
  experiment: Experiment,
  workdir: str,
  state: TrainState,
  entry_time: float,
  profile: str | None,
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
    open_recorder(experiment, workdir, first_step, entry_time) as recorder,
    Profiler(profile, first_step, recorder.message) as profiler,
  ):
    loop = _Loop(
      experiment=experiment,
      checkpoints=checkpoints,
      recorder=recorder,
      profiler=profiler,
      stop_requests=stop_requests,
    )
    loop.train(state)
    return recorder.records


def _write_result(
  experiment: Experiment, records: list[dict], workdir: str
) -> dict:
  config = experiment.setup.config
  result = make_result(config, records, len(experiment.source))
  json_files.write_json(
    os.path.join(workdir, run_directory.RESULT_FILE), result
  )
  draw_learning_curve(experiment, records, workdir)
  return result


def _create_or_restore(experiment: Experiment, path: str | None) -> TrainState:
  """Restores the checkpoint `path`; if None, creates the initial state."""
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
    print(f'init from      {taken}')
  return state


@dataclasses.dataclass(frozen=True)
class _Loop:
  """The loop of one process. `step` is the number of updates so far.

  Attributes:
    experiment: the run.
    checkpoints, recorder, profiler, stop_requests: stay open until the loop ends.
  """

  experiment: Experiment
  checkpoints: checkpoint.Checkpoints
  recorder: Recorder
  profiler: Profiler
  stop_requests: StopRequests

  def train(self, state: TrainState) -> None:
    """Trains to the last step, or to the first non-finite one."""
    experiment, step = self.experiment, int(state.step)
    if step >= experiment.num_steps:
      if not distributed.from_first(self._has_evaluation):
        self._evaluate(step, state)
      return
    with contextlib.closing(experiment.batches(step)) as batches:
      self._run_steps(batches, state, step)

  def _has_evaluation(self) -> bool:
    return any(r['kind'] == 'eval' for r in self.recorder.records)

  def _run_steps(
    self, batches: DeviceBatches, state: TrainState, step: int
  ) -> None:
    experiment, options = self.experiment, self.experiment.options
    pending, first_step = [], step + 1
    self.recorder.compiling()
    for batch in batches:
      state, step_metrics = experiment.train_step(state, batch, experiment.rng)
      pending.append(step_metrics)
      if len(pending) > MAX_STEPS_AHEAD:
        jax.block_until_ready(pending[-1 - MAX_STEPS_AHEAD])
      step += 1
      self.profiler.after(step, step_metrics)
      if step == first_step:
        jax.block_until_ready(step_metrics)
        release_memory()
        self.recorder.first_step(step)
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
      self.recorder.replaced(step, batches.take_replaced())
      self.recorder.training(step, fetched, batches.take_wait_seconds())
      if fetched[-1]['first_nonfinite_step'] >= 0:
        return
      self._evaluate_and_save(step, state, is_eval, is_save)
      if stop_signal is not None and not is_last:
        self._stop(step, stop_signal)
      self.recorder.begin_interval(step)

  def _stop(self, step: int, stop_signal: int) -> None:
    # Save first: a scheduler may kill the process while it draws.
    self.checkpoints.wait()
    if distributed.is_first():
      self.recorder.draw()
    raise Interrupted(
      f'stopped by {signal.Signals(stop_signal).name} after step {step}, '
      'which is saved: the same command resumes from there',
      stop_signal,
    )

  def _evaluate_and_save(
    self, step: int, state: TrainState, is_eval: bool, is_save: bool
  ) -> None:
    self.checkpoints.check()  # raises if the last save has failed
    if is_eval or is_save:
      self._check_replicas(step, state)
    top1, is_evaluated = None, False
    try:
      if is_eval:
        top1 = self._evaluate(step, state)
      is_evaluated = True
    finally:
      # A failing evaluation must not cost the steps since the last save.
      if is_save or not is_evaluated:
        description = _description(self.experiment)
        checkpoint.save(self.checkpoints, state, description, top1)

  def _check_replicas(self, step: int, state: TrainState) -> None:
    differing = mesh.differing_leaves(state, self.experiment.setup.device_mesh)
    if differing:
      raise UserError(
        f'after step {step} the copies of {count(len(differing), "array")}, such '
        f'as {differing[0]}, differ between devices, so a device or a link is '
        'faulty: rerun the same command, which resumes from the newest '
        'checkpoint, or starts over if there is none'
      )

  def _evaluate(self, step: int, state: TrainState) -> float:
    """Evaluates and records; returns top-1 with moving averages, in percent."""
    experiment, variables = self.experiment, state.evaluation_variables
    values, population = self._evaluate_with(variables), {}
    num_batches = experiment.options.population_batches
    if num_batches and experiment.setup.norm_batch_size:
      population = self._evaluate_with(
        with_population_statistics(
          experiment.setup,
          variables,
          experiment.source,
          num_batches,
          experiment.setup.config['seed'],
        )
      )
    self.recorder.evaluation(step, values, population)
    return values['top1']

  def _evaluate_with(self, variables: dict) -> dict[str, float]:
    setup, source = self.experiment.setup, self.experiment.eval_source
    return evaluate(
      setup.eval_step,
      variables,
      setup.batches.evaluation(source),
      len(source),
    )


def _description(experiment: Experiment) -> dict:
  """What a checkpoint stores with the state, enough to evaluate it anywhere."""
  return {'config': experiment.setup.config, **_data_facts(experiment)}


def _data_facts(experiment: Experiment) -> dict:
  names = experiment.setup.config['source']
  return data_facts.describe(
    experiment.source,
    names['train_split'],
    experiment.eval_source,
    names['eval_split'],
  )
