/* Keys, zooming and panning of the timeline, scrubbing, copying. Nothing here is needed to use a
   page: every key presses a link or a field that is on it, every zoom is a link too. No build step,
   no eval, no inline handler; the address bar always names what is seen. */
"use strict";
(function () {
  const SILENT = "bootflow-keys-off";
  const MIN_WINDOW = 16;
  const MAP_HEIGHT = 18; /* of the map, or true scale, on top of a timeline */
  const find = (selector) => document.querySelector(selector);

  /* --- going somewhere ------------------------------------------------------------------------- */

  /* A boosted link is fetched as a fragment, and the address bar follows. */
  function visit(url) {
    const host = find("[hx-boost=true]");
    if (!host || !window.htmx) { location.href = url; return; }
    const link = document.createElement("a");
    link.href = url;
    link.hidden = true;
    host.append(link);
    window.htmx.process(link);
    link.click();
  }

  /* While an answer is on its way, a key waits for the page that it will be pressed on. */
  function press(key) {
    const link = find(`[data-key="${CSS.escape(key)}"]`);
    if (link && busy) waiting = key; else if (link) link.click();
    return Boolean(link);
  }

  /* h and l held down: only the newest goal is asked for, when the answer before has come. */
  let goal = null;
  let busy = false;
  let waiting = "";

  function step(by) {
    const field = find("#tick");
    if (!field || !field.dataset.last) { press(by < 0 ? "h" : "l"); return; }
    const here = goal === null ? Number(field.value) : goal;
    goal = Math.min(Math.max(here + by, 0), Number(field.dataset.last));
    if (!busy) pursue();
  }

  function pursue() {
    const field = find("#tick");
    if (goal === null || !field) return;
    if (goal === Number(field.defaultValue)) { goal = null; return; }
    visit(location.pathname.replace(/[0-9]+\/$/, `${goal}/`) + location.search);
  }

  /* --- the timeline's axis: "x:tick x:tick ...", corners of the map of app/axis.py --------------- */

  const corners = (text) => text.trim().split(" ").map((c) => c.split(":").map(Number));

  function through(points, from, to, value) {
    let i = 1;
    while (i < points.length - 1 && value > points[i][from]) i++;
    const a = points[i - 1], b = points[i];
    if (b[from] === a[from]) return a[to];
    return a[to] + (b[to] - a[to]) * (value - a[from]) / (b[from] - a[from]);
  }

  function view(svg) {
    const shown = corners(svg.dataset.axis);
    const whole = svg.dataset.whole ? corners(svg.dataset.whole) : shown;
    return {
      lo: shown[0][1], hi: shown[shown.length - 1][1], end: whole[whole.length - 1][1],
      left: whole[0][0], right: whole[whole.length - 1][0],
      tickAt: (x) => through(shown, 0, 1, x),
      x: (tick) => through(whole, 1, 0, tick),
      tick: (x) => through(whole, 0, 1, x),
      inside: (x) => x >= shown[0][0] && x <= shown[shown.length - 1][0],
    };
  }

  function svgX(svg, clientX) {
    const box = svg.getBoundingClientRect();
    return (clientX - box.left) * svg.viewBox.baseVal.width / box.width;
  }

  const shownSvg = () => [...document.querySelectorAll("svg[data-axis]")]
    .find((svg) => svg.getBoundingClientRect().width > 0);

  /* --- zooming and panning: the server draws, here is only arithmetic ---------------------------- */

  let wanted = null;
  let fetching = false;
  let timer = 0;

  function show(v, lo, hi) {
    lo = Math.max(0, Math.floor(lo));
    hi = Math.min(v.end, Math.ceil(hi));
    if (hi - lo < MIN_WINDOW) {
      lo = Math.max(0, Math.min(Math.round((lo + hi - MIN_WINDOW) / 2), v.end - MIN_WINDOW));
      hi = Math.min(v.end, lo + MIN_WINDOW);
    }
    const url = new URL(wanted || location.href);
    for (const name of ["w", "from", "to", "fragment"]) url.searchParams.delete(name);
    if (lo > 0 || hi < v.end) { url.searchParams.set("from", lo); url.searchParams.set("to", hi); }
    wanted = url.href;
    if (!timer) timer = setTimeout(() => { timer = 0; draw(); }, 60);
  }

  async function draw() {
    if (fetching || !wanted) return;
    const url = wanted, line = find("#line");
    if (!line) { location.href = url; return; }
    fetching = true;
    const part = new URL(url);
    part.searchParams.set("fragment", "line");
    try {
      const answer = await fetch(part, { headers: { Accept: "text/html" } });
      if (!answer.ok) throw new Error(String(answer.status));
      const text = await answer.text();
      if (find("#line") === line) {
        line.innerHTML = text;
        if (window.htmx) window.htmx.process(line);
        history.replaceState(history.state, "", url);
        if (!drag) keepView(new URL(url).searchParams);
      }
    } catch (error) {
      unreachable();
    }
    fetching = false;
    if (wanted === url) wanted = null; else draw();
  }

  /* Links to other ticks keep the part of the timeline that is shown. */
  function keepView(params) {
    for (const link of document.querySelectorAll("#main a[href]")) {
      if (link.closest("#line") || !/^\/t\/[a-z2-7]+\/[0-9]+\/$/.test(link.pathname)) continue;
      const url = new URL(link.href);
      for (const name of ["w", "from", "to"]) {
        const value = params.get(name);
        if (value === null) url.searchParams.delete(name); else url.searchParams.set(name, value);
      }
      if (url.href === link.href) continue;
      const fresh = link.cloneNode(true);
      fresh.setAttribute("href", url.pathname + url.search);
      link.replaceWith(fresh);
      if (window.htmx) window.htmx.process(fresh);
    }
  }

  /* The tick that zooming keeps in view: the cursor if the pointer is on it, else the one that was
     there when the wheel began to turn, for the axis is drawn anew at each step. */
  let anchor = { x: -1, tick: 0, until: 0 };

  function anchorAt(svg, v, x) {
    const field = find("#tick"), now = performance.now();
    if (now < anchor.until && Math.abs(x - anchor.x) < 4) {
      anchor.until = now + 1500;
      return anchor.tick;
    }
    const tick = field && field.dataset.last ? Number(field.value) : -1;
    const shown = corners(svg.dataset.axis);
    const near = tick >= v.lo && tick <= v.hi && Math.abs(through(shown, 1, 0, tick) - x) < 8;
    anchor = { x, tick: near ? tick : v.tickAt(x), until: now + 1500 };
    return anchor.tick;
  }

  function zoomAt(svg, x, factor) {
    const v = view(svg), at = v.x(Math.min(Math.max(anchorAt(svg, v, x), v.lo), v.hi));
    const lo = at - (at - v.x(v.lo)) * factor, hi = at + (v.x(v.hi) - at) * factor;
    const a = v.tick(Math.max(lo, v.left)), b = v.tick(Math.min(hi, v.right));
    if (factor < 1 && v.hi - v.lo <= MIN_WINDOW) return;
    if (factor > 1 && Math.ceil(b) - Math.floor(a) <= v.hi - v.lo + 1) show(v, v.lo - 2, v.hi + 2);
    else show(v, a, b);
  }

  function panTicks(share) {
    const svg = shownSvg();
    if (!svg) return;
    const v = view(svg), wide = v.hi - v.lo;
    const lo = Math.min(Math.max(v.lo + Math.round(wide * share), 0), v.end - wide);
    if (lo !== v.lo) show(v, lo, lo + wide);
  }

  function zoomKey(factor) {
    const svg = shownSvg();
    if (!svg) return;
    const v = view(svg), field = find("#tick");
    const tick = field && field.dataset.last ? Number(field.value) : (v.lo + v.hi) / 2;
    const shown = corners(svg.dataset.axis);
    const inside = tick >= v.lo && tick <= v.hi;
    zoomAt(svg, inside ? through(shown, 1, 0, tick) : (v.left + v.right) / 2, factor);
  }

  function whole() {
    const svg = shownSvg();
    if (svg) { const v = view(svg); show(v, 0, v.end); }
  }

  document.addEventListener("wheel", (event) => {
    const svg = event.target.closest("svg[data-axis]");
    if (!svg || event.ctrlKey) return;
    event.preventDefault();
    const x = svgX(svg, event.clientX);
    const along = Math.abs(event.deltaX) > Math.abs(event.deltaY) || event.shiftKey;
    if (along) panTicks(Math.sign(event.deltaX || event.deltaY) * 0.15);
    else zoomAt(svg, x, event.deltaY < 0 ? 0.6 : 1 / 0.6);
  }, { passive: false });

  /* Dragging pans, two fingers zoom and pan. What was under a finger when it came down stays under
     it: each move is reckoned from the drawing of that moment, while the server draws anew. */
  const fingers = new Map();
  let drag = null;
  let moved = false;

  const places = () => [...fingers.values()].map(drag.x);
  const middle = (xs) => xs.reduce((sum, x) => sum + x, 0) / xs.length;

  document.addEventListener("pointerdown", (event) => {
    moved = false;
    const svg = event.target.closest("svg[data-axis]");
    if (!svg || event.button > 0) return;
    if (event.isPrimary) fingers.clear();
    fingers.set(event.pointerId, event.clientX);
    const box = svg.getBoundingClientRect(), wide = svg.viewBox.baseVal.width;
    drag = { v: view(svg), x: (clientX) => (clientX - box.left) * wide / box.width };
    drag.from = places();
  });

  document.addEventListener("pointermove", (event) => {
    if (!drag || !fingers.has(event.pointerId)) return;
    fingers.set(event.pointerId, event.clientX);
    const to = places();
    if (!moved && to.length < 2 && Math.abs(to[0] - drag.from[0]) <= 6) return;
    moved = true;
    if (find("#line")) find("#line").classList.add("dragged");
    follow(drag.v, drag.from, to);
  });

  function follow(v, from, to) {
    const before = Math.abs(from[0] - from[1]), now = Math.abs(to[0] - to[1]);
    const pinched = to.length === 2 && before > 8;
    const drawn = v.x(v.hi) - v.x(v.lo);
    const wide = drawn * (pinched ? before / Math.max(now, 8) : 1);
    const held = v.x(v.tickAt(middle(from)));
    const share = (held - v.x(v.lo)) / drawn + (middle(to) - middle(from)) / (v.right - v.left);
    let lo = held - wide * share;
    lo = Math.min(Math.max(lo, v.left), Math.max(v.right - wide, v.left));
    const first = v.tick(lo), last = v.tick(Math.min(lo + wide, v.right));
    if (pinched) show(v, first, last);
    else show(v, Math.round(first), Math.round(first) + Math.max(Math.round(last - first), 1));
  }

  function release(event) {
    if (!drag || !fingers.has(event.pointerId)) return;
    drag = null;
    fingers.clear();
    if (moved) keepView(new URL(location.href).searchParams);
    if (find("#line")) find("#line").classList.remove("dragged");
  }
  document.addEventListener("pointerup", release);
  document.addEventListener("pointercancel", release);
  document.addEventListener("dragstart", (event) => {
    if (event.target.closest && event.target.closest("svg[data-axis]")) event.preventDefault();
  });

  function onClick(event) {
    const button = event.target.closest("[data-copy], [data-copy-text]");
    if (button) {
      const source = button.dataset.copyText;
      copy(source ? find(source).textContent : location.href, find("#said"));
      return;
    }
    const svg = event.target.closest("svg[data-axis]");
    if (!svg) return;
    if (moved && event.detail) {
      moved = false;
      event.preventDefault();
      event.stopPropagation();
      return;
    }
    if (event.target.closest(".cell") || event.ctrlKey || event.metaKey || event.shiftKey) return;
    if (event.detail === 0) return; /* Enter on a segment follows its link */
    const v = view(svg), x = svgX(svg, event.clientX);
    if (!v.inside(x)) return;
    event.preventDefault();
    event.stopPropagation();
    let tick = v.tickAt(x);
    const box = svg.getBoundingClientRect();
    if ((event.clientY - box.top) * svg.viewBox.baseVal.height / box.height < MAP_HEIGHT) {
      if (svg.dataset.whole) { lookAt(v, x); return; }
      tick = v.end * (x - v.left) / (v.right - v.left); /* the bar on top is in true scale */
    }
    visit(`${svg.dataset.href}${Math.round(tick)}/${location.search}`);
  }

  /* A click on the map of the whole run: as much as is shown, but there. */
  function lookAt(v, x) {
    const wide = v.x(v.hi) - v.x(v.lo);
    const lo = Math.min(Math.max(x - wide / 2, v.left), Math.max(v.right - wide, v.left));
    show(v, v.tick(lo), v.tick(Math.min(lo + wide, v.right)));
  }

  /* --- keys ------------------------------------------------------------------------------------ */

  function copy(text, said) {
    const done = () => { if (said) said.textContent = "copied"; };
    if (navigator.clipboard) navigator.clipboard.writeText(text).then(done, () => {});
  }

  function focusOn(selector) {
    const field = find(selector);
    if (field) { field.focus(); if (field.select) field.select(); }
    return Boolean(field);
  }

  /* Arrows walk the grid of low memory; only one of its links is a tab stop. */
  function walkGrid(event) {
    const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -16, ArrowDown: 16 }[event.key];
    const links = [...document.querySelectorAll("#low tbody td a")];
    const next = by ? links[links.indexOf(event.target) + by] : undefined;
    if (!by) return false;
    if (next) {
      event.target.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    }
    return true;
  }

  const ACTS = {
    h: () => step(-1),
    l: () => step(1),
    g: () => focusOn("#tick"),
    "/": () => focusOn("#find"),
    c: () => focusOn("#other"),
    b: () => focusOn('#low a[tabindex="0"]'),
    f: () => { const link = find('#flags a[href*="at="]'); if (link) link.click(); },
    y: () => copy(location.href, find("#said")),
    T: () => { const text = find("#quote"); if (text) copy(text.textContent, find("#said")); },
    "+": () => zoomKey(0.5),
    "=": () => zoomKey(0.5),
    "-": () => zoomKey(2),
    "0": whole,
    ArrowLeft: () => panTicks(-0.25),
    ArrowRight: () => panTicks(0.25),
    o: () => {
      const open = find('a[data-zoom="w-1"]'), all = find('a[data-zoom="w0"]');
      if (open) open.click(); else if (all) all.click();
    },
  };

  function onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    const target = event.target;
    if (target.matches("input, textarea, select") && target.type !== "checkbox") {
      if (event.key === "Escape") target.blur();
      return;
    }
    const help = find("#help");
    if (event.key === "?") { if (help.open) help.close(); else help.showModal(); return; }
    if (help.open || localStorage.getItem(SILENT)) return;
    if (target.closest("#low") && walkGrid(event)) { event.preventDefault(); return; }
    if (/^[1-9]$/.test(event.key)) {
      const block = find(`#cpu${event.key - 1}`);
      if (block) { block.open = !block.open; block.scrollIntoView({ block: "nearest" }); }
    } else if (event.key.startsWith("Arrow") && target.closest("pre, .scroll")) {
      return; /* scrolls what has the focus */
    } else if (event.key in ACTS && !(event.key.length > 1 && !shownSvg())) {
      event.preventDefault();
      ACTS[event.key]();
    } else if (press(event.key)) event.preventDefault();
  }

  /* --- what a swap must not lose ----------------------------------------------------------------- */

  const open = new Map();

  function unreachable() {
    const said = find("#say");
    if (said) said.textContent = "bootflow cannot be reached; what is shown is what was last seen";
    const main = find("#main");
    if (!main || find("#unreachable")) return;
    const note = document.createElement("p");
    note.id = "unreachable";
    note.className = "problem";
    note.setAttribute("role", "alert");
    note.textContent = "bootflow cannot be reached. What is shown is what was last seen.";
    main.prepend(note);
  }

  document.addEventListener("htmx:beforeRequest", (event) => {
    if ((event.detail.target || {}).id === "main") busy = true;
  });
  document.addEventListener("htmx:beforeSwap", (event) => {
    if ((event.detail.target || {}).id !== "main") return;
    open.clear();
    for (const block of document.querySelectorAll("#main details[id]")) open.set(block.id, block.open);
    wanted = null;
  });
  document.addEventListener("htmx:afterSettle", (event) => {
    if ((event.detail.target || {}).id !== "main") return;
    busy = false;
    const was = [...open.values()].filter(Boolean).length;
    for (const [id, state] of open) {
      const block = document.getElementById(id);
      if (block && was > 2) block.open = state || block.open;
    }
    const told = find("#main [data-say]");
    if (told && find("#say")) find("#say").textContent = told.dataset.say;
    const field = find("#tick");
    if (goal !== null && field && goal !== Number(field.value)) { pursue(); return; }
    goal = null;
    if (waiting) { const key = waiting; waiting = ""; press(key); }
  });
  const rest = () => { busy = false; goal = null; waiting = ""; };
  document.addEventListener("htmx:sendAbort", rest);
  for (const name of ["htmx:sendError", "htmx:timeout"]) {
    document.addEventListener(name, () => { rest(); unreachable(); });
  }

  document.addEventListener("keydown", onKey);
  document.addEventListener("click", onClick, true);
  const on = find("#keys-on");
  on.checked = !localStorage.getItem(SILENT);
  on.addEventListener("change", () => {
    if (on.checked) localStorage.removeItem(SILENT); else localStorage.setItem(SILENT, "1");
  });
})();
