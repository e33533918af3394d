"use strict";
// Asks the master for its status every two seconds and shows the answer. Everything that comes from the master goes into
// the page as text, never as markup.

const POLL_MS = 2000;
const TIMEOUT_MS = 8000;
const LONGEST_PAUSE_MS = 30000;
const SHOWN_VERSIONS = 5;
const SHOWN_METRICS = 6;
const SPARK_POINTS = 64;
const COUNTER = /^(epoch|step|global_step|iteration|iter|batch|round)s?$/i;

const byId = (id) => document.getElementById(id);

// ---------------------------------------------------------------------------------------------------- elements

/** An element; strings among the children become text. */
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children);
  return node;
}

function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, String(value));
  node.append(...children);
  return node;
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/**
 * Make `parent`'s keyed children those of `items`, in order. An element stays the same for as long as its key is there, so
 * that the focus, a selection or a tooltip in it survives.
 */
function sync(parent, items, key, make, update) {
  const wanted = new Set(items.map(key));
  const known = new Map();
  for (const child of [...parent.children]) {
    if (child.holdfastKey === undefined) continue;
    if (wanted.has(child.holdfastKey)) known.set(child.holdfastKey, child);
    else child.remove();
  }
  let place = [...parent.children].find((child) => child.holdfastKey !== undefined) ?? null;
  for (const item of items) {
    const name = key(item);
    let child = known.get(name);
    if (child === undefined) {
      child = make(item);
      child.holdfastKey = name;
    }
    update(child, item);
    if (child === place) place = place.nextSibling;
    else parent.insertBefore(child, place);
  }
}

/** Fill a row's cells. A cell is built anew only if what it shows has changed. */
function fillRow(row, columns, labels, item) {
  columns.forEach((column, at) => {
    let cell = row.cells[at];
    if (cell === undefined) {
      cell = el(at === 0 ? "th" : "td", {
        role: at === 0 ? "rowheader" : "cell",
        scope: at === 0 ? "row" : null,
        class: column.class ?? null,
        "data-label": labels[at],
      });
      row.append(cell);
    }
    const shown = JSON.stringify(column.shows(item));
    if (cell.holdfastShown === shown) return;
    cell.holdfastShown = shown;
    const content = column.build(item);
    cell.toggleAttribute("data-empty", content === null);
    cell.replaceChildren(...(content === null ? [el("span", { class: "soft" }, "–")] : [content].flat()));
  });
}

const labelsOf = (table) => [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
const newRow = () => el("tr", { role: "row" });

// ---------------------------------------------------------------------------------------------------- numbers and times

const grouped = new Intl.NumberFormat("en");

function bytesText(count) {
  if (!Number.isFinite(count)) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let value = count;
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  if (unit > 0 && value >= 1023.5 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

function metricText(value) {
  if (typeof value !== "number") return String(typeof value === "object" ? JSON.stringify(value) : value);
  if (Number.isInteger(value) && Math.abs(value) < 1e9) return grouped.format(value);
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2);
  return size >= 1000 ? grouped.format(Math.round(value)) : value.toPrecision(4);
}

function durationText(seconds) {
  const s = Math.max(0, seconds);
  if (s < 60) return `${s < 10 && !Number.isInteger(s) ? s.toFixed(1) : Math.floor(s)} s`;
  const pad = (n) => String(n).padStart(2, "0");
  const minutes = Math.floor(s / 60);
  if (minutes < 60) return `${minutes} min ${pad(Math.floor(s % 60))} s`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours} h ${pad(minutes % 60)} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

function agoText(seconds) {
  const s = Math.max(0, seconds);
  if (s < 10) return "just now";
  if (s < 60) return `${Math.floor(s)} s ago`;
  if (s < 3600) return `${Math.floor(s / 60)} min ago`;
  if (s < 48 * 3600) return `${Math.floor(s / 3600)} h ago`;
  return `${Math.floor(s / 86400)} days ago`;
}

const plural = (count, one, many = `${one}s`) => `${grouped.format(count)} ${count === 1 ? one : many}`;

/** Short remarks behind each other; a line breaks between them only. */
const inOneLine = (remarks) => remarks.filter(Boolean).map((remark) => remark.replaceAll(" ", "\u00a0")).join(" · ");

/** Seconds since 1970 by the master's clock, which may differ from this machine's. */
let clockOffset = 0;
const masterNow = () => Date.now() / 1000 + clockOffset;

function ago(stamp) {
  const when = new Date(stamp * 1000);
  return el(
    "time",
    { datetime: when.toISOString(), title: when.toLocaleString(), "data-ago": stamp },
    agoText(masterNow() - stamp),
  );
}

/** Bring relative times and running durations up to date. */
function tick() {
  for (const node of document.querySelectorAll("[data-ago]")) setText(node, agoText(masterNow() - Number(node.dataset.ago)));
  for (const node of document.querySelectorAll("[data-since]")) {
    setText(node, durationText(Math.floor(masterNow() - Number(node.dataset.since))));
  }
}

// ---------------------------------------------------------------------------------------------------- copying

function say(text) {
  byId("said").textContent = text;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Over plain HTTP from another machine there is no clipboard API.
    const source = el("textarea", { class: "copy-source", readonly: true, "aria-hidden": "true" });
    source.value = text;
    const before = document.activeElement;
    document.body.append(source);
    source.select();
    const done = document.execCommand("copy");
    source.remove();
    before?.focus({ preventScroll: true });
    return done;
  }
}

function copyButton(text, what) {
  const button = el(
    "button",
    { type: "button", class: "copy", "aria-label": `Copy ${what}`, title: `Copy ${what}` },
    svg(
      "svg",
      { viewBox: "0 0 16 16", "aria-hidden": "true", class: "todo" },
      svg("rect", { x: 5.5, y: 5.5, width: 8, height: 8, rx: 1.8 }),
      svg("path", { d: "M10.5 5.5V4.3a1.8 1.8 0 0 0-1.8-1.8H4.3a1.8 1.8 0 0 0-1.8 1.8v4.4a1.8 1.8 0 0 0 1.8 1.8h1.2" }),
    ),
    svg("svg", { viewBox: "0 0 16 16", "aria-hidden": "true", class: "done" }, svg("path", { d: "m3 8.5 3.4 3.4L13 5" })),
  );
  button.addEventListener("click", async () => {
    const done = await copy(text);
    say(done ? `Copied ${what}` : `Could not copy ${what}`);
    button.toggleAttribute("data-copied", done);
    setTimeout(() => button.removeAttribute("data-copied"), 1600);
  });
  return button;
}

/** A CID, shortened; all of it is in the tooltip and goes to the clipboard. */
function cidText(cid) {
  const short = cid.length > 24 ? [cid.slice(0, 7), `${cid.slice(7, 11)}…${cid.slice(-6)}`] : ["", cid];
  return el(
    "span",
    { class: "cid" },
    el("code", { title: cid }, el("span", { class: "cid-head" }, short[0]), short[1]),
    copyButton(cid, `CID ${cid}`),
  );
}

function snippet(text) {
  return el("div", { class: "snippet" }, el("pre", { tabindex: 0 }, el("code", {}, text)), copyButton(text, "this"));
}

const dot = (tone, text) => el("span", { class: `dot ${tone}` }, text);

// ---------------------------------------------------------------------------------------------------- nodes

const NODE_COLUMNS = [
  { shows: (n) => n.id, build: (n) => n.id },
  { shows: (n) => n.role, build: (n) => n.role },
  { shows: (n) => n.alive, build: (n) => (n.alive ? dot("good", "alive") : dot("bad", "gone")) },
  { shows: (n) => (n.alive ? "now" : n.seen), build: (n) => (n.alive ? "just now" : ago(n.seen)), class: "nowrap" },
  { shows: (n) => n.node_ip, build: (n) => el("span", { class: "mono", title: n.url }, n.node_ip) },
  { shows: (n) => n.num_cpus, build: (n) => grouped.format(n.num_cpus), class: "num" },
  { shows: (n) => n.blocks, build: (n) => grouped.format(n.blocks), class: "num" },
  { shows: (n) => n.bytes, build: (n) => el("span", { title: `${grouped.format(n.bytes)} bytes` }, bytesText(n.bytes)), class: "num" },
];

function showNodes(status) {
  const nodes = status.nodes;
  const table = byId("nodes").querySelector("table");
  const labels = labelsOf(table);
  table.hidden = false;
  sync(bodyOf(table), nodes, (n) => n.id, newRow, (row, n) => fillRow(row, NODE_COLUMNS, labels, n));

  const alive = nodes.filter((n) => n.alive);
  const gone = nodes.length - alive.length;
  setText(byId("nodes-count"), grouped.format(alive.length));
  const cpus = alive.reduce((sum, n) => sum + n.num_cpus, 0);
  setText(byId("nodes-note"), inOneLine([plural(cpus, "CPU"), gone ? `${gone} gone` : ""]));
  showEmpty("nodes", !alive.some((n) => n.role === "worker"), status.url, () => [
    el("p", {}, el("strong", {}, "No workers yet"), "Start one on the master’s machine, on a home of its own:"),
    snippet(status.join.here),
    ...(status.join.elsewhere
      ? [
          el("p", {}, "Or on another machine, with a copy of the master’s token file ", el("code", {}, status.token_file), ":"),
          snippet(status.join.elsewhere),
        ]
      : [el("p", {}, "Only this machine reaches the master; ", el("code", {}, "holdfast up --host ADDRESS"), " starts one for others, too.")]),
  ]);
}

/** The single body of a table whose rows are one list. */
function bodyOf(table) {
  if (table.tBodies.length === 0) table.append(el("tbody", { role: "rowgroup" }));
  return table.tBodies[0];
}

/** Show what to do next where there is nothing; built anew only if `shown` changes. */
function showEmpty(section, empty, shown, build) {
  const box = byId(section).querySelector(".empty");
  box.hidden = !empty;
  if (!empty || box.holdfastShown === shown) return;
  box.holdfastShown = shown;
  box.replaceChildren(...build());
}

// ---------------------------------------------------------------------------------------------------- names

const NAME_COLUMNS = [
  { shows: (e) => e.name, build: (e) => e.name },
  { shows: (e) => e.version, build: (e) => e.version },
  {
    shows: (e) => e.aliases,
    build: (e) => (e.aliases.length ? el("span", { class: "badges" }, ...e.aliases.map((alias) => el("span", { class: "badge" }, alias))) : null),
  },
  { shows: (e) => e.cid, build: (e) => cidText(e.cid) },
  { shows: (e) => e.created, build: (e) => ago(e.created) },
];

const opened = new Set();

function showNames(section, kind, status, empty) {
  const groups = new Map();
  for (const entry of status.names) {
    if (entry.kind !== kind) continue;
    if (!groups.has(entry.name)) groups.set(entry.name, []);
    groups.get(entry.name).unshift(entry);
  }
  const table = byId(section).querySelector("table");
  const labels = labelsOf(table);
  table.hidden = groups.size === 0;
  sync(
    table,
    [...groups.values()],
    (versions) => versions[0].name,
    () => el("tbody", { role: "rowgroup" }),
    (body, versions) => showVersions(body, `${kind} ${versions[0].name}`, versions, labels, status),
  );
  const versions = [...groups.values()].reduce((sum, group) => sum + group.length, 0);
  setText(byId(`${section}-count`), grouped.format(groups.size));
  setText(byId(`${section}-note`), groups.size ? plural(versions, "version") : "");
  showEmpty(section, groups.size === 0, status.url, () => empty(status));
}

function showVersions(body, key, versions, labels, status) {
  const all = opened.has(key) || versions.length <= SHOWN_VERSIONS + 1;
  const shown = all ? versions : versions.filter((entry, at) => at < SHOWN_VERSIONS || entry.aliases.length > 0);
  sync(body, shown, (e) => e.version, newRow, (row, e) => {
    row.className = e === versions[0] ? "" : "again";
    fillRow(row, NAME_COLUMNS, labels, e);
  });
  const left = versions.length - shown.length;
  let more = body.querySelector(".more-row");
  if (left === 0) {
    more?.remove();
    return;
  }
  if (more === null) {
    const button = el("button", { type: "button", class: "more" });
    button.addEventListener("click", () => {
      opened.add(key);
      show(last);
      body.rows[SHOWN_VERSIONS]?.querySelector("button")?.focus();
    });
    more = el("tr", { role: "row", class: "more-row" }, el("td", { role: "cell", colspan: NAME_COLUMNS.length }, button));
    body.append(more);
  }
  setText(more.querySelector("button"), `Show ${plural(left, "older version")} of ${versions[0].name}`);
}

const connect = ({ url, token_file: file }) =>
  `import holdfast\n\ntoken = open(${JSON.stringify(file)}).read().strip()\nclient = holdfast.connect("${url}", token=token)`;

const NEXT = {
  datasets: (status) => [
    el("p", {}, el("strong", {}, "No datasets yet"), "Store a table: the same rows, written the same way, have the same CID everywhere."),
    snippet(`${connect(status)}\nclient.datasets.store_dataset({"x": x, "y": y}, name="digits")`),
  ],
  models: (status) => [
    el("p", {}, el("strong", {}, "No models yet"), "Train one, then give it a name. Names have versions that never change."),
    snippet(`${connect(status)}\nrun = client.train(train, "digits")\nclient.models.register("digits-cnn", run.model)`),
  ],
  indexes: (status) => [
    el("p", {}, el("strong", {}, "No indexes yet"), "Embed a dataset with a model, and search its rows by meaning."),
    snippet(`${connect(status)}\nclient.build_index("digits-index", corpus="digits", model="digits-cnn")`),
  ],
  runs: (status) => [
    el("p", {}, el("strong", {}, "No runs yet"), "Train a function on the cluster; it shows up here while it runs."),
    snippet(`${connect(status)}\nclient.train(train, "digits", workers=2)`),
  ],
};

// ---------------------------------------------------------------------------------------------------- runs

const FINAL = new Set(["done", "failed", "cancelled"]);
const TONES = { queued: "wait", running: "busy", done: "good", failed: "bad", cancelled: "off" };

/** Run id -> { after, reports, whole }: the events that have been fetched. */
const followed = new Map();

/** "name:version" of a CID, if the registry has one. */
function nameOf(status, kind, cid) {
  const found = status.names.findLast((entry) => entry.kind === kind && entry.cid === cid);
  return found ? `${found.name}:${found.version}` : null;
}

function named(status, kind, cid) {
  const name = nameOf(status, kind, cid);
  return name ? [el("span", { class: "named" }, name), el("span", { class: "under" }, cidText(cid))] : cidText(cid);
}

const RUN_COLUMNS = [
  { shows: ({ run }) => run.id, build: ({ run }) => el("code", {}, run.id), class: "nowrap" },
  {
    shows: ({ run }) => [run.state, countersOf(run)],
    build: ({ run }) => [dot(TONES[run.state] ?? "off", run.state), ...countersOf(run).map((text) => el("span", { class: "under" }, text))],
  },
  {
    shows: ({ run, status }) => [run.spec.data, nameOf(status, "dataset", run.spec.data)],
    build: ({ run, status }) => named(status, "dataset", run.spec.data),
  },
  {
    shows: ({ run }) => [run.spec.workers, run.spec.threads_per_worker],
    build: ({ run }) => [
      `${grouped.format(run.spec.workers)} `,
      el("span", { class: "under" }, `× ${plural(run.spec.threads_per_worker, "CPU")}`),
    ],
    class: "num",
  },
  {
    shows: ({ run }) => [run.started, run.finished],
    build: ({ run }) => (run.started === null ? null : [ago(run.started), el("span", { class: "under" }, ...durationOf(run))]),
  },
  {
    shows: ({ run }) => [run.state, followed.get(run.id)?.reports.length ?? 0],
    build: ({ run }) => metricsOf(run),
  },
  {
    shows: ({ run, status }) => [run.result.model, nameOf(status, "model", run.result.model)],
    build: ({ run, status }) => (run.result.model ? named(status, "model", run.result.model) : null),
  },
];

function durationOf(run) {
  if (run.result.cached_from) return ["cached from ", el("code", {}, run.result.cached_from)];
  if (run.finished !== null) return ["took ", durationText(run.finished - run.started)];
  return ["for ", el("span", { "data-since": run.started }, durationText(Math.floor(masterNow() - run.started)))];
}

function showRuns(status) {
  const runs = status.runs;
  const table = byId("runs").querySelector("table");
  const labels = labelsOf(table);
  table.hidden = runs.length === 0;
  sync(
    table,
    runs,
    (run) => run.id,
    () => el("tbody", { role: "rowgroup" }, newRow()),
    (body, run) => {
      fillRow(body.rows[0], RUN_COLUMNS, labels, { run, status });
      showError(body, run);
    },
  );
  const count = (state) => runs.filter((run) => run.state === state).length;
  setText(byId("runs-count"), grouped.format(status.runs_total));
  const notes = ["running", "queued", "failed"].map((state) => (count(state) ? `${count(state)} ${state}` : ""));
  setText(byId("runs-note"), inOneLine(notes) || (runs.length ? "all ended" : ""));
  showEmpty("runs", runs.length === 0, status.url, () => NEXT.runs(status));
}

function showError(body, run) {
  const text = run.state === "failed" ? (run.error ?? "It failed without a word.") : "";
  if (!text) {
    body.rows[1]?.remove();
    return;
  }
  if (body.rows.length === 1) {
    const box = el("pre", { tabindex: 0, "aria-label": `Error of ${run.id}` });
    body.append(el("tr", { role: "row", class: "error" }, el("td", { role: "cell", colspan: RUN_COLUMNS.length }, box)));
  }
  setText(body.rows[1].querySelector("pre"), text);
}

const latestOf = (run) => Object.entries(followed.get(run.id)?.reports.at(-1) ?? {});

/** How far a run is, such as "epoch 3": stands below its state. */
const countersOf = (run) =>
  latestOf(run)
    .filter(([name]) => COUNTER.test(name))
    .map(([name, value]) => `${name} ${metricText(value)}`);

function metricsOf(run) {
  const entries = latestOf(run).filter(([name]) => !COUNTER.test(name));
  if (entries.length === 0) {
    if (run.result.cached_from) return el("span", { class: "soft" }, "Known already: nothing was trained");
    return run.state === "running" ? el("span", { class: "soft" }, "No report yet") : null;
  }
  const shown = entries.slice(0, SHOWN_METRICS).map(([name, value]) => {
    const series = followed.get(run.id).reports.map((report) => report[name]).filter((v) => Number.isFinite(v));
    return el(
      "span",
      { class: "metric" },
      el(
        "span",
        { class: "metric-text" },
        el("span", { class: "metric-name", title: name }, name),
        " ",
        el("span", { class: "metric-value", title: String(value) }, metricText(value)),
      ),
      ...(series.length > 1 ? [sparkline(name, series)] : []),
    );
  });
  const left = entries.slice(SHOWN_METRICS);
  if (left.length) {
    const text = left.map(([name, value]) => `${name} ${metricText(value)}`).join("\n");
    shown.push(el("span", { class: "metric soft", title: text }, `and ${left.length} more`));
  }
  return el("span", { class: "metrics" }, ...shown);
}

/** A small chart of one metric, from its lowest to its highest value. */
function sparkline(name, series) {
  const [width, height, edge] = [64, 28, 3];
  const step = Math.max(1, (series.length - 1) / (SPARK_POINTS - 1));
  const points = [];
  for (let at = 0; at < series.length - 1; at += step) points.push(series[Math.floor(at)]);
  points.push(series[series.length - 1]);
  const low = Math.min(...points);
  const span = Math.max(...points) - low;
  const x = (at) => (edge + (at / (points.length - 1)) * (width - 2 * edge)).toFixed(1);
  const y = (value) => (span === 0 ? height / 2 : height - edge - ((value - low) / span) * (height - 2 * edge)).toFixed(1);
  const line = points.map((value, at) => `${at ? "L" : "M"}${x(at)} ${y(value)}`).join("");
  const told = `${name}: ${series.length} reports, from ${metricText(series[0])} to ${metricText(series[series.length - 1])}`;
  return svg(
    "svg",
    { class: "spark", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": told },
    svg("title", {}, told),
    svg("path", { class: "line", d: line }),
    svg("circle", { class: "end", cx: x(points.length - 1), cy: y(points[points.length - 1]), r: 2.2 }),
  );
}

/** Fetch what is new of the runs' events, a few runs at a time. */
async function follow(status) {
  const ids = new Set(status.runs.map((run) => run.id));
  for (const id of followed.keys()) if (!ids.has(id)) followed.delete(id);
  const waiting = status.runs.filter((run) => run.state !== "queued" && !followed.get(run.id)?.whole);
  const work = async () => {
    for (let run = waiting.shift(); run !== undefined; run = waiting.shift()) {
      const known = followed.get(run.id) ?? { after: 0, reports: [], whole: false };
      try {
        const answer = await ask(`/api/v0/runs/${encodeURIComponent(run.id)}/events?after=${known.after}`);
        for (const event of answer.events) {
          known.after = Math.max(known.after, event.seq);
          if (event.type === "report" && event.metrics !== null && typeof event.metrics === "object") known.reports.push(event.metrics);
        }
        known.whole = FINAL.has(answer.run.state);
        followed.set(run.id, known);
      } catch (problem) {
        if (problem instanceof Lost && problem.status === 0) return; // the next status tells
        known.whole = FINAL.has(run.state); // unreadable: shown without numbers, and not asked for again
        followed.set(run.id, known);
      }
    }
  };
  await Promise.all([work(), work(), work()]);
  showRuns(status);
}

// ---------------------------------------------------------------------------------------------------- asking the master

/** The master did not give what it was asked for; `status` is 0 if it did not answer at all. */
class Lost extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function ask(path) {
  let response;
  try {
    response = await fetch(path, {
      cache: "no-store",
      credentials: "same-origin",
      headers: { Accept: "application/json" },
      signal: AbortSignal.timeout(TIMEOUT_MS),
    });
  } catch {
    throw new Lost(0, "does not answer");
  }
  if (response.status === 401 || response.status === 403) {
    location.reload(); // the log-in page
    throw new Lost(response.status, "wants its token");
  }
  if (!response.ok) throw new Lost(response.status, `answers with an error (HTTP ${response.status})`);
  try {
    return await response.json();
  } catch {
    throw new Lost(response.status, "gave an answer that can’t be read");
  }
}

let last = null;
let lastAt = 0;
let failures = 0;
let timer = 0;
let nextAt = 0;
let asking = false;

async function poll() {
  if (asking) return;
  asking = true;
  clearTimeout(timer);
  nextAt = 0;
  try {
    const status = await ask("/api/v0/status");
    failures = 0;
    last = status;
    lastAt = Date.now();
    show(status);
    showLive();
    await follow(status);
  } catch (problem) {
    if (!(problem instanceof Lost)) console.error(problem);
    failures += 1;
    showLost(problem instanceof Lost ? problem.message : "gave an answer that this page can’t show");
  } finally {
    asking = false;
  }
  if (document.hidden) return;
  const pause = failures ? Math.min(LONGEST_PAUSE_MS, POLL_MS * 2 ** (failures - 1)) : POLL_MS;
  nextAt = Date.now() + pause;
  timer = setTimeout(poll, pause);
  if (failures) countDown();
}

function show(status) {
  const master = status.nodes[0];
  if (master) clockOffset = master.seen + master.seen_s_ago - Date.now() / 1000;
  setText(byId("version"), status.version);
  setText(byId("url"), status.url);
  const uptime = byId("uptime");
  uptime.dataset.since = String(masterNow() - status.uptime_s);
  showNodes(status);
  showRuns(status);
  showNames("models", "model", status, NEXT.models);
  showNames("datasets", "dataset", status, NEXT.datasets);
  showNames("indexes", "index", status, NEXT.indexes);
  byId("main").removeAttribute("aria-busy");
  tick();
}

function setState(state, text) {
  const node = byId("state");
  if (node.dataset.state === state) return;
  node.dataset.state = state;
  node.textContent = text;
}

function showLive() {
  setState("live", "Live");
  document.body.removeAttribute("data-stale");
  byId("lost").hidden = true;
  setText(document.querySelector("title"), `${location.host} · holdfast`);
}

function showLost(what) {
  setState("lost", "Lost");
  setText(document.querySelector("title"), "Lost · holdfast");
  setText(byId("lost-title"), `The master ${what}.`);
  setText(
    byId("lost-text"),
    last === null
      ? "Look whether ‘holdfast up’ is still running."
      : `What you see is from ${new Date(lastAt).toLocaleTimeString()}. Look whether ‘holdfast up’ is still running.`,
  );
  if (last !== null) document.body.setAttribute("data-stale", "");
  byId("lost").hidden = false;
}

function countDown() {
  const left = Math.max(0, Math.ceil((nextAt - Date.now()) / 1000));
  setText(byId("lost-next"), asking || left === 0 ? "Trying now" : `Next try in ${left} s`);
}

setInterval(() => {
  if (document.hidden) return;
  if (failures) countDown();
  else tick(); // data of a lost master stands still
}, 1000);

document.addEventListener("visibilitychange", () => {
  clearTimeout(timer);
  if (!document.hidden) poll();
});
byId("retry").addEventListener("click", poll);
poll();
