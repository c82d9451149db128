/* Keys, copying a link, and a click anywhere on the timeline. Nothing here is needed to use a page:
   every key presses a link or a field that is on it. */
"use strict";
(function () {
  const SILENT = "bootflow-keys-off";
  const find = (selector) => document.querySelector(selector);

  function press(key) {
    const link = find(`[data-key="${CSS.escape(key)}"]`);
    if (link) link.click();
    return Boolean(link);
  }

  /* The zooms stand in the page from wide to narrow; 0 is the whole run. */
  function zoom(step) {
    const all = [...document.querySelectorAll("[data-zoom]")].filter((z) => z.dataset.zoom !== "-1");
    const now = Math.max(all.findIndex((z) => z.tagName === "B"), 0);
    const next = all[now + step];
    if (next && next.tagName === "A") next.click();
  }

  function copy(text, said) {
    const done = () => { if (said) said.textContent = "copied"; };
    if (navigator.clipboard) navigator.clipboard.writeText(text).then(done, () => {});
  }

  function onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const target = event.target;
    if (target.matches("input, textarea, select") && target.type !== "checkbox") {
      if (event.key === "Escape") target.blur();
      return;
    }
    const help = find("#help");
    if (event.key === "?") { help.open ? help.close() : help.showModal(); return; }
    if (help.open || localStorage.getItem(SILENT)) return;
    if (/^[1-9]$/.test(event.key)) {
      const block = find(`#cpu${event.key - 1}`);
      if (block) { block.open = !block.open; block.scrollIntoView({ block: "nearest" }); }
    } else if (event.key === "g") {
      const field = find("#tick");
      if (field) { event.preventDefault(); field.focus(); field.select(); }
    } else if (event.key === "y") copy(location.href, find("#said"));
    else if (event.key === "+") zoom(1);
    else if (event.key === "-") zoom(-1);
    else if (event.key === "0") { const whole = find('a[data-zoom="0"]'); if (whole) whole.click(); }
    else press(event.key);
  }

  /* data-axis is "x:tick x:tick ...", the corners of the piecewise linear axis of app/drawing.py. */
  function tickAt(svg, event) {
    const box = svg.getBoundingClientRect();
    const x = (event.clientX - box.left) * svg.viewBox.baseVal.width / box.width;
    const corners = svg.dataset.axis.trim().split(" ").map((c) => c.split(":").map(Number));
    for (let i = 1; i < corners.length; i++) {
      const [x0, t0] = corners[i - 1], [x1, t1] = corners[i];
      if (x >= x0 && x <= x1) return Math.round(t0 + (t1 - t0) * (x - x0) / (x1 - x0));
    }
    return null;
  }

  function onClick(event) {
    const button = event.target.closest("[data-copy]");
    if (button) { copy(button.dataset.copy, find("#said")); return; }
    const svg = event.target.closest("svg[data-axis]");
    if (!svg || event.target.closest(".cell") || event.ctrlKey || event.metaKey || event.shiftKey) return;
    if (event.detail === 0) return; /* Enter on a segment follows its link */
    const tick = tickAt(svg, event);
    if (tick === null) return;
    event.preventDefault();
    const field = find("#tick");
    if (field) { field.value = tick; field.form.requestSubmit(); }
    else location.href = `${svg.dataset.href}${tick}/`;
  }

  document.addEventListener("keydown", onKey);
  document.addEventListener("click", onClick);
  const on = find("#keys-on");
  on.checked = !localStorage.getItem(SILENT);
  on.addEventListener("change", () => {
    if (on.checked) localStorage.removeItem(SILENT); else localStorage.setItem(SILENT, "1");
  });
})();
