"use strict";
// Data come as JSON and are shown as text: nothing here makes markup of a string.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { facts } = data;
  const byId = (id) => document.getElementById(id);
  const main = document.querySelector("main");
  const SHOWN = 100;
  const MOST_CARDS = 12;

  const indexes = new Map();
  const details = new Map();
  const waiting = new Map(); // file -> functions that are called when it is there, or cannot be
  const state = { variant: 0, latent: null, query: "", sort: "number", start: 0, end: SHOWN };

  function addIndex(variant, columns, tokens) {
    const text = (ids) => ids.map((id) => tokens[id]);
    indexes.set(variant, { ...columns, peaks: columns.peaks.map(text), raised: columns.raised.map(text) });
  }
  function addLatents(latents, tokens) {
    for (const [key, detail] of Object.entries(latents)) details.set(key, { ...detail, tokens });
  }
  for (const [variant, columns] of Object.entries(data.indexes)) addIndex(Number(variant), columns, data.tokens);
  addLatents(data.latents, data.tokens);
  window.latentIndex = ({ variant, columns, tokens }) => addIndex(variant, columns, tokens);
  window.latentPack = ({ latents, tokens }) => addLatents(latents, tokens);

  // A page on a disk may not fetch, but it may load a script.
  function load(file, then) {
    if (waiting.has(file)) {
      waiting.get(file).push(then);
      return;
    }
    waiting.set(file, [then]);
    const script = document.createElement("script");
    script.src = `${facts.folder}/${file}`;
    const done = (there) => {
      const functions = waiting.get(file);
      waiting.delete(file);
      script.remove();
      functions.forEach((callback) => callback(there));
    };
    script.onload = () => done(true);
    script.onerror = () => done(false);
    document.head.append(script);
  }
  function withIndex(variant, then) {
    if (indexes.has(variant)) then(indexes.get(variant));
    else load(`${facts.variants[variant].folder}/index.js`, () => then(indexes.get(variant)));
  }
  function chunkOf(variant, latent) {
    return `${facts.variants[variant].folder}/${Math.floor(latent / facts.chunk)}.js`;
  }
  function withDetail(variant, latent, then) {
    const key = `${variant}/${latent}`;
    if (details.has(key)) then(details.get(key));
    else load(chunkOf(variant, latent), () => then(details.get(key)));
  }

  function make(tag, attributes, ...children) {
    const svg = ["svg", "rect", "line", "text", "title"].includes(tag);
    const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name.startsWith("--")) node.style.setProperty(name, value);
      else if (value !== null && value !== undefined) node.setAttribute(name, value);
    }
    node.append(...children);
    return node;
  }
  const VISIBLE = { "\n": "\u21b5", "\r": "\u240d", "\t": "\u21e5", "\u2028": "\u240a", "\u2029": "\u240a", "\u000b": "\u240b", "\u000c": "\u240c" };
  const visible = (text) => text.replace(/[\n\r\t\u2028\u2029\u000b\u000c]/g, (sign) => VISIBLE[sign]);
  const named = (text) => visible(text).replace(/^ +| +$/g, (spaces) => "\u2423".repeat(spaces.length)) || "\u2205";
  const tokenName = (text) => make("span", { class: "token-name" }, named(text));
  const number = (value) => (value !== 0 && Math.abs(value) < 0.001 ? value.toExponential(1) : String(Number(value.toPrecision(3))));
  const percent = (value) => `${number(100 * value)} %`;
  const counted = (value) => value.toLocaleString("en");
  const address = (variant, latent) => `#${encodeURIComponent(facts.variants[variant].name)}${latent === null ? "" : `/${latent}`}`;

  // ---- The list.
  const SORTS = {
    number: ["number", null, 1],
    dense: ["density, highest first", "density", -1],
    rare: ["density, lowest first", "density", 1],
    near: ["nearest cosine, highest first", "cosine", -1],
    far: ["nearest cosine, lowest first", "cosine", 1],
    strong: ["largest activation", "largest", -1],
    good: ["score, highest first", "score", -1],
    bad: ["score, lowest first", "score", 1],
  };
  function found(index) {
    const query = state.query.toLowerCase();
    let numbers = index.density.map((_, latent) => latent);
    if (query.trim()) {
      const has = (texts) => texts.some((text) => text.toLowerCase().includes(query));
      const exact = /^#?\d+$/.test(query.trim()) ? Number(query.trim().replace("#", "")) : -1;
      numbers = numbers.filter(
        (latent) =>
          latent === exact || has(index.peaks[latent]) || has(index.raised[latent]) ||
          (index.said && index.said[latent].toLowerCase().includes(query)),
      );
      if (exact in index.density) numbers = [exact, ...numbers.filter((latent) => latent !== exact)];
      if (exact in index.density && state.sort === "number") return numbers;
    }
    const [, column, sign] = SORTS[state.sort];
    if (column && index[column]) {
      const values = index[column];
      const rank = (latent) => (values[latent] === null ? Infinity : sign * values[latent]);
      numbers.sort((a, b) => rank(a) - rank(b) || a - b || 0);
    }
    return numbers;
  }
  function about(index, latent) {
    if (index.said && index.said[latent]) return [index.said[latent]];
    const names = index.peaks[latent].slice(0, 4).flatMap((text) => [tokenName(text), " "]);
    return names.length ? names : ["never fires"];
  }
  let listed = [];
  function restart() {
    state.start = 0;
    state.end = SHOWN;
    byId("rows").scrollTop = 0;
  }
  function reveal(rows) {
    const row = rows.querySelector("[aria-current]");
    if (!row) return;
    const box = row.getBoundingClientRect();
    const frame = rows.getBoundingClientRect();
    if (box.top < frame.top || box.bottom > frame.bottom) rows.scrollTop += box.top - frame.top - frame.height / 3;
  }
  function showList() {
    withIndex(state.variant, (index) => {
      const rows = byId("rows");
      const top = rows.scrollTop;
      if (!index) {
        rows.replaceChildren();
        byId("count").textContent = `The index of this variant is not in this page, and its file ${facts.folder}/${facts.variants[state.variant].folder}/index.js is not beside it.`;
        return;
      }
      listed = found(index);
      const place = listed.indexOf(state.latent);
      if (place >= state.end || (place >= 0 && place < state.start)) {
        state.start = Math.max(0, place - SHOWN / 4);
        state.end = state.start + SHOWN;
      }
      const column = SORTS[state.sort][1] || "density";
      const spell = column === "density" ? percent : (value) => (value === null ? "" : number(value));
      rows.replaceChildren(
        ...listed.slice(state.start, state.end).map((latent) =>
          make("li", {},
            make("a", { href: address(state.variant, latent), "aria-current": latent === state.latent ? "true" : null },
              make("b", {}, String(latent)),
              make("span", { class: "about" }, ...about(index, latent)),
              make("span", { class: "value" }, spell(index[column] ? index[column][latent] : 0)))),
        ),
      );
      rows.scrollTop = top;
      reveal(rows);
      const dead = index.density.filter((density) => density === 0).length;
      byId("count").textContent =
        `${counted(listed.length)} of ${counted(index.density.length)} latents` +
        (dead ? `, ${counted(dead)} of all never fire` : "") + `. At the right: ${{ density: "density", cosine: "nearest cosine", largest: "largest activation", score: "score" }[column]}.`;
      byId("less").hidden = state.start === 0;
      byId("more").hidden = listed.length <= state.end;
    });
  }

  // ---- A context: text with activations.
  const tip = byId("tip");
  function showTip(span) {
    const { text, value, place } = span.latentToken;
    document.querySelectorAll(".text .now").forEach((other) => other.classList.remove("now"));
    span.classList.add("now");
    tip.replaceChildren(tokenName(text), ` ${number(value)}`, make("small", {}, ` \u00b7 token ${place}`));
    tip.hidden = false;
    const box = span.getClientRects()[0] || span.getBoundingClientRect();
    const left = Math.min(Math.max(8, box.left + box.width / 2 - tip.offsetWidth / 2), innerWidth - tip.offsetWidth - 8);
    const above = box.top - tip.offsetHeight - 6;
    tip.style.left = `${left}px`;
    tip.style.top = `${above > 4 ? above : box.bottom + 6}px`;
  }
  function hideTip() {
    tip.hidden = true;
    document.querySelectorAll(".text .now").forEach((span) => span.classList.remove("now"));
  }
  function contextText([sequence, position, own, ids, values], tokens, largest) {
    const text = make("div", {
      class: "text", tabindex: "0", role: "group",
      "aria-label": `Context with ${number(values[own])} on ${named(tokens[ids[own]])}; arrow keys read each token`,
    });
    ids.forEach((id, place) => {
      const value = values[place];
      const span = make("span", {}, visible(tokens[id]));
      if (value > 0) {
        span.classList.add("fires");
        span.style.setProperty("--share", String(Math.min(1, value / largest)));
      }
      if (place === own) span.classList.add("own");
      span.latentToken = { text: tokens[id], value, place: position - own + place };
      text.append(span);
    });
    text.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const spans = [...text.children];
      const now = spans.findIndex((span) => span.classList.contains("now"));
      showTip(spans[now < 0 ? own : Math.min(Math.max(now + step, 0), spans.length - 1)]);
    });
    text.addEventListener("focus", () => {
      if (text.matches(":focus-visible")) showTip(text.children[own]);
    });
    text.addEventListener("blur", hideTip);
    return text;
  }
  document.addEventListener("pointerover", (event) => {
    const span = event.target.closest?.(".text span");
    if (span) showTip(span);
    else if (!tip.hidden && !document.activeElement.classList.contains("text")) hideTip();
  });
  document.addEventListener("scroll", hideTip, { passive: true });
  function where(context) {
    const [sequence] = context;
    return sequence < facts.heldOut ? `held-out sequence ${sequence}` : `training sequence ${sequence - facts.heldOut}`;
  }
  function contextList(contexts, detail, size) {
    return make("ul", { class: "contexts" },
      ...contexts.map((context, place) =>
        make("li", {}, make("span", { class: "size", title: where(context) }, ...size(context, place)), contextText(context, detail.tokens, detail.largest))));
  }

  // ---- One latent.
  function ends(detail, pairs, kind) {
    const most = Math.max(...pairs.map(([, value]) => Math.abs(value)), 1e-9);
    return make("ul", { class: kind },
      ...pairs.map(([id, value]) =>
        make("li", { "--share": Math.abs(value) / most }, make("span", { class: "token-name" }, named(detail.tokens[id])), make("span", {}, number(value)))));
  }
  function histogram([width, counts]) {
    const most = Math.max(...counts);
    const [left, bottom, wide, high] = [4, 96, 292, 78];
    const step = wide / counts.length;
    const svg = make("svg", { viewBox: "0 0 300 118", role: "img", "aria-label": "Histogram of activations above zero" });
    counts.forEach((count, bin) => {
      const height = count ? Math.max(1, (high * count) / most) : 0;
      svg.append(
        make("rect", { class: "bar", x: (left + bin * step).toFixed(1), y: (bottom - height).toFixed(1), width: Math.max(0.5, step - 1).toFixed(1), height: height.toFixed(1) },
          make("title", {}, `${number(bin * width)} to ${number((bin + 1) * width)}: ${counted(count)} rows`)));
    });
    svg.append(
      make("line", { class: "axis", x1: left, x2: left + wide, y1: bottom, y2: bottom }),
      make("text", { x: left, y: 112 }, "0"),
      make("text", { x: left + wide, y: 112, class: "end" }, number(width * counts.length)),
      make("text", { x: left, y: 12 }, `${counted(most)} rows`),
    );
    return svg;
  }
  function fact(label, ...value) {
    return make("div", {}, make("dt", {}, label), make("dd", {}, ...value));
  }
  function link(variant, latent, text) {
    return make("a", { href: address(variant, latent) }, text);
  }
  function card(variant, latent, cosine) {
    const box = make("section", { class: "card" },
      make("h4", {}, link(variant, latent, `${facts.variants[variant].name} / ${latent}`)),
      make("p", { class: "muted" }, cosine === null ? "this latent" : `cosine ${number(cosine)}`));
    withDetail(variant, latent, (detail) => {
      if (!detail) {
        box.append(make("p", { class: "muted" }, `Its file ${facts.folder}/${chunkOf(variant, latent)} is not beside this page.`));
        return;
      }
      box.querySelector("p").append(`, fires on ${percent(detail.density)} of rows`);
      const raised = detail.raised.slice(0, 5).flatMap(([id]) => [tokenName(detail.tokens[id]), " "]);
      box.append(make("p", {}, make("span", { class: "muted" }, "Raises "), ...raised));
      if (detail.top.length) box.append(contextList(detail.top.slice(0, 4), detail, () => []));
      else box.append(make("p", { class: "muted" }, "It never fires."));
    });
    return box;
  }
  function compared(detail) {
    const shown = detail.matches.slice(0, MOST_CARDS);
    const rest = detail.matches.slice(MOST_CARDS);
    const parts = [make("div", { class: "cards" }, card(state.variant, state.latent, null), ...shown.map((match) => card(...match)))];
    if (rest.length) {
      parts.push(make("ul", { class: "chips" },
        ...rest.map(([variant, latent, cosine]) => make("li", {}, link(variant, latent, `${facts.variants[variant].name} / ${latent}: ${number(cosine)}`)))));
    }
    return parts;
  }
  function step(by) {
    const place = listed.indexOf(state.latent);
    const next = place < 0 ? listed[0] : listed[place + by];
    if (next !== undefined) go(state.variant, next);
  }
  function button(text, label, action) {
    const node = make("button", { type: "button", "aria-label": label, title: label }, text);
    node.addEventListener("click", action);
    return node;
  }
  function heading() {
    const name = facts.variants[state.variant].name;
    return make("div", { class: "title" },
      make("h2", {}, `${name} / ${state.latent}`),
      make("div", { class: "steps" },
        button("\u2190", "Previous of the list (key k)", () => step(-1)),
        button("\u2192", "Next of the list (key j)", () => step(1)),
        button("Random", "A random latent of this variant (key r)", random)));
  }
  function showLatent() {
    const article = byId("latent");
    const back = make("a", { class: "back", href: address(state.variant, null) }, "\u2190 All latents");
    if (state.latent === null) {
      article.replaceChildren(make("p", { class: "muted" }, "Choose a latent from the list, or a random one."));
      return;
    }
    const { variant, latent } = state;
    article.replaceChildren(back, heading(), make("p", { class: "muted" }, "Loading\u2026"));
    withDetail(variant, latent, (detail) => {
      if (variant !== state.variant || latent !== state.latent) return;
      if (!detail) {
        article.replaceChildren(back, heading(), make("p", {}, `This latent is not in the page itself, and its file ${facts.folder}/${chunkOf(variant, latent)} is not beside it. Keep the folder ${facts.folder} where the page is.`));
        return;
      }
      const parts = [back, heading()];
      const index = indexes.get(variant);
      if (index && index.said && index.said[latent]) {
        const score = index.score[latent];
        parts.push(make("p", { class: "said" }, index.said[latent], make("span", { class: "muted" }, ` Explained by ${facts.judges[variant] || "a judge"}${score === null ? "" : `, score ${number(score)}`}.`)));
      }
      parts.push(make("dl", { class: "key" },
        fact("Fires on", percent(detail.density)),
        fact("Rows", counted(detail.firing)),
        fact("Mean when firing", number(detail.mean)),
        fact("Largest", number(detail.largest))));
      if (detail.top.length) {
        parts.push(
          make("h3", {}, "Largest activations"),
          contextList(detail.top, detail, (context) => [number(context[4][context[2]])]));
      } else {
        parts.push(make("p", {}, "This latent never fires on this text."));
      }
      parts.push(
        make("h3", {}, "Logits and activations ", make("small", {}, "what its direction alone does to tokens")),
        make("div", { class: "ends" },
          make("div", {}, make("p", { class: "muted" }, "Raised most"), ends(detail, detail.raised, "up")),
          make("div", {}, make("p", { class: "muted" }, "Lowered most"), ends(detail, detail.lowered, "down")),
          ...(detail.bins[1].length ? [make("div", {}, make("p", { class: "muted" }, "Activations above zero"), histogram(detail.bins))] : [])));
      if (detail.quantiles.length) {
        const tenths = detail.quantiles.flatMap(({ range, contexts }, place) =>
          contexts.map((context) => ({ context, label: [`${100 - 10 * (place + 1)}\u2013${100 - 10 * place} %`, range] })));
        parts.push(
          make("h3", {}, "A random firing of each tenth ", make("small", {}, "from the strongest tenth to the weakest")),
          contextList(tenths.map(({ context }) => context), detail, (context, place) =>
            [tenths[place].label[0], make("br"), number(context[4][context[2]])]));
      }
      parts.push(
        make("h3", {}, "Nearest in this SAE ", make("small", {}, "by cosine of decoder directions")),
        make("ul", { class: "chips" }, ...detail.nearest.map(([other, cosine]) => make("li", {}, link(variant, other, `${other}: ${number(cosine)}`)))));
      if (detail.matches.length) {
        parts.push(make("h3", {}, "Its match in the other variants ", make("small", {}, "the largest cosine there")), ...compared(detail));
      }
      article.replaceChildren(...parts);
    });
  }

  // ---- Going somewhere.
  function random() {
    withIndex(state.variant, (index) => {
      if (!index) return;
      const firing = index.density.flatMap((density, latent) => (density > 0 ? [latent] : []));
      if (firing.length) go(state.variant, firing[Math.floor(Math.random() * firing.length)]);
    });
  }
  function decoded(text) {
    try {
      return decodeURIComponent(text);
    } catch {
      return text;
    }
  }
  let opened = null;
  function go(variant, latent) {
    location.hash = address(variant, latent);
    arrive(); // now: the event comes later, and the next key may come before it
  }
  function arrive() {
    if (location.hash === opened) return;
    open();
    if (main.dataset.view === "latent" && byId("latent").getBoundingClientRect().top < 0) {
      byId("latent").scrollIntoView({ block: "start", behavior: "instant" });
    }
  }
  function open() {
    opened = location.hash;
    hideTip();
    const hash = location.hash.slice(1);
    const slash = hash.lastIndexOf("/");
    const name = decoded(slash < 0 ? hash : hash.slice(0, slash));
    const variant = facts.variants.findIndex((one) => one.name === name);
    const latent = slash < 0 ? NaN : Number(hash.slice(slash + 1));
    const isThere = variant >= 0 && Number.isInteger(latent) && latent >= 0 && latent < facts.variants[variant].count;
    if (variant >= 0 && variant !== state.variant) restart();
    if (variant >= 0) state.variant = variant;
    state.latent = isThere ? latent : null;
    if (!hash && facts.first) [state.variant, state.latent] = facts.first.split("/").map(Number);
    main.dataset.view = isThere ? "latent" : "list"; // of these, a phone shows one
    byId("variant").value = String(state.variant);
    showList();
    showLatent();
    document.title = state.latent === null ? "Latents" : `${facts.variants[state.variant].name}/${state.latent}`;
    if (hash && !isThere && (slash >= 0 || variant < 0)) {
      byId("latent").replaceChildren(make("p", {}, `There is no latent ${decoded(hash)} here.`));
      main.dataset.view = "latent";
      byId("latent").prepend(make("a", { class: "back", href: address(state.variant, null) }, "\u2190 All latents"));
    }
  }

  byId("variant").append(...facts.variants.map(({ name }, place) => make("option", { value: place }, name)));
  const sorts = Object.entries(SORTS).filter(([, [, column]]) => column !== "score" || facts.judges.some(Boolean));
  byId("sort").append(...sorts.map(([key, [text]]) => make("option", { value: key }, text)));
  byId("variant").addEventListener("change", (event) => go(Number(event.target.value), null));
  byId("query").addEventListener("input", (event) => {
    state.query = event.target.value;
    restart();
    showList();
  });
  byId("sort").addEventListener("change", (event) => {
    state.sort = event.target.value;
    restart();
    showList();
  });
  document.querySelector(".tools").addEventListener("submit", (event) => {
    event.preventDefault();
    if (listed.length) go(state.variant, listed[0]);
  });
  byId("random").addEventListener("click", random);
  byId("more").addEventListener("click", () => {
    state.end += 2 * SHOWN;
    showList();
  });
  byId("less").addEventListener("click", () => {
    state.start = Math.max(0, state.start - 2 * SHOWN);
    showList();
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.("input, select")) return;
    const action = { "/": () => byId("query").focus(), r: random, j: () => step(1), k: () => step(-1) }[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });
  addEventListener("hashchange", arrive);
  open();
})();
