// One key press answers and moves on. Answers are kept until acknowledged by the server, and resent if necessary.

(() => {
  const at = (id) => document.getElementById(id);
  const RADII = [6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384];
  const FEW = 10; // questions in the queue below which more are fetched
  const SIGN = 60000; // ms between keep-alive signals, without which others get this page's questions
  const LEFT = 600000; // ms without user activity after which the page sends no keep-alive signals
  const LATE = 150; // ms after which a missing image shows as loading

  const page = {
    annotator: "",
    classes: new Map(), // by name
    keys: new Map(), // names of classes by key
    queue: [], // upcoming questions, the current one first
    history: [], // own answers {id, kind, label, item}, the latest last
    back: 0, // how many answers back is shown; 0 is the current question
    state: "loading",
    progress: { answered: 0, total: 0, mine: 0 },
    seconds: [], // of answers given on this page
    radius: RADII.indexOf(32),
    showsPoints: false,
    isPaused: false,
  };

  // For tests: what has happened on this page.
  const annotation = { timings: [], acknowledged: [], undone: [], item: null, state: "loading", shown: 0 };
  window.annotation = annotation;

  function element(name, attributes = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  function identity() {
    const bytes = crypto.getRandomValues(new Uint8Array(16));
    return [...bytes].map((one) => one.toString(16).padStart(2, "0")).join("");
  }

  // Time runs only while somebody can see a question and work on it.
  function setAway() {
    clock.setAway(document.hidden || page.isPaused || document.querySelector("dialog[open]") !== null);
  }

  // Display

  // The past answer shown, or the current question; null if there is none.
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

  const painted = { item: null, image: null, points: [], time: 0 };

  // If the image is loaded, it is painted before this yields.
  async function show() {
    const entry = shown();
    annotation.item = entry?.item ?? null;
    if (painted.item !== annotation.item) clock.halt();
    showFrame(entry);
    setTimeout(lookAhead); // the current image comes first
    if (entry === null) return hide();
    const late = setTimeout(() => painted.item !== annotation.item && hide(), LATE);
    const image = wire.ready(entry.item.image) ?? (await wire.image(entry.item.image));
    const points = page.showsPoints ? await wire.points(entry.item.image) : [];
    clearTimeout(late);
    if (shown()?.item !== entry.item) return;
    paint(entry.item, image, points);
    annotation.shown += 1;
  }

  // Images of another question must not be mistaken for this one's.
  function hide() {
    document.body.classList.add("loading");
    painted.item = null;
  }

  function lookAhead() {
    const numbers = [...new Set(page.queue.map((item) => item.image))];
    for (const number of numbers.slice(0, 3)) wire.image(number);
    if (page.queue.length < FEW) refill();
  }

  function paint(item, image, points) {
    document.body.classList.remove("loading");
    if (painted.item !== item) Object.assign(painted, { time: performance.now() });
    Object.assign(painted, { item, image, points });
    draws();
    clock.start(item.id);
  }

  function draws() {
    const { item, image, points } = painted;
    const [near, far, radius] = [at("close"), at("wide"), RADII[page.radius]];
    if (page.showsPoints) draw.points(near, image, item, points.filter((one) => !isHere(one, item)), told);
    else draw.close(near, image, item, radius);
    draw.wide(far, image, item, radius, { width: near.clientWidth, height: near.clientHeight });
  }

  const isHere = (point, item) => point.x === item.x && point.y === item.y;

  function repaint() {
    if (painted.item) draws();
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
    const where = isBack ? `${item.name} · press a key to change it, → to go forward` : `${item.name} · ${left} left in this image`;
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
    paused: ["Paused", "The clock is stopped. Press any key to continue."],
    waiting: ["The network is training", "There are no questions right now. This page continues by itself when new ones arrive."],
    elsewhere: ["Others are working on the rest", "No image is free right now. This page continues by itself."],
    done: ["All done", "Every question of this experiment has been answered and trained on. You can close this page."],
  };

  function showCover(entry) {
    const name = page.isPaused ? "paused" : entry === null ? page.state : "";
    const [title, text] = COVERS[name] ?? ["", ""];
    const mayUndo = page.history.length > 0 && (name === "waiting" || name === "elsewhere");
    annotation.state = name || page.state;
    at("cover").hidden = title === "";
    at("cover").classList.toggle("works", name === "waiting");
    at("cover-title").textContent = title;
    at("cover-text").textContent = mayUndo ? `${text} Backspace undoes your last answer.` : text;
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
  const answered = []; // questions, in the order answered on this page

  async function refill() {
    if (isFetching || !page.annotator) return;
    isFetching = true;
    const [who, before, first] = [page.annotator, answered.length, page.queue[0]?.id];
    try {
      const found = await wire.deliver("next", { annotator: who, have: page.queue.map((item) => item.id) });
      if (who === page.annotator) takeIn(found, new Set(answered.slice(before)));
    } catch (problem) {
      notice(problem.message);
    }
    isFetching = false;
    if (page.queue[0]?.id !== first && !isBusy) show();
    clearTimeout(poll);
    if (page.queue.length === 0) poll = setTimeout(refill, 1000);
  }

  // Add questions from the server, except those answered meanwhile.
  function takeIn(found, meanwhile) {
    const dropped = new Set(found.dropped);
    if (!isBusy && page.queue.length > 0 && dropped.has(page.queue[0].id)) {
      notice("This image was given to somebody else.");
    }
    if (!isBusy) page.queue = page.queue.filter((item) => !dropped.has(item.id));
    const known = new Set(page.queue.map((item) => item.id));
    page.queue.push(...found.items.filter((item) => !known.has(item.id) && !meanwhile.has(item.id)));
    setProgress(found);
    page.state = found.state;
    if (page.queue.length === 0 || annotation.state !== found.state) showFrame(shown());
  }

  function setProgress({ answered: done, total, mine }) {
    page.progress = { answered: done, total, mine };
  }

  // Answers: one at a time, each for the pixel visible when its key was pressed.

  let isBusy = false;

  async function inTurn(action) {
    if (isBusy) return notice("Not recorded: your last answer is still being sent.");
    isBusy = true;
    try {
      await action();
    } catch (problem) {
      if (!(problem instanceof wire.Refused)) throw problem;
      notice(problem.message);
    } finally {
      isBusy = false;
    }
    if ((shown()?.item ?? null) !== annotation.item) show();
  }

  async function send({ reply }) {
    setProgress(await wire.deliver("answer", reply));
    annotation.acknowledged.push({ id: reply.id, question: reply.question, kind: reply.kind, label: reply.label });
  }

  async function answer(kind, label, pressed) {
    const entry = shown();
    if (entry === null) return;
    if (painted.item !== entry.item || pressed < painted.time) return notice("Not recorded: this pixel was not visible yet.");
    const reply = { id: identity(), annotator: page.annotator, question: entry.item.id, kind, label, ...clock.stop() };
    const unsent = { reply, replaces: page.back > 0 ? entry.id : null };
    memory.keep(unsent);
    say(reply);
    try {
      if (page.back > 0) await takeBack(entry);
      await send(unsent);
    } catch (problem) {
      drop(entry.item);
      throw problem;
    } finally {
      memory.letGo(unsent);
    }
    place(entry, reply);
    show();
    requestAnimationFrame(() => annotation.timings.push(performance.now() - pressed));
  }

  // Drop a question that is no longer ours, and check for others.
  function drop(item) {
    page.queue = page.queue.filter((one) => one !== item);
    page.back = 0;
    at("said").hidden = true;
    refill();
  }

  // Put an answer into the history: at the end, or in place of the past answer shown.
  function place(entry, { id, kind, label, seconds }) {
    const made = { id, kind, label, item: entry.item };
    page.queue = page.queue.filter((item) => item !== entry.item);
    if (page.back > 0) page.history.splice(page.history.length - --page.back, 0, made);
    else page.history.push(made);
    page.seconds.push(seconds);
    answered.push(entry.item.id);
  }

  // Have the server take back an answer; its question is asked again.
  async function takeBack(entry) {
    setProgress(await wire.deliver("undo", { annotator: page.annotator, answer: entry.id }));
    annotation.undone.push(entry.id);
    page.history = page.history.filter((one) => one !== entry);
    page.queue = [entry.item, ...page.queue.filter((one) => one.id !== entry.item.id)];
  }

  async function undo() {
    const entry = page.back > 0 ? shown() : page.history.at(-1);
    if (!entry) return notice("There is no answer to undo.");
    await takeBack(entry);
    page.back = 0;
    at("said").hidden = true;
    show();
  }

  async function skip() {
    if (page.back > 0) return goTo(0);
    if (page.queue.length === 0) return;
    const [item] = page.queue;
    try {
      setProgress(await wire.deliver("skip", { annotator: page.annotator, question: item.id }));
    } catch (problem) {
      drop(item);
      throw problem;
    }
    page.queue.push(page.queue.shift());
    if (page.queue[0] === item) notice("There is no other question to skip to.");
    at("said").hidden = true;
    show();
  }

  function goTo(back) {
    if (back < 0 || back > page.history.length) return;
    page.back = back;
    at("said").hidden = true;
    show();
  }

  // Commands: TURNS run one at a time, VIEWS only change what is shown.

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
      show();
    },
    help: () => {
      at("help").showModal();
      setAway();
    },
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
    memory.remember("radius", String(RADII[page.radius]));
    repaint();
  }

  function setPaused(isPaused) {
    page.isPaused = isPaused;
    setAway();
    showFrame(shown());
    repaint();
    if (!isPaused) refill(); // others may have been given unanswered questions
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

  function onKey(event) {
    clock.tick(event.timeStamp);
    if (event.ctrlKey || event.altKey || event.metaKey || event.isComposing) return;
    if (at("welcome").open) return;
    if (at("help").open) {
      if (["?", "F1"].includes(event.key)) event.preventDefault();
      if (["?", "F1"].includes(event.key)) at("help").close();
      return;
    }
    const key = keyboard.meant(event, page.keys);
    if (key === "Tab" && event.shiftKey) return;
    if ([" ", "Enter"].includes(key) && event.target instanceof HTMLButtonElement) {
      if (event.repeat) event.preventDefault(); // a held key would press it repeatedly
      return;
    }
    const command = keyboard.COMMANDS[key];
    const name = page.keys.get(key);
    if (!command && !name && [...key].length > 1) return; // Shift and other keys that are not characters
    event.preventDefault();
    if (event.repeat && !REPEATABLE.has(command)) return;
    if (command) run(command, event.timeStamp);
    else if (name || page.isPaused) choose(name, event.timeStamp);
    else notice(`${key} is not a key for a class; ? shows all keys.`);
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
    memory.remember("theme", next);
  }

  // Start

  function welcome(problem = "") {
    at("name").value = page.annotator;
    at("name-problem").textContent = problem;
    if (!at("welcome").open) at("welcome").showModal();
    at("name").select();
    setAway();
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

  // Send unacknowledged answers of earlier pages.
  async function sendKept() {
    for (const unsent of memory.unsent()) {
      const { reply, replaces } = unsent;
      try {
        if (replaces) await wire.deliver("undo", { annotator: reply.annotator, answer: replaces });
        await send(unsent);
      } catch (problem) {
        if (!(problem instanceof wire.Refused)) throw problem;
        notice(`A saved answer could not be stored: ${problem.message}`);
      }
      memory.letGo(unsent);
    }
  }

  async function begin(name) {
    await sendKept();
    const found = await wire.deliver("begin", { annotator: name });
    Object.assign(page, { annotator: name, history: found.history, queue: [], back: 0, state: "loading" });
    clock.setIdle(found.idle_seconds);
    setProgress(found);
    memory.remember("annotator", name);
    listClasses(found.classes);
    at("title").textContent = found.title;
    at("person").textContent = name;
    document.title = `${found.title} · annotate`;
    at("help-confirm").hidden = !found.suggestions;
    at("welcome").close();
    await refill();
  }

  let isEntering = false;

  async function enter(name) {
    if (isEntering) return;
    isEntering = true;
    try {
      await begin(name);
    } catch (problem) {
      if (!(problem instanceof wire.Refused)) throw problem;
      welcome(problem.message);
    } finally {
      isEntering = false;
    }
  }

  function onName(event) {
    event.preventDefault();
    const name = at("name").value.trim();
    if (name !== "") enter(name);
  }

  // While nobody is looking, others may be given this page's questions.
  function giveSign() {
    if (!document.hidden && !page.isPaused && clock.quiet() < LEFT) refill();
  }

  document.addEventListener("keydown", onKey);
  document.addEventListener("click", onClick);
  document.addEventListener("visibilitychange", () => {
    setAway();
    giveSign();
  });
  setInterval(giveSign, SIGN);
  for (const sign of ["pointermove", "pointerdown", "wheel"]) {
    document.addEventListener(sign, () => clock.tick(), { passive: true });
  }
  // A click must not leave focus on a button, or Space would press it again.
  document.addEventListener("mousedown", (event) => {
    if (event.target.closest("button") && !event.target.closest("dialog")) event.preventDefault();
  });
  at("name-form").addEventListener("submit", onName);
  for (const dialog of document.querySelectorAll("dialog")) dialog.addEventListener("close", setAway);
  at("welcome").addEventListener("close", () => {
    if (!page.annotator) welcome();
  });
  new ResizeObserver(repaint).observe(at("close"));
  window.addEventListener("resize", repaint);

  setTheme(memory.recall("theme") ?? "auto");
  const radius = RADII.indexOf(Number(memory.recall("radius")));
  if (radius >= 0) page.radius = radius;
  const known = memory.recall("annotator");
  if (known) enter(known);
  else welcome();
})();
