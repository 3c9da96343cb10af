"use strict";
(() => {
  const NS = "http://www.w3.org/2000/svg";
  const root = document.documentElement;
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("report-data").textContent);
  const plot = byId("plot");
  const tooltip = byId("tooltip");
  const state = { page: 0, benchmark: null, axis: null, hidden: new Set() };

  // All text enters the page through textContent: nothing from the data is read as markup.
  const make = (name, attributes = {}, text = null) => {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== null) node.textContent = text;
    return node;
  };
  const shape = (name, attributes = {}, text = null) => {
    const node = document.createElementNS(NS, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== null) node.textContent = text;
    return node;
  };
  const number = (value) => {
    const size = Math.abs(value);
    if (value !== 0 && (size >= 1e5 || size < 1e-3)) return value.toExponential(2);
    return String(Number(value.toPrecision(4)));
  };

  const polygon = (sides, r, turn, inner = null) => {
    const count = inner === null ? sides : 2 * sides;
    const points = [];
    for (let i = 0; i < count; i += 1) {
      const radius = inner !== null && i % 2 ? r * inner : r;
      const angle = turn + (2 * Math.PI * i) / count;
      points.push(`${(radius * Math.sin(angle)).toFixed(2)} ${(-radius * Math.cos(angle)).toFixed(2)}`);
    }
    return `M${points.join("L")}Z`;
  };
  const cross = (r, turn) => {
    const a = r * 0.36;
    const path = [[-a, -r], [a, -r], [a, -a], [r, -a], [r, a], [a, a], [a, r], [-a, r], [-a, a],
      [-r, a], [-r, -a], [-a, -a]];
    const [c, s] = [Math.cos(turn), Math.sin(turn)];
    return `M${path.map(([x, y]) => `${(x * c - y * s).toFixed(2)} ${(x * s + y * c).toFixed(2)}`).join("L")}Z`;
  };
  const PI = Math.PI;
  const MARKERS = {
    o: (r) => `M${-r} 0A${r} ${r} 0 1 0 ${r} 0A${r} ${r} 0 1 0 ${-r} 0Z`,
    s: (r) => polygon(4, r * 1.25, PI / 4), D: (r) => polygon(4, r * 1.25, 0),
    d: (r) => `M0 ${-1.35 * r}L${0.8 * r} 0L0 ${1.35 * r}L${-0.8 * r} 0Z`,
    "^": (r) => polygon(3, r * 1.25, 0), v: (r) => polygon(3, r * 1.25, PI),
    ">": (r) => polygon(3, r * 1.25, PI / 2), "<": (r) => polygon(3, r * 1.25, -PI / 2),
    p: (r) => polygon(5, r * 1.15, 0), h: (r) => polygon(6, r * 1.15, 0),
    H: (r) => polygon(6, r * 1.15, PI / 6), 8: (r) => polygon(8, r * 1.1, PI / 8),
    "*": (r) => polygon(5, r * 1.4, 0, 0.42), P: (r) => cross(r * 1.15, 0),
    X: (r) => cross(r * 1.15, PI / 4),
  };
  const look = (curve) => data.looks[curve];
  const marker = (curve, origin, r, dense = false) => shape("path", {
    d: (MARKERS[look(curve).marker] || MARKERS.o)(r),
    class: `mark ${origin}`,
    style: `stroke:var(--c${look(curve).index});fill:var(--c${look(curve).index})`,
    ...(dense ? { "data-dense": "" } : {}),
  });

  const page = () => data.pages[state.page];
  const visible = () => page().points.filter((p) =>
    (p.dense || !state.hidden.has(p.curve)) && state.benchmark in p.scores && state.axis in p.costs);
  const benchmark = () => page().benchmarks.find((b) => b.name === state.benchmark);
  const axis = () => page().axes.find((a) => a.name === state.axis);

  const front = (points) => {
    const sign = benchmark().higher ? 1 : -1;
    const order = [...points].sort((a, b) => a.costs[state.axis][0] - b.costs[state.axis][0]
      || sign * (b.scores[state.benchmark][0] - a.scores[state.benchmark][0]));
    const kept = [];
    for (const p of order) {
      const score = sign * p.scores[state.benchmark][0];
      if (!kept.length || score > sign * kept[kept.length - 1].scores[state.benchmark][0]) kept.push(p);
    }
    return kept;
  };

  const ticks = (low, high, count) => {
    const raw = (high - low) / count || 1;
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 2.5, 5, 10].map((f) => f * power).find((s) => s >= raw);
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i <= high / step + 1e-9; i += 1) found.push(i * step);
    return found;
  };
  const logTicks = (low, high) => {
    const found = [];
    const steps = high / low < 12 ? [1, 1.5, 2, 3, 4, 5, 7] : [1, 2, 5];
    for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e += 1) {
      for (const f of steps) {
        const value = f * 10 ** e;
        if (value >= low && value <= high) found.push(value);
      }
    }
    return found;
  };

  const details = (p) => {
    const [value, low, high, n] = p.scores[state.benchmark];
    const lines = [`${benchmark().title}: ${number(value)}`];
    if (low !== null) lines.push(`95 % interval ${number(low)} to ${number(high)}`);
    if (n) lines.push(`${n} samples`);
    const [cost, note] = p.costs[state.axis];
    lines.push(`${axis().title}: ${number(cost)} ${axis().unit}`);
    if (note) lines.push(note);
    if (p.slower.length) lines.push(`slower than dense: ${p.slower.join(", ")}`);
    lines.push(p.origin === "published" ? "published" : "own run");
    return lines;
  };
  const showTip = (p, x, y, width) => {
    tooltip.replaceChildren(make("b", {}, p.label), document.createTextNode(details(p).join("\n")));
    tooltip.hidden = false;
    const scale = plot.clientWidth / width;
    const left = Math.min(Math.max(x * scale + 14, 0), plot.clientWidth - tooltip.offsetWidth);
    tooltip.style.left = `${left}px`;
    tooltip.style.top = `${Math.max(y * scale - tooltip.offsetHeight - 10, 0)}px`;
  };

  // Budgets beside their points, at the first free place; where there is none the tip says it.
  const budgets = (shown, box, place) => {
    const taken = shown.map((p) => place(p)).map(([x, y]) => [x - 8, y - 8, x + 8, y + 8]);
    const places = [[10, -6, "start"], [10, 14, "start"], [-10, -6, "end"], [-10, 14, "end"],
      [0, -12, "middle"], [0, 21, "middle"]];
    const found = [];
    for (const p of shown) {
      if (!p.budget) continue;
      const [x, y] = place(p);
      const wide = 7.4 * p.budget.length;
      for (const [right, down, anchor] of places) {
        const start = x + right - { start: 0, middle: wide / 2, end: wide }[anchor];
        const area = [start, y + down - 12, start + wide, y + down + 4];
        const inside = area[0] > box.left && area[2] < box.right && area[1] > 0 && area[3] < box.bottom;
        if (!inside || taken.some((b) => area[0] < b[2] && b[0] < area[2] && area[1] < b[3] && b[1] < area[3])) continue;
        taken.push(area);
        found.push(shape("text", { class: "budget", x: x + right, y: y + down, "text-anchor": anchor }, p.budget));
        break;
      }
    }
    return found;
  };

  const draw = () => {
    const shown = visible();
    tooltip.hidden = true;
    for (const old of plot.querySelectorAll("svg, p")) old.remove();
    if (!shown.length) {
      plot.prepend(make("p", { class: "quiet" }, "No point has both this score and this cost."));
      return;
    }
    const width = Math.max(320, Math.min(1032, plot.clientWidth || 1032));
    const height = width < 560 ? 340 : 470;
    const box = { left: 66, right: width - 16, top: 14, bottom: height - 44 };
    const cost = (p) => p.costs[state.axis][0];
    const score = (p) => p.scores[state.benchmark][0];
    let [low, high] = [Math.min(...shown.map(cost)), Math.max(...shown.map(cost))];
    const logarithmic = low > 0 && high > 3 * low;
    if (logarithmic) {
      const pad = (high / low) ** 0.06;
      [low, high] = [low / pad, high * pad];
    } else {
      const pad = 0.06 * (high - low) || 0.1 * Math.abs(high) || 1;
      [low, high] = [low - pad, high + pad];
    }
    const ends = shown.flatMap((p) => p.scores[state.benchmark].slice(0, 3)).filter((v) => v !== null);
    let [bottom, top] = [Math.min(...ends), Math.max(...ends)];
    const room = 0.08 * (top - bottom) || 0.02 * Math.abs(top) || 1;
    [bottom, top] = [bottom - room, top + room];
    const scale = logarithmic ? Math.log : (v) => v;
    const px = (v) => box.left + ((scale(v) - scale(low)) / (scale(high) - scale(low))) * (box.right - box.left);
    const py = (v) => box.bottom - ((v - bottom) / (top - bottom)) * (box.bottom - box.top);

    const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "group",
      "aria-label": `${benchmark().title} against ${axis().title}` });
    for (const value of ticks(bottom, top, 6)) {
      svg.append(shape("line", { class: "grid", x1: box.left, x2: box.right, y1: py(value), y2: py(value) }));
      svg.append(shape("text", { x: box.left - 8, y: py(value) + 4, "text-anchor": "end" }, number(value)));
    }
    for (const value of logarithmic ? logTicks(low, high) : ticks(low, high, width < 560 ? 5 : 7)) {
      svg.append(shape("text", { x: px(value), y: box.bottom + 18, "text-anchor": "middle" }, number(value)));
      svg.append(shape("line", { class: "frame", x1: px(value), x2: px(value), y1: box.bottom, y2: box.bottom + 4 }));
    }
    svg.append(shape("path", { class: "frame", d: `M${box.left} ${box.top}V${box.bottom}H${box.right}` }));
    const unit = `${axis().title} (${axis().unit}, ${axis().kind}${logarithmic ? ", log scale" : ""})`;
    svg.append(shape("text", { class: "axis", x: (box.left + box.right) / 2, y: height - 6, "text-anchor": "middle" }, unit));
    svg.append(shape("text", { class: "axis score", "text-anchor": "middle",
      transform: `translate(13 ${(box.top + box.bottom) / 2}) rotate(-90)` }, benchmark().label));

    const best = front(shown);
    if (best.length > 1) {
      const steps = best.map((p, i) => (i ? `H${px(cost(p))}V${py(score(p))}` : `M${px(cost(p))} ${py(score(p))}`));
      svg.append(shape("path", { class: "front", d: steps.join("") }));
    }
    for (const p of shown.filter((item) => item.dense)) {
      svg.append(shape("line", { class: "dense-line", x1: box.left, x2: box.right, y1: py(score(p)), y2: py(score(p)) }));
    }
    const curves = Map.groupBy ? Map.groupBy(shown, (p) => `${p.origin} ${p.curve}`)
      : shown.reduce((m, p) => m.set(`${p.origin} ${p.curve}`, [...(m.get(`${p.origin} ${p.curve}`) || []), p]), new Map());
    for (const group of curves.values()) {
      const order = [...group].sort((a, b) => cost(a) - cost(b));
      const curve = order[0].curve;
      if (order.length > 1 && cost(order[order.length - 1]) > 1.01 * cost(order[0])) {
        svg.append(shape("path", { class: "curve", "data-curve": curve,
          style: `stroke:var(--c${look(curve).index})`, "stroke-dasharray": look(curve).dashes || "none",
          d: `M${order.map((p) => `${px(cost(p))} ${py(score(p))}`).join("L")}` }));
      }
      for (const p of order) {
        const [value, least, most] = p.scores[state.benchmark];
        const [x, y] = [px(cost(p)), py(value)];
        if (least !== null) {
          svg.append(shape("line", { style: `stroke:var(--c${look(curve).index})`, "stroke-width": 1.4,
            x1: x, x2: x, y1: py(least), y2: py(most) }));
        }
        const holder = shape("g", { transform: `translate(${x} ${y})`, tabindex: 0, role: "img",
          "data-curve": curve, "aria-label": `${p.label}. ${details(p).join(". ")}` });
        holder.append(shape("circle", { r: 13, fill: "transparent" }), marker(curve, p.origin, 6, p.dense));
        if (p.slower.length) {
          holder.append(shape("text", { class: "alarm", y: -12, "text-anchor": "middle" }, "slower"));
        }
        for (const event of ["pointerenter", "focus"]) holder.addEventListener(event, () => showTip(p, x, y, width));
        for (const event of ["pointerleave", "blur"]) holder.addEventListener(event, () => { tooltip.hidden = true; });
        svg.append(holder);
      }
    }
    for (const text of budgets(shown, box, (p) => [px(cost(p)), py(score(p))])) svg.append(text);
    plot.prepend(svg);
  };

  const listData = () => {
    const body = byId("plot-rows");
    body.replaceChildren();
    for (const p of visible().sort((a, b) => a.costs[state.axis][0] - b.costs[state.axis][0])) {
      const row = make("tr");
      const [value, low, high] = p.scores[state.benchmark];
      const interval = low === null ? "" : `${number(low)} to ${number(high)}`;
      for (const text of [p.label, `${number(p.costs[state.axis][0])} ${axis().unit}`, number(value),
        interval, p.slower.length ? `slower: ${p.slower.join(", ")}` : "", p.origin, p.source]) {
        row.append(make("td", {}, text));
      }
      body.append(row);
    }
  };

  const legend = () => {
    const holder = byId("legend");
    holder.replaceChildren();
    const curves = [...new Set(page().points.filter((p) => !p.dense && state.benchmark in p.scores
      && state.axis in p.costs).map((p) => p.curve))];
    for (const curve of curves) {
      const origin = page().points.find((p) => p.curve === curve).origin;
      const button = make("button", { type: "button", "data-curve": curve, "aria-pressed": String(!state.hidden.has(curve)) });
      const icon = shape("svg", { width: 16, height: 16, viewBox: "-9 -9 18 18", "aria-hidden": "true" });
      icon.append(marker(curve, origin, 5.5));
      button.append(icon, make("span", {}, look(curve).name));
      button.addEventListener("click", () => {
        if (!state.hidden.delete(curve)) state.hidden.add(curve);
        button.setAttribute("aria-pressed", String(!state.hidden.has(curve)));
        draw();
        listData();
      });
      holder.append(button);
    }
  };

  const options = (select, items, chosen) => {
    select.replaceChildren(...items.map(([value, title]) => make("option", { value }, title)));
    select.value = String(chosen);
  };
  const render = () => {
    const names = page().benchmarks.map((b) => b.name);
    if (!names.includes(state.benchmark)) [state.benchmark] = names;
    const axes = page().axes.map((a) => a.name);
    if (!axes.includes(state.axis)) [state.axis] = axes;
    options(byId("page"), data.pages.map((p, i) => [i, p.title]), state.page);
    options(byId("benchmark"), page().benchmarks.map((b) => [b.name, b.title]), state.benchmark);
    options(byId("axis"), page().axes.map((a) => [a.name, `${a.title} (${a.unit})`]), state.axis);
    byId("plot-source").textContent = page().source;
    legend();
    draw();
    listData();
  };

  if (data.pages.length) {
    for (const [id, change] of [["page", (v) => { state.page = Number(v); state.hidden.clear(); }],
      ["benchmark", (v) => { state.benchmark = v; }], ["axis", (v) => { state.axis = v; }]]) {
      byId(id).addEventListener("change", (event) => { change(event.target.value); render(); });
    }
    new ResizeObserver(() => draw()).observe(plot);
    render();
  }
  root.dataset.ready = "true";
})();
