"""What the summary finds in the parts of a report."""

from bn_inception.study import summary
from bn_inception.study.sections import make_section
from tests.study.study_files import study_runs, write_run


def find(name, runs):
  (part,) = make_section(name, runs.values()).parts
  return summary.find(part)


def test_figure_2_says_how_many_times_fewer_steps_and_what_the_paper_found(
  tmp_path,
):
  runs = study_runs('figure2', tmp_path, seeds=(0,))
  write_run(runs['Inception', 0], {100: 50.0, 200: 60.0, 300: 70.0})
  write_run(runs['BN-x5', 0], {100: 80.0}, {100: 80.0})
  write_run(runs['BN-x30', 0], {100: 65.0}, {100: 65.0})
  text = find('figure2', runs)
  # 31.0 million steps in 2.1 million, and in 2.7 million.
  assert 'BN-x5: 3.00 (paper: 14.8)' in text
  assert 'BN-x30: not reached (paper: 11.5)' in text
  assert 'BN-x5: 80.00 (one seed); Inception: 70.00 (one seed)' in text
  assert text.index('Inception: 70') < text.index('BN-x30: 65')
  assert 'BN-Baseline: not run' in text


def test_differences_that_are_resolved(tmp_path):
  runs = study_runs('leave_one_out', tmp_path)
  arms = list(dict.fromkeys(arm for arm, _ in runs))
  for (arm, seed), run in runs.items():
    # The first arm is the base; the third one is 9 points worse for each seed.
    final = 80.0 + seed - (9.0 + 0.1 * seed if arm == arms[2] else 0.0)
    write_run(run, {100: final}, {100: final}, final)
  text = find('leave_one_out', runs)
  assert f'{arms[2]}: -9.10 ± 0.25' in text
  assert 'Not resolved: 6 of 7' in text and arms[1] not in text


def test_eight_arms_are_listed_and_an_unfinished_study_has_found_nothing(
  tmp_path,
):
  runs = study_runs('learning_rates', tmp_path, seeds=(0,))
  assert find('learning_rates', runs) == ''
  for number, run in enumerate(runs.values()):
    write_run(run, {100: 50.0}, {100: 50.0}, 50.0 + number)
  text = find('learning_rates', runs)
  assert text.count('(one seed)') == 8
  assert text.startswith('Final accuracy (%): Inception-x100: 57.00')


def test_long_list_is_cut(tmp_path):
  runs = study_runs('figure1_rates', tmp_path, tasks=('mnist',), seeds=(0,))
  assert len(runs) > 8
  for number, run in enumerate(runs.values()):
    write_run(run, {100: 50.0 + number})
  text = find('figure1_rates', runs)
  assert text.count('(one seed)') == 2 and '; ...; ' in text
  assert ': 50.00 (one seed).' in text
