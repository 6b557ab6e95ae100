"use strict";
// Draws the report from the JSON beside it. Text from files goes through textContent or plain(), never into HTML.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const COLOURS = ["#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22",
    "#17becf"];
  const DASHES = ["solid", "dash", "dot", "dashdot"];
  const SHOWN_AT_FIRST = 10;
  const SHARES = ["entropy", "flip", "pass_share", "route_overlap"]; // often all the same: no scale would be chosen well
  const colour = (i) => COLOURS[i % 10];
  const dash = (i) => DASHES[Math.floor(i / 10) % 4];
  const faint = (i, alpha) => `rgba(${[1, 3, 5].map((k) => parseInt(colour(i).slice(k, k + 2), 16))},${alpha})`;
  const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const short = (text, n) => // from the middle: settings stand at the end
    plain(text.length > n ? text.slice(0, Math.ceil(n / 2)) + "…" + text.slice(1 - Math.floor(n / 2)) : text);
  const narrow = () => window.innerWidth < 600;

  let suite = Object.keys(data.suites)[0];
  let split = data.split;
  let metric = "accuracy";
  let hidden = new Set();
  let run = null;

  // -- plots ---------------------------------------------------------------------------------------------------------

  // By name: what is there by default includes a button that sends the data to somebody's server.
  const BUTTONS = ["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"];
  const CONFIG = { responsive: true, displaylogo: false, modeBarButtons: [BUTTONS], plotlyServerURL: "" };

  function layout(more) {
    const axis = { gridcolor: "#e8ecf0", zerolinecolor: "#e8ecf0", linecolor: "#c3cbd3", automargin: true };
    const { xaxis = {}, yaxis = {}, margin, ...rest } = more;
    for (const each of [xaxis, yaxis]) if (each.title) each.title = { font: { size: 12.5 }, ...each.title };
    return {
      font: { family: "system-ui, sans-serif", size: 12.5, color: "#1d2733" },
      paper_bgcolor: "#fff", plot_bgcolor: "#fff", showlegend: false, hovermode: "closest", dragmode: "zoom",
      hoverlabel: { namelength: -1 }, margin: { l: 52, r: 14, t: 30, b: 44, ...margin },
      xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis }, ...rest,
    };
  }

  const draw = (div, traces, more) => Plotly.react(div, traces, layout(more), CONFIG);
  const drawSmall = (div, traces, more) => Plotly.react(div, traces, layout(more), { ...CONFIG, displayModeBar: false });

  // One plot per title, below it: long titles wrap, which those inside of plots don't. Plots that are
  // too many are hidden, not removed: they may still be drawing.
  function panels(parent, titles) {
    while (parent.children.length < titles.length) {
      const figure = document.createElement("figure");
      figure.append(document.createElement("figcaption"), document.createElement("div"));
      parent.append(figure);
    }
    [...parent.children].forEach((figure, place) => { figure.hidden = place >= titles.length; });
    return titles.map(([title, meaning], place) => {
      const [caption, div] = parent.children[place].children;
      const strong = document.createElement("b");
      strong.textContent = title;
      caption.replaceChildren(strong, meaning ? ` ${meaning}` : "");
      return div;
    });
  }

  const depthTitles = (n) => Array.from({ length: n }, (_, d) => [`depth ${d}`]);

  // Ticks at whole epochs where there are so few that Plotly would put some between them.
  const wholes = (epochs) => (epochs.some((epoch) => epoch > 8) ? {} : { dtick: 1 });

  const isLoss = () => metric === "loss";
  const scaled = (values) => values.map((v) => (v === null ? null : isLoss() ? v : 100 * v));
  const unit = () => metric.replace("_", " ") + (isLoss() ? "" : " / %");
  const here = () => data.suites[suite];
  const shown = () => here().methods.map((_, i) => i).filter((i) => !hidden.has(i));

  function band(x, low, high, i) {
    const whole = x.map((_, k) => k).filter((k) => low[k] !== null && high[k] !== null);
    const back = [...whole].reverse();
    return {
      x: [...whole, ...back].map((k) => x[k]), y: [...whole.map((k) => high[k]), ...back.map((k) => low[k])],
      fill: "toself", fillcolor: faint(i, 0.15), line: { width: 0 }, mode: "lines", hoverinfo: "skip", type: "scatter",
    };
  }

  const sum = (one, other, sign) => one.map((v, k) => (v === null || other[k] === null ? null : v + sign * other[k]));
  function line(x, y, i, name, hover) {
    return {
      x, y, name: plain(name), mode: x.length < 30 ? "lines+markers" : "lines", type: "scatter",
      line: { color: colour(i), dash: dash(i), width: 2 }, marker: { size: 5, color: colour(i) },
      hovertemplate: `${plain(name)}<br>${hover}<extra></extra>`,
    };
  }

  // -- all runs ------------------------------------------------------------------------------------------------------

  function drawIntervals() {
    const { methods, final } = here();
    const chosen = shown().reverse();
    const mean = scaled(final[metric]), half = scaled(final[`${metric}_ci`]);
    const rows = new Map(chosen.map((i, row) => [i, row]));
    const ours = data.runs.filter((r) => r.suite === suite && rows.has(r.method));
    const k = ["accuracy", "balanced_accuracy", "loss"].indexOf(metric);
    const traces = [
      { x: scaled(ours.map((r) => r.final[k])), y: ours.map((r) => rows.get(r.method) - 0.22), mode: "markers",
        type: "scatter", marker: { size: 4.5, color: ours.map((r) => faint(r.method, 0.5)) },
        text: ours.map((r) => `${plain(methods[r.method])}, seed ${r.seed}`), hovertemplate: "%{text}: %{x:.2f}<extra></extra>" },
      ...chosen.map((i) => ({
        x: [mean[i]], y: [rows.get(i)], mode: "markers", type: "scatter", marker: { size: 9, color: colour(i) },
        error_x: { type: "data", array: [half[i] ?? 0], color: colour(i), thickness: 2.5, width: 5, visible: half[i] !== null },
        hovertemplate: `${plain(methods[i])}: %{x:.2f}${half[i] === null ? "" : ` ± ${half[i].toFixed(2)}`}<extra></extra>`,
      })),
    ];
    draw(at("intervals"), traces, {
      height: 92 + 30 * Math.max(chosen.length, 1),
      xaxis: { title: { text: `${data.split} ${unit()}` }, zeroline: false },
      yaxis: { tickvals: [...rows.values()], ticktext: chosen.map((i) => short(methods[i], narrow() ? 20 : 44)),
        range: [-0.7, chosen.length - 0.4], zeroline: false, fixedrange: true },
    });
  }

  function drawCurves() {
    const { methods, curves } = here();
    const against = at("against").value;
    const traces = [], ends = [];
    for (const i of shown()) {
      const curve = curves[split][i];
      if (!curve) continue;
      const mean = scaled(curve[metric]), half = scaled(curve[`${metric}_ci`]);
      const cap = isLoss() ? (v) => v : (v) => (v === null ? null : Math.min(v, 100));
      ends.push(...mean.filter((v) => v !== null));
      traces.push(band(curve[against], sum(mean, half, -1), sum(mean, half, 1).map(cap), i));
      traces.push(line(curve[against], mean, i, methods[i], `${against === "epoch" ? "epoch %{x}" : "%{x:.1f} s"}: %{y:.2f}`));
    }
    // By the means: with few seeds a 95 % band can be wider than everything else in the picture.
    const least = Math.min(...ends), most = Math.max(...ends), room = 0.08 * (most - least) + (isLoss() ? 0.005 : 0.5);
    draw(at("curves"), traces, {
      height: narrow() ? 340 : 460,
      xaxis: { title: { text: against === "epoch" ? "epoch" : "training time / s" },
        dtick: null, ...(against === "epoch" ? wholes(traces.flatMap((trace) => trace.x)) : {}) },
      yaxis: { title: { text: `${split} ${unit()}` }, ...(ends.length ? { range: [least - room, most + room] } : {}) },
      uirevision: [suite, split, metric, against].join(),
    });
  }

  function drawReached() {
    const { methods, reached } = here();
    const kind = at("unit").value;
    const target = reached.target.map((v) => 100 * v);
    const word = kind === "epoch" ? "epoch %{y}" : "%{y:.1f} s";
    draw(at("reached"), shown().map((i) => ({
      ...line(target, reached[kind][i], i, methods[i], `%{x:.1f} %: ${word}`), mode: "lines+markers", marker: { size: 3, color: colour(i) },
      line: { color: colour(i), dash: dash(i), width: 2, shape: "vh" },
    })), {
      height: narrow() ? 320 : 400,
      xaxis: { title: { text: `${data.split} accuracy / %` } },
      yaxis: { title: { text: kind === "epoch" ? "epochs" : "training time / s" }, rangemode: "tozero",
        dtick: null, ...(kind === "epoch" ? wholes(reached.epoch.flat()) : {}) },
    });
  }

  function drawDiagnostics() {
    const found = data.diagnostics[suite] || {};
    at("diagnostics-section").hidden = !Object.keys(found).length;
    const chosen = shown().filter((i) => found[i]);
    const measures = Object.keys(data.measures).filter((m) => m !== "settled_after" && chosen.some((i) => found[i][m]));
    const depths = [...new Set(Object.values(found).flatMap((of) => Object.values(of).flatMap(Object.keys)))]
      .filter((d) => d !== "all").sort((a, b) => a - b);
    fill(at("depth"), depths, depths.map(String));
    const depth = at("depth").value;
    const isWhole = (m) => chosen.every((i) => !found[i][m] || !found[i][m][depth]);
    const divs = panels(at("diagnostics"), measures.map((m) => [
      m.replaceAll("_", " ") + (isWhole(m) ? ", whole routes:" : ":"), data.measures[m]]));
    measures.forEach((measure, place) => {
      const traces = [];
      for (const i of chosen) {
        const rows = found[i][measure] && (found[i][measure][depth] || found[i][measure].all);
        if (!rows) continue;
        traces.push(band(rows.epoch, rows.low, rows.high, i));
        traces.push({ ...line(rows.epoch, rows.mean, i, here().methods[i], "epoch %{x}: %{y:.3f}"), marker: { size: 3.5, color: colour(i) } });
      }
      drawSmall(divs[place], traces, {
        height: 190, margin: { l: 40, r: 8, t: 6, b: 34 },
        xaxis: { title: { text: "epoch", standoff: 2, font: { size: 11 } }, nticks: 6, ...wholes(traces.flatMap((trace) => trace.x)) },
        yaxis: SHARES.includes(measure) ? { range: [-0.04, 1.04], nticks: 5 } : { nticks: 5 },
      });
    });
    at("diagnosed").textContent = `Means over tasks and runs; bands are the range of runs; infinite values (a KL, ` +
      `when an action comes back that had been given up) are left out. Of ${data.diagnosed} runs, ` +
      "the first seeds of each method first. docs/diagnostics.md says what each means when it is high or low.";
  }

  // -- a single run --------------------------------------------------------------------------------------------------

  function unpack(text, shape) {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const [, D, T, A] = shape;
    return (e, d, t) => bytes.subarray(((e * D + d) * T + t) * A, ((e * D + d) * T + t + 1) * A);
  }

  const actionName = (a, blocks) => (a < blocks ? String(a) : ["PASS", "STOP"][a - blocks] || `action ${a}`);

  function drawRun() {
    const routes = run.routes;
    at("run-name").textContent = run.run + (routes ? "" : run.method_has_routes
      ? " (its routes are left out, to keep this page small: take another seed)" : " (it keeps no routes)");
    at("with-routes").hidden = !routes;
    settings("config");
    settings("environment");
    if (!routes) return;
    routes.read = routes.read || unpack(routes.usage, routes.shape);
    at("epoch").max = routes.epochs.length - 1;
    at("epoch").value = routes.epochs.length - 1;
    drawRoutes();
    drawPolicies();
  }

  function settings(part) {
    const rows = { ...data.common[part], ...run[part] };
    const names = Object.keys(rows).sort((a, b) => (b in run[part]) - (a in run[part]));
    at(part).replaceChildren(...(names.length ? names : ["not recorded"]).map((name) => {
      const row = document.createElement("tr");
      row.className = name in run[part] ? "own" : "";
      for (const text of [name, rows[name] ?? ""]) row.insertCell().textContent = text;
      return row;
    }));
  }

  function drawRoutes() {
    const routes = run.routes, e = Number(at("epoch").value);
    const [, D, T, A] = routes.shape;
    at("epoch-label").textContent = `epoch ${routes.epochs[e]} of ${routes.epochs.at(-1)}`;
    const names = Array.from({ length: A }, (_, a) => actionName(a, routes.blocks));
    const labels = routes.tasks.map((name) => short(name, 14));
    const ticks = A <= 8 ? names : names.map((name) => name[0] === "P" || name[0] === "S" ? name[0] : name);
    const others = names.slice(routes.blocks).map((name) => `${name[0]}: ${name}`).join(", ");
    panels(at("matrices"), depthTitles(D)).forEach((div, d) => {
      drawSmall(div, [{
        type: "heatmap", z: labels.map((_, t) => Array.from(routes.read(e, d, t), (v) => v / 255)), zmin: 0, zmax: 1,
        x: names.map((_, a) => a), y: labels.map((_, t) => t), xgap: 1, ygap: 1, showscale: false,
        colorscale: [[0, "#f3f6f9"], [0.5, "#6baed6"], [1, "#08306b"]],
        text: labels.map((task) => names.map((name) => `${task}, ${name}`)), hovertemplate: "%{text}: %{z:.0%}<extra></extra>",
      }], {
        height: 56 + Math.min(Math.max(16 * T, 60), 600), margin: { l: 40, r: 6, t: 4, b: 40 },
        xaxis: { title: { text: A > 8 && others ? `block (${others})` : "block", standoff: 4, font: { size: 11 } }, showgrid: false, zeroline: false,
          tickangle: 0, ...(A <= 14 ? { tickvals: names.map((_, a) => a), ticktext: ticks } : { nticks: 8 }) },
        yaxis: { showgrid: false, zeroline: false, autorange: "reversed",
          ...(T <= 40 ? { tickvals: labels.map((_, t) => t), ticktext: labels } : {}) },
      });
    });
    drawFlow(routes, e, names);
  }

  function drawFlow(routes, e, names) {
    const [, D, T, A] = routes.shape;
    const byTask = T <= 20; // more ribbons than that are one grey
    const links = new Map(), used = new Map();
    const node = (key, label, tint, column, row, rows) => {
      if (!used.has(key)) used.set(key, { place: used.size, label, tint, column, at: (row + 0.5) / rows, share: 0 });
      return used.get(key).place;
    };
    const link = (from, to, value, t) => {
      const key = `${from} ${to} ${byTask ? t : ""}`;
      const old = links.get(key) || { from, to, value: 0, tint: byTask ? faint(t, 0.45) : "rgba(90,110,130,.35)" };
      links.set(key, { ...old, value: old.value + value });
    };
    const step = (d, a) => node(`${d} ${a}`, (a < routes.blocks ? `${d}·` : "") + names[a],
      a < routes.blocks ? "#44546a" : "#aab4bf", d + 1, a, A);
    for (let t = 0; t < T; t++) {
      const start = node(`task ${t}`, short(routes.tasks[t], 14), byTask ? colour(t) : "#44546a", 0, t, T);
      used.get(`task ${t}`).share = 1 / T;
      let before = [[start, 1]];
      for (let d = 0; d < D; d++) {
        const shares = [...routes.read(e, d, t)].map((v, a) => [a, v / 255]).filter(([, v]) => v > 0.02);
        for (const [from, p] of before) for (const [a, q] of shares) link(from, step(d, a), p * q, t);
        before = shares.map(([a, q]) => [step(d, a), q]);
        for (const [a, q] of shares) used.get(`${d} ${a}`).share += q / T;
      }
    }
    const nodes = [...used.values()], all = [...links.values()];
    const height = Math.min(150 + 24 * T, 700), margin = { l: 8, r: 12, t: 14, b: 30 }, pad = T > 20 ? 4 : 9;
    spread(nodes, D, pad / (height - margin.t - margin.b));
    drawSmall(at("flow"), [{
      type: "sankey", arrangement: "snap",
      node: { label: nodes.map((n) => n.label), color: nodes.map((n) => n.tint),
        x: nodes.map((n) => 0.001 + 0.998 * n.column / D), y: nodes.map((n) => n.at), pad, thickness: narrow() ? 9 : 14, line: { width: 0 },
        hovertemplate: "%{label}: %{value:.2f} tasks<extra></extra>" },
      link: { source: all.map((l) => l.from), target: all.map((l) => l.to), value: all.map((l) => l.value),
        color: all.map((l) => l.tint), hovertemplate: "%{source.label} to %{target.label}: %{value:.2f} tasks<extra></extra>" },
    }], { height, margin, font: { size: narrow() ? 10 : 12 } });
  }

  // Moves nodes apart, and all of them inside: Plotly lets a column of tall ones run out of the picture.
  function spread(nodes, D, gap) {
    const columns = Array.from({ length: D + 1 }, (_, c) => nodes.filter((n) => n.column === c).sort((a, b) => a.at - b.at));
    const scale = Math.min(...columns.map((of) => (1 - gap * (of.length - 1)) / of.reduce((total, n) => total + n.share, 0)));
    for (const column of columns) {
      let end = -gap;
      for (const n of column) {
        n.at = Math.max(n.at, end + gap + n.share * scale / 2);
        end = n.at + n.share * scale / 2;
      }
      let start = 1 + gap;
      for (const n of column.reverse()) {
        n.at = Math.min(n.at, start - gap - n.share * scale / 2);
        start = n.at - n.share * scale / 2;
      }
    }
  }

  function drawPolicies() {
    const routes = run.routes;
    const [E, D, T] = routes.shape;
    at("policy-title").textContent = routes.policy ? "Policies on their way" : "Greedy shares on their way (this agent tells no policy)";
    const read = routes.policy ? unpack(routes.policy, routes.shape) : routes.read;
    at("tasks").replaceChildren(...routes.tasks.slice(0, 40).map((name, t) => {
      const item = document.createElement("span");
      item.textContent = name;
      item.style.setProperty("--colour", colour(t));
      return item;
    }));
    panels(at("policies"), depthTitles(D)).forEach((div, d) => {
      const legal = routes.legal[d].flatMap((on, a) => (on ? [a] : []));
      const names = legal.map((a) => actionName(a, routes.blocks));
      const path = (t) => Array.from({ length: E }, (_, e) => {
        const shares = read(e, d, t), ours = legal.map((a) => shares[a]), total = ours.reduce((a, b) => a + b, 0) || 1;
        return ours.map((v) => v / total);
      });
      (legal.length < 3 ? drawProbability : drawPolygon)(div, routes, path, names, T);
    });
  }

  function hoverText(routes, t, shares, names, e) {
    const best = shares.map((v, a) => [v, names[a]]).sort((x, y) => y[0] - x[0]).slice(0, 4);
    return `${plain(routes.tasks[t])}, epoch ${routes.epochs[e]}<br>` + best.map(([v, name]) => `${name}: ${(100 * v).toFixed(0)} %`).join("<br>");
  }

  function drawProbability(div, routes, path, names, T) {
    drawSmall(div, Array.from({ length: T }, (_, t) => ({
      x: routes.epochs, y: path(t).map((shares) => shares[0]), mode: "lines+markers", type: "scatter",
      line: { color: colour(t), width: 1.5 }, marker: { size: 4 }, text: path(t).map((s, e) => hoverText(routes, t, s, names, e)),
      hovertemplate: "%{text}<extra></extra>",
    })), { height: 300, xaxis: { title: { text: "epoch" } },
      yaxis: { title: { text: `P(${names[0]})` }, range: [-0.03, 1.03] } });
  }

  function drawPolygon(div, routes, path, names, T) {
    const n = names.length;
    const corners = names.map((_, k) => 2 * Math.PI * k / n + (n === 3 ? Math.PI / 2 : Math.PI / 2 - Math.PI / n))
      .map((angle) => [Math.cos(angle), Math.sin(angle)]);
    const edge = [...corners, corners[0]];
    const traces = [{ x: edge.map((c) => c[0]), y: edge.map((c) => c[1]), mode: "lines", type: "scatter", hoverinfo: "skip",
      line: { color: "#b8c1ca", width: 1 } }];
    for (let t = 0; t < T; t++) {
      const shares = path(t);
      const points = shares.map((s) => [0, 1].map((k) => s.reduce((total, v, a) => total + v * corners[a][k], 0)));
      const last = points.length - 1;
      traces.push({
        x: points.map((p) => p[0]), y: points.map((p) => p[1]), mode: "lines+markers", type: "scatter",
        line: { color: faint(t, 0.75), width: 1.6 },
        marker: { color: points.map((_, e) => (e === last ? colour(t) : e ? faint(t, 0.35) : "#fff")),
          size: points.map((_, e) => (e === 0 || e === last ? 9 : 4)), line: { color: colour(t), width: points.map((_, e) => (e ? 0 : 1.5)) }, opacity: 1 },
        text: shares.map((s, e) => hoverText(routes, t, s, names, e)), hovertemplate: "%{text}<extra></extra>",
      });
    }
    const none = { visible: false, range: [-1.25, 1.25], automargin: false };
    drawSmall(div, traces, {
      height: 300, margin: { l: 4, r: 4, t: 4, b: 4 }, xaxis: none, yaxis: { ...none, scaleanchor: "x" },
      annotations: corners.map(([x, y], k) => ({ x: 1.14 * x, y: 1.14 * y, text: names[k], showarrow: false, font: { size: 11, color: "#5d6b7a" } })),
    });
  }

  // -- what can be chosen --------------------------------------------------------------------------------------------

  function fill(select, values, labels) {
    const before = select.value;
    select.replaceChildren(...values.map((value, k) => new Option(labels[k], value)));
    if (values.map(String).includes(before)) select.value = before;
    select.parentElement.hidden = values.length < 2;
  }

  function chips() {
    at("methods").replaceChildren(...here().methods.map((name, i) => {
      const chip = document.createElement("button");
      const mark = document.createElement("i");
      mark.style.borderTopColor = colour(i);
      mark.style.borderTopStyle = { solid: "solid", dash: "dashed", dot: "dotted", dashdot: "double" }[dash(i)];
      chip.className = "chip";
      chip.append(mark, name);
      chip.setAttribute("aria-pressed", String(!hidden.has(i)));
      chip.onclick = () => {
        if (!hidden.delete(i)) hidden.add(i);
        chip.setAttribute("aria-pressed", String(!hidden.has(i)));
        drawAll();
      };
      return chip;
    }));
  }

  function drawAll() {
    drawIntervals();
    drawCurves();
    drawReached();
    drawDiagnostics();
  }

  function chooseSuite() {
    suite = at("suite").value;
    for (const table of document.querySelectorAll(".summary")) table.hidden = table.dataset.suite !== suite;
    hidden = new Set(here().methods.map((_, i) => i).filter((i) => i >= SHOWN_AT_FIRST));
    chips();
    drawAll();
    const ours = data.runs.filter((r) => r.suite === suite);
    for (const r of ours) r.method_has_routes = ours.some((other) => other.method === r.method && other.routes);
    const methods = [...new Set(ours.map((r) => r.method))].sort((a, b) => a - b);
    fill(at("run-method"), methods, methods.map((i) => here().methods[i]));
    const first = ours.find(undecided) || ours.find((r) => r.routes);
    if (first) at("run-method").value = String(first.method);
    chooseMethod();
  }

  // Of those that learn to route: where not all policies were certain from the start.
  const undecided = ({ routes }) => routes && routes.policy && [...atob(routes.policy)].some((c) => c > "\0" && c < "\xff");

  function chooseMethod() {
    const ours = data.runs.filter((r) => r.suite === suite && String(r.method) === at("run-method").value);
    fill(at("run-seed"), ours.map((r) => r.run + r.seed), ours.map((r) => String(r.seed)));
    chooseRun();
  }

  function chooseRun() {
    run = data.runs.find((r) => r.suite === suite && String(r.method) === at("run-method").value &&
      r.run + r.seed === at("run-seed").value);
    drawRun();
  }

  let timer = null;
  function stop() {
    clearInterval(timer);
    timer = null;
    at("play").textContent = "play";
  }

  function play() {
    if (timer) return stop();
    const slider = at("epoch");
    if (slider.value === slider.max) slider.value = 0;
    at("play").textContent = "stop";
    timer = setInterval(() => {
      slider.value = Number(slider.value) + 1;
      drawRoutes();
      if (slider.value === slider.max) stop();
    }, 500);
  }

  fill(at("suite"), Object.keys(data.suites), Object.keys(data.suites));
  fill(at("split"), data.splits, data.splits);
  at("split").value = split;
  fill(at("metric"), ["accuracy", "balanced_accuracy", "loss"], ["accuracy", "balanced accuracy", "loss"]);
  at("suite").onchange = chooseSuite;
  at("split").onchange = () => { split = at("split").value; drawCurves(); };
  at("metric").onchange = () => { metric = at("metric").value; drawIntervals(); drawCurves(); };
  at("against").onchange = drawCurves;
  at("unit").onchange = drawReached;
  at("depth").onchange = drawDiagnostics;
  at("run-method").onchange = () => { stop(); chooseMethod(); };
  at("run-seed").onchange = () => { stop(); chooseRun(); };
  at("epoch").oninput = () => { stop(); drawRoutes(); };
  at("play").onclick = play;
  at("all").onclick = () => { hidden = new Set(); chips(); drawAll(); };
  at("none").onclick = () => { hidden = new Set(here().methods.keys()); chips(); drawAll(); };
  chooseSuite();
  document.documentElement.dataset.drawn = "yes";
})();
