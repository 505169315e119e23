"use strict";
// Charts: stacked traffic, the timeline of findings and drops, the heat map. Each tells its content as text, too.

Netmon.charts = (() => {
  const { element, format } = Netmon;
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const HEIGHT = 190;
  const colors = 7;

  const axes = (write) => {
    const line = { stroke: color("--soft"), grid: { stroke: color("--line"), width: 1 }, ticks: { stroke: color("--line"), width: 1 } };
    return [{ ...line }, { ...line, size: 84, values: (_, ticks) => ticks.map(write) }];
  };
  // 24 hours, as logs have it.
  const clock = { values: [[86400, "{YYYY}-{MM}-{DD}", null, null, null, null, null, null, 1], [3600, "{HH}:{mm}", "\n{YYYY}-{MM}-{DD}", null, null, null, null, null, 1],
    [60, "{HH}:{mm}", null, null, null, null, null, null, 1], [1, "{HH}:{mm}:{ss}", null, null, null, null, null, null, 1]] };

  // What all charts share: the plot is made again when its series, its width or the colours change.
  class Plot {
    constructor(place, { label, write, onRange, whole }) {
      Object.assign(this, { place, label, write, onRange, whole });
      this.canvas = element("div", { role: "img", "aria-label": label });
      place.replaceChildren(this.canvas);
      this.made = "";
      new ResizeObserver(() => this.resize()).observe(place);
      for (const query of ["(prefers-color-scheme: dark)"]) matchMedia(query).addEventListener("change", () => this.again());
    }
    again() { this.made = ""; if (this.last) this.draw(this.last); }
    resize() { if (this.plot && this.place.clientWidth) this.plot.setSize({ width: this.place.clientWidth, height: HEIGHT }); }
    put(names, series, data, hooks = {}, bands = []) {
      const wanted = JSON.stringify(names);
      if (this.made !== wanted) {
        this.plot?.destroy();
        const select = (plot) => {
          if (plot.select.width < 4) return;
          const [from, to] = [plot.posToVal(plot.select.left, "x"), plot.posToVal(plot.select.left + plot.select.width, "x")];
          plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
          this.onRange?.(from * 1000, to * 1000);
        };
        const x = { ...axes(this.write)[0], ...clock };
        this.plot = new uPlot({ width: this.place.clientWidth || 600, height: HEIGHT, series: [{ value: (_, at) => (at ? format.clock(at * 1000) : "") }, ...series], bands,
          axes: [x, { ...axes(this.write)[1], ...(this.whole ? { incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 1e5, 1e6, 1e7] } : {}) }], scales: { y: { range: (_, low, high) => [0, Math.max(high, 1) * 1.05] } },
          cursor: { drag: { x: true, y: false, setScale: false } }, hooks: { setSelect: [select], ...hooks } }, data, this.canvas);
        this.made = wanted;
      } else {
        this.plot.setData(data);
      }
    }
  }

  // points: [{ at, values: { name: number } }]. The largest names have an area each; the others are one.
  class Stacked extends Plot {
    draw(points) {
      this.last = points;
      const sums = new Map();
      for (const point of points) for (const [name, value] of Object.entries(point.values)) sums.set(name, (sums.get(name) ?? 0) + value);
      const largest = [...sums].filter(([name]) => name !== "other").sort((a, b) => b[1] - a[1]).slice(0, colors - 1).map(([name]) => name);
      const kept = this.keep(largest);
      const names = [...kept, "other"];
      const value = (point, name) => (name !== "other" ? point.values[name] ?? 0
        : Object.entries(point.values).reduce((sum, [other, amount]) => sum + (kept.includes(other) ? 0 : amount), 0));
      const own = names.map((name) => points.map((point) => value(point, name)));
      const tops = [];
      own.forEach((values, at) => tops.push(values.map((amount, x) => amount + (at ? tops[at - 1][x] : 0))));
      // The highest is drawn first; each lower area covers what is below it.
      const order = names.map((_, at) => names.length - 1 - at);
      const series = order.map((at) => ({ label: names[at], stroke: color(`--c${at}`), fill: color(`--c${at}`), width: 1, points: { show: false },
        value: (_, __, ___, x) => (x === null || x === undefined ? "" : this.write(this.own[at][x])) }));
      this.own = own;
      this.put(names, series, [points.map((point) => point.at / 1000), ...order.map((at) => tops[at])]);
      const last = points.at(-1);
      this.canvas.setAttribute("aria-label", last ? `${this.label}. Latest: ${names.map((name) => `${name} ${this.write(value(last, name))}`).join(", ")}` : this.label);
    }
    // Names keep their place and colour while they are among the largest.
    keep(largest) {
      const before = (this.names ?? []).filter((name) => largest.includes(name));
      this.names = [...before, ...largest.filter((name) => !before.includes(name))];
      return this.names;
    }
  }

  // points: [{ at, drops, failures }]; findings: [{ code, severity, from, to }], in milliseconds.
  class Timeline extends Plot {
    draw({ points, findings }) {
      this.last = { points, findings };
      this.findings = findings;
      const bars = uPlot.paths.bars({ size: [0.8, 24] });
      const series = [{ label: "drops", stroke: color("--c1"), fill: color("--c1"), paths: bars, points: { show: false }, value: (_, value) => format.count(value) },
        { label: "failed connections", stroke: color("--c3"), fill: color("--c3"), paths: bars, points: { show: false }, value: (_, value) => format.count(value) }];
      const lanes = (plot) => {
        const { ctx, bbox } = plot;
        const height = 6 * devicePixelRatio;
        const known = [...new Set(this.findings.map((finding) => finding.code))];
        ctx.save();
        ctx.beginPath();
        ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
        ctx.clip();
        ctx.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
        ctx.textAlign = "left";
        ctx.textBaseline = "alphabetic";
        for (const finding of this.findings) {
          const left = plot.valToPos(finding.from / 1000, "x", true);
          const right = Math.max(plot.valToPos((finding.to ?? Date.now()) / 1000, "x", true), left + 3 * devicePixelRatio);
          const top = bbox.top + (known.indexOf(finding.code) % 8) * height * 2.6;
          ctx.fillStyle = color(`--${finding.severity}`) || color("--soft");
          ctx.fillRect(left, top, right - left, height);
          ctx.fillText(finding.code, Math.max(left, bbox.left + 2), top + height * 2.3);
        }
        ctx.restore();
      };
      this.put(["drops", "failures"], series, [points.map((point) => point.at / 1000), points.map((point) => point.drops), points.map((point) => point.failures)], { draw: [lanes] });
      const text = findings.map((finding) => `${finding.severity} ${finding.code} from ${format.clock(finding.from)}`).join(", ");
      this.canvas.setAttribute("aria-label", `${this.label}. ${text || "No finding"}`);
    }
  }

  // points: [{ at, values: { name: microseconds } }]: a row a name, a column a moment, the darker the slower.
  class Heat {
    constructor(place, { label, rows = 10 }) {
      Object.assign(this, { label, rows });
      this.canvas = element("canvas", { role: "img", "aria-label": label });
      this.note = element("p", { class: "hint" });
      place.replaceChildren(this.canvas, this.note);
      this.place = place;
      this.points = [];
      new ResizeObserver(() => this.draw(this.points)).observe(place);
      matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw(this.points));
      this.canvas.addEventListener("pointermove", (event) => this.tell(event));
    }
    draw(points) {
      this.points = points;
      const slowest = new Map();
      for (const point of points) for (const [name, value] of Object.entries(point.values)) slowest.set(name, Math.max(slowest.get(name) ?? 0, value));
      this.names = [...slowest].sort((a, b) => b[1] - a[1]).slice(0, this.rows).map(([name]) => name).sort();
      const [width, line, left] = [this.place.clientWidth || 600, 20, 190];
      const height = Math.max(this.names.length, 1) * line;
      this.canvas.width = width * devicePixelRatio;
      this.canvas.height = height * devicePixelRatio;
      this.canvas.style.width = `${width}px`;
      this.canvas.style.height = `${height}px`;
      const context = this.canvas.getContext("2d");
      context.scale(devicePixelRatio, devicePixelRatio);
      context.font = "12px system-ui, sans-serif";
      const cell = (width - left) / Math.max(points.length, 1);
      this.geometry = { left, cell, line };
      const dark = color("--back").startsWith("#1");
      this.names.forEach((name, row) => {
        context.fillStyle = color("--text");
        context.fillText(name, 0, row * line + 14, left - 8);
        points.forEach((point, at) => {
          context.fillStyle = Netmon.heat(point.values[name], dark) ?? color("--heat-none");
          context.fillRect(left + at * cell, row * line + 1, Math.ceil(cell), line - 2);
        });
      });
      const last = points.at(-1);
      const text = this.names.map((name) => `${name} ${format.time(last?.values[name]) || "unknown"}`).join(", ");
      this.canvas.setAttribute("aria-label", `${this.label}. ${text ? `Latest: ${text}` : "No remote"}`);
      this.note.textContent = this.names.length ? "Pale is fast (100 µs), dark is slow (1 s); each step is a factor." : "No response time measured.";
    }
    tell(event) {
      const { left, cell, line } = this.geometry;
      const point = this.points[Math.floor((event.offsetX - left) / cell)];
      const name = this.names[Math.floor(event.offsetY / line)];
      this.canvas.title = point && name ? `${name}, ${format.clock(point.at)}: ${format.time(point.values[name]) || "unknown"}` : "";
    }
  }

  return { Stacked, Timeline, Heat };
})();

// A colour for a time in microseconds, logarithmic, readable without telling red from green.
Netmon.heat = (value, dark) => {
  if (value === undefined || value === null) return undefined;
  const level = Math.min(1, Math.max(0, Math.log10(Math.max(value, 1) / 100) / 4));
  const light = dark ? 30 + level * 55 : 88 - level * 60;
  return `hsl(${210 - level * 180} 70% ${light}%)`;
};
