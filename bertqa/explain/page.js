// Choose any layer, head and token on the page of an answer. Without this script the page shows the
// same pictures of one layer and one head.
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
  // A name in a sentence does not change the direction of the text beside it.
  const isolated = (text) => `\u2068${text}\u2069`;
  const length = names.length;

  // --- bytes ------------------------------------------------------------------------------------

  const bytesOf = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));

  // A byte b represents the probability (b / 255)^2.
  const meaning = Float32Array.from({ length: 256 }, (_, b) => (b / 255) ** 2);

  async function inflated(text) {
    const stream = new Blob([bytesOf(text)]).stream();
    const plain = stream.pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(plain).arrayBuffer());
  }

  // --- the lens ---------------------------------------------------------------------------------

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
      token.title = `start ${percent(meaning[start[i]])}, end ${percent(meaning[end[i]])}`;
      token.classList.toggle("best", best !== null && best[0] <= i && i <= best[1]);
    });
    const row = byId(`layer-${layer}`);
    for (const other of row.parentElement.children) other.classList.toggle("now", other === row);
    byId("lens-says").textContent =
      `${row.cells[0].textContent}: the best span is “${isolated(row.cells[1].textContent)}”`;
  }

  byId("lens-layer").addEventListener("input", showLayer);
  reveal("lens-controls");

  // --- attention --------------------------------------------------------------------------------

  const attentionTokens = tokensOf("attention-tokens");
  const places = (first, last) => Array.from({ length: last - first }, (_, i) => first + i);
  const isWord = (i) =>
    (data.question[0] <= i && i < data.question[1]) || (data.context[0] <= i && i < data.context[1]);
  const presets = {
    question: data.question[0] < data.question[1] ? places(...data.question) : [0],
    answer: places(data.answer[0], data.answer[1] + 1),
    cls: [0],
  };
  let chosen = presets.question;
  let said = "the question";
  let square = null; // (L, L) bytes of the head that is shown
  let at = presets.question[0]; // the token with the keyboard's focus
  let asked = 0;

  // Where the chosen tokens look, on average, and how much of each token's look goes to them.
  function weights() {
    const from = new Float32Array(length);
    const to = new Float32Array(length);
    for (const i of chosen) {
      for (let j = 0; j < length; j++) {
        from[j] += meaning[square[i * length + j]] / chosen.length;
        to[j] += meaning[square[j * length + i]];
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
    const order = places(0, length).filter((i) => isShown(i) && values[i] > 0);
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
    const rest = places(0, length).filter((i) => !isWord(i));
    const special = rest.reduce((sum, i) => sum + found.from[i], 0);
    const held = found.from.reduce((sum, value) => sum + value, 0);
    const head = `Layer ${byId("attention-layer").value}, head ${byId("attention-head").value}`;
    const does = way === "from" ? "looks at" : "is looked at by";
    byId("attention-says").textContent =
      `${head}: ${said} ${does} ${strongest.join(", ") || "nothing that is kept"}; ` +
      (held < 0.99
        ? `at least ${percent(special)} of its look goes to [CLS] and [SEP]; the page holds ${percent(held)} of it.`
        : `${percent(special)} of its look goes to [CLS] and [SEP].`);
  }

  async function showHead() {
    const layer = Number(byId("attention-layer").value);
    const head = Number(byId("attention-head").value);
    const turn = ++asked;
    byId("attention-tokens").setAttribute("aria-busy", "true");
    const bytes = await inflated(data.attention[layer * data.heads + head]);
    if (turn !== asked) return; // another head was chosen meanwhile
    square = bytes;
    byId("attention-tokens").removeAttribute("aria-busy");
    showAttention();
  }

  function choose(which, name) {
    chosen = which;
    said = name;
    showAttention();
  }

  function standOn(i) {
    attentionTokens[at].tabIndex = -1;
    at = i;
    attentionTokens[at].tabIndex = 0;
    attentionTokens[at].focus();
    choose([i], `“${isolated(names[i])}”`);
  }

  // The token of the line above or below that is nearest.
  function onOtherLine(direction) {
    const here = attentionTokens[at].getBoundingClientRect();
    let best = at;
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
      ArrowRight: () => at + forwards,
      ArrowLeft: () => at - forwards,
      ArrowUp: () => onOtherLine(-1),
      ArrowDown: () => onOtherLine(1),
      Home: () => 0,
      End: () => length - 1,
    };
    if (!(event.key in goals) || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    standOn(Math.max(0, Math.min(length - 1, goals[event.key]())));
  }

  function setHead(layer, head) {
    byId("attention-layer").value = layer;
    byId("attention-head").value = head;
    showHead();
  }

  function startAttention() {
    const list = byId("attention-tokens");
    list.setAttribute("role", "listbox");
    list.removeAttribute("tabindex"); // its tokens are reached themselves
    list.setAttribute("aria-multiselectable", "true");
    list.setAttribute("aria-label", "Tokens: arrows move, the chosen one is explained");
    attentionTokens.forEach((token, i) => {
      token.setAttribute("role", "option");
      token.tabIndex = i === at ? 0 : -1;
    });
    list.addEventListener("keydown", onKey);
    list.addEventListener("click", (event) => {
      const i = attentionTokens.indexOf(event.target.closest(".t"));
      if (i >= 0) standOn(i);
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
  showParts(); // a reload may have kept another choice
  showLayer();
})();
