"""The report's page in Chromium, on a wide screen and a phone."""

import pathlib
import shutil
import urllib.parse
import urllib.request

import pytest

from bn_inception.study import report
from bn_inception.study import runs as study_runs
from tests.study.study_files import write_many

pytestmark = pytest.mark.peers
playwright = pytest.importorskip('playwright.sync_api')

NAMES = 'figure1', 'figure2', 'leave_one_out', 'learning_rates'
WIDE, PHONE = 1280, 390
HEIGHT = 900
LINES = '.scatterlayer .js-line'


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


@pytest.fixture(params=[WIDE, PHONE])
def page(request, browser, page_path):
  """The page; a message in its console or a request of its own is an error."""
  context = browser.new_context(
    viewport={'width': request.param, 'height': HEIGHT}
  )
  opened = context.new_page()
  complaints, requests = [], []
  opened.on('console', lambda message: complaints.append(message.text))
  opened.on('pageerror', lambda error: complaints.append(str(error)))
  opened.on('request', lambda request: requests.append(request.url))
  opened.goto(page_path.as_uri())
  yield opened
  context.close()
  assert complaints == []
  assert requests == [page_path.as_uri()]


def test_every_plot_is_drawn(page):
  charts = page.locator('.js-plotly-plot').all()
  # Figure 1 has three for each of two data sets, Figure 2 two for each of two.
  assert len(charts) == 12
  for chart in charts:
    assert chart.locator('.main-svg').first.bounding_box()['height'] > 300
    drawn = chart.locator('.scatterlayer .js-line, .barlayer .point path')
    sizes = drawn.evaluate_all('e => e.map(line => line.getTotalLength())')
    assert sum(size > 5 for size in sizes) >= 2


def test_only_tables_scroll_sideways(page):
  for details in page.locator('details').all()[:3]:
    details.evaluate('e => { e.open = true; }')
  width = page.viewport_size['width']
  assert page.evaluate('document.documentElement.scrollWidth') == width
  for box in page.locator('.scroll').all():
    is_wide = box.evaluate('e => e.scrollWidth > e.clientWidth')
    hint = box.locator('xpath=..').locator('.hint')
    assert hint.is_visible() == is_wide
  assert page.locator('.hint').first.is_visible() or width == WIDE


def test_hover_and_legend(page):
  chart = page.locator('.js-plotly-plot').first
  chart.scroll_into_view_if_needed()
  line = chart.locator(LINES).nth(2)
  x, y = line.evaluate(
    'e => { const p = e.getPointAtLength(e.getTotalLength());'
    ' const m = e.getScreenCTM(); return [p.x + m.e, p.y + m.f]; }'
  )
  page.mouse.move(x - 1, y + 1)
  text = chart.locator('.hovertext').text_content()
  # 92 - 5 + 0.8 (mean of the seeds) + 2 - 45 / (1 + 8) after 2000 steps.
  assert 'BN-x5' in text and '2,000' in text and '84.8' in text
  assert '84.00 to 85.60 in 3 seeds' in text
  count = chart.locator(LINES).count()
  chart.locator('.legendtoggle').nth(2).click()
  page.wait_for_timeout(500)  # for a second click
  assert chart.locator(LINES).count() == count - 1


def test_links_lead_to_files(page):
  addresses = page.locator('main a').evaluate_all('e => e.map(a => a.href)')
  assert len(addresses) > 100
  for address in set(addresses):
    path = urllib.request.url2pathname(urllib.parse.urlparse(address).path)
    assert pathlib.Path(path).exists(), address
