"use strict";
// Sorting, filtering and enlarging. The page is complete without this script.
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const say = (text) => { document.getElementById("status").textContent = text; };

  const value = (cell) => {
    const text = cell.dataset.sort ?? cell.textContent.trim();
    const number = Number.parseFloat(text);
    return text !== "" && Number.isFinite(number) ? number : text.toLowerCase();
  };
  const compare = (a, b) => {
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
    return typeof a === "number" ? a - b : a.localeCompare(b);
  };
  for (const table of all("table.sortable")) {
    const heads = all("thead th", table);
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        const body = table.tBodies[0];
        const rows = [...body.rows].map((row) => [value(row.cells[Math.min(column, row.cells.length - 1)]), row]);
        rows.sort((a, b) => (down ? -1 : 1) * compare(a[0], b[0]));
        body.append(...rows.map(([, row]) => row));
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        say(`sorted by ${button.textContent}, ${down ? "descending" : "ascending"}`);
      });
    });
  }

  for (const form of all("form.filter")) {
    const list = document.getElementById(form.dataset.for);
    const entries = list.tagName === "TABLE" ? [...list.tBodies[0].rows] : [...list.children];
    const [text, verdict, order] = ["input", "select:not(.order)", "select.order"].map((name) => form.querySelector(name));
    const output = form.querySelector("output");
    const filter = () => {
      const wanted = text.value.trim().toLowerCase();
      let shown = 0;
      for (const entry of entries) {
        const fits = entry.textContent.toLowerCase().includes(wanted)
          && (!verdict || verdict.value === "" || entry.dataset.verdict === verdict.value);
        entry.hidden = !fits;
        shown += fits;
      }
      output.textContent = `${shown} of ${entries.length}`;
    };
    const sort = () => {
      const key = order.value;
      list.append(...entries.slice().sort((a, b) => a.dataset[key] - b.dataset[key]));
      say(`sorted by ${order.selectedOptions[0].textContent}`);
    };
    text.addEventListener("input", filter);
    if (verdict) verdict.addEventListener("change", filter);
    if (order) order.addEventListener("change", sort);
    form.addEventListener("submit", (event) => event.preventDefault());
    form.hidden = false;
    filter();
  }

  const dialog = document.getElementById("enlarged");
  const [stage, caption] = [dialog.querySelector("div"), dialog.querySelector("p")];
  const enlarge = (shown, words) => {
    const copy = shown.cloneNode(true);
    copy.removeAttribute("loading");
    stage.replaceChildren(copy);
    caption.textContent = words;
    dialog.showModal();
  };
  for (const shown of all("img.picture, svg.chart")) {
    const words = shown.alt ?? shown.getAttribute("aria-label");
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-label", `Enlarge: ${words}`);
    if (shown.alt === undefined) { // a chart has words of its own, which are no name of a button
      button.className = "corner";
      button.textContent = "Enlarge";
      shown.after(button);
    } else {
      button.className = "enlarge";
      shown.replaceWith(button);
      button.append(shown);
    }
    button.addEventListener("click", () => enlarge(shown, words));
  }
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });

  if (navigator.clipboard) {
    for (const block of all("pre.copy")) {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "copybutton";
      button.textContent = "Copy";
      button.addEventListener("click", async () => {
        await navigator.clipboard.writeText(block.textContent);
        button.textContent = "Copied";
        say("copied");
      });
      block.before(button);
    }
  }

  const open = (link) => {
    const target = link && document.getElementById(link.slice(1));
    const folded = target && (target.querySelector(":scope > details") ?? target.closest("details"));
    if (folded) folded.open = true;
  };
  open(location.hash);
  window.addEventListener("hashchange", () => open(location.hash));
  let folded = [];
  window.addEventListener("beforeprint", () => {
    folded = all("details:not([open])");
    folded.forEach((entry) => { entry.open = true; });
  });
  window.addEventListener("afterprint", () => folded.forEach((entry) => { entry.open = false; }));
})();
