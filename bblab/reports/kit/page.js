// The page of a report: chooses a chart by its axis and place, filters its points, shows where each number is from.
// Everything is in the page; nothing is asked of a network (the page's policy forbids it). Text is set as text only.
"use strict";

const at = (id) => document.getElementById(id);
const make = (tag, text, name) => {
  const made = document.createElement(tag);
  if (text !== undefined && text !== null) made.textContent = text;
  if (name) made.className = name;
  return made;
};

async function unpacked(id) {
  const bytes = Uint8Array.from(atob(at(id).textContent.trim()), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

function pairs(list) {
  const made = make("dl");
  for (const [key, value] of list) made.append(make("dt", key), make("dd", value));
  return made;
}

// ---- numbers

function digits(value, count = 3) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  return value.toFixed(Math.max(0, count - 1 - Math.floor(Math.log10(Math.abs(value)))));
}

function interval(value, low, high, factor, unit) {
  const end = unit ? " " + unit : "";
  if (low === null || high === null || !(high > low)) return digits(value * factor) + end;
  const half = ((high - low) * factor) / 2;
  let power = Math.floor(Math.log10(half));
  if (half / 10 ** power < 2) power -= 1;
  const places = Math.min(12, Math.max(0, -power));
  const [a, b, c] = [value, low, high].map((v) => (v * factor).toFixed(places));
  return `${a} [${b}, ${c}]${end}`;
}

// ---- the front of what is shown, as the report itself makes it

function front(rows, sign) {
  const ordered = [...rows].sort((a, b) => a.x - b.x || sign * (b.y - a.y));
  const kept = [];
  let best = -Infinity;
  for (const row of ordered) {
    if (sign * row.y > best) {
      best = sign * row.y;
      kept.push(row);
    }
  }
  return kept;
}

// ---- the Pareto charts

// ---- where names go: as placement.py does it for print

const NAME_PX = 11.5;
const largest = (marks) => Math.max(1, ...marks.map((m) => m.params ?? 0));
const pen = document.createElement("canvas").getContext("2d");
function textWidth(text) {
  pen.font = `${NAME_PX}px ${getComputedStyle(document.body).fontFamily}`;
  return pen.measureText(text).width + 2;
}

function crosses([x0, y0, x1, y1], box) {
  let [enter, leave] = [0, 1];
  for (const [p, q] of [[x0 - x1, x0 - box.x], [x1 - x0, box.x + box.width - x0], [y0 - y1, y0 - box.y],
    [y1 - y0, box.y + box.height - y0]]) {
    if (p === 0 && q < 0) return false;
    if (p < 0) enter = Math.max(enter, q / p);
    if (p > 0) leave = Math.min(leave, q / p);
  }
  return enter <= leave;
}

// A box for each name: of a ring of places around its point the one that costs least. No name is dropped.
function placed(anchors, points, lines, width, height) {
  const options = anchors.map((a) => {
    const found = [];
    for (const distance of [2, 6, 12, 20, 32, 48, 66, 90, 120]) {
      for (let k = 0; k < 24; k++) {
        const angle = (2 * Math.PI * k) / 24;
        const reach = a.radius + distance;
        const box = {
          x: a.x + reach * Math.cos(angle) - (a.width * (1 - Math.cos(angle))) / 2,
          y: a.y - reach * Math.sin(angle) - (a.height * (1 + Math.sin(angle))) / 2, width: a.width, height: a.height,
        };
        const turned = Math.abs(Math.atan2(Math.sin(angle - 0.75 * Math.PI), Math.cos(angle - 0.75 * Math.PI)));
        const out = Math.max(0, -box.x) + Math.max(0, -box.y) + Math.max(0, box.x + box.width - width) +
          Math.max(0, box.y + box.height - height);
        let cost = 0.9 * distance + 6 * turned + 60 * out;
        for (const [x, y, radius] of points) {
          const gap = Math.hypot(x - Math.min(Math.max(x, box.x), box.x + box.width),
            y - Math.min(Math.max(y, box.y), box.y + box.height)) - radius;
          if (gap < 1.5) cost += 25 + 6 * Math.min(radius, 1.5 - gap);
        }
        const wide = { x: box.x - 1.5, y: box.y - 1.5, width: box.width + 3, height: box.height + 3 };
        for (const line of lines) if (crosses(line, wide)) cost += 70;
        found.push({ box, cost });
      }
    }
    return found;
  });
  const shared = (a, b) => {
    const wide = Math.min(a.x + a.width, b.x + b.width) - Math.max(a.x, b.x) + 1.5;
    const high = Math.min(a.y + a.height, b.y + b.height) - Math.max(a.y, b.y) + 1.5;
    return wide > 0 && high > 0 ? wide * high : 0;
  };
  const least = (found, price) => found.reduce((best, o) => (price(o) < price(best) ? o : best));
  const chosen = options.map((found) => least(found, (o) => o.cost));
  for (let pass = 0; pass < 4; pass++) {
    options.forEach((found, i) => {
      chosen[i] = least(found, (o) => o.cost + 20 * chosen.reduce((sum, c, j) => sum + (j === i ? 0 : shared(o.box, c.box)), 0));
    });
  }
  return anchors.map((anchor, i) => ({ anchor, box: chosen[i].box }));
}


function explore(data) {
  const { charts, details, words } = data;
  const state = { chart: charts[0], off: { family: new Set(), form: new Set(), kind: new Set() }, text: "" };
  let view = null;
  let turn = 0;
  const facet = (chart, key) => key === "axis" ? chart.axis_title : key === "scale" ? chart.scale : chart.place[key] ?? "";
  const keys = ["axis", "scale", "device", "machine", "runtime", "precision", "threads", "input", "state", "pace"];

  // One select a facet that has a choice; among the charts that agree with the choices to its left.
  function controls() {
    const box = at("controls");
    box.replaceChildren();
    let left = charts;
    for (const key of keys) {
      const values = [...new Set(left.map((c) => facet(c, key)))];
      if (values.length > 1) {
        const label = make("label", words[key] ?? key);
        const select = make("select");
        select.id = `choose-${key}`;
        for (const value of values) {
          const option = make("option", value || "–");
          option.value = value;
          option.selected = value === facet(state.chart, key);
          select.append(option);
        }
        const among = left;
        select.addEventListener("change", () => {
          // The chart that has the chosen value and otherwise most in common with the one shown.
          const like = (c) => keys.filter((k) => facet(c, k) === facet(state.chart, k)).length;
          const fit = among.filter((c) => facet(c, key) === select.value);
          state.chart = fit.reduce((best, c) => (like(c) > like(best) ? c : best));
          show();
        });
        label.append(select);
        box.append(label);
      }
      left = left.filter((c) => facet(c, key) === facet(state.chart, key));
    }
    const label = make("label", words.search);
    const input = make("input");
    input.id = "search";
    input.type = "search";
    input.value = state.text;
    input.addEventListener("input", () => {
      state.text = input.value;
      refresh();
    });
    label.append(input);
    box.append(label);
  }

  function chips() {
    const box = at("chips");
    box.replaceChildren();
    for (const key of ["family", "form", "kind"]) {
      const counts = new Map();
      for (const m of state.chart.marks) counts.set(m[key], (counts.get(m[key]) ?? 0) + 1);
      if (counts.size < 2) continue;
      box.append(make("span", words[key]));
      for (const [value, count] of [...counts].sort((a, b) => b[1] - a[1])) {
        const chip = make("button", `${words[value] ?? value} ${count}`);
        chip.dataset.key = key;
        chip.dataset.value = value;
        chip.setAttribute("aria-pressed", String(!state.off[key].has(value)));
        chip.addEventListener("click", (event) => {
          const off = state.off[key];
          if (event.altKey || event.shiftKey) {
            off.clear();
            for (const other of counts.keys()) if (other !== value) off.add(other);
          } else if (!off.delete(value)) off.add(value);
          chips();
          refresh();
        });
        box.append(chip);
      }
    }
  }

  function symbol(path, fill, stroke, more = {}) {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const drawn = document.createElementNS("http://www.w3.org/2000/svg", "path");
    for (const [key, value] of Object.entries({ width: 16, height: 14, viewBox: "-8 -7 16 14" }))
      svg.setAttribute(key, value);
    for (const [key, value] of Object.entries({ d: path, fill, stroke, "stroke-width": 1.2, ...more }))
      drawn.setAttribute(key, value);
    svg.append(drawn);
    return svg;
  }

  function legend() {
    const shapes = {
      own: "M4.5,0A4.5,4.5,0,1,1,-4.5,0A4.5,4.5,0,1,1,4.5,0", recorded: "M0,-5L5,4L-5,4Z", published: "M0,-6L5,0L0,6L-5,0Z",
    };
    const { marks } = state.chart;
    const box = at("legend");
    box.replaceChildren();
    const add = (drawn, text) => {
      const line = make("span");
      line.append(drawn, make("span", text));
      box.append(line);
    };
    for (const kind of ["own", "recorded", "published"]) {
      const how = new Set(marks.filter((m) => m.kind === kind).map((m) => m.protocol));
      for (const protocol of how)
        add(symbol(shapes[kind], "#4a8bc2", "#4a8bc2"), words[kind] + (protocol === kind ? "" : words.colon + protocol));
    }
    if (marks.some((m) => m.form !== "deploy")) add(symbol(shapes.own, "white", "#8b949e"), words.train_form);
    add(symbol("M-8,4H0V-4H8", "none", "#1b1f24"), words.front);
    if (marks.some((m) => m.is_level))
      add(symbol(shapes.own, "#93b8da", "#1b1f24", { "stroke-dasharray": "2 1.5" }), words.level);
    if (marks.some((m) => m.is_advised)) add(symbol(shapes.own, "none", "#b8430a"), words.measure_next);
    if (marks.some((m) => m.probability !== null)) add(make("span", "", "ramp"), `${words.probability_short} 0 … 1`);
    add(make("span"), words.area_word);
  }

  function shown() {
    const text = state.text.trim().toLowerCase();
    return state.chart.marks.filter(
      (m) => ["family", "form", "kind"].every((key) => !state.off[key].has(m[key])) &&
        (!text || m.name.toLowerCase().includes(text) || m.spec_id.startsWith(text)),
    );
  }

  function rows() {
    const { x, y, sign } = state.chart;
    const every = shown().map((m) => ({
      ...m, x: m.x * x.factor, y: m.y * y.factor,
      x_low: m.x_low === null ? null : m.x_low * x.factor, x_high: m.x_high === null ? null : m.x_high * x.factor,
      y_low: m.y_low === null ? null : m.y_low * y.factor, y_high: m.y_high === null ? null : m.y_high * y.factor,
    }));
    const steps = [];
    const corners = new Set();
    for (const protocol of new Set(every.map((m) => m.kind + m.protocol))) {
      const members = every.filter((m) => m.kind + m.protocol === protocol);
      const fused = members.filter((m) => m.form === "deploy");
      const found = front(fused.length ? fused : members, sign);
      for (const m of found) corners.add(m.key);
      found.forEach((m, i) => steps.push({ x: m.x, y: m.y, protocol, order: i }));
      if (found.length) steps.push({ x: state.chart.right, y: found[found.length - 1].y, protocol, order: 1e6 });
    }
    for (const m of every) {
      m.is_corner = corners.has(m.key);
      m.label = m.is_corner || m.is_reference || m.is_advised ? m.name : "";
    }
    every.sort((a, b) => a.is_corner - b.is_corner || (b.params ?? 0) - (a.params ?? 0));
    return [every, steps];
  }

  function refresh() {
    if (!view) return;
    const [every, steps] = rows();
    view.data("marks", every).data("front", steps).data("names", names(every, steps)).runAsync();
    const all = state.chart.marks.length;
    at("count").textContent = every.length === all ? "" : words.shown.replace("{n}", every.length).replace("{all}", all);
    at("count").className = every.length ? "caption" : "caption warn";
  }

  const original = (m) => state.chart.marks.find((n) => n.key === m.key);
  const tip = at("tip");
  function tooltip(_, event, item, value) {
    const m = item?.datum?.key ? item.datum : item?.datum?.datum;
    if (!value || !m?.key) {
      tip.style.display = "none";
      return;
    }
    const { x, y } = state.chart;
    tip.replaceChildren(
      make("b", m.name),
      pairs([
        [x.title, interval(m.x, m.x_low, m.x_high, 1, x.unit)],
        [y.title, interval(m.y, m.y_low, m.y_high, 1, y.unit)],
        ...(m.form !== "deploy" ? [[words.probability, words.unfused]] : original(m).probability === null ? [] :
          [[words.probability, m.probability.toFixed(2)]]),
        ...(m.params ? [[words.params, digits(m.params / 1e6) + " M"]] : []),
        [words.family, m.family],
        ...m.provenance,
      ]),
    );
    tip.style.display = "block";
    const box = tip.getBoundingClientRect();
    tip.style.left = Math.max(4, Math.min(event.clientX + 14, innerWidth - box.width - 8)) + "px";
    tip.style.top = Math.max(4, Math.min(event.clientY + 14, innerHeight - box.height - 8)) + "px";
  }

  function open(m) {
    tip.style.display = "none"; // it may lie over what is opened
    const found = details[m.spec_id] ?? {};
    const side = at("details");
    side.replaceChildren(make("h3", m.name));
    if (found.about) side.append(make("div", found.about));
    side.append(pairs([
      [words.spec_id, m.spec_id],
      [words.params, found.params ? digits(found.params / 1e6) + " M" : "–"],
      ["MACs", found.macs ? digits(found.macs / 1e6) + " M" : "–"],
      [words.receptive_field, found.receptive_field ? `${found.receptive_field}${found.is_receptive_field_global ? "+" : ""} px` +
        (found.rf_over_template ? ` (${digits(found.rf_over_template)} × ${words.template})` : "") : "–"],
      ...m.provenance.slice(1),
    ]));
    side.append(make("h3", words.findings));
    if (!found.findings?.length) side.append(make("div", words.no_findings));
    for (const [severity, rule, where, message, waived] of found.findings ?? []) {
      const line = make("div", `${rule} ${where}: ${message}` + (waived ? ` (${words.waived}: ${waived})` : ""));
      line.className = `finding ${waived ? "" : severity}`;
      side.append(line);
    }
    if (found.spec) side.append(make("h3", words.spec), make("pre", found.spec));
    side.append(make("code", found.profile_run ? `bblab show ${found.profile_run}` : `bblab profile ${m.name}`));
  }

  // Names beside the front's points, where the page itself places them: over the drawn marks, with a thin line where a
  // name had to move.
  function labelled(spec) {
    spec.data.push({ name: "names", values: [] });
    const field = (name) => ({ field: name });
    spec.marks.push({
      type: "rule", name: "leaders", from: { data: "names" }, interactive: false, clip: false,
      encode: { update: {
        x: field("from_x"), y: field("from_y"), x2: field("to_x"), y2: field("to_y"), stroke: { value: "#5c6670" },
        strokeWidth: { value: 0.7 }, opacity: field("is_far"),
      } },
    }, {
      type: "text", name: "labels", from: { data: "names" }, interactive: false,
      encode: { update: {
        x: field("x"), y: field("y"), text: field("text"), fontSize: { value: NAME_PX }, baseline: { value: "top" },
        align: { value: "left" }, fill: field("fill"),
      } },
    });
    return spec;
  }

  function names(every, steps) {
    const [sx, sy] = [view.scale("x"), view.scale("y")];
    const [width, height] = [view.width(), view.height()];
    const px = (m) => [sx(m.x), sy(m.y)];
    const radius = (m) => Math.sqrt((m.params ? 24 + 396 * Math.sqrt(m.params / largest(every)) : 24) / Math.PI) + 1;
    const points = every.map((m) => [...px(m), radius(m)]);
    const lines = [];
    for (const m of every) {
      if (m.x_low !== null) lines.push([sx(m.x_low), sy(m.y), sx(m.x_high), sy(m.y)]);
      if (m.y_low !== null) lines.push([sx(m.x), sy(m.y_low), sx(m.x), sy(m.y_high)]);
    }
    for (const protocol of new Set(steps.map((s) => s.protocol))) {
      const own = steps.filter((s) => s.protocol === protocol).sort((a, b) => a.order - b.order).map(px);
      own.slice(1).forEach(([x, y], i) => lines.push([own[i][0], own[i][1], x, own[i][1]], [x, own[i][1], x, y]));
    }
    const anchors = every.filter((m) => m.label).map((m) => ({
      m, x: px(m)[0], y: px(m)[1], radius: radius(m) + (m.is_advised ? 7 : 0), width: textWidth(m.label), height: NAME_PX + 3,
    }));
    return placed(anchors, points, lines, width, height).map(({ anchor: a, box }) => {
      const [x, y] = [Math.min(Math.max(a.x, box.x), box.x + a.width), Math.min(Math.max(a.y, box.y), box.y + a.height)];
      const gap = Math.hypot(a.x - x, a.y - y) || 1;
      const share = a.radius / gap;
      return {
        x: box.x, y: box.y, text: a.m.label, fill: a.m.is_advised ? "#b8430a" : "#1b1f24",
        from_x: a.x + (x - a.x) * share, from_y: a.y + (y - a.y) * share, to_x: x, to_y: y,
        is_far: gap > a.radius + 8 ? 1 : 0,
      };
    });
  }

  async function show() {
    const mine = ++turn;
    const chart = state.chart;
    controls();
    chips();
    legend();
    at("title").textContent = chart.title;
    at("caption").textContent = chart.caption;
    at("advice").replaceChildren();
    for (const { text, command } of chart.advice) {
      const line = make("p", text + " ");
      if (command) line.append(make("code", command));
      at("advice").append(line);
    }
    tip.style.display = "none";
    // A width that is known at once: labels are laid out before a container has been measured.
    const width = Math.max(360, at("chart").clientWidth - 38); // the menu's button stands at its right
    const spec = { ...chart.spec, width, height: Math.round(Math.min(680, Math.max(430, 0.54 * width))) };
    const made = await vegaEmbed("#chart", spec, {
      actions: { export: true, source: false, compiled: false, editor: false }, i18n: words.actions,
      renderer: "svg", tooltip,
      patch: labelled, downloadFileName: chart.key,
    });
    if (mine !== turn) return made.finalize();
    view = made.view;
    view.addEventListener("click", (_, item) => item?.datum?.key && open(item.datum));
    refresh();
    await view.runAsync();
    document.body.dataset.ready = chart.key;
  }

  for (const row of document.querySelectorAll("tr.pick")) {
    row.addEventListener("click", () => {
      const m = charts.flatMap((c) => c.marks).find((n) => n.spec_id === row.dataset.spec);
      if (m) open(m);
    });
  }
  let waiting = 0;
  let width = innerWidth;
  addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => innerWidth !== width && ((width = innerWidth), show()), 200);
  });
  return show();
}

async function main() {
  const data = await unpacked("data");
  for (const [id, spec] of data.plots) {
    await vegaEmbed(at(id), spec, { actions: { export: true, source: false, compiled: false, editor: false },
      i18n: data.words.actions, renderer: "svg", downloadFileName: id });
  }
  if (data.charts.length) await explore(data);
  document.body.dataset.done = "1";
}

main().catch((error) => {
  at("failed").textContent = at("failed").dataset.text.replace("{error}", error);
  console.error(error);
});
