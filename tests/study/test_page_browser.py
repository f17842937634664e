"""The page of the report in Chromium: wide and narrow, light and dark."""

import io
import itertools
import json
import pathlib
import re
import shutil
import urllib.parse
import urllib.request

import numpy as np
import PIL.Image
import pytest

from bn_inception.study import report
from bn_inception.study import runs as study_runs
from tests.study.study_files import write_many

pytestmark = pytest.mark.peers
playwright = pytest.importorskip('playwright.sync_api')

NAMES = (
  'figure1', 'base_rate', 'figure2', 'leave_one_out', 'batch_statistics',
  'learning_rates',
)  # fmt: skip
HEIGHT = 900
VIEWS = list(itertools.product((1280, 390), ('light', 'dark')))
PLOT = 'figure2_fashion_mnist_5k'


@pytest.fixture(scope='module')
def page_path(tmp_path_factory):
  root = tmp_path_factory.mktemp('study')
  selection = study_runs.Selection(str(root / 'runs'))
  for name in NAMES:
    write_many(study_runs.list_runs(name, selection))
  report.make_report(NAMES, selection, str(root / 'out'))
  return root / 'out' / 'report.html'


@pytest.fixture(scope='module')
def browser():
  path = shutil.which('chromium')
  if path is None:
    pytest.skip('Chromium is not installed: apt-get install chromium')
  with playwright.sync_playwright() as driver:
    started = driver.chromium.launch(
      executable_path=path, args=['--no-sandbox']
    )
    yield started
    started.close()


class Opened:
  """A page, with what it complained of and what it asked for."""

  def __init__(self, browser, path, width, scheme):
    self.context = browser.new_context(
      viewport={'width': width, 'height': HEIGHT}, color_scheme=scheme
    )
    self.page = self.context.new_page()
    self.complaints, self.requests = [], []
    self.page.on('console', lambda m: self.complaints.append(m.text))
    self.page.on('pageerror', lambda e: self.complaints.append(str(e)))
    self.page.on('request', lambda r: self.requests.append(r.url))
    self.page.goto(path.as_uri())
    self.page.wait_for_selector('.chart svg', state='attached')


@pytest.fixture
def open_page(browser):
  opened = []

  def open_one(path, width=1280, scheme='light'):
    opened.append(Opened(browser, path, width, scheme))
    return opened[-1]

  yield open_one
  for one in opened:
    one.context.close()


def figure_of(page, name=PLOT):
  figure = page.locator(f'figure[data-plot="{name}"]')
  figure.scroll_into_view_if_needed()
  return figure


def rgb(text):
  return np.array([int(n) for n in re.findall(r'\d+', text)[:3]])


def count_pixels(page, name):
  """Label -> pixels of the curve's colour, in the plot without its legend."""
  figure = figure_of(page, name)
  toggles = figure.locator('.legend button')
  picture = PIL.Image.open(io.BytesIO(figure.locator('.chart').screenshot()))
  image, found = np.asarray(picture.convert('RGB')).astype(int), {}
  for i in range(toggles.count()):
    toggle = toggles.nth(i)
    stroke = toggle.locator('.curve').evaluate(
      'e => getComputedStyle(e).stroke'
    )
    label = toggle.locator('.curve').get_attribute('data-label')
    is_near = np.abs(image - rgb(stroke)).max(axis=-1) < 24
    found[label] = int(is_near.sum())
  return found


@pytest.mark.parametrize('width, scheme', VIEWS)
def test_page_is_quiet_and_fits(page_path, open_page, width, scheme):
  opened = open_page(page_path, width, scheme)
  page = opened.page
  assert opened.complaints == []
  assert opened.requests[0] == page_path.as_uri()
  assert all(r.startswith(('file:', 'data:')) for r in opened.requests)
  scroll, inner = page.evaluate(
    '[document.documentElement.scrollWidth, innerWidth]'
  )
  assert inner == width and scroll <= inner
  for details in page.locator('details').all()[:3]:
    details.evaluate('e => { e.open = true; }')
  assert page.evaluate('document.documentElement.scrollWidth') <= inner


@pytest.mark.parametrize('width, scheme', VIEWS)
def test_all_curves_are_drawn(page_path, open_page, width, scheme):
  page = open_page(page_path, width, scheme).page
  plots = json.loads(page.locator('#plots').text_content())
  assert len(plots) > 10
  for name, plot in plots.items():
    figure = figure_of(page, name)
    lengths = figure.locator('.chart .curve').evaluate_all(
      'e => e.map(c => c.getTotalLength())'
    )
    # No text is cut off.
    cut = figure.locator('.chart text').evaluate_all(
      't => t.filter(e => { const a = e.getBoundingClientRect(),'
      ' b = e.closest("svg").getBoundingClientRect();'
      ' return a.left < b.left - 1 || a.right > b.right + 1; })'
      '.map(e => e.textContent)'
    )
    assert cut == [], name
    if plot['bars']:
      widths = figure.locator('.bar').evaluate_all(
        'e => e.map(b => b.getBoundingClientRect().width)'
      )
      drawn = [b for b in plot['bars'] if b['value'] is not None]
      assert len(widths) == len(drawn) > 0 and min(widths) > 1, name
      continue
    curves = next(iter(plot['variants'].values()))
    assert len(lengths) == sum(bool(c['points']) for c in curves), name
    assert min(lengths) > 20, name


@pytest.mark.parametrize('width, scheme', VIEWS)
def test_every_curve_is_seen(page_path, open_page, width, scheme):
  counts = count_pixels(open_page(page_path, width, scheme).page, PLOT)
  assert len(counts) == 7
  assert min(counts.values()) > 40, counts


def test_emptied_page_shows_no_curve(page_path, open_page, tmp_path):
  emptied = re.sub(r'"points": \[.*?\]', '"points": []', page_path.read_text())
  emptied = re.sub(r'"crosses": \[.*?\]', '"crosses": []', emptied)
  emptied = re.sub(r'"mark": \{.*?\}', '"mark": null', emptied)
  path = tmp_path / 'emptied.html'
  path.write_text(emptied)
  opened = open_page(path)
  counts = count_pixels(opened.page, PLOT)
  assert opened.complaints == []
  assert len(counts) == 7
  assert max(counts.values()) < 40, counts
  assert 'not run' in figure_of(opened.page).locator('.chart').text_content()


def test_line_does_not_cross_a_divergence(page_path, open_page):
  page = open_page(page_path).page
  figure = figure_of(page, 'learning_rates_fashion_mnist_5k')
  lines = figure.locator('.chart .curve')
  found = lines.evaluate_all('e => e.map(c => c.getAttribute("d"))')
  # Without BN the factor 5 diverged, between 1 and 30.
  assert [path.count('M') for path in found] == [1, 2]
  assert figure.locator('.chart .cross').count() == 1


@pytest.mark.parametrize('width', (1280, 390))
def test_hover_shows_the_value(page_path, open_page, width):
  page = open_page(page_path, width).page
  plot = json.loads(page.locator('#plots').text_content())[PLOT]
  curve = plot['variants']['population'][2]
  figure = figure_of(page)
  line = figure.locator('.chart .curve[data-label="BN-x5"]')
  # Where the last point is drawn.
  x, y = line.evaluate(
    'e => { const p = e.getPointAtLength(e.getTotalLength());'
    ' const m = e.getScreenCTM(); return [p.x + m.e, p.y + m.f]; }'
  )
  assert not figure.locator('.tooltip').is_visible()
  page.mouse.move(x - 1, y + 1)
  text = figure.locator('.tooltip').text_content()
  last = curve['points'][-1]
  # 92 - 5 + 0.8 (mean of the seeds) + 2 - 45 / (1 + 8) after 2000 steps.
  assert last['value'] == pytest.approx(84.8)
  assert text.startswith('BN-x5\nsteps: 2,000\naccuracy (%): 84.80\n')
  assert text.endswith('84.00 to 85.60 in 3 seeds')
  box = figure.locator('.tooltip').bounding_box()
  assert box['x'] >= 0 and box['x'] + box['width'] <= width
  assert page.evaluate('document.documentElement.scrollWidth') <= width
  page.mouse.move(0, 0)
  assert not figure.locator('.tooltip').is_visible()


def test_legend_switches_curves_by_mouse_and_keyboard(page_path, open_page):
  page = open_page(page_path).page
  figure = figure_of(page)
  line = figure.locator('.chart .curve[data-label="BN-x5"]')
  button = figure.get_by_role('button', name='BN-x5', exact=True)
  assert button.get_attribute('aria-pressed') == 'true' and line.count() == 1
  button.click()
  assert button.get_attribute('aria-pressed') == 'false' and line.count() == 0
  assert count_pixels(page, PLOT)['BN-x5'] < 40
  button.focus()
  page.keyboard.press('Space')
  assert button.get_attribute('aria-pressed') == 'true' and line.count() == 1
  page.keyboard.press('Enter')
  assert button.get_attribute('aria-pressed') == 'false' and line.count() == 0


def test_statistics_are_switched(page_path, open_page):
  page = open_page(page_path).page
  figure = figure_of(page)
  line = figure.locator('.chart .curve[data-label="BN-x5"]')
  before = line.get_attribute('d')
  figure.get_by_role('button', name='moving averages').click()
  assert line.get_attribute('d') != before
  figure.get_by_role('button', name='population').click()
  assert line.get_attribute('d') == before


@pytest.mark.parametrize('scheme', ('light', 'dark'))
def test_button_changes_the_scheme(page_path, open_page, scheme):
  page = open_page(page_path, scheme=scheme).page

  def ground():
    return rgb(
      page.evaluate('getComputedStyle(document.body).backgroundColor')
    ).sum()

  before = ground()
  assert (before > 600) == (scheme == 'light')
  page.locator('#theme').click()
  assert (ground() > 600) == (scheme == 'dark')
  page.locator('#theme').click()
  assert ground() == before


def test_links_lead_to_files(page_path, open_page):
  page = open_page(page_path).page
  addresses = page.locator('main a').evaluate_all('e => e.map(a => a.href)')
  assert len(addresses) > 100
  for address in set(addresses):
    path = urllib.request.url2pathname(urllib.parse.urlparse(address).path)
    assert pathlib.Path(path).exists(), address
