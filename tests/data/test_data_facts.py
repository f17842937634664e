"""The facts of a data set that are stored and compared."""

import json

from bn_inception.data import data_facts
from bn_inception.data.sources import make_source


def test_facts_describe_the_splits():
  source = make_source('digits', 'train')
  evaluated = make_source('digits', 'test')
  facts = data_facts.describe(source, 'train', evaluated, 'test')
  assert (
    facts
    == json.loads(json.dumps(facts))
    == {
      'dataset': 'digits',
      'split': 'train',
      'class_names': list('0123456789'),
      'num_channels': 1,
      'num_examples': 1442,
      'eval_split': 'test',
      'num_eval_examples': 355,
    }
  )
  network = data_facts.describe_network(evaluated)
  assert network == {k: facts[k] for k in ('class_names', 'num_channels')}


def test_the_first_difference_is_named():
  stored = {
    'config': {'seed': 0}, 'class_names': ['a', 'b'], 'num_channels': 3,
    'num_examples': 48, 'eval_split': 'test', 'num_eval_examples': 8,
    'fingerprint': 'f', 'eval_fingerprint': 'e',
  }  # fmt: skip
  for given, expected in (
    ({'num_channels': 3, 'class_names': ['a', 'b']}, None),
    ({'num_channels': 1, 'num_examples': 4}, 'colour channels: 3 -> 1'),
    ({'class_names': ['b', 'a'], 'num_channels': 1}, 'class 0: a -> b'),
    ({'class_names': ['a']}, 'number of classes: 2 -> 1'),
    ({'num_examples': 49}, 'training examples: 48 -> 49'),
    ({'eval_split': 'test', 'eval_fingerprint': 'e'}, None),
    ({'eval_split': 'val'}, 'evaluation split: test -> val'),
    ({'num_eval_examples': 7}, 'evaluation examples: 8 -> 7'),
    ({'dataset': 'pets'}, None),  # it was not stored
  ):
    assert data_facts.first_difference(stored, given) == expected

  def difference(**given):
    return data_facts.first_difference(stored, given)

  assert 'files of the training split' in difference(fingerprint='g')
  assert 'files of the evaluation split' in difference(eval_fingerprint='g')
