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

function explore(data) {
  const { charts, details, words } = data;
  const state = { chart: charts[0], off: { family: new Set(), form: new Set(), kind: new Set() }, text: "" };
  let view = null;
  let turn = 0;
  const facet = (chart, key) => key === "axis" ? chart.axis_title : key === "scale" ? chart.scale : chart.place[key] ?? "";
  const keys = ["axis", "scale", "device", "machine", "runtime", "precision", "threads", "input", "pace"];

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
    view.data("marks", every).data("front", steps).runAsync();
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
      [words.receptive_field, found.receptive_field ? `${found.receptive_field} px` +
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

  // Names beside the front's points: the layout of the labels is Vega's own, over the drawn marks.
  function labelled(spec) {
    spec.marks.push({
      type: "text", name: "labels", from: { data: "points_marks" }, interactive: false,
      encode: { enter: {
        text: { signal: "datum.datum.label" }, fontSize: { value: 11.5 },
        fill: { signal: `datum.datum.is_advised ? '#b8430a' : '#1b1f24'` },
      } },
      transform: [{
        type: "label", size: { signal: "[width, height]" }, padding: 0,
        avoidMarks: ["points_marks", "bars_across_marks", "bars_upright_marks"],
        anchor: ["top-left", "left", "top", "bottom-left", "top-right", "right", "bottom-right", "bottom"],
        offset: [2, 8, 16, 26],
      }],
    });
    return spec;
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
    const width = Math.max(360, at("chart").clientWidth);
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
