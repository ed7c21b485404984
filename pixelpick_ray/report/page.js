// Conveniences for a page that is complete without scripts. Makes no network requests.
"use strict";

(() => {
  const root = document.documentElement;

  function element(name, attributes = {}, text = "") {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.textContent = text;
    return made;
  }

  // Theme

  const THEME = "pixelpick-ray-theme";

  // Browsers may refuse storage to a page opened from a file.
  function remembered() {
    try {
      return localStorage.getItem(THEME);
    } catch {
      return null;
    }
  }

  function remember(theme) {
    try {
      localStorage.setItem(THEME, theme);
    } catch {
      return;
    }
  }

  function show(theme) {
    if (theme === "light" || theme === "dark") root.dataset.theme = theme;
    else delete root.dataset.theme;
  }

  function offerThemes() {
    const choice = document.querySelector("fieldset.theme");
    const current = choice.querySelector(`input[value="${root.dataset.theme ?? "auto"}"]`);
    current.checked = true;
    choice.hidden = false;
    choice.addEventListener("change", (event) => {
      show(event.target.value);
      remember(event.target.value);
    });
  }

  // Curves

  function offerCurves(part) {
    const curves = [...part.querySelectorAll(".curve")];
    const inputs = [...part.querySelectorAll(".choices input")];
    // The class of a fieldset names the property it chooses: axis or scale.
    const fits = (curve, input) => curve.dataset[input.closest("fieldset").className] === input.value;

    function draw(changed) {
      const checked = inputs.filter((input) => input.checked);
      const best =
        curves.find((curve) => checked.every((input) => fits(curve, input))) ??
        curves.find((curve) => fits(curve, changed));
      for (const curve of curves) curve.hidden = curve !== best;
      for (const input of inputs) input.checked = fits(best, input);
    }

    for (const choice of part.querySelectorAll(".choices fieldset")) {
      choice.hidden = false;
      choice.addEventListener("change", (event) => draw(event.target));
    }
    draw();
  }

  // Tables

  const MISSING = /^(|-|–|—|n\/a|missing\b.*)$/i;
  const NUMBER = /^[+\-−]?(\d{1,3}(,\d{3})+(?!\d)|\d+)?(\.\d+)?(e[+-]?\d+)?/i;
  const collator = new Intl.Collator("en", { numeric: true });

  // "50.8 ± 0.2" is 50.8 and "3/5" is 3; "all" pixels are more than any number of them.
  function number(text) {
    if (text === "all") return Infinity;
    const [found] = NUMBER.exec(text);
    return /\d/.test(found) ? Number(found.replaceAll(",", "").replace("−", "-")) : NaN;
  }

  // Sort keys of a column, one per row; null for missing values.
  function keys(rows, column) {
    const texts = rows.map((row) => row.cells[column].textContent.trim());
    const known = texts.filter((text) => !MISSING.test(text));
    const numbers = known.length > 0 && known.every((text) => !Number.isNaN(number(text)));
    return texts.map((text) => (MISSING.test(text) ? null : numbers ? number(text) : text));
  }

  function compare(left, right) {
    if (typeof left === "string") return collator.compare(left, right);
    return left < right ? -1 : left > right ? 1 : 0;
  }

  function sorted(rows, column, direction) {
    const values = keys(rows, column);
    const order = rows.map((row, index) => index);
    order.sort((a, b) => {
      const [left, right] = [values[a], values[b]];
      if (left === null || right === null) return (left === null) - (right === null);
      return direction === "descending" ? compare(right, left) : compare(left, right);
    });
    return order.map((index) => rows[index]);
  }

  function makeSortable(table) {
    const body = table.tBodies[0];
    const original = [...body.rows];
    const heads = [...table.tHead.rows[0].cells];
    if (original.length < 2) return;

    function turn(head) {
      const next = { null: "ascending", ascending: "descending" }[head.getAttribute("aria-sort")];
      for (const one of heads) one.removeAttribute("aria-sort");
      if (next) head.setAttribute("aria-sort", next);
      body.append(...(next ? sorted(original, heads.indexOf(head), next) : original));
    }

    for (const head of heads) {
      const button = element("button", { type: "button", class: "sort" }, head.textContent);
      button.addEventListener("click", () => turn(head));
      head.replaceChildren(button);
    }
  }

  function csv(table) {
    const quote = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
    const line = (row) => [...row.cells].map((cell) => quote(cell.textContent.trim())).join(",");
    return [...table.rows].map(line).join("\r\n") + "\r\n";
  }

  function download(text, name) {
    const address = URL.createObjectURL(new Blob([text], { type: "text/csv;charset=utf-8" }));
    element("a", { href: address, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10000); // a browser reads it only after the click
  }

  function tool(name, action) {
    const button = element("button", { type: "button" }, name);
    button.addEventListener("click", action);
    return button;
  }

  function addTools(table, name) {
    const tools = element("div", { class: "tools" });
    const status = element("span", { role: "status" });
    const say = (text) => {
      status.textContent = text;
      setTimeout(() => status.replaceChildren(), 4000);
    };
    tools.append(
      ...moreRows(table),
      tool("Copy as CSV", () =>
        Promise.resolve(navigator.clipboard?.writeText(csv(table)) ?? Promise.reject()).then(
          () => say("Copied."),
          () => say("This browser does not allow copying; download the file instead."),
        ),
      ),
      tool("Download CSV", () => download(csv(table), name)),
      status,
    );
    table.closest(".wide").after(tools);
  }

  function moreRows(table) {
    const count = table.tBodies[0].rows.length;
    if (count <= 30) return [];
    const texts = { true: "Show the first 20 rows", false: `Show all ${count} rows` };
    const button = tool(texts.false, () => {
      const open = !table.classList.toggle("short");
      button.setAttribute("aria-expanded", String(open));
      button.textContent = texts[open];
    });
    button.className = "more";
    button.setAttribute("aria-expanded", "false");
    table.classList.add("short");
    return [button];
  }

  // When a table scrolls, the first column that distinguishes its rows stays visible.
  function keepKey(table) {
    const rows = [...table.rows];
    const texts = (column) => new Set(rows.slice(1).map((row) => row.cells[column].textContent));
    const column = [...rows[0].cells].findIndex((_, index) => texts(index).size > 1);
    for (const row of rows) row.cells[Math.max(column, 0)].classList.add("key");
  }

  // A box that scrolls must be focusable; one that does not would be a useless tab stop.
  function watchBoxes(boxes) {
    const watch = new ResizeObserver((entries) => {
      for (const { target } of entries) {
        if (target.scrollWidth > target.clientWidth) target.tabIndex = 0;
        else target.removeAttribute("tabindex");
      }
    });
    for (const box of boxes) {
      watch.observe(box);
      box.addEventListener("scroll", () => box.classList.toggle("moved", box.scrollLeft > 0), { passive: true });
    }
  }

  // Pictures

  // The slider hides the picks of later stages in every picture of its sheet.
  function offerStages(control) {
    const picks = control.closest(".sheet").querySelectorAll(".picks");
    control.hidden = false;
    control.addEventListener("input", ({ target }) => {
      control.querySelector("output").value = target.value;
      for (const one of picks) one.toggleAttribute("hidden", Number(one.dataset.stage) > Number(target.value));
    });
  }

  function offerZoom(pictures) {
    if (pictures.length === 0) return;
    const viewer = element("dialog", { class: "viewer", "aria-label": "Picture" });
    const close = tool("Close", () => viewer.close());
    const stage = tool("", () => viewer.classList.toggle("large"));
    close.className = "close";
    stage.className = "zoom";
    stage.setAttribute("aria-label", "Zoom in or out");
    viewer.append(close, stage);
    document.body.append(viewer);
    for (const picture of pictures) {
      const button = tool("", () => {
        stage.replaceChildren(picture.cloneNode(true));
        viewer.classList.remove("large");
        viewer.showModal();
      });
      button.className = "zoom";
      button.title = "Enlarge";
      picture.replaceWith(button);
      button.append(picture);
    }
  }

  // Contents

  function followReader(nav) {
    const links = new Map([...nav.querySelectorAll("a")].map((link) => [link.hash.slice(1), link]));
    const bar = nav.querySelector("ol");

    function mark(link) {
      if (!link || link.hasAttribute("aria-current")) return;
      for (const other of links.values()) other.removeAttribute("aria-current");
      link.setAttribute("aria-current", "location");
      bar.scrollTo({ left: link.offsetLeft - (bar.clientWidth - link.offsetWidth) / 2 });
    }

    const watch = new IntersectionObserver(
      (entries) => entries.filter((one) => one.isIntersecting).forEach((one) => mark(links.get(one.target.id))),
      { rootMargin: "-20% 0px -75% 0px" },
    );
    for (const id of links.keys()) watch.observe(document.getElementById(id));
  }

  // Print everything that a reader could open.
  function openForPrint() {
    const closed = [];
    addEventListener("beforeprint", () => {
      closed.push(...document.querySelectorAll("details:not([open])"));
      for (const one of closed) one.open = true;
    });
    addEventListener("afterprint", () => {
      for (const one of closed.splice(0)) one.open = false;
    });
  }

  show(remembered());
  addEventListener("DOMContentLoaded", () => {
    offerThemes();
    document.querySelectorAll(".curves").forEach(offerCurves);
    document.querySelectorAll("section table:not(.pictures)").forEach((table, index) => {
      addTools(table, `${table.closest("section").id}-${index + 1}.csv`);
      makeSortable(table);
      keepKey(table);
    });
    watchBoxes(document.querySelectorAll(".wide"));
    document.querySelectorAll(".stages").forEach(offerStages);
    offerZoom(document.querySelectorAll(".sheet :is(img, svg):not(svg svg, [hidden], [aria-hidden])"));
    followReader(document.querySelector(".contents"));
    openForPrint();
  });
})();
