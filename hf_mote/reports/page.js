"use strict";
// What makes a report alive: tables that sort, experts that filter, one expert looked at closely, a config to copy.
// It gets its numbers from the page's data, makes elements one by one, and sets text as text: no text becomes markup.
(() => {
  const find = (id) => document.getElementById(id);
  const SVG = "http://www.w3.org/2000/svg";
  const MINUS = "\u2212", UNKNOWN = "\u2013";

  // Return an element; children that are no elements are text.
  function make(name, attributes, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes || {})) {
      if (value !== null && value !== false) made.setAttribute(key, value === true ? "" : value);
    }
    made.append(...children.flat().filter((child) => child !== null && child !== undefined));
    return made;
  }

  function button(text, pressed, attributes) {
    const made = make("button", { type: "button", ...attributes }, text);
    made.addEventListener("click", pressed);
    return made;
  }

  function number(value, decimals, sign) {
    if (value === null || value === undefined) return UNKNOWN;
    const rounded = Number(value.toFixed(decimals)); // so that no -0 is left
    const text = Math.abs(rounded).toLocaleString("en-US", { minimumFractionDigits: decimals, maximumFractionDigits: decimals });
    return (rounded < 0 ? MINUS : sign && rounded > 0 ? "+" : "") + text;
  }

  function probability(value, coarse) {
    if (value === null || value === undefined) return UNKNOWN;
    if (coarse) return value.toFixed(2);
    return value < 0.0005 ? "< 0.001" : value.toFixed(3);
  }

  // ---- Any table whose rows stand in the page: a button in each heading sorts by it.

  function headButtons(table, sort) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const label = [...head.childNodes];
      const made = button("", () => {
        const falls = head.getAttribute("aria-sort") === "descending";
        const first = head.classList.contains("n") ? "descending" : "ascending";
        const way = head.hasAttribute("aria-sort") ? (falls ? "ascending" : "descending") : first;
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", way);
        sort(column, way === "ascending" ? 1 : -1);
      }, { class: "sort", title: "Sort by this column" });
      made.append(...label);
      head.append(made);
    });
  }

  function keyOf(text) {
    const plain = text.trim().replaceAll(MINUS, "-").replaceAll(",", "");
    const match = plain.match(/[-+]?\d+(\.\d+)?(e[-+]?\d+)?/i);
    if (!match) return null;
    return Number(match[0]) * (1 - (plain.startsWith("<") ? 1e-3 : 0));
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    const first = [...body.rows];
    if (first.length < 2) continue;
    headButtons(table, (column, way) => {
      const numeric = table.tHead.rows[0].cells[column].classList.contains("n");
      const keys = new Map(first.map((row) => {
        const text = row.cells[column].textContent;
        return [row, numeric ? keyOf(text) : text];
      }));
      const compare = (one, other) => {
        const a = keys.get(one), b = keys.get(other);
        if (a === null || b === null) return (a === null) - (b === null); // what is not known comes last
        return way * (numeric ? a - b : a.localeCompare(b));
      };
      body.append(...[...first].sort(compare));
    });
  }

  // ---- Copying.

  async function copy(text, from) {
    let done = false;
    try {
      await navigator.clipboard.writeText(text);
      done = true;
    } catch (error) {
      const area = make("textarea", { "aria-hidden": "true" });
      area.value = text;
      document.body.append(area);
      area.select();
      done = document.execCommand("copy");
      area.remove();
    }
    const was = from.textContent;
    from.textContent = done ? "Copied" : "Select the text below and copy it";
    find("status").textContent = from.textContent;
    setTimeout(() => { from.textContent = was; }, 2000);
  }

  document.body.append(make("p", { id: "status", role: "status", class: "unseen" }));

  for (const code of document.querySelectorAll("pre code[id$='-json']")) {
    const part = code.id.slice(0, -5);
    const name = find(`${part}-file`).querySelector("summary").textContent;
    const press = button(`Copy ${name}`, () => copy(code.textContent, press), { id: `copy-${part}` });
    find(`${part}-controls`).append(press);
  }

  // ---- Experts: only in pages that hold their numbers.

  const source = find("data");
  if (!source) return;
  document.body.classList.add("alive");
  const data = JSON.parse(source.textContent);
  const main = data.rankings[0];
  const size = main.score.length;
  const place = new Array(size);
  data.order.forEach((index, at) => { place[index] = at + 1; });
  const nameOf = (index) => `${data.layers[Math.floor(index / data.experts)]}.${index % data.experts}`;
  const rowOf = new Map(data.layers.map((layer, row) => [layer, row]));

  function indexOf(name) {
    const match = /^(\d+)\.(\d+)$/.exec(name);
    if (!match || !rowOf.has(Number(match[1])) || Number(match[2]) >= data.experts) return null;
    return rowOf.get(Number(match[1])) * data.experts + Number(match[2]);
  }

  const chip = (label) => make("span", { class: label === data.target ? "chip target" : "chip" }, label);
  const marksOf = (name) => data.marked.filter((mark) => mark.experts.includes(name)).map((mark) => mark.name);

  function link(name, text) {
    return make("a", { href: "#expert", class: "expert", "data-expert": name }, text || name);
  }

  function interval(ranking, index) {
    if (!ranking.low || ranking.low[index] === null) return UNKNOWN;
    return `${number(ranking.low[index], ranking.decimals, true)} to ${number(ranking.high[index], ranking.decimals, true)}`;
  }

  // ---- The table of all experts.

  const table = find("experts-table");
  const SHOWN = 20;
  const columns = [
    { key: (index) => index, text: (index) => link(nameOf(index)) },
    { key: (index) => place[index], text: (index) => String(place[index]) },
    { key: (index) => main.score[index], text: (index) => number(main.score[index], main.decimals, true) },
    { key: (index) => (main.low ? main.low[index] : null), text: (index) => interval(main, index) },
    { key: (index) => (main.p ? main.p[index] : null), text: (index) => probability(main.p && main.p[index], main.coarse) },
    { key: (index) => (main.q ? main.q[index] : null), text: (index) => probability(main.q && main.q[index], main.coarse) },
    ...data.classes.map((seen) => ({
      key: (index) => seen.counts[index],
      text: (index) => number(seen.counts[index], seen.decimals),
    })),
  ].slice(0, table.tHead.rows[0].cells.length);

  let sorted = { column: 1, way: 1 };
  let shown = SHOWN;
  let chosen = data.order;

  const controls = find("experts-controls");
  const layerChoice = make("select", { id: "filter-layer" }, make("option", { value: "" }, "all layers"),
    data.layers.map((layer) => make("option", { value: layer }, `layer ${layer}`)));
  const signChoice = make("select", { id: "filter-sign" },
    [["", "for and against"], ["1", "for the target"], ["-1", "against it"]].map(([value, text]) => make("option", { value }, text)));
  const nameField = make("input", { id: "filter-name", type: "search", placeholder: "layer.expert", size: 11, autocomplete: "off" });
  const sureBox = make("input", { id: "filter-sure", type: "checkbox" });
  const markBox = make("input", { id: "filter-mark", type: "checkbox" });
  const count = make("output", { id: "filter-count" });
  controls.append(
    make("label", {}, "Find ", nameField), make("label", {}, "Layer ", layerChoice), make("label", {}, "Sign ", signChoice),
    main.q ? make("label", {}, sureBox, " q \u2264 0.05") : "",
    make("label", {}, markBox, " marked only"),
    button("Clear", () => {
      layerChoice.value = signChoice.value = nameField.value = "";
      sureBox.checked = markBox.checked = false;
      filter();
    }, { id: "filter-clear" }),
    count,
  );

  function filter() {
    const layer = layerChoice.value === "" ? null : Number(layerChoice.value);
    const sign = Number(signChoice.value);
    const name = nameField.value.trim();
    const marked = new Set(data.marked.flatMap((mark) => mark.experts));
    chosen = data.order.filter((index) => {
      const its = nameOf(index);
      if (name && !(name.endsWith(".") || !name.includes(".") ? its.startsWith(name) : its === name)) return false;
      if (layer !== null && data.layers[Math.floor(index / data.experts)] !== layer) return false;
      if (sign && Math.sign(main.score[index]) !== sign) return false;
      if (sureBox.checked && !(main.q[index] !== null && main.q[index] <= 0.05)) return false;
      return !markBox.checked || marked.has(its);
    });
    shown = SHOWN;
    draw();
  }

  function draw() {
    const { column, way } = sorted;
    const key = columns[column].key;
    const rows = [...chosen].sort((one, other) => {
      const a = key(one), b = key(other);
      if (a === null || b === null) return (a === null) - (b === null) || place[one] - place[other];
      return way * (a - b) || place[one] - place[other];
    });
    const body = table.tBodies[0];
    body.replaceChildren(...rows.slice(0, shown).map((index) => {
      const name = nameOf(index);
      const cells = columns.map((each, at) => (at ? make("td", { class: "n" }, each.text(index))
        : make("th", { scope: "row" }, each.text(index))));
      const row = make("tr", { "data-expert": name, class: marksOf(name).length ? "marked" : null }, cells);
      if (index === open) row.setAttribute("aria-current", "true");
      return row;
    }));
    const seen = Math.min(shown, rows.length);
    table.caption.textContent = `${seen.toLocaleString("en-US")} of ${rows.length.toLocaleString("en-US")} experts`
      + (rows.length < size ? ` (of ${size.toLocaleString("en-US")})` : "");
    count.textContent = rows.length === size ? "" : `${rows.length.toLocaleString("en-US")} found`;
    const more = find("experts-more");
    more.replaceChildren();
    if (rows.length > shown) {
      more.append(button(`Show ${Math.min(100, rows.length - shown)} more`, () => { shown += 100; draw(); }, { id: "show-more" }));
    }
  }

  for (const field of [layerChoice, signChoice, nameField, sureBox, markBox]) field.addEventListener("input", filter);
  headButtons(table, (column, way) => { sorted = { column, way }; draw(); });
  table.tHead.rows[0].cells[1].setAttribute("aria-sort", "ascending");

  // ---- Heat maps: the number under the pointer or the keys, the expert on a press.

  const tip = make("div", { class: "tip", hidden: true });
  document.body.append(tip);

  function valueText(series, index) {
    const [kind, at] = series.split(":");
    if (kind === "score") {
      const ranking = data.rankings[Number(at)];
      return `${number(ranking.score[index], ranking.decimals, true)} ${ranking.unit}`;
    }
    const seen = data.classes[Number(at)];
    return `${number(seen.counts[index], seen.decimals)} tokens per prompt`;
  }

  function words(series, index) {
    return `layer ${data.layers[Math.floor(index / data.experts)]}, expert ${index % data.experts}: ${valueText(series, index)}`;
  }

  for (const map of document.querySelectorAll("svg[data-series]")) {
    const series = map.dataset.series;
    const rows = data.layers.length;
    let at = null;
    const cursor = document.createElementNS(SVG, "rect");
    cursor.setAttribute("class", "cursor");
    cursor.setAttribute("width", `${100 / data.experts}%`);
    cursor.setAttribute("height", `${100 / rows}%`);
    map.append(cursor);
    map.setAttribute("tabindex", "0");
    map.setAttribute("role", "application");
    map.setAttribute("aria-roledescription", "heat map: arrow keys move, Enter opens an expert");

    function cellAt(event) {
      const box = map.getBoundingClientRect();
      const expert = Math.floor((event.clientX - box.left) / box.width * data.experts);
      const row = Math.floor((event.clientY - box.top) / box.height * rows);
      if (expert < 0 || row < 0 || expert >= data.experts || row >= rows) return null;
      return row * data.experts + expert;
    }

    function point(index, aloud) {
      at = index;
      cursor.classList.toggle("on", index !== null);
      tip.hidden = index === null;
      if (index === null) return;
      cursor.setAttribute("x", `${100 * (index % data.experts) / data.experts}%`);
      cursor.setAttribute("y", `${100 * Math.floor(index / data.experts) / rows}%`);
      tip.textContent = words(series, index);
      if (aloud) find("status").textContent = tip.textContent;
      const box = map.getBoundingClientRect();
      const x = box.left + box.width * (index % data.experts + 0.5) / data.experts;
      const y = box.top + box.height * (Math.floor(index / data.experts) + 1) / rows;
      const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
      tip.style.left = `${Math.max(8, Math.min(x - tip.offsetWidth / 2, room)) + window.scrollX}px`;
      tip.style.top = `${y + 10 + window.scrollY}px`;
    }

    map.addEventListener("pointermove", (event) => point(cellAt(event)));
    map.addEventListener("pointerleave", () => point(null));
    map.addEventListener("focus", () => { if (map.matches(":focus-visible")) point(at ?? (open ?? data.order[0]), true); });
    map.addEventListener("blur", () => point(null));
    map.addEventListener("click", (event) => {
      const index = cellAt(event);
      if (index !== null) visit(nameOf(index));
    });
    map.addEventListener("keydown", (event) => {
      if (event.key === "Escape") return;
      const from = at ?? (open ?? data.order[0]);
      const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -data.experts, ArrowDown: data.experts };
      if (event.key === "Enter" || event.key === " ") visit(nameOf(from));
      else if (event.key in steps) {
        const next = from + steps[event.key];
        const sideways = Math.abs(steps[event.key]) === 1;
        const same = Math.floor(next / data.experts) === Math.floor(from / data.experts);
        if (next >= 0 && next < size && (!sideways || same)) point(next, true);
      } else return;
      event.preventDefault();
    });
  }

  // ---- The config: experts can be put in and taken out, and the text to copy follows.

  const config = data.config;
  const kept = find("config-json");
  const field = config && config.stimulate.length && !config.suppress.length ? "stimulate" : "suppress";

  const held = (name) => Boolean(config) && config[field].some(([layer, expert]) => `${layer}.${expert}` === name);

  function toggle(name) {
    const [layer, expert] = name.split(".").map(Number);
    if (held(name)) config[field] = config[field].filter((pair) => pair[0] !== layer || pair[1] !== expert);
    else config[field] = [...config[field], [layer, expert]].sort((a, b) => a[0] - b[0] || a[1] - b[1]);
    config.provenance = { ...config.provenance, edited: "by hand, in the report" };
    kept.textContent = JSON.stringify(config, null, 2);
    const list = find(`config-${field}`);
    if (list) {
      const links = config[field].flatMap(([a, b]) => ["  ", link(`${a}.${b}`)]).slice(1);
      list.replaceChildren(...(links.length ? links : [UNKNOWN]));
    }
  }

  // ---- One expert.

  const panel = find("expert");
  let open = null;
  let opener = null;

  function visit(name) {
    if (document.activeElement && !panel.contains(document.activeElement)) opener = document.activeElement;
    if (location.hash === `#expert-${name}`) show(name);
    else location.hash = `expert-${name}`;
  }

  function close() {
    if (open === null) return;
    open = null;
    panel.classList.remove("open");
    document.body.classList.remove("beside");
    history.pushState(null, "", "#");
    draw();
    if (opener && opener.isConnected) opener.focus();
  }

  function step(by) {
    const next = data.order[place[open] - 1 + by];
    if (next !== undefined) visit(nameOf(next));
  }

  function windowed(text, weights) {
    // Of a long text what lies around the tokens that go to the expert.
    if (text.pieces.length <= 60) return [[0, text.pieces.length]];
    const heaviest = [...weights.entries()].sort((a, b) => b[1] - a[1]).slice(0, 4).map(([at]) => at).sort((a, b) => a - b);
    const spans = [];
    for (const at of heaviest) {
      const span = [Math.max(0, at - 12), Math.min(text.pieces.length, at + 9)];
      if (spans.length && span[0] <= spans[spans.length - 1][1]) spans[spans.length - 1][1] = span[1];
      else spans.push(span);
    }
    return spans;
  }

  function inContext(text, weights, largest) {
    const parts = [chip(text.label), " "];
    let before = 0;
    for (const [from, to] of windowed(text, weights)) {
      if (from > before) parts.push(make("span", { class: "faint" }, " \u2026 "));
      for (let at = from; at < to; at += 1) {
        const piece = text.pieces[at];
        if (typeof piece === "number") {
          parts.push(make("span", { class: "faint" }, ` \u2026 ${piece} more tokens \u2026 `));
          continue;
        }
        if (at === text.asked) parts.push(make("span", { class: "turned", title: "here the response begins" }, "\u23ce"));
        const weight = weights.get(at);
        if (weight === undefined) parts.push(piece);
        else {
          const token = make("span", { class: "t", title: `routing weight ${weight}` }, piece || "\u25af");
          token.style.setProperty("--w", (weight / largest).toFixed(2));
          parts.push(token);
        }
      }
      before = to;
    }
    if (before < text.pieces.length) parts.push(make("span", { class: "faint" }, " \u2026"));
    return make("li", {}, make("p", { class: "tokens text", dir: "auto" }, parts));
  }

  function tokensPart(name) {
    const seen = data.texts.filter((text) => text.weights[name]);
    if (!data.texts.length) return [];
    if (!seen.length) {
      const why = "Its tokens were not followed: those of the first experts, and of those that speak most against the target, were.";
      return [make("h3", {}, "Tokens in context"), make("p", { class: "faint" }, why)];
    }
    const found = seen.map((text) => {
      const flat = text.weights[name];
      const weights = new Map();
      for (let at = 0; at < flat.length; at += 2) weights.set(flat[at], flat[at + 1]);
      return [text, weights];
    });
    const visited = found.filter(([, weights]) => weights.size);
    if (!visited.length) {
      return [make("h3", {}, "Tokens in context"), make("p", { class: "faint" }, `None of ${seen.length} texts has a token that goes to it.`)];
    }
    const largest = Math.max(...visited.flatMap(([, weights]) => [...weights.values()]));
    const totals = new Map();
    for (const [text, weights] of visited) {
      for (const [at, weight] of weights) {
        const piece = String(text.pieces[at]).trim() || JSON.stringify(text.pieces[at]);
        const entry = totals.get(piece) || [0, 0];
        totals.set(piece, [entry[0] + weight, entry[1] + 1]);
      }
    }
    const most = [...totals.entries()].sort((a, b) => b[1][0] - a[1][0]).slice(0, 8);
    return [
      make("h3", {}, "Tokens in context"),
      make("p", { class: "most" }, most.flatMap(([piece, [, times]]) => [make("code", { title: `${times} times` }, piece), " "])),
      make("ul", { class: "texts" }, visited.map(([text, weights]) => inContext(text, weights, largest))),
    ];
  }

  function bars(index) {
    if (!data.classes.length) return [];
    const most = Math.max(...data.classes.map((seen) => seen.counts[index]), 1e-9);
    const rows = data.classes.map((seen) => {
      const bar = make("span", { class: seen.name === data.target ? "bar target" : "bar" });
      bar.style.width = `${100 * seen.counts[index] / most}%`;
      return make("tr", {}, make("th", { scope: "row" }, chip(seen.name)),
        make("td", { class: "n" }, number(seen.counts[index], seen.decimals)), make("td", { class: "rest" }, bar));
    });
    return [make("h3", {}, "Tokens per prompt, by class"), make("table", { class: "bars" }, make("tbody", {}, rows))];
  }

  function visitsPart(name) {
    const visits = data.visits[name];
    if (!visits || !visits.length) return [];
    const items = visits.map(([at, tokens, of]) => make("li", {},
      chip(data.prompts[at][1]), " ", make("span", { class: "text", dir: "auto" }, data.prompts[at][0]),
      make("span", { class: "faint" }, ` ${number(tokens, 0)} of ${number(of, 0)} tokens`)));
    return [make("h3", {}, "Prompts that go to it most"), make("ul", { class: "plain" }, items)];
  }

  function alikePart(name) {
    const others = data.alike[name];
    if (!others || !others.length) return [];
    const items = others.flatMap(([other, r]) => [make("li", {}, link(other), make("span", { class: "faint" }, ` r = ${r.toFixed(2)}`))]);
    return [make("h3", {}, "Experts that the same prompts use"), make("ul", { class: "row" }, items)];
  }

  function removedPart(name) {
    const known = data.removed.filter((each) => each.effects[name] !== undefined);
    if (!known.length) {
      return [make("h3", {}, "Effect when removed"), make("p", { class: "faint" }, "Not measured here: ",
        make("code", {}, "hf-mote attribute ", make("span", { class: "nowrap" }, "--method"), " ablation"), " takes out one expert at a time.")];
    }
    return [make("h3", {}, "Effect when removed"), ...known.map((each) => make("p", {}, `${each.name} `, make("strong", {}, each.effects[name])))];
  }

  function latentsPart(name) {
    if (!data.latents) return [];
    const known = data.latents.maps.filter((map) => map.experts[name]);
    if (!known.length) {
      const why = data.latents.all ? "None is known to predict or drive it."
        : `None is here: a page has room for those of ${data.latents.experts.toLocaleString("en-US")} experts, the first of the ranking. The map has all.`;
      return [make("h3", {}, "Latents"), make("p", { class: "faint" }, why)];
    }
    return [make("h3", {}, "Latents"), ...known.flatMap((map) => {
      const heads = ["latent", ...map.columns].map((text, at) => make("th", { scope: "col", class: at ? "n" : null }, text));
      const rows = map.experts[name].map((cells) => make("tr", {},
        cells.map((cell, at) => make(at ? "td" : "th", at ? { class: "n" } : { scope: "row" }, String(cell)))));
      return [make("p", { class: "text" }, `${map.title}: ${map.note}`),
        make("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": map.title },
          make("table", { class: "latents" }, make("thead", {}, make("tr", {}, heads)), make("tbody", {}, rows)))];
    }), ...(data.latents.key ? [make("p", { class: "faint" }, data.latents.key)] : [])];
  }

  function scoresPart(index) {
    const rows = data.rankings.map((ranking) => {
      const above = ranking.score.filter((score) => score > ranking.score[index]).length;
      return make("tr", {}, make("th", { scope: "row" }, ranking.name),
        make("td", { class: "n" }, `${number(ranking.score[index], ranking.decimals, true)} ${ranking.unit === ranking.name ? "" : ranking.unit}`.trim()),
        make("td", { class: "n" }, interval(ranking, index)),
        make("td", { class: "n" }, probability(ranking.p && ranking.p[index], ranking.coarse)),
        make("td", { class: "n" }, probability(ranking.q && ranking.q[index], ranking.coarse)),
        make("td", { class: "n" }, String(ranking === main ? place[index] : above + 1)));
    });
    const heads = ["score by", "", "interval", "p", "q", "place"].map((text, at) => make("th", { scope: "col", class: at ? "n" : null }, text));
    return make("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Scores" },
      make("table", {}, make("thead", {}, make("tr", {}, heads)), make("tbody", {}, rows)));
  }

  function show(name) {
    const index = indexOf(name);
    if (index === null) return;
    open = index;
    const score = main.score[index];
    const marks = marksOf(name);
    const [layer, expert] = name.split(".");
    const says = score === 0 ? "Speaks neither for nor against " : `${data.relation[score > 0 ? 0 : 1]} `;
    const controls = make("p", { class: "controls" },
      button("\u2039 higher", () => step(-1), { id: "expert-before", disabled: place[index] === 1, title: "The one before it in the ranking (left arrow)" }),
      button("lower \u203a", () => step(1), { id: "expert-after", disabled: place[index] === size, title: "The one after it in the ranking (right arrow)" }),
      config && kept ? button(held(name) ? "Take out of the config" : `${field === "stimulate" ? "Stimulate" : "Suppress"} in the config`,
        () => { toggle(name); show(name); find("expert-config").focus(); }, { id: "expert-config" }) : null,
      button("Close", close, { id: "expert-close", title: "Close (Escape)" }));
    panel.replaceChildren(
      controls,
      make("h2", {}, `Layer ${layer}, expert ${expert}`),
      make("p", { class: "badges" }, `Place ${place[index].toLocaleString("en-US")} of ${size.toLocaleString("en-US")} `,
        marks.map((mark) => make("span", { class: "chip" }, mark)), held(name) ? make("span", { class: "chip" }, "in the config") : null),
      make("p", { class: score < 0 ? "sign against" : "sign" }, says, chip(data.target)),
      scoresPart(index), ...bars(index), ...removedPart(name), ...tokensPart(name), ...visitsPart(name), ...alikePart(name),
      ...latentsPart(name),
    );
    panel.classList.add("open");
    document.body.classList.add("beside");
    panel.scrollTop = 0;
    panel.focus({ preventScroll: true });
    draw();
  }

  function follow() {
    const match = /^#expert-(\d+\.\d+)$/.exec(location.hash);
    if (match) show(match[1]);
    else if (open !== null) {
      open = null;
      panel.classList.remove("open");
      document.body.classList.remove("beside");
      draw();
    }
  }

  document.addEventListener("click", (event) => {
    const pressed = event.target.closest("a.expert");
    if (!pressed) return;
    event.preventDefault();
    visit(pressed.dataset.expert);
  });
  document.addEventListener("keydown", (event) => {
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (event.key === "Escape" && open !== null) close();
    else if (event.key === "/" && !typing) { nameField.focus(); event.preventDefault(); }
    else if (open !== null && panel.contains(event.target) && !typing && !event.target.closest(".scroll")) {
      if (event.key === "ArrowLeft") step(-1);
      else if (event.key === "ArrowRight") step(1);
    }
  });
  window.addEventListener("hashchange", follow);
  controls.after(make("p", { class: "faint keys" },
    "Press an expert anywhere to look at it. Keys: / finds, arrows move in a heat map, Enter opens, \u2190 and \u2192 go along the ranking, Escape closes."));
  panel.replaceChildren();
  draw();
  follow();
})();
