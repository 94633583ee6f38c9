// Shows the tree of the chosen problem and the chosen node of it. The address says which: #problem=3&node=12.
// Texts of models reach the page only as text nodes and attributes, never as markup.
"use strict";
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const COLUMN = 104, ROW = 36, BOX_WIDTH = 74, BOX_HEIGHT = 24, EDGE = 22; // sizes in the drawing
  const MARKS = { // paths in a square from -4 to 4
    solved: "M-3 0 L-1 2.4 L3 -2.4", equal: "M-3 -1.4 H3 M-3 1.4 H3", dominated: "M-3 -1.4 L0 1.8 L3 -1.4",
    failed: "M-2.4 -2.4 L2.4 2.4 M2.4 -2.4 L-2.4 2.4", backtracked: "M3 2.6 V0 Q3 -1.6 1.4 -1.6 H-3 M-1 -3.6 L-3 -1.6 L-1 .4",
  };
  const MARK_WORDS = {
    solved: "solves all pairs", equal: "equal to another node, merged", dominated: "dominated, pruned",
    failed: "failed: no readable program", backtracked: "backtracked here (dashed below)",
  };
  const STATE_WORDS = { open: "open", solved: "solved", equal: "equal, merged", dominated: "dominated, pruned", failed: "failed" };
  const byId = (id) => document.getElementById(id);
  const rows = [...document.querySelectorAll("#table tbody tr")];
  const treeCount = document.querySelectorAll('script[type="application/json"]').length;
  let shown = { problem: 0, tree: null, node: -1, scale: 1 };

  // An element with attributes and children; a child that is a text becomes a text node.
  function fill(element, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children.filter((child) => child !== null));
    return element;
  }
  const html = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
  const svg = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
  const solvedPairs = (node) => node.solved.filter(Boolean).length;
  const plural = (count, what) => `${count} ${what}${String(count) === "1" ? "" : "s"}`;
  const step = (reward) => Math.max(0, Math.min(9, Math.floor(reward * 10)));

  // ---- the table ----
  function sortBy(column, header) {
    const up = header.getAttribute("aria-sort") !== "ascending";
    for (const other of header.parentNode.children) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim().toLowerCase();
    const compare = (one, two) => {
      const [a, b] = [value(one), value(two)];
      const order = column === 1 || column === 2 || column === 6 ? a.localeCompare(b) : a - b;
      return (up ? order : -order) || one.dataset.number - two.dataset.number;
    };
    byId("table").tBodies[0].append(...rows.sort(compare));
  }

  function filter() {
    const name = byId("filter-name").value.toLowerCase();
    const family = byId("filter-family").value, ended = byId("filter-ended").value;
    let count = 0, whole = 0;
    for (const row of rows) {
      row.hidden = !row.cells[1].textContent.toLowerCase().includes(name)
        || (family !== "" && row.dataset.family !== family) || (ended !== "" && row.dataset.ended !== ended);
      if (row.hidden) continue;
      count += 1;
      if (row.dataset.tests > 0 && row.dataset.right === row.dataset.tests) whole += 1;
    }
    byId("shown").textContent = `${count} of ${rows.length} problems shown, ${whole} with every test pair right`;
  }

  function prepareTable() {
    byId("filters").hidden = false;
    byId("filters").addEventListener("submit", (event) => event.preventDefault());
    byId("filters").addEventListener("input", filter);
    [...byId("table").tHead.rows[0].cells].forEach((header, column) => {
      const button = html("button", { type: "button" }, ...header.childNodes);
      button.addEventListener("click", () => sortBy(column, header));
      header.append(button);
    });
    filter();
  }

  // ---- the drawing ----
  function mark(kind) {
    return svg("g", { class: "mark" }, svg("circle", { r: 7 }), svg("path", { d: MARKS[kind] }));
  }

  function label(node) {
    if (node.root) return "start";
    return node.state === "failed" ? "–" : `${solvedPairs(node)}/${node.of_pairs}`;
  }

  function spoken(node) {
    if (node.root) return "Node 0, the problem without a hypothesis";
    return `Node ${node.number}, ${STATE_WORDS[node.state]}, ${solvedPairs(node)} of ${node.of_pairs} pairs, `
      + `reward ${node.reward.toFixed(2)}${node.answer ? ", the answer" : ""}${node.backtracked ? ", backtracked" : ""}`;
  }

  const left = (node) => EDGE + node.column * COLUMN;
  const middle = (node) => EDGE + BOX_HEIGHT / 2 + node.row * ROW;

  function link(node, parent) {
    const [x1, y1, x2, y2] = [left(parent) + BOX_WIDTH, middle(parent), left(node), middle(node)];
    const bend = (x2 - x1) * 0.55;
    const classes = `link${node.given_up ? " given-up" : ""}${node.on_way ? " on-way" : ""}`;
    return svg("path", { class: classes, d: `M${x1} ${y1} C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}` });
  }

  function box(node, index) {
    const corner = { failed: 2, equal: 5, dominated: 5 }[node.state] ?? BOX_HEIGHT / 2;
    const top = -BOX_HEIGHT / 2, color = node.root || node.state === "failed" ? "" : ` r${step(node.reward)}`;
    const group = svg("g", {
      class: `tree-node ${node.state}${node.root ? " root" : ""}${color}${node.answer ? " answer" : ""}`, role: "treeitem",
      "aria-label": spoken(node), "aria-level": node.column + 1, "aria-selected": "false", tabindex: -1, "data-index": index,
      transform: `translate(${left(node)} ${middle(node)})`,
    },
    svg("rect", { class: "ring", x: -4, y: top - 4, width: BOX_WIDTH + 8, height: BOX_HEIGHT + 8, rx: corner + 4 }),
    svg("rect", { class: "box", x: 0, y: top, width: BOX_WIDTH, height: BOX_HEIGHT, rx: corner }),
    svg("text", { class: "name", x: 11, y: 4.2 }, String(node.number)),
    svg("text", { x: BOX_WIDTH - 11, y: 4.2, "text-anchor": "end" }, label(node)));
    if (MARKS[node.state]) group.append(fill(mark(node.state), { transform: `translate(${BOX_WIDTH - 1} ${top})` }, []));
    if (node.backtracked) group.append(fill(mark("backtracked"), { transform: `translate(3 ${-top})` }, []));
    group.addEventListener("click", () => choose(index));
    return group;
  }

  function draw(tree) {
    const nodes = tree.nodes;
    const width = 2 * EDGE + Math.max(0, ...nodes.map((node) => node.column)) * COLUMN + BOX_WIDTH;
    const height = 2 * EDGE + Math.max(0, ...nodes.map((node) => node.row)) * ROW + BOX_HEIGHT;
    const links = nodes.filter((node) => node.parent !== null);
    links.sort((one, two) => one.on_way - two.on_way); // the way to the answer lies on top
    const drawing = svg("svg", { role: "tree", "aria-label": `Search tree of ${tree.name}`, viewBox: `0 0 ${width} ${height}` },
      ...links.map((node) => link(node, nodes[node.parent])), ...nodes.map(box));
    drawing.addEventListener("keydown", onKey);
    byId("tree").replaceChildren(drawing);
    const kinds = Object.keys(MARKS).filter((kind) => nodes.some((node) => node.state === kind || (kind === "backtracked" && node.backtracked)));
    const lines = kinds.map((kind) => html("li", {}, svg("svg", { width: 18, height: 18, viewBox: "-9 -9 18 18", "aria-hidden": "true" }, mark(kind)), MARK_WORDS[kind]));
    if (nodes.some((node) => node.answer)) {
      const line = svg("path", { class: "link on-way", d: "M0 0 H22" });
      lines.push(html("li", {}, svg("svg", { width: 22, height: 18, viewBox: "0 -9 22 18", "aria-hidden": "true" }, line), "way to the answer"));
    }
    byId("marks").replaceChildren(...lines);
    shown.size = [width, height];
    zoom(Math.max(0.85, whole())); // so that its texts can be read; a larger tree scrolls
  }

  function zoom(scale) {
    shown.scale = Math.max(0.25, Math.min(2.5, scale));
    const drawing = byId("tree").firstChild;
    drawing.setAttribute("width", shown.size[0] * shown.scale);
    drawing.setAttribute("height", shown.size[1] * shown.scale);
  }

  // The scale at which the whole tree is in sight.
  function whole() {
    return Math.min(1.15, byId("tree").clientWidth / shown.size[0], 0.7 * window.innerHeight / shown.size[1]);
  }

  // ---- the keys ----
  function onKey(event) {
    const nodes = shown.tree.nodes, at = nodes[shown.node];
    const children = nodes.filter((node) => node.parent === shown.node);
    const column = nodes.filter((node) => node.column === at.column).sort((one, two) => one.row - two.row);
    const beside = column.indexOf(at);
    const answer = nodes.find((node) => node.answer);
    const target = {
      ArrowLeft: nodes[at.parent], ArrowRight: children[Math.floor((children.length - 1) / 2)],
      ArrowUp: column[beside - 1], ArrowDown: column[beside + 1], Home: nodes[0], End: answer,
    }[event.key];
    if (event.key === "Enter" || event.key === " ") byId("node").focus();
    else if (!["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End"].includes(event.key)) return;
    event.preventDefault();
    if (target) { choose(nodes.indexOf(target)); byId("tree").querySelector(".chosen").focus(); }
  }

  // ---- the chosen node ----
  function jump(number, words) {
    const index = shown.tree.nodes.findIndex((node) => node.number === number);
    if (index < 0) return null;
    const button = html("button", { type: "button" }, words);
    button.addEventListener("click", () => choose(index));
    return button;
  }

  function numberOf(name, value, share) {
    const bar = share === undefined ? null : html("span", { class: "bar" }, html("b"));
    if (bar) bar.firstChild.style.width = `${100 * Math.max(0, Math.min(1, share))}%`;
    return html("div", {}, html("dt", {}, name), html("dd", {}, value, bar));
  }

  function titled(title, ...content) { return [html("h3", {}, title), ...content]; }

  function pairTable(node) {
    const head = ["Input", "Wanted", ...(node.root || !node.outcomes.length ? [] : ["Got", "Mark"])];
    const lines = shown.tree.pairs.map(([input, output], at) => {
      const cells = [input, output, ...(head.length > 2 ? [node.outcomes[at] ?? ""] : [])].map((text) => html("td", {}, html("code", {}, text)));
      if (head.length > 2) {
        const right = node.solved[at];
        cells.push(html("td", { class: right ? "right" : "wrong" }, right ? "✓ right" : "✗ wrong"));
      }
      return html("tr", {}, ...cells);
    });
    return html("table", { class: "pairs" }, html("thead", {}, html("tr", {}, ...head.map((name) => html("th", { scope: "col" }, name)))), html("tbody", {}, ...lines));
  }

  function details(node) {
    const children = shown.tree.nodes.filter((other) => other.parent === shown.node).map((other) => other.number);
    const parts = [
      html("h2", {}, `Node ${node.number}`, node.root ? null : html("span", { class: "chip" }, STATE_WORDS[node.state]),
        node.backtracked ? html("span", { class: "chip" }, "backtracked") : null, node.answer ? html("span", { class: "chip answer" }, "answer") : null),
      html("p", {}, [node.made, ...node.fate].join(" ")),
    ];
    if (node.parent !== null || node.equal_to !== null || children.length) {
      const parent = node.parent === null ? null : jump(shown.tree.nodes[node.parent].number, "Parent");
      const twin = node.equal_to === null ? null : jump(node.equal_to, `Node ${node.equal_to}`);
      const first = children.length ? jump(children[0], children.length === 1 ? "Child" : `First of ${children.length} children`) : null;
      parts.push(html("p", { class: "zoom" }, parent, twin, first));
    }
    if (!node.root) {
      parts.push(html("dl", { class: "numbers" }, numberOf("Reward", node.reward.toFixed(3), node.reward),
        numberOf("Coherent", node.coherent.toFixed(3), node.coherent), numberOf("Enriched", node.enriched.toFixed(3), node.enriched)));
    }
    parts.push(html("dl", { class: "numbers" }, numberOf("Visits", String(node.visits)), numberOf("Mean", node.mean.toFixed(3)),
      numberOf("Best below", node.best.toFixed(3)), numberOf("Calls so far", node.calls.toLocaleString("en")),
      numberOf("Tokens so far", node.tokens.toLocaleString("en"))));
    if (node.failure) parts.push(...titled("Why it failed", html("p", { class: "quote wrong" }, node.failure)));
    if (node.rule) parts.push(...titled("Rule in words", html("p", { class: "quote" }, node.rule)));
    if (node.program) parts.push(...titled("Rule as a function", html("pre", {}, html("code", {}, node.program))));
    if (node.note) parts.push(...titled("The critic's note", html("p", { class: "quote" }, node.note)));
    parts.push(...titled("Training pairs", pairTable(node)));
    byId("node").replaceChildren(...parts);
    byId("node").scrollTop = 0;
  }

  function choose(index, write = true) {
    shown.node = index;
    for (const group of byId("tree").querySelectorAll(".tree-node")) {
      const chosen = Number(group.dataset.index) === index;
      group.classList.toggle("chosen", chosen);
      group.setAttribute("aria-selected", String(chosen));
      group.setAttribute("tabindex", chosen ? 0 : -1);
    }
    reveal(shown.tree.nodes[index]);
    details(shown.tree.nodes[index]);
    if (write) history.replaceState(null, "", `#problem=${shown.problem}&node=${shown.tree.nodes[index].number}`);
  }

  // Scroll the frame of the tree, not the page, until the node is in sight.
  function reveal(node) {
    const frame = byId("tree"), scale = shown.scale;
    const x = left(node) * scale, y = middle(node) * scale;
    if (x < frame.scrollLeft || x + BOX_WIDTH * scale > frame.scrollLeft + frame.clientWidth) frame.scrollLeft = x - frame.clientWidth / 2;
    if (y - 20 < frame.scrollTop || y + 20 > frame.scrollTop + frame.clientHeight) frame.scrollTop = y - frame.clientHeight / 2;
  }

  // ---- the chosen problem ----
  function listOf(title, head, lines) {
    const table = html("table", { class: "pairs" }, html("thead", {}, html("tr", {}, ...head.map((name) => html("th", { scope: "col" }, name)))),
      html("tbody", {}, ...lines.map((line) => html("tr", {}, ...line.map((cell) => html("td", {}, cell))))));
    return html("details", {}, html("summary", {}, title), html("div", { class: "scroll" }, table));
  }

  function show(problem) {
    const tree = JSON.parse(byId(`tree-${problem}`).textContent);
    shown = { problem, tree, node: -1, scale: 1 };
    byId("search").hidden = false;
    byId("search-title").textContent = `${problem}. ${tree.name}`;
    const row = rows.find((one) => Number(one.dataset.number) === problem);
    for (const one of rows) one.classList.toggle("chosen", one === row);
    byId("search-facts").textContent = `${row.cells[3].textContent} training pairs solved, ${plural(tree.nodes.filter((node) => !node.root).length, "node")}, `
      + `${plural(row.cells[5].textContent, "call")}, ended: ${row.cells[6].textContent.trim()}`;
    byId("previous").disabled = problem <= 1;
    byId("next").disabled = problem >= treeCount;
    draw(tree);
    const none = "This search made no node. Either the model answers the test inputs directly, or the search never began.";
    byId("node").replaceChildren(html("p", {}, none)); // until a node is chosen; nothing of the problem before may stay
    const extras = [];
    if (tree.tests.length) {
      const right = tree.tests.filter(([, , ok]) => ok).length;
      extras.push(listOf(`Test pairs: ${right} of ${tree.tests.length} are right`, ["Input", "Answer", "Mark"],
        tree.tests.map(([input, answer, ok]) => [html("code", {}, input), html("code", {}, answer), html("span", { class: ok ? "right" : "wrong" }, ok ? "✓ right" : "✗ wrong")])));
    }
    if (tree.agents.length) {
      extras.push(listOf("What each agent did", ["Agent", "Calls", "Tokens", "Repaired", "Failed", "Cut off"],
        tree.agents.map((line) => line.map((cell) => typeof cell === "number" ? cell.toLocaleString("en") : cell))));
    }
    byId("extras").replaceChildren(...extras);
  }

  // The node that a reader most likely wants: the answer, else the best one.
  function firstNode(nodes) {
    const answer = nodes.findIndex((node) => node.answer);
    if (answer >= 0) return answer;
    return nodes.reduce((best, node, index) => (solvedPairs(node) > solvedPairs(nodes[best]) ? index : best), 0);
  }

  function followAddress(scroll) {
    const wanted = new URLSearchParams(location.hash.slice(1));
    const problem = Number(wanted.get("problem"));
    if (!Number.isInteger(problem) || problem < 1 || problem > treeCount) return false;
    if (problem !== shown.problem) show(problem);
    const index = wanted.has("node") ? shown.tree.nodes.findIndex((node) => node.number === Number(wanted.get("node"))) : -1;
    if (shown.tree.nodes.length) choose(index < 0 ? firstNode(shown.tree.nodes) : index, false);
    if (scroll) {
      byId("search").scrollIntoView();
      byId("search-title").focus({ preventScroll: true });
    }
    return true;
  }

  const go = (problem) => { location.hash = `problem=${problem}`; };
  prepareTable();
  byId("previous").addEventListener("click", () => go(shown.problem - 1));
  byId("next").addEventListener("click", () => go(shown.problem + 1));
  byId("smaller").addEventListener("click", () => zoom(shown.scale / 1.25));
  byId("larger").addEventListener("click", () => zoom(shown.scale * 1.25));
  byId("fit").addEventListener("click", () => zoom(whole()));
  window.addEventListener("hashchange", () => followAddress(true));
  if (!followAddress(true) && treeCount) {
    show(1);
    if (shown.tree.nodes.length) choose(firstNode(shown.tree.nodes), false);
  }
})();
