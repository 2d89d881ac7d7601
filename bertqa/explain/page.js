// Selection of layer, head and token. Without this script the page shows one layer and one head.
"use strict";

(() => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const percent = (p) =>
    p >= 0.0005 ? `${(100 * p).toFixed(p < 0.1 ? 1 : 0)}%` : p > 0 ? "<0.1%" : "0%";
  const signed = (x) => (x < 0 ? "−" : "+") + Math.abs(x).toFixed(3);
  const reveal = (id) => byId(id).removeAttribute("hidden");
  const tokensOf = (id) => [...byId(id).querySelectorAll(".t")];
  const chosenOf = (name) => document.querySelector(`input[name=${name}]:checked`).value;
  const listen = (selector, type, listener) =>
    document.querySelectorAll(selector).forEach((node) => node.addEventListener(type, () => listener(node)));
  const names = data.tokens;
  // Keep the writing direction of a token from affecting the surrounding text.
  const isolated = (text) => `\u2068${text}\u2069`;
  const length = names.length;

  // --- bytes ------------------------------------------------------------------------------------

  const bytesOf = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));

  // A byte b represents the probability (b / 255)^2.
  const probabilityOf = Float32Array.from({ length: 256 }, (_, b) => (b / 255) ** 2);

  async function inflated(text) {
    const stream = new Blob([bytesOf(text)]).stream();
    const plain = stream.pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(plain).arrayBuffer());
  }

  // --- logit lens -------------------------------------------------------------------------------

  const lens = bytesOf(data.lens); // (layers + 1, 2, L)
  const lensTokens = tokensOf("lens-tokens");

  function showLayer() {
    const layer = Number(byId("lens-layer").value);
    const start = lens.subarray(2 * layer * length, (2 * layer + 1) * length);
    const end = lens.subarray((2 * layer + 1) * length, (2 * layer + 2) * length);
    const best = data.bests[layer];
    lensTokens.forEach((token, i) => {
      token.style.setProperty("--s", (start[i] / 255).toFixed(2));
      token.style.setProperty("--e", (end[i] / 255).toFixed(2));
      token.title = `start ${percent(probabilityOf[start[i]])}, end ${percent(probabilityOf[end[i]])}`;
      token.classList.toggle("best", best !== null && best[0] <= i && i <= best[1]);
    });
    const row = byId(`layer-${layer}`);
    for (const other of row.parentElement.children) other.classList.toggle("now", other === row);
    byId("lens-summary").textContent =
      `${row.cells[0].textContent}: the best span is “${isolated(row.cells[1].textContent)}”`;
  }

  byId("lens-layer").addEventListener("input", showLayer);
  reveal("lens-controls");

  // --- attention --------------------------------------------------------------------------------

  const attentionTokens = tokensOf("attention-tokens");
  const range = (first, last) => Array.from({ length: last - first }, (_, i) => first + i);
  const isWord = (i) =>
    (data.question[0] <= i && i < data.question[1]) || (data.context[0] <= i && i < data.context[1]);
  const presets = {
    question: data.question[0] < data.question[1] ? range(...data.question) : [0],
    answer: range(data.answer[0], data.answer[1] + 1),
    cls: [0],
  };
  let chosen = presets.question;
  let chosenName = "the question";
  let square = null; // (L, L) bytes of the displayed head
  let focused = presets.question[0]; // the token with keyboard focus
  let requests = 0;

  // Mean attention from the chosen tokens, and the sum of each token's attention to them.
  function weights() {
    const from = new Float32Array(length);
    const to = new Float32Array(length);
    for (const i of chosen) {
      for (let j = 0; j < length; j++) {
        from[j] += probabilityOf[square[i * length + j]] / chosen.length;
        to[j] += probabilityOf[square[j * length + i]];
      }
    }
    return { from, to };
  }

  const isShown = (i) => !byId("attention-words").checked || isWord(i);

  const element = (tag, properties, ...content) => {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...content);
    return made;
  };

  function fill(id, values) {
    const order = range(0, length).filter((i) => isShown(i) && values[i] > 0);
    order.sort((a, b) => values[b] - values[a]);
    const rows = order.slice(0, 8).map((i) => {
      const name = element("th", { scope: "row" }, element("bdi", {}, names[i]));
      const value = element("td", { className: "bar" }, percent(values[i]));
      value.style.setProperty("--p", (values[i] / values[order[0]]).toFixed(2));
      return element("tr", {}, name, value);
    });
    byId(id).replaceChildren(...rows);
    return order;
  }

  function showAttention() {
    if (square === null) return;
    const found = weights();
    const way = chosenOf("attention-way");
    const values = found[way];
    const order = { from: fill("attention-from", found.from), to: fill("attention-to", found.to) }[way];
    const most = order.length ? values[order[0]] : 1;
    attentionTokens.forEach((token, i) => {
      const value = isShown(i) ? Math.sqrt(values[i] / most) : 0;
      token.style.setProperty("--v", value.toFixed(2));
      token.title = `${names[i]}: ${percent(values[i])}`;
      token.setAttribute("aria-selected", String(chosen.includes(i)));
    });
    const strongest = order.slice(0, 3).map((i) => `${isolated(names[i])} ${percent(values[i])}`);
    const rest = range(0, length).filter((i) => !isWord(i));
    const special = rest.reduce((sum, i) => sum + found.from[i], 0);
    const held = found.from.reduce((sum, value) => sum + value, 0);
    const head = `Layer ${byId("attention-layer").value}, head ${byId("attention-head").value}`;
    byId("attention-summary").textContent =
      `${head}, attention ${way} ${chosenName}: ${strongest.join(", ") || "none on this page"}. ` +
      (held < 0.99
        ? `At least ${percent(special)} of its attention is on [CLS] and [SEP]; the page contains ${percent(held)} of it.`
        : `${percent(special)} of its attention is on [CLS] and [SEP].`);
  }

  async function showHead() {
    const layer = Number(byId("attention-layer").value);
    const head = Number(byId("attention-head").value);
    const request = ++requests;
    byId("attention-tokens").setAttribute("aria-busy", "true");
    const bytes = await inflated(data.attention[layer * data.heads + head]);
    if (request !== requests) return; // another head was selected meanwhile
    square = bytes;
    byId("attention-tokens").removeAttribute("aria-busy");
    showAttention();
  }

  function choose(which, name) {
    chosen = which;
    chosenName = name;
    showAttention();
  }

  function focusToken(i) {
    attentionTokens[focused].tabIndex = -1;
    focused = i;
    attentionTokens[focused].tabIndex = 0;
    attentionTokens[focused].focus();
    choose([i], `“${isolated(names[i])}”`);
  }

  // The nearest token on the line above or below.
  function tokenOnOtherLine(direction) {
    const here = attentionTokens[focused].getBoundingClientRect();
    let best = focused;
    let nearest = Infinity;
    attentionTokens.forEach((token, i) => {
      const there = token.getBoundingClientRect();
      const lines = Math.round(((there.top - here.top) * direction) / here.height);
      if (lines < 1) return;
      const distance = lines * 1e5 + Math.abs(there.left - here.left);
      if (distance < nearest) [best, nearest] = [i, distance];
    });
    return best;
  }

  function onKey(event) {
    const forwards = getComputedStyle(byId("attention-tokens")).direction === "rtl" ? -1 : 1;
    const goals = {
      ArrowRight: () => focused + forwards,
      ArrowLeft: () => focused - forwards,
      ArrowUp: () => tokenOnOtherLine(-1),
      ArrowDown: () => tokenOnOtherLine(1),
      Home: () => 0,
      End: () => length - 1,
    };
    if (!(event.key in goals) || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    focusToken(Math.max(0, Math.min(length - 1, goals[event.key]())));
  }

  function setHead(layer, head) {
    byId("attention-layer").value = layer;
    byId("attention-head").value = head;
    showHead();
  }

  function startAttention() {
    const list = byId("attention-tokens");
    list.setAttribute("role", "listbox");
    list.removeAttribute("tabindex"); // its tokens are focusable
    list.setAttribute("aria-multiselectable", "true");
    list.setAttribute("aria-label", "Tokens: select one with the arrow keys");
    attentionTokens.forEach((token, i) => {
      token.setAttribute("role", "option");
      token.tabIndex = i === focused ? 0 : -1;
    });
    list.addEventListener("keydown", onKey);
    list.addEventListener("click", (event) => {
      const i = attentionTokens.indexOf(event.target.closest(".t"));
      if (i >= 0) focusToken(i);
    });
    listen("#attention-layer, #attention-head", "change", showHead);
    listen("input[name=attention-way], #attention-words", "change", showAttention);
    listen("button[data-preset]", "click", ({ dataset }) => choose(presets[dataset.preset], dataset.name));
    listen("a[data-head]", "click", ({ dataset }) => setHead(...dataset.head.split(",")));
    setHead(...data.strongest);
    reveal("attention-controls");
    list.classList.add("live");
  }

  if ("DecompressionStream" in window) startAttention();
  else reveal("attention-old");

  // --- attributions -----------------------------------------------------------------------------

  const partsTokens = tokensOf("parts-tokens");

  function showParts() {
    const values = data.parts[chosenOf("parts-of")];
    const most = Math.max(...values.map(Math.abs)) || 1;
    partsTokens.forEach((token, i) => {
      token.style.setProperty("--v", Math.sqrt(Math.abs(values[i]) / most).toFixed(2));
      token.classList.toggle("minus", values[i] < 0);
      token.title = `${names[i]}: ${signed(values[i])}`;
    });
  }

  listen("input[name=parts-of]", "change", showParts);
  reveal("parts-controls");
  showParts(); // after a reload the browser may restore another choice
  showLayer();
})();
