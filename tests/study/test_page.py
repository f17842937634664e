"""The page and the Markdown: links, escapes and what they say."""

import dataclasses
import html
import html.parser
import json
import re

import pytest

from bn_inception.study import page as report_page
from bn_inception.study.page import Report
from bn_inception.study.sections import make_section
from tests.study.study_files import study_runs, write_run

HOSTILE = '</script><script>alert(1)</script>&"\'|'


@pytest.fixture
def report(tmp_path):
  runs = study_runs('figure2', tmp_path)
  for seed in (0, 1):
    write_run(runs['Inception', seed], {100: 50.0 + seed, 200: 60.0 + seed})
  section = make_section('figure2', runs.values())
  return Report(
    facts={'code': 'abcd'},
    costs=[['study', 'core-hours'], ['figure2', '1.25']],
    cost_rule='Counted so.',
    sections=[section],
    figures={'figure2_digits': ['figure2_digits']},
    files={o.name: 'figure2.jsonl' for o in section.outcomes},
  )


class Parser(html.parser.HTMLParser):
  """Collects addresses, texts of scripts, and elements that do not match."""

  VOID = {'meta', 'link', 'br', 'img'}

  def __init__(self, text):
    super().__init__()
    self.open, self.addresses, self.scripts, self.ids = [], [], [], []
    self.feed(text)

  def handle_starttag(self, tag, attributes):
    attributes = dict(attributes)
    self.ids += [attributes['id']] if 'id' in attributes else []
    self.addresses += [
      attributes[k] for k in ('href', 'src') if k in attributes
    ]
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open and self.open[-1] == 'script':
      self.scripts.append(data)


def test_page_is_whole_and_its_links_are_relative(report):
  parsed = Parser(report_page.make_html(report))
  assert parsed.open == []
  names = [o.name for o in report.sections[0].outcomes]
  assert len(names) == 2
  for name in names:
    assert parsed.addresses.count(f'figure2.jsonl#{name}') == 1
  assert 'figures/figure2_digits.svg' in parsed.addresses
  assert 'tables/curves.csv' in parsed.addresses
  outside = [a for a in parsed.addresses if re.match('[a-z]+:|/', a)]
  assert outside == ['data:,']
  inside = [a[1:] for a in parsed.addresses if a.startswith('#')]
  assert inside == ['figure2', 'cost', 'origin']
  assert set(inside) <= set(parsed.ids)


def test_page_has_plotly_once_and_a_chart_of_each_kind_of_statistics(report):
  part = report.sections[0].parts[0]
  curves = next(iter(part.plots[0].variants.values()))
  kinds = {'population': curves, 'moving averages': curves}
  part.plots[0] = dataclasses.replace(part.plots[0], variants=kinds)
  names = ['figure2_digits', 'figure2_digits_moving']
  report = dataclasses.replace(report, figures={'figure2_digits': names})
  parsed = Parser(report_page.make_html(report))
  assert [i for i in parsed.ids if 'chart' in i] == ['chart-0', 'chart-1']
  assert sum(len(script) > 1e6 for script in parsed.scripts) == 1
  assert sum('Plotly.newPlot(' in s for s in parsed.scripts) == 2
  assert 'figures/figure2_digits_moving.svg' in parsed.addresses


def test_sections_are_in_the_order_of_the_summary(report):
  others = [
    dataclasses.replace(report.sections[0], name=name)
    for name in ('base_rate', 'own')
  ]
  report = dataclasses.replace(report, sections=[*others, *report.sections])
  ids = Parser(report_page.make_html(report)).ids
  expected = ['figure2', 'own', 'base_rate']
  assert [i for i in ids if i in expected] == expected
  heads = re.findall(r'(?m)^## (\w+)$', report_page.make_markdown(report))
  assert heads == ['Summary', *expected, 'Cost', 'Origin']


def test_page_and_markdown_say_what_is_missing_and_what_it_cost(report):
  page, text = (
    f(report) for f in (report_page.make_html, report_page.make_markdown)
  )
  # Of six arms: the state, the steps in two units, the factor and three means.
  assert page.count('<td>not run</td>') == 6 * 7
  assert '<summary>2 of 3 runs</summary>' in page
  assert '<td>figure2</td><td>1.25</td>' in page
  assert '<dt>code</dt><dd>abcd</dd>' in page
  row = next(
    line for line in text.splitlines() if line.startswith('| Inception |')
  )
  # t = 12.706 of one degree of freedom, times 0.7071 / sqrt(2).
  assert '| 60.50 ± 6.35 |' in row
  name = report.sections[0].outcomes[0].name
  assert '| <details><summary>2 of 3 runs</summary><br>seed 0: [' in row
  assert f'seed 0: [{name}](figure2.jsonl#{name})' in row
  assert '| figure2 | 1.25 |' in text and '- code: abcd' in text
  assert '](figures/figure2_digits.svg)' in text
  for found in (page, text):
    assert 'Best validation accuracy (%): Inception: 60.50 ± 6.35' in found


def test_every_text_is_escaped(report):
  section = report.sections[0]
  part = section.parts[0]
  plot = dataclasses.replace(
    part.plots[0], title=HOSTILE, x_label=HOSTILE, name=HOSTILE
  )
  table = dataclasses.replace(
    part.tables[0], title=HOSTILE, columns=(HOSTILE,) * 9
  )
  part = dataclasses.replace(
    part, task=HOSTILE, notes=[HOSTILE], plots=[plot], tables=[table]
  )
  section = dataclasses.replace(
    section, name=HOSTILE, title=HOSTILE, parts=[part]
  )
  report = dataclasses.replace(
    report,
    facts={HOSTILE: HOSTILE},
    costs=[[HOSTILE], [HOSTILE]],
    cost_rule=HOSTILE,
    sections=[section],
    figures={HOSTILE: [HOSTILE]},
  )
  page = report_page.make_html(report)
  assert 'alert(1)</script>' not in page
  parsed = Parser(page)
  assert parsed.open == []
  # Plotly reads HTML in its texts.
  chart = next(s for s in parsed.scripts if 'Plotly.newPlot(' in s)
  escaped = json.dumps(html.escape(HOSTILE)).replace('/', '\\u002f')
  assert escaped in chart
  # In Markdown a bar in a text is no end of a cell.
  rows = report_page.make_markdown(report).splitlines()
  head = next(row for row in rows if row.startswith('| ' + HOSTILE[:5]))
  assert len(re.findall(r'(?<!\\)\|', head)) == 11
