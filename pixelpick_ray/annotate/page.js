// One key answers and moves on. An answer is kept until the server has acknowledged it, and sent again if need be.

(() => {
  const at = (id) => document.getElementById(id);
  const RADII = [6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384];
  const FEW = 10; // questions: more are fetched before they are used up
  const PATIENCE = 500; // ms that keys wait for the last answer; typed later they would mean what nobody has seen
  const NAME = "pixelpick-ray-annotator";
  const UNSENT = "pixelpick-ray-unsent";
  const THEME = "pixelpick-ray-theme";
  const RADIUS = "pixelpick-ray-radius";

  const page = {
    annotator: "",
    classes: new Map(), // by name
    keys: new Map(), // names of classes by key
    idleSeconds: 30,
    queue: [], // what is asked next, the first of it now
    history: [], // own answers {id, kind, label, item}, the last one last
    back: 0, // how many answers ago is shown; 0 is what is asked now
    state: "loading",
    progress: { answered: 0, total: 0, mine: 0 },
    seconds: [], // of the answers given here
    radius: RADII.indexOf(32),
    showsPoints: false,
    isPaused: false,
  };

  // For tests: what this page has seen.
  const annotation = { timings: [], acknowledged: [], undone: [], item: null, state: "loading", shown: 0 };
  window.annotation = annotation;

  // Small things that a browser remembers, if it remembers anything.

  function recall(storage, key) {
    try {
      return window[storage].getItem(key);
    } catch {
      return null;
    }
  }

  function remember(storage, key, value) {
    try {
      window[storage].setItem(key, value);
    } catch {
      return;
    }
  }

  function element(name, attributes = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

  function identity() {
    const bytes = crypto.getRandomValues(new Uint8Array(16));
    return [...bytes].map((one) => one.toString(16).padStart(2, "0")).join("");
  }

  // Requests

  class Refused extends Error {}

  function banner(text) {
    at("banner").textContent = text;
    at("banner").hidden = text === "";
  }

  const GONE = new Set([403, 404, 421]);
  const MOVED = "The server does not know this page any more: open the address that it has printed. ";
  const LOST = "No connection to the server. ";
  const KEPT = "What you answered is kept and sent again.";

  async function tried(path, body) {
    const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
    const response = await fetch(path, { ...options, signal: AbortSignal.timeout(15000) });
    return { status: response.status, found: await response.json() };
  }

  // Ask until there is an answer; Refused when it is no.
  async function deliver(path, body) {
    for (let pause = 300; ; pause = Math.min(pause * 1.5, 3000)) {
      const { status, found } = await tried(path, body).catch(() => ({ status: 0, found: {} }));
      if (status === 200) {
        banner("");
        return found;
      }
      if (status >= 400 && status < 500 && !GONE.has(status)) {
        banner("");
        throw new Refused(found.error);
      }
      banner((status === 0 ? LOST : GONE.has(status) ? MOVED : `${found.error} `) + KEPT);
      await sleep(pause);
    }
  }

  // Images: decoded ahead, the last ones kept.

  const images = new Map();

  async function load(number) {
    for (;;) {
      try {
        const response = await fetch(`image/${number}`);
        if (response.ok) return await createImageBitmap(await response.blob());
        banner((await response.json()).error);
      } catch {
        banner(LOST);
      }
      await sleep(1000);
    }
  }

  function picture(number) {
    const found = images.get(number) ?? load(number);
    images.delete(number);
    images.set(number, found);
    for (const old of [...images.keys()].slice(0, -12)) images.delete(old);
    return found;
  }

  function lookAhead() {
    const numbers = [...new Set(page.queue.map((item) => item.image))];
    for (const number of numbers.slice(0, 3)) picture(number);
    if (page.queue.length < FEW) refill();
  }

  // Time: what passes without a sign of life beyond `idleSeconds`, or while the page is hidden, is idle.

  const clock = { item: null, spent: new Map(), last: 0, isAway: false };

  function tick(now = performance.now()) {
    const gap = Math.max(0, now - clock.last) / 1000;
    clock.last = Math.max(now, clock.last);
    const spent = clock.spent.get(clock.item);
    if (!spent) return;
    const active = clock.isAway ? 0 : Math.min(gap, page.idleSeconds);
    spent.active += active;
    spent.idle += gap - active;
  }

  // Time runs for this question now; it goes on where it was.
  function startClock(item) {
    tick();
    clock.item = item.id;
    if (!clock.spent.has(item.id)) clock.spent.set(item.id, { active: 0, idle: 0 });
  }

  function stopClock() {
    tick();
    const { active, idle } = clock.spent.get(clock.item) ?? { active: 0, idle: 0 };
    clock.spent.delete(clock.item);
    clock.item = null;
    return { seconds: Math.min(active, 86400), idle_seconds: Math.min(idle, 86400) };
  }

  function setAway() {
    tick();
    clock.isAway = document.hidden || page.isPaused;
  }

  // What is shown

  // The answer that is looked back at, or what is asked now; null when there is nothing.
  function shown() {
    if (page.back > 0) return page.history.at(-page.back);
    return page.queue.length > 0 ? { item: page.queue[0] } : null;
  }

  const told = ({ kind, label }) => {
    if (kind === "class") return page.classes.get(label) ?? { name: label, key: "", colour: "#888888" };
    if (kind === "unknown") return { name: "cannot tell", key: "0", colour: "#888888" };
    if (kind === "void") return { name: "none of these", key: ".", colour: "#888888" };
    return { name: "", key: "", colour: "#888888" };
  };

  async function show() {
    const entry = shown();
    annotation.item = entry?.item ?? null;
    showFrame(entry);
    setTimeout(lookAhead); // what is shown now comes first
    if (entry === null) return;
    const image = await picture(entry.item.image);
    const points = page.showsPoints ? await pointsOf(entry.item.image) : [];
    if (shown()?.item !== entry.item) return;
    paint(entry.item, image, points);
    startClock(entry.item);
    annotation.shown += 1;
  }

  async function pointsOf(number) {
    const response = await fetch(`points/${number}`).catch(() => null);
    return response?.ok ? (await response.json()).points : [];
  }

  const painted = { item: null, image: null, points: [] };

  function paint(item, image, points) {
    Object.assign(painted, { item, image, points });
    const [near, far, radius] = [at("close"), at("wide"), RADII[page.radius]];
    if (page.showsPoints) draw.points(near, image, item, points.filter((one) => !isHere(one, item)), told);
    else draw.close(near, image, item, radius);
    draw.wide(far, image, item, radius, { width: near.clientWidth, height: near.clientHeight });
  }

  const isHere = (point, item) => point.x === item.x && point.y === item.y;

  function repaint() {
    if (painted.image && shown()) paint(painted.item, painted.image, painted.points);
  }

  function showFrame(entry) {
    const isBack = page.back > 0;
    showProgress();
    showCover(entry);
    for (const button of document.querySelectorAll("#classes button")) {
      button.classList.toggle("chosen", isBack && entry.label === button.dataset.name);
      button.classList.toggle("suggested", !isBack && entry?.item.suggestion === button.dataset.name);
    }
    for (const [command, is] of Object.entries({ unknown: "unknown", void: "void" })) {
      setPressed(command, isBack && entry.kind === is);
    }
    setPressed("points", page.showsPoints);
    for (const command of ["unknown", "void", "skip"]) setEnabled(command, entry !== null);
    setEnabled("undo", page.history.length > 0);
    setEnabled("back", page.back < page.history.length);
    setEnabled("forward", isBack);
    if (entry !== null) ask(entry, isBack);
  }

  function ask(entry, isBack) {
    const { item } = entry;
    const left = page.queue.filter((one) => one.image === item.image).length;
    const where = isBack ? `${item.name} · a key replaces it, → goes forward` : `${item.name} · ${left} left here`;
    const question = isBack
      ? `You said: ${told(entry).name}`
      : item.suggestion
        ? `Is this ${item.suggestion}?`
        : "Which class is this pixel?";
    at("question").textContent = question;
    at("where").textContent = where;
    at("confirm").hidden = isBack || !item.suggestion;
    at("confirm").replaceChildren(element("kbd", {}, "Enter"), ` Yes, ${item.suggestion}`);
  }

  const button = (command) => document.querySelector(`.commands [data-command="${command}"]`);

  function setPressed(command, isPressed) {
    button(command).setAttribute("aria-pressed", String(isPressed));
  }

  function setEnabled(command, isEnabled) {
    button(command).disabled = !isEnabled;
  }

  const COVERS = {
    paused: ["Paused", "The clock stands. Any key goes on."],
    waiting: ["The network trains", "Nothing is asked now. This page goes on by itself when new questions come."],
    elsewhere: ["Others work on the rest", "No image is free now. This page goes on by itself."],
    done: ["All done", "Every question of this experiment has been answered and trained on. You may close the page."],
  };

  function showCover(entry) {
    const name = page.isPaused ? "paused" : entry === null ? page.state : "";
    const [title, text] = COVERS[name] ?? ["", ""];
    const mayUndo = page.history.length > 0 && (name === "waiting" || name === "elsewhere");
    annotation.state = name || page.state;
    at("cover").hidden = title === "";
    at("cover").classList.toggle("works", name === "waiting");
    at("cover-title").textContent = title;
    at("cover-text").textContent = mayUndo ? `${text} Backspace takes back your last answer.` : text;
  }

  function showProgress() {
    const { answered, total, mine } = page.progress;
    at("bar").max = Math.max(1, total);
    at("bar").value = answered;
    at("counts").textContent = total > 0 ? `${answered} of ${total} · ${mine} by you` : `${mine} by you`;
    const recent = page.seconds.slice(-50);
    if (recent.length < 3) return;
    const mean = Math.max(0.01, recent.reduce((sum, one) => sum + one, 0) / recent.length);
    const median = recent.toSorted((a, b) => a - b)[recent.length >> 1];
    const left = total > answered ? ` · ${duration((total - answered) * mean)} left` : "";
    at("pace").textContent = `${Math.round(60 / mean)} a minute · median ${median.toFixed(1)} s${left}`;
  }

  function duration(seconds) {
    if (seconds < 90) return `${Math.ceil(seconds)} s`;
    return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
  }

  let noticeTimer = 0;

  function notice(text) {
    clearTimeout(noticeTimer);
    at("notice").textContent = text;
    noticeTimer = setTimeout(() => (at("notice").textContent = ""), 2500);
  }

  function say(answer) {
    const { name, key, colour } = told(answer);
    const swatch = element("i");
    swatch.style.background = colour;
    at("said").replaceChildren(element("kbd", {}, key), swatch, name);
    at("said").hidden = false;
  }

  // Questions

  let isFetching = false;
  let poll = 0;
  const answered = []; // questions, in the order in which they were answered here

  async function refill() {
    if (isFetching || !page.annotator) return;
    isFetching = true;
    const [who, before, first] = [page.annotator, answered.length, page.queue[0]?.id];
    try {
      const found = await deliver("next", { annotator: who, have: page.queue.map((item) => item.id) });
      if (who === page.annotator) takeIn(found, new Set(answered.slice(before)));
    } catch (problem) {
      notice(problem.message);
    }
    isFetching = false;
    if (page.queue[0]?.id !== first && busy === 0) show();
    clearTimeout(poll);
    if (page.queue.length === 0) poll = setTimeout(refill, 1000);
  }

  // Add what the server asks; what was answered meanwhile is not asked any more.
  function takeIn(found, meanwhile) {
    const dropped = new Set(found.dropped);
    if (busy === 0 && page.queue.length > 0 && dropped.has(page.queue[0].id)) {
      notice("This image is not yours any more.");
    }
    if (busy === 0) page.queue = page.queue.filter((item) => !dropped.has(item.id));
    const known = new Set(page.queue.map((item) => item.id));
    page.queue.push(...found.items.filter((item) => !known.has(item.id) && !meanwhile.has(item.id)));
    setProgress(found);
    page.state = found.state;
    if (page.queue.length === 0 || annotation.state !== found.state) showFrame(shown());
  }

  function setProgress({ answered: done, total, mine }) {
    page.progress = { answered: done, total, mine };
  }

  // Answers: one after the other. Keys that come while one is sent wait for their turn.

  let busy = 0; // when the one that is being sent was given; 0 is none
  const waiting = [];

  async function inTurn(action) {
    if (busy > 0) {
      if (performance.now() - busy < PATIENCE) waiting.push(action);
      else notice("Your last answer is still being sent; it is kept.");
      return;
    }
    busy = performance.now();
    try {
      await action();
    } catch (problem) {
      waiting.length = 0;
      if (!(problem instanceof Refused)) throw problem;
      notice(problem.message);
    } finally {
      busy = 0;
    }
    const next = waiting.shift();
    if (next) inTurn(next);
  }

  function unsent() {
    try {
      return JSON.parse(recall("sessionStorage", UNSENT) ?? "{}");
    } catch {
      return {};
    }
  }

  function keep(reply) {
    remember("sessionStorage", UNSENT, JSON.stringify({ ...unsent(), [reply.id]: reply }));
  }

  function letGo(reply) {
    const { [reply.id]: _, ...others } = unsent();
    remember("sessionStorage", UNSENT, JSON.stringify(others));
  }

  async function send(reply) {
    try {
      setProgress(await deliver("answer", reply));
    } finally {
      letGo(reply);
    }
    annotation.acknowledged.push({ id: reply.id, question: reply.question, kind: reply.kind, label: reply.label });
  }

  async function answer(kind, label, pressed) {
    const entry = shown();
    if (entry === null) return;
    const reply = { id: identity(), annotator: page.annotator, question: entry.item.id, kind, label, ...stopClock() };
    keep(reply);
    say(reply);
    try {
      if (page.back > 0) await takeBack(entry);
      await send(reply);
    } catch (problem) {
      letGo(reply);
      page.queue = page.queue.filter((item) => item !== entry.item);
      page.back = 0;
      await show();
      throw problem;
    }
    place(entry, reply);
    await show();
    requestAnimationFrame(() => annotation.timings.push(performance.now() - pressed));
  }

  // An answer into the history: a new one at its end, another one for one that was looked back at in its place.
  function place(entry, { id, kind, label, seconds }) {
    const made = { id, kind, label, item: entry.item };
    page.queue = page.queue.filter((item) => item !== entry.item);
    if (page.back > 0) page.history.splice(page.history.length - --page.back, 0, made);
    else page.history.push(made);
    page.seconds.push(seconds);
    answered.push(entry.item.id);
  }

  // Have the server take an answer back; its question is asked again.
  async function takeBack(entry) {
    setProgress(await deliver("undo", { annotator: page.annotator, answer: entry.id }));
    annotation.undone.push(entry.id);
    page.history = page.history.filter((one) => one !== entry);
    page.queue.unshift(entry.item);
  }

  async function undo() {
    const entry = page.back > 0 ? shown() : page.history.at(-1);
    if (!entry) return notice("There is no answer to take back.");
    await takeBack(entry);
    page.back = 0;
    at("said").hidden = true;
    await show();
  }

  async function skip() {
    if (page.back > 0) return goTo(0);
    if (page.queue.length === 0) return;
    const [item] = page.queue;
    setProgress(await deliver("skip", { annotator: page.annotator, question: item.id }));
    page.queue.push(page.queue.shift());
    if (page.queue[0] === item) notice("Nothing else is left here.");
    at("said").hidden = true;
    await show();
  }

  function goTo(back) {
    if (back < 0 || back > page.history.length) return;
    page.back = back;
    at("said").hidden = true;
    return show();
  }

  // Commands: those of the first group wait for their turn, the others only change what is seen.

  const TURNS = {
    unknown: (pressed) => answer("unknown", null, pressed),
    void: (pressed) => answer("void", null, pressed),
    confirm: async (pressed) => {
      const suggestion = page.back > 0 ? undefined : shown()?.item.suggestion;
      if (suggestion) await answer("class", suggestion, pressed);
    },
    skip,
    undo,
    back: () => goTo(page.back + 1),
    forward: () => goTo(page.back - 1),
  };
  const VIEWS = {
    closer: () => zoom(-1),
    farther: () => zoom(1),
    points: () => {
      page.showsPoints = !page.showsPoints;
      return show();
    },
    help: () => at("help").showModal(),
    "close-help": () => at("help").close(),
    theme: nextTheme,
    pause: () => {
      if (page.showsPoints) return VIEWS.points();
      if (page.back > 0) return goTo(0);
      return setPaused(true);
    },
  };
  const REPEATABLE = new Set(["closer", "farther", "back", "forward"]);

  function zoom(step) {
    page.radius = Math.min(RADII.length - 1, Math.max(0, page.radius + step));
    remember("localStorage", RADIUS, String(RADII[page.radius]));
    repaint();
  }

  function setPaused(isPaused) {
    page.isPaused = isPaused;
    setAway();
    showFrame(shown());
    repaint();
  }

  function run(command, pressed) {
    if (page.isPaused) return setPaused(false);
    if (command in VIEWS) return VIEWS[command]();
    return inTurn(() => TURNS[command](pressed));
  }

  function choose(name, pressed) {
    if (page.isPaused) return setPaused(false);
    return inTurn(() => answer("class", name, pressed));
  }

  // Keys

  const COMMANDS = {
    0: "unknown", ".": "void", " ": "skip", "?": "help", "+": "closer", "-": "farther",
    Backspace: "undo", ArrowLeft: "back", ArrowRight: "forward", ArrowUp: "closer", ArrowDown: "farther",
    Enter: "confirm", Tab: "points", Escape: "pause", F1: "help", F2: "theme",
  };
  const CODES = { NumpadDecimal: ".", Period: "." };

  // The key as it would be on a keyboard with Latin letters.
  function meant(event) {
    const { key, code } = event;
    if (key.length > 1 && !["Dead", "Process", "Unidentified"].includes(key)) return key;
    const isPlain = /^[ -~]$/.test(key);
    const digit = /^(?:Digit|Numpad)(\d)$/.exec(code)?.[1];
    if (!isPlain) return /^Key([A-Z])$/.exec(code)?.[1].toLowerCase() ?? digit ?? CODES[code] ?? key;
    if (!/[A-Za-z]/.test(key)) return key in COMMANDS || page.keys.has(key) ? key : (CODES[code] ?? key);
    const [small, capital] = [key.toLowerCase(), key.toUpperCase()];
    return event.shiftKey && page.keys.has(capital) ? capital : small;
  }

  function onKey(event) {
    tick(event.timeStamp);
    if (event.ctrlKey || event.altKey || event.metaKey || event.isComposing) return;
    if (at("welcome").open) return;
    if (at("help").open) {
      if (["?", "F1"].includes(event.key)) event.preventDefault();
      if (["?", "F1"].includes(event.key)) at("help").close();
      return;
    }
    const key = meant(event);
    if (key === "Tab" && event.shiftKey) return;
    if ([" ", "Enter"].includes(key) && event.target instanceof HTMLButtonElement) return;
    const command = COMMANDS[key];
    const name = page.keys.get(key);
    if (!command && !name && [...key].length > 1) return; // Shift, and whatever else is no letter
    event.preventDefault();
    if (event.repeat && !REPEATABLE.has(command)) return;
    if (command) run(command, event.timeStamp);
    else if (name || page.isPaused) choose(name, event.timeStamp);
    else notice(`${key} is no key of a class; ? shows all keys.`);
  }

  function onClick(event) {
    const target = event.target.closest("button");
    if (page.isPaused && (target || event.target.closest("#cover"))) return setPaused(false);
    if (target?.dataset.name) choose(target.dataset.name, event.timeStamp);
    else if (target?.dataset.command) run(target.dataset.command, event.timeStamp);
    else if (target?.id === "person") welcome();
  }

  // Theme

  const THEMES = ["auto", "light", "dark"];

  function setTheme(theme) {
    if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
    else delete document.documentElement.dataset.theme;
    at("theme").textContent = theme[0].toUpperCase() + theme.slice(1);
  }

  function nextTheme() {
    const current = document.documentElement.dataset.theme ?? "auto";
    const next = THEMES[(THEMES.indexOf(current) + 1) % THEMES.length];
    setTheme(next);
    remember("localStorage", THEME, next);
  }

  // Beginning

  function welcome() {
    at("name").value = page.annotator;
    at("welcome").showModal();
    at("name").select();
  }

  function listClasses(classes) {
    page.classes = new Map(classes.map((one) => [one.name, one]));
    page.keys = new Map(classes.map((one) => [one.key, one.name]));
    const rows = classes.map(({ name, key, colour }) => {
      const swatch = element("i");
      swatch.style.background = colour;
      const attributes = { type: "button", "data-name": name, "aria-keyshortcuts": key, title: name };
      return element("button", attributes, element("kbd", {}, key), swatch, element("span", {}, name));
    });
    const columns = classes.length > 33 ? 4 : classes.length > 12 ? 3 : 2;
    at("classes").style.setProperty("--rows", Math.ceil(classes.length / columns));
    at("classes").classList.toggle("many", classes.length > 16);
    at("classes").replaceChildren(...rows);
  }

  async function begin(name) {
    for (const reply of Object.values(unsent())) await send(reply).catch(() => letGo(reply));
    const found = await deliver("begin", { annotator: name });
    Object.assign(page, { annotator: name, idleSeconds: found.idle_seconds, history: found.history });
    Object.assign(page, { queue: [], back: 0, state: "loading" });
    setProgress(found);
    remember("localStorage", NAME, name);
    listClasses(found.classes);
    at("title").textContent = found.title;
    at("person").textContent = name;
    document.title = `${found.title} · annotate`;
    at("help-confirm").hidden = !found.suggestions;
    await refill();
  }

  async function enter(name) {
    try {
      await begin(name);
    } catch (problem) {
      if (!(problem instanceof Refused)) throw problem;
      welcome();
      notice(problem.message);
    }
  }

  function onName(event) {
    event.preventDefault();
    const name = at("name").value.trim();
    if (name === "") return;
    at("welcome").close();
    enter(name);
  }

  document.addEventListener("keydown", onKey);
  document.addEventListener("click", onClick);
  document.addEventListener("visibilitychange", setAway);
  for (const sign of ["pointermove", "pointerdown", "wheel"]) {
    document.addEventListener(sign, () => tick(), { passive: true });
  }
  // A click must not leave the focus on a button, where Space would press it again.
  document.addEventListener("mousedown", (event) => {
    if (event.target.closest("button") && !event.target.closest("dialog")) event.preventDefault();
  });
  at("name-form").addEventListener("submit", onName);
  at("welcome").addEventListener("cancel", (event) => {
    if (!page.annotator) event.preventDefault();
  });
  new ResizeObserver(repaint).observe(at("close"));
  window.addEventListener("resize", repaint);

  setTheme(recall("localStorage", THEME) ?? "auto");
  const radius = RADII.indexOf(Number(recall("localStorage", RADIUS)));
  if (radius >= 0) page.radius = radius;
  const known = recall("localStorage", NAME);
  if (known) enter(known);
  else welcome();
})();
