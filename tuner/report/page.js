"use strict";
(() => {
  const stored = JSON.parse(document.getElementById("figures").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const KINDS = { f4: Float32Array, f8: Float64Array, i4: Int32Array };
  const DRAWN = 60000; // points of a picture that are drawn at once, where all of them are kept
  const sets = new Map(); // by name: all points, and what is drawn of them

  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function unpack(value) { // numbers from base64, wherever they are
    if (Array.isArray(value)) return value.map(unpack);
    if (value === null || typeof value !== "object") return value;
    if (typeof value.bdata === "string" && KINDS[value.dtype]) {
      const bytes = Uint8Array.from(atob(value.bdata), (c) => c.charCodeAt(0));
      return new KINDS[value.dtype](bytes.buffer);
    }
    return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, unpack(one)]));
  }

  function inTheme(value) { // colours of the light theme, as they are in this one
    if (typeof value === "string") return (dark.matches && stored.dark[value]) || value;
    if (Array.isArray(value)) return value.map(inTheme);
    if (value === null || typeof value !== "object" || ArrayBuffer.isView(value)) return value;
    return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, inTheme(one)]));
  }

  function layout(own, narrow) {
    const axis = { gridcolor: css("--line"), zerolinecolor: css("--line"), linecolor: css("--line") };
    const made = {
      ...own,
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: css("--ink"), family: getComputedStyle(document.body).fontFamily, size: 13 },
      hoverlabel: { bgcolor: css("--card"), bordercolor: css("--line"), font: { color: css("--ink") } },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", ...own.legend },
      margin: { l: narrow ? 52 : 64, r: 12, t: 16, b: 48, ...own.margin },
      uirevision: "kept", hovermode: "closest",
    };
    for (const name of Object.keys(made)) {
      if (/^[xy]axis\d*$/.test(name)) {
        const log = made[name]?.type === "log";
        made[name] = { ...axis, exponentformat: log ? "power" : "SI", ...made[name] };
      }
    }
    return made;
  }

  function seen(trace, low, high, points) { // the points in view: of each stretch the extremes
    const n = trace.y.length;
    let first = 0, last = n;
    while (first < n && trace.x[first] < low) first += 1;
    while (last > first && trace.x[last - 1] > high) last -= 1;
    first = Math.max(0, first - 1); last = Math.min(n, last + 1);
    if (last - first <= points) return [trace.x.slice(first, last), trace.y.slice(first, last)];
    const x = [], y = [], step = (last - first) / (points / 2);
    for (let from = first; from < last; from += step) {
      const begin = Math.floor(from), end = Math.min(last, Math.floor(from + step));
      let least = begin, most = begin;
      for (let at = begin + 1; at < end; at += 1) {
        if (trace.y[at] < trace.y[least]) least = at;
        if (trace.y[at] > trace.y[most]) most = at;
      }
      for (const at of least < most ? [least, most] : least > most ? [most, least] : [least]) {
        x.push(trace.x[at]); y.push(trace.y[at]);
      }
    }
    return [x, y];
  }

  function traces(set, low, high) {
    if (!set.full) return inTheme(set.data);
    const shown = set.data.filter((trace) => !trace.of || trace.of === set.of);
    const each = Math.max(200, Math.floor(DRAWN / Math.max(1, shown.length)));
    return shown.map((trace) => {
      const [x, y] = seen(trace, low, high, each);
      return { ...inTheme({ ...trace, x: [], y: [] }), x, y };
    });
  }

  function draw(element, range) {
    const set = sets.get(element.dataset.figure);
    const [low, high] = range || [-Infinity, Infinity];
    const made = layout(inTheme(set.layout), element.clientWidth < 600);
    if (set.log !== undefined) made.yaxis = { ...made.yaxis, type: set.log ? "log" : "linear", range: undefined, autorange: true };
    if (range) made.xaxis = { ...made.xaxis, range };
    const options = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d"] };
    return Plotly.react(element, traces(set, low, high), made, options);
  }

  for (const [name, figure] of Object.entries(stored.figures)) sets.set(name, unpack(figure));
  const elements = [...document.querySelectorAll("[data-figure]")];
  const ready = elements.map(async (element) => {
    const set = sets.get(element.dataset.figure);
    await draw(element);
    if (set.full) element.on("plotly_relayout", (event) => {
      if ("xaxis.range[0]" in event) draw(element, [event["xaxis.range[0]"], event["xaxis.range[1]"]]);
      else if (event["xaxis.autorange"]) draw(element);
    });
  });
  dark.addEventListener("change", () => elements.forEach((element) => draw(element)));
  Promise.all(ready).then(() => document.documentElement.setAttribute("data-drawn", elements.length));

  for (const button of document.querySelectorAll("button[data-log]")) button.addEventListener("click", () => {
    const set = sets.get(button.dataset.log);
    set.log = !(set.log ?? set.layout.yaxis.type === "log");
    button.setAttribute("aria-pressed", set.log);
    draw(document.querySelector(`[data-figure="${button.dataset.log}"]`));
  });
  for (const button of document.querySelectorAll("button[data-of]")) button.addEventListener("click", () => {
    const set = sets.get(button.dataset.name);
    set.of = button.dataset.of;
    for (const other of button.parentElement.querySelectorAll("button[data-of]")) other.setAttribute("aria-pressed", other === button);
    draw(document.querySelector(`[data-figure="${button.dataset.name}"]`));
  });
  for (const head of document.querySelectorAll("th button")) head.addEventListener("click", () => {
    const cell = head.parentElement, body = cell.closest("table").tBodies[0];
    const up = cell.getAttribute("aria-sort") !== "ascending";
    for (const other of cell.parentElement.children) other.removeAttribute("aria-sort");
    cell.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = (row) => row.cells[cell.cellIndex].dataset.key ?? row.cells[cell.cellIndex].textContent;
    const rows = [...body.rows].sort((a, b) => {
      const [one, two] = [key(a), key(b)];
      if (one === "" || two === "") return (one === "") - (two === "");
      const order = isNaN(one) || isNaN(two) ? one.localeCompare(two) : one - two;
      return up ? order : -order;
    });
    body.append(...rows);
  });
})();
