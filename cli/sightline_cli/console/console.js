"use strict";
// The console's page: what the address names is shown (#/, #/new, #/run/ID, #/compare/ONE/OTHER), live where it moves.
const main = document.getElementById("main");
const SVG = "http://www.w3.org/2000/svg";
let source = null; // events of the run that is shown
let timer = 0;

function el(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "html") made.innerHTML = value; // captions with marks, escaped by the service
    else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

async function ask(path, body) {
  const options = body === undefined ? {} : { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const answer = await fetch(path, options);
  const told = await answer.json().catch(() => ({ error: answer.statusText }));
  if (!answer.ok) throw new Error(told.error || (told.detail && JSON.stringify(told.detail)) || answer.statusText);
  return told;
}

function say(text) {
  const place = document.getElementById("say");
  place.textContent = text;
  clearTimeout(say.timer);
  say.timer = setTimeout(() => { place.textContent = ""; }, 8000);
}

const short = (title) => title.split(/[:,]/)[0];
const number = (value, digits = 3) => (value === null || value === undefined ? "" : Number(value).toFixed(digits));
const when = (seconds) => new Date(seconds * 1000).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
const stateOf = (state) => el("span", { class: `state ${state}` }, state);

function show(...children) {
  main.replaceChildren(...children.flat().filter(Boolean));
}

function leave() {
  if (source) source.close();
  source = null;
  clearInterval(timer);
}

async function route() {
  leave();
  const [what, ...rest] = decodeURI(location.hash.replace(/^#\//, "")).split("/");
  try {
    if (what === "new") await newRun();
    else if (what === "run") await oneRun(rest[0]);
    else if (what === "compare") await compare(rest[0], rest[1]);
    else await allRuns();
  } catch (error) {
    show(el("h1", {}, "That did not work"), el("p", { class: "bad" }, error.message), el("p", {}, el("a", { href: "#/" }, "All runs")));
  }
}

// ---------------------------------------------------------------------------------------------- all runs

async function allRuns() {
  document.title = "Runs - Sightline";
  const body = el("tbody", { id: "runs" });
  const button = el("button", { type: "button", disabled: true, onclick: () => {
    const two = picked();
    location.hash = `#/compare/${two[0]}/${two[1]}`;
  } }, "Compare two");
  const picked = () => [...body.querySelectorAll("input:checked")].map((box) => box.value);
  body.addEventListener("change", () => {
    const two = picked();
    button.disabled = two.length !== 2;
    button.textContent = two.length === 2 ? `Compare ${two[0]} with ${two[1]}` : "Compare two";
  });
  const head = el("tr", {}, ["", "Run", "State", "Recipe", "Iteration", "Started"].map((name, at) =>
    el("th", { scope: "col", class: at === 3 || at === 5 ? "wide" : null }, name || el("span", { class: "soft" }, "Pick"))));
  const empty = el("p", { class: "soft", id: "empty" });
  show(el("div", { class: "bar" }, el("h1", {}, "Runs"), el("span", { class: "grow" }), button,
    el("a", { href: "#/new", class: "button main" }, "New run")),
  el("div", { class: "scroll" }, el("table", {}, el("thead", {}, head), body)), empty);
  const fill = async () => {
    const told = await ask("/api/runs");
    document.getElementById("place").textContent = told.place;
    const kept = new Set(picked());
    const focused = document.activeElement && document.activeElement.dataset ? document.activeElement.dataset.id : null;
    body.replaceChildren(...told.runs.map((run) => el("tr", { "data-run": run.id },
      el("td", {}, el("input", { type: "checkbox", value: run.id, "aria-label": `Pick ${run.id}`, checked: kept.has(run.id) })),
      el("td", {}, el("a", { href: `#/run/${run.id}`, "data-id": run.id, class: "run" }, run.id)),
      el("td", {}, stateOf(run.state), run.error ? el("div", { class: "bad small" }, run.error) : null),
      el("td", { class: "wide" }, run.recipe), el("td", {}, `${run.iteration} of ${run.iterations}`), el("td", { class: "wide" }, when(run.created)))));
    empty.textContent = told.runs.length ? "" : "No runs yet. Start one with “New run”, or with sightline run.";
    if (focused) body.querySelector(`[data-id="${focused}"]`)?.focus();
  };
  await fill();
  timer = setInterval(() => fill().catch(() => say("The console does not answer. Was it stopped?")), 2000);
}

// ---------------------------------------------------------------------------------------------- a new run

async function newRun() {
  document.title = "New run - Sightline";
  const recipes = await ask("/api/recipes");
  const choice = el("select", { id: "recipe" }, recipes.map((each) => el("option", { value: each.name }, `${each.name}: ${each.about}`)));
  const name = el("input", { id: "name", required: true, pattern: "[a-z0-9][a-z0-9_\\-]*", maxlength: "100", autocomplete: "off" });
  const filter = el("input", { id: "filter", type: "search", placeholder: "dpo, sampling.temperature ...", autocomplete: "off" });
  const fields = el("div", { id: "fields" });
  const begin = el("button", { class: "main", type: "submit" }, "Start");
  const form = el("form", { onsubmit: async (event) => {
    event.preventDefault();
    const overrides = [...fields.querySelectorAll("[data-key]")].filter((input) => input.value !== input.dataset.value)
      .map((input) => `${input.dataset.key}=${input.value}`);
    begin.disabled = true;
    try {
      const told = await ask("/api/runs", { name: name.value, recipe: choice.value, overrides });
      location.hash = `#/run/${told.id}`;
    } catch (error) { say(error.message); begin.disabled = false; }
  } },
  el("fieldset", {}, el("legend", {}, "Run"),
    el("div", { class: "field long" }, el("label", { for: "recipe" }, "recipe"), choice, el("span", { class: "soft small" }, "The method. Its values are listed below.")),
    el("div", { class: "field" }, el("label", { for: "name" }, "name"), name, el("span", { class: "soft small" }, "The name of the run's directory: lower-case letters, digits, - and _."))),
  el("div", { class: "bar" }, el("label", { for: "filter" }, "Find a key"), filter, el("span", { class: "grow" }), begin), fields);
  const field = (each) => {
    const id = `f-${each.key}`;
    const shown = each.value.startsWith('"') && !each.type.includes("object") ? JSON.parse(each.value) : each.value;
    const options = each.type === "boolean" ? ["true", "false"] : /^[a-z0-9_]+(, [a-z0-9_]+)+$/.test(each.type) ? each.type.split(", ") : null;
    const input = options ? el("select", { id }, options.map((value) => el("option", { value, selected: value === shown }, value)))
      : el("input", { id, value: shown, autocomplete: "off", spellcheck: "false" });
    input.dataset.key = each.key;
    input.dataset.value = shown;
    const row = el("div", { class: "field", "data-name": each.key }, el("label", { for: id }, each.key), input,
      el("span", { class: "soft small" }, each.about ? `${each.about} ` : "", el("span", {}, `(${each.type})`)));
    input.addEventListener("input", () => row.classList.toggle("changed", input.value !== input.dataset.value));
    return row;
  };
  const fill = async () => {
    const recipe = choice.value;
    const told = await ask(`/api/recipes/${recipe}`);
    if (recipe !== choice.value) return; // another was chosen meanwhile, and its answer may have come already
    name.value = `${recipe.replaceAll("_", "-")}-${new Date().toISOString().slice(5, 16).replace(/[-:]/g, "").replace("T", "-")}`;
    const groups = new Map();
    for (const each of told.filter((one) => !one.first)) {
      const group = each.key.includes(".") ? each.key.split(".")[0] : "other";
      groups.set(group, [...(groups.get(group) || []), each]);
    }
    const above = told.filter((one) => one.first);
    fields.replaceChildren(el("fieldset", {}, el("legend", {}, "Most used"), above.map(field)),
      ...[...groups].map(([group, keys]) => el("details", {}, el("summary", {}, `${group} (${keys.length})`), el("fieldset", {}, el("legend", {}, group), keys.map(field)))));
  };
  choice.addEventListener("change", () => fill().catch((error) => say(error.message)));
  filter.addEventListener("input", () => {
    for (const row of fields.querySelectorAll("[data-name]")) row.hidden = !row.dataset.name.includes(filter.value.trim());
    for (const group of fields.querySelectorAll("details")) {
      const some = [...group.querySelectorAll("[data-name]")].some((row) => !row.hidden);
      group.hidden = !some;
      group.open = Boolean(filter.value.trim()) && some;
    }
  });
  show(el("h1", {}, "New run"), form);
  await fill();
}

// ---------------------------------------------------------------------------------------------- one run

async function oneRun(id) {
  document.title = `${id} - Sightline`;
  const state = el("span", { id: "state" });
  const line = el("span", { id: "line", class: "soft num" });
  const bar = el("progress", { max: "1", value: "0", "aria-label": "Current stage" });
  const verdict = el("p", { class: "verdict", id: "verdict" });
  const button = el("button", { type: "button", id: "toggle" }, "Stop");
  const steps = el("div", { class: "charts", id: "steps" });
  const curves = el("div", { class: "charts", id: "curves" });
  const table = el("div", { class: "scroll", id: "table", tabindex: "0" });
  const lineage = el("div", { class: "scroll", id: "lineage", tabindex: "0" });
  const pictures = el("div", { id: "gallery" });
  const log = el("ul", { id: "log", class: "small" });
  const report = el("a", { href: `/report/${id}`, target: "_blank", rel: "noopener", id: "report" }, "Whole report");
  let run = { state: "queued" };
  let files = true;
  let iterations = "";
  const toggle = async () => {
    const going = ["running", "queued"].includes(run.state);
    button.disabled = true;
    try {
      await ask(`/api/runs/${id}/${going ? "stop" : "resume"}`, {});
      say(going ? "The run stops after the current stage." : "The run continues.");
      setTimeout(fill, 500);
      if (!going) setTimeout(follow, 1500);
    } catch (error) { say(error.message); }
    button.disabled = false;
  };
  button.addEventListener("click", toggle);
  const paint = (found) => {
    run = found;
    state.replaceChildren(stateOf(run.state));
    const going = ["running", "queued"].includes(run.state);
    button.textContent = going ? "Stop" : "Resume";
    button.hidden = run.state === "succeeded";
    bar.hidden = !going;
    if (!going) line.textContent = run.error || "";
  };
  const fill = async () => {
    const told = await ask(`/api/runs/${id}`);
    paint(told.run);
    files = told.files;
    verdict.textContent = told.verdict;
    report.hidden = !told.files || told.rows.length === 0;
    draw(told);
  };
  const look = async () => { // every few seconds: no more than the run's own line
    const before = run.state;
    paint(await ask(`/api/runs/${id}/row`));
    if (run.state !== before) await fill();
  };
  const draw = (told) => {
    const rows = told.rows;
    const made = Object.entries(told.curves).filter(([key]) => rows.some((row) => row[key] !== undefined)).map(([key, about]) =>
      chart(about.title, { [key]: rows.filter((row) => row[key] !== undefined).map((row) => [row.iteration, row[key], row[`${key}_low`], row[`${key}_high`]]) }, about.meaning));
    curves.replaceChildren(...made);
    const columns = ["chair_s", "chair_i", "cover", "clip_score", "mean_tokens"].filter((key) => rows.some((row) => row[key] !== undefined));
    table.replaceChildren(el("table", {}, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "policy"), columns.map((key) => el("th", { scope: "col", class: "num" }, short(told.curves[key]?.title ?? key))))),
      el("tbody", {}, rows.map((row) => el("tr", {}, el("td", {}, `v${row.policy_version ?? row.iteration}`), columns.map((key) => el("td", { class: "num" }, number(row[key], key === "clip_score" || key === "mean_tokens" ? 2 : 3))))))));
    lineage.replaceChildren(el("table", {}, el("thead", {}, el("tr", {}, ["policy", "parent", "iteration", "kind", "manifest"].map((name) => el("th", { scope: "col" }, name)))),
      el("tbody", {}, told.policies.map((each) => el("tr", {}, el("td", {}, `v${each.version}`), el("td", {}, each.parent ? `v${each.parent}` : "base"), el("td", {}, String(each.iteration)), el("td", {}, each.kind), el("td", {}, el("code", {}, each.digest.slice(0, 16))))))));
    const measured = rows.slice(1).map((row) => row.iteration);
    if (measured.join() !== iterations) {
      iterations = measured.join();
      gallery(id, measured, pictures);
    }
  };
  const seen = new Map(); // step curves by name
  const samples = new Map(); // iteration -> [minutes since its first, prompts]
  let due = 0;
  const redraw = () => {
    due = 0;
    const made = [];
    for (const name of ["loss", "margin", "accuracy"]) if (seen.has(name)) made.push(chart(`Update: ${name} by step`, Object.fromEntries(seen.get(name)), ""));
    if (samples.size) made.push(chart("Answered prompts by minute", Object.fromEntries([...samples].map(([label, list]) => [label, list.map(([time, done]) => [(time - list[0][0]) / 60, done])])), ""));
    steps.replaceChildren(...made);
  };
  const follow = () => {
    if (source) source.close();
    seen.clear(); samples.clear(); log.replaceChildren();
    source = new EventSource(`/api/runs/${id}/events`);
    source.onmessage = (message) => {
      const event = JSON.parse(message.data);
      // Of a run whose files are elsewhere the steps come with the update's progress.
      if (event.stage === "step" || (!files && event.stage === "update" && event.total && event.metrics.step)) {
        for (const name of ["loss", "margin", "accuracy"]) if (event.metrics[name] !== undefined) {
          if (!seen.has(name)) seen.set(name, new Map());
          const label = `iteration ${event.iteration}`;
          if (!seen.get(name).has(label) || event.metrics.step === 1) seen.get(name).set(label, []);
          const known = seen.get(name).get(label);
          if (!known.length || known.at(-1)[0] !== event.metrics.step) known.push([event.metrics.step, event.metrics[name]]);
        }
      }
      if (event.stage !== "step") {
        const where = event.iteration ? `iteration ${event.iteration}` : "base model";
        if (["running", "queued"].includes(run.state)) line.textContent = `${where}: ${event.stage}${event.total ? ` ${event.done} of ${event.total}` : ""}`;
        bar.value = event.total ? event.done / event.total : 0;
        if (event.stage === "sample" && event.total) {
          const label = `iteration ${event.iteration}`;
          if (!samples.has(label)) samples.set(label, []);
          samples.get(label).push([event.time, event.done]);
        }
        if (event.message) log.append(el("li", {}, `${where}, ${event.stage}: ${event.message}`));
        if (event.stage === "iteration" || event.stage === "end") fill().catch(() => {});
      }
      if (!due) due = setTimeout(redraw, 250);
    };
    source.addEventListener("end", () => { source.close(); redraw(); fill().catch(() => {}); });
  };
  show(el("div", { class: "bar" }, el("h1", {}, id), state, el("span", { class: "grow" }), report, button),
    verdict, line, bar,
    el("h2", {}, "Live"), steps, el("h2", {}, "Measured after each iteration"), table, curves,
    el("h2", {}, "Pictures"), pictures, el("h2", {}, "Lineage"), lineage, el("h2", {}, "Messages"), log);
  await fill();
  follow();
  timer = setInterval(() => look().catch(() => {}), 3000);
}

async function gallery(id, iterations, place) {
  if (!iterations.length) {
    place.replaceChildren(el("p", { class: "soft" }, "Pictures appear after the first iteration."));
    return;
  }
  const cards = el("div", { class: "cards" });
  const choice = el("select", { id: "iteration" }, iterations.map((each) => el("option", { value: each, selected: each === iterations.at(-1) }, `iteration ${each}`)));
  const fill = async () => {
    const found = await ask(`/api/runs/${id}/gallery/${choice.value}`);
    cards.replaceChildren(...found.map((each) => card(each, "base model", `iteration ${choice.value}`)));
    if (!found.length) cards.replaceChildren(el("p", { class: "soft" }, "That iteration has no pictures."));
  };
  choice.addEventListener("change", () => fill().catch((error) => say(error.message)));
  place.replaceChildren(el("div", { class: "bar" }, el("label", { for: "iteration" }, "Compare the base model with"), choice), cards);
  await fill().catch((error) => cards.replaceChildren(el("p", { class: "bad" }, error.message)));
}

function card(each, one, other) {
  const text = (said) => el("dd", { html: said.html });
  return el("article", { class: "card" }, each.picture ? el("img", { src: each.picture, alt: `Picture ${each.id}`, loading: "lazy" }) : null,
    el("dl", {}, el("dt", {}, `${one}${each.before.reward === null ? "" : `, ${number(each.before.reward, 1)}`}`), text(each.before),
      el("dt", {}, `${other}${each.after.reward === null ? "" : `, ${number(each.after.reward, 1)}`}`), text(each.after)));
}

// ---------------------------------------------------------------------------------------------- two runs

async function compare(one, other) {
  document.title = `${one} against ${other} - Sightline`;
  show(el("h1", {}, `${one} against ${other}`), el("p", { class: "soft" }, "Loading ..."));
  const told = await ask(`/api/compare/${one}/${other}`);
  const value = (each) => (each === null || each === undefined ? "" : typeof each === "object" ? JSON.stringify(each) : String(each));
  const table = (id, head, rows, numbers) => el("div", { class: "scroll", tabindex: "0" }, el("table", { id },
    el("thead", {}, el("tr", {}, head.map((name, at) => el("th", { scope: "col", class: numbers && at ? "num" : null }, name || el("span", {}, "metric"))))), el("tbody", {}, rows)));
  const name = (title) => el("td", { class: "name" }, short(title), el("span", { class: "soft wide-text" }, title.slice(short(title).length)));
  const row = (each) => el("tr", {}, name(each.title), el("td", { class: "num" }, number(each.one)), el("td", { class: "num" }, number(each.other)), el("td", { class: "num" }, number(each.change)),
    el("td", { class: "num" }, `${number(each.low)} to ${number(each.high)}`, el("div", { class: each.clear ? "small" : "small soft" }, each.clear ? "clear" : "within chance")));
  show(el("h1", {}, `${one} against ${other}`), el("p", { class: "verdict", id: "verdict" }, told.why || told.verdict),
    told.changes.length ? [el("h2", {}, "The last policies on the same pictures"),
      table("changes", ["", one, other, "change", "95 % interval"], told.changes.map(row), true)] : null,
    el("h2", {}, "Where the recipes differ"), told.recipe.length
      ? table("differences", ["key", one, other], told.recipe.map((each) => el("tr", {}, el("td", {}, el("code", {}, each.key)), el("td", {}, value(each.one)), el("td", {}, value(each.other)))))
      : el("p", { class: "soft" }, "Nowhere."),
    told.pictures.length ? [el("h2", {}, "Side by side"), el("div", { class: "cards" }, told.pictures.map((each) => card(each, one, other)))] : null);
}

// ---------------------------------------------------------------------------------------------- drawing

function chart(title, series, meaning) {
  const [width, height, left, bottom, top] = [340, 170, 44, 22, 8];
  const points = Object.values(series).flat();
  const xs = points.map((point) => point[0]);
  const ys = points.flatMap((point) => point.slice(1)).filter((value) => typeof value === "number" && Number.isFinite(value));
  const span = (values) => { const low = Math.min(...values), high = Math.max(...values); return high > low ? [low, high] : [low - 0.5, high + 0.5]; };
  const [x0, x1] = span(xs), [y0, y1] = span(ys);
  const x = (value) => left + ((value - x0) / (x1 - x0)) * (width - left - 8);
  const y = (value) => height - bottom - ((value - y0) / (y1 - y0)) * (height - bottom - top);
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("role", "img");
  const last = Object.entries(series).map(([name, list]) => `${name} ${list.at(-1)[1].toPrecision(3)}`).join(", ");
  svg.setAttribute("aria-label", `${title}; last: ${last}`);
  const add = (name, attributes, text) => {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    svg.append(made);
  };
  for (const value of [y0, (y0 + y1) / 2, y1]) {
    add("line", { x1: left, x2: width - 8, y1: y(value), y2: y(value), class: "axis" });
    add("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, String(Number(value.toPrecision(3))));
  }
  add("text", { x: left, y: height - 6 }, String(Number(x0.toPrecision(3))));
  add("text", { x: width - 8, y: height - 6, "text-anchor": "end" }, String(Number(x1.toPrecision(3))));
  const names = Object.keys(series);
  names.forEach((name, at) => {
    const colour = `var(--s${(at % 6) + 1})`;
    const list = series[name];
    const banded = list.filter((point) => Number.isFinite(point[2]) && Number.isFinite(point[3]));
    if (banded.length > 1) add("path", { d: `M${banded.map((p) => `${x(p[0])} ${y(p[3])}`).join("L")}L${banded.toReversed().map((p) => `${x(p[0])} ${y(p[2])}`).join("L")}Z`, fill: colour, opacity: 0.15 });
    add("path", { d: `M${list.map((p) => `${x(p[0])} ${y(p[1])}`).join("L")}`, fill: "none", stroke: colour, "stroke-width": 2 });
    if (list.length < 12) for (const p of list) add("circle", { cx: x(p[0]), cy: y(p[1]), r: 3, fill: colour });
  });
  const legend = names.length > 1 ? el("div", { class: "legend" }, names.map((name, at) => el("span", {}, el("i", { style: `background:var(--s${(at % 6) + 1})` }), name))) : null;
  return el("figure", {}, el("figcaption", {}, title), svg, legend, meaning ? el("details", { class: "small soft" }, el("summary", {}, "What it says"), meaning) : null);
}

// ---------------------------------------------------------------------------------------------- keys, theme

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
  const links = [...document.querySelectorAll("a.run")];
  const at = links.indexOf(document.activeElement);
  if (event.key === "r") location.hash = "#/";
  else if (event.key === "n") location.hash = "#/new";
  else if (event.key === "j" && links.length) links[Math.min(at + 1, links.length - 1)].focus();
  else if (event.key === "k" && links.length) links[Math.max(at - 1, 0)].focus();
  else if (event.key === "s") document.getElementById("toggle")?.click();
});

const theme = document.getElementById("theme");
function paint(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  theme.textContent = dark ? "Light" : "Dark";
}
theme.addEventListener("click", () => {
  const dark = document.documentElement.dataset.theme !== "dark";
  localStorage.setItem("theme", dark ? "dark" : "light");
  paint(dark);
});
const kept = localStorage.getItem("theme");
paint(kept ? kept === "dark" : matchMedia("(prefers-color-scheme: dark)").matches);

// The token is in a cookie now; it need not stand in the address, where it is looked over a shoulder and bookmarked.
if (location.search) history.replaceState(null, "", location.pathname + location.hash);
window.addEventListener("hashchange", route);
route();
