'use strict';
// Draws the plots that report_sections.py made, into each <figure data-plot>.

const PLOTS = JSON.parse(document.getElementById('plots').textContent);
const NUM_COLOURS = 8, NUM_MARKERS = 12, BAR_HEIGHT = 44;
const DASHES =
  ['', '9 4', '2 3', '12 4 2 4', '6 3', '16 5', '4 5', '5 3 1 3'];
// Around 0; as matplotlib's circle, square, triangles, diamond, plus and cross.
const MARKERS = [
  'M-3 0a3 3 0 1 0 6 0a3 3 0 1 0 -6 0z', 'M-3 -3h6v6h-6z',
  'M0 -4l4 7h-8z', 'M0 -4l4 4l-4 4l-4 -4z', 'M0 4l4 -7h-8z',
  'M-1 -4h2v3h3v2h-3v3h-2v-3h-3v-2h3z',
  'M-4 -2l2 -2l2 2l2 -2l2 2l-2 2l2 2l-2 2l-2 -2l-2 2l-2 -2l2 -2z',
  'M0 -4l1 3h3l-2 2l1 3l-3 -2l-3 2l1 -3l-2 -2h3z',
];

function svg(parent, name, attributes, text) {
  const node = document.createElementNS('http://www.w3.org/2000/svg', name);
  for (const [key, value] of Object.entries(attributes)) {
    node.setAttribute(key, value);
  }
  if (text !== undefined) node.textContent = text;
  return parent.appendChild(node);
}

function html(parent, name, attributes, text) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    node.setAttribute(key, value);
  }
  if (text !== undefined) node.textContent = text;
  return parent.appendChild(node);
}

const number = (value, digits = 2) => value.toLocaleString(
  'en', {minimumFractionDigits: digits, maximumFractionDigits: digits});
const short = value => Number(value.toPrecision(6)).toLocaleString(
  'en', {maximumFractionDigits: 6});
const colour = curve => `--c: var(--series-${curve.colour % NUM_COLOURS})`;

function linearTicks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find(f => f * power >= 0.7 * rough);
  const ticks = [];
  const last = Math.floor(high / step + 1e-9);
  for (let i = Math.ceil(low / step - 1e-9); i <= last; ++i) {
    ticks.push(i * step);
  }
  return ticks;
}

function logTicks(low, high, count) {
  for (const factors of [[1, 2, 5], [1, 3], [1]]) {
    const ticks = [];
    for (let k = Math.floor(Math.log10(low)); 10 ** k <= high; ++k) {
      ticks.push(...factors.map(f => f * 10 ** k));
    }
    const inside = ticks.filter(t => t >= low * 0.999 && t <= high * 1.001);
    if (inside.length <= count) return inside;
  }
  return [low, high];
}

// From values to pixels; a range of one value is widened.
function scale([low, high], [first, last], isLog) {
  if (low === high) {
    [low, high] = isLog ? [low / 2, low * 2] : [low - 1, low + 1];
  }
  const f = isLog ? Math.log : x => x;
  const of = x => first + (last - first) * (f(x) - f(low)) / (f(high) - f(low));
  of.ticks = count => (isLog ? logTicks : linearTicks)(low, high, count);
  return of;
}

function extent(values, fallback) {
  return values.length ? [Math.min(...values), Math.max(...values)] : fallback;
}

// Parts of a line that crosses no break.
function split(points, breaks) {
  const segments = [];
  points.forEach((p, i) => {
    const isCut = i === 0 || breaks.some(x => points[i - 1].x < x && x < p.x);
    if (isCut) segments.push([]);
    segments.at(-1).push(p);
  });
  return segments;
}

class Chart {
  constructor(figure) {
    this.plot = PLOTS[figure.dataset.plot];
    this.kinds = Object.keys(this.plot.variants);
    this.kind = this.kinds[0];
    this.hidden = new Set();
    this.place = figure.querySelector('.chart');
    if (this.kinds.length > 1) this.addChoice();
    this.tooltip = html(figure, 'div', {class: 'tooltip', role: 'status'});
    this.tooltip.hidden = true;
    this.legend = html(figure, 'div', {class: 'buttons legend'});
    figure.insertBefore(this.legend, figure.querySelector('.files'));
    if (!this.plot.bars.length) this.curves.forEach(c => this.addToggle(c));
    this.draw();
    new ResizeObserver(() => this.resize()).observe(this.place);
  }

  get curves() { return this.plot.variants[this.kind]; }

  addChoice() {
    const group = html(this.place.parentNode, 'div', {
      class: 'buttons choice', role: 'group', 'aria-label': 'statistics'});
    this.place.parentNode.insertBefore(group, this.place);
    for (const kind of this.kinds) {
      const button = html(group, 'button', {
        type: 'button', 'aria-pressed': kind === this.kind}, kind);
      button.onclick = () => {
        this.kind = kind;
        for (const b of group.children) {
          b.setAttribute('aria-pressed', b === button);
        }
        this.draw();
      };
    }
  }

  addToggle(curve) {
    const button = html(this.legend, 'button', {
      type: 'button', 'aria-pressed': true, style: colour(curve)});
    const swatch = svg(
      button, 'svg', {viewBox: '0 0 34 12', 'aria-hidden': true});
    this.drawLine(swatch, curve, 'M0 6H34', [[17, 6]]);
    const note = curve.note ? ` (${curve.note})` : '';
    button.append(curve.label + note);
    button.onclick = () => {
      if (!this.hidden.delete(curve.label)) this.hidden.add(curve.label);
      button.setAttribute('aria-pressed', !this.hidden.has(curve.label));
      this.draw();
    };
  }

  drawLine(parent, curve, path, markers) {
    svg(parent, 'path', {
      class: 'curve', d: path, 'data-label': curve.label,
      'stroke-dasharray': DASHES[curve.dash % DASHES.length]});
    for (const [x, y] of markers) {
      svg(parent, 'path', {
        class: 'marker', d: MARKERS[curve.colour % MARKERS.length],
        transform: `translate(${x} ${y})`});
    }
  }

  resize() {
    if (this.place.clientWidth !== this.width) {
      requestAnimationFrame(() => this.draw());
    }
  }

  draw() {
    const width = this.width = this.place.clientWidth;
    this.tooltip.hidden = true;
    this.place.replaceChildren();
    this.targets = [];
    const height = this.plot.bars.length
      ? BAR_HEIGHT * this.plot.bars.length + 60
      : Math.min(420, Math.max(280, width / 2));
    this.root = svg(this.place, 'svg', {
      viewBox: `0 0 ${width} ${height}`, height, role: 'img',
      'aria-label': this.plot.title});
    this.root.onpointermove = event => this.point(event);
    this.root.onpointerdown = event => this.point(event);
    this.root.onpointerleave = () => this.leave();
    (this.plot.bars.length ? this.drawBars : this.drawCurves)
      .call(this, width, height);
    this.here = svg(
      this.root, 'circle', {class: 'here', r: 6, visibility: 'hidden'});
  }

  drawAxes(x, y, box) {
    for (const tick of x.ticks(box.width < 500 ? 5 : 9)) {
      svg(this.root, 'path', {
        class: 'axis', d: `M${x(tick)} ${box.top}V${box.bottom}`});
      svg(this.root, 'text', {
        x: x(tick), y: box.bottom + 16, 'text-anchor': 'middle'}, short(tick));
    }
    svg(this.root, 'text', {
      x: box.right, y: box.bottom + 34, 'text-anchor': 'end'},
      this.plot.x_label);
    for (const tick of y ? y.ticks(6) : []) {
      svg(this.root, 'path', {
        class: 'axis', d: `M${box.left} ${y(tick)}H${box.right}`});
      svg(this.root, 'text', {
        x: box.left - 6, y: y(tick) + 4, 'text-anchor': 'end'}, short(tick));
    }
    svg(this.root, 'text', {x: 0, y: 12}, this.plot.y_label);
  }

  drawCurves(width, height) {
    const plot = this.plot, box = {
      left: 44, right: width - 26, top: 24, bottom: height - 42, width};
    // Of all kinds and all curves, so that switching moves no axis.
    const all = Object.values(plot.variants).flat();
    const points = all.flatMap(c => c.points);
    const xs = points.map(p => p.x).concat(all.flatMap(c => c.crosses));
    const ys = points.flatMap(p => [p.low, p.high]);
    if (plot.level !== null) ys.push(plot.level);
    const x = scale(extent(xs, [1, 10]), [box.left, box.right], plot.is_log_x);
    let [low, high] = extent(ys, [0, 1]);
    const room = 0.04 * (high - low);
    const y = scale(
      plot.y_range || [low - room, high + room], [box.bottom, box.top]);
    this.drawAxes(x, y, box);
    if (!points.length) {
      svg(this.root, 'text', {
        class: 'strong', x: width / 2, y: height / 2, 'text-anchor': 'middle'},
        'not run');
    }
    const clip = `clip-${plot.name}`;
    svg(svg(this.root, 'clipPath', {id: clip}), 'rect', {
      x: box.left - 9, y: box.top - 5, width: box.right - box.left + 18,
      height: box.bottom - box.top + 10});
    if (plot.level !== null) {
      svg(this.root, 'path', {
        class: 'level', d: `M${box.left} ${y(plot.level)}H${box.right}`});
    }
    for (const curve of this.curves.filter(c => !this.hidden.has(c.label))) {
      const group = svg(this.root, 'g', {
        style: colour(curve), 'clip-path': `url(#${clip})`});
      this.drawCurve(group, curve, x, y, box);
    }
  }

  drawCurve(group, curve, x, y, box) {
    const line = (points, name) =>
      points.map(p => `${x(p.x)} ${y(p[name])}`).join('L');
    const points = curve.points;
    const every = Math.max(1, Math.floor(points.length / NUM_MARKERS));
    const segments = split(points, curve.breaks);
    if (points.length) {
      const bands = segments.map(
        s => `M${line(s, 'high')}L${line([...s].reverse(), 'low')}Z`);
      svg(group, 'path', {class: 'band', d: bands.join('')});
      const shown = points.filter((_, i) => i % every === 0);
      const lines = segments.map(s => 'M' + line(s, 'value'));
      this.drawLine(group, curve, lines.join(''),
        shown.map(p => [x(p.x), y(p.value)]));
    }
    for (const p of points) {
      if (y(p.value) > box.bottom + 5) continue;  // below the axis
      const seeds = p.count > 1
        ? `\n${number(p.low)} to ${number(p.high)} in ${p.count} seeds`
        : '\none seed';
      this.targets.push({
        x: x(p.x), y: y(p.value), text:
        `${curve.label}\n${this.plot.x_label}: ${short(p.x)}\n` +
        `${this.plot.y_label}: ${number(p.value)}${seeds}`});
    }
    if (curve.mark) {
      svg(group, 'path', {
        class: 'mark', d: 'M0 -7l7 7l-7 7l-7 -7z',
        transform: `translate(${x(curve.mark.x)} ${y(curve.mark.value)})`});
    }
    for (const cross of curve.crosses) {
      svg(group, 'path', {
        class: 'cross', d: 'M-5 -5L5 5M-5 5L5 -5',
        transform: `translate(${x(cross)} ${box.bottom - 8})`});
      this.targets.push({
        x: x(cross), y: box.bottom - 8,
        text: `${curve.label}\n${this.plot.x_label}: ${short(cross)}\n` +
        'diverged'});
    }
  }

  drawBars(width, height) {
    const bars = this.plot.bars, box = {
      left: 26, right: width - 26, top: 16, bottom: height - 42, width};
    const ends = bars.filter(b => b.value !== null).flatMap(
      b => [b.value - (b.margin || 0), b.value + (b.margin || 0)]);
    const x = scale(extent([0, ...ends]), [box.left, box.right]);
    this.drawAxes(x, null, box);
    bars.forEach((bar, i) => {
      const top = box.top + i * BAR_HEIGHT, middle = top + 29;
      svg(this.root, 'text', {class: 'strong', x: 0, y: top + 14},
        bar.value === null ? bar.label : `${bar.label}: ${bar.text}`);
      if (bar.value === null) {
        svg(this.root, 'text', {x: 0, y: middle + 4}, bar.text);
        return;
      }
      const pale = bar.margin === null || Math.abs(bar.value) <= bar.margin;
      svg(this.root, 'rect', {
        class: pale ? 'bar pale' : 'bar', style: '--c: var(--series-0)',
        'data-label': bar.label, x: Math.min(x(0), x(bar.value)), y: middle - 8,
        width: Math.abs(x(bar.value) - x(0)), height: 16});
      if (bar.margin !== null) {
        const low = x(bar.value - bar.margin), high = x(bar.value + bar.margin);
        svg(this.root, 'path', {
          class: 'whisker', d: `M${low} ${middle}H${high}` +
          `M${low} ${middle - 4}v8M${high} ${middle - 4}v8`});
      }
      this.targets.push({
        x: x(bar.value), y: middle, text: `${bar.label}\n${bar.text}`});
    });
    svg(this.root, 'path', {
      class: 'whisker', d: `M${x(0)} ${box.top}V${box.bottom}`});
  }

  // Shows the point nearest to the pointer.
  point(event) {
    const bounds = this.root.getBoundingClientRect();
    const px = event.clientX - bounds.left, py = event.clientY - bounds.top;
    const distance = t => Math.hypot(t.x - px, t.y - py);
    if (!this.targets.length) return;
    const nearest = this.targets.reduce(
      (a, b) => distance(b) < distance(a) ? b : a);
    this.here.setAttribute('cx', nearest.x);
    this.here.setAttribute('cy', nearest.y);
    this.here.setAttribute('visibility', 'visible');
    this.tooltip.textContent = nearest.text;
    this.tooltip.hidden = false;
    const room = this.place.clientWidth - this.tooltip.offsetWidth;
    const left = Math.max(0, Math.min(room, nearest.x + 12));
    const above = nearest.y - this.tooltip.offsetHeight - 12;
    this.tooltip.style.left = `${left}px`;
    this.tooltip.style.top = `${this.place.offsetTop + above}px`;
  }

  leave() {
    this.tooltip.hidden = true;
    this.here.setAttribute('visibility', 'hidden');
  }
}

document.querySelectorAll('figure[data-plot]').forEach(f => new Chart(f));

document.getElementById('theme').onclick = () => {
  const root = document.documentElement.style;
  const prefersDark = matchMedia('(prefers-color-scheme: dark)').matches;
  const isDark = root.colorScheme ? root.colorScheme === 'dark' : prefersDark;
  root.colorScheme = isDark ? 'light' : 'dark';
};
