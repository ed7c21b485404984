// Seconds at each question. More than `idleSeconds` without a sign of life are idle, and all while nobody works.
"use strict";

const clock = (() => {
  const running = { item: null, spent: new Map(), last: 0, idleSeconds: 30, isAway: document.hidden };

  // A sign of life.
  function tick(now = performance.now()) {
    const gap = Math.max(0, now - running.last) / 1000;
    running.last = Math.max(now, running.last);
    const spent = running.spent.get(running.item);
    if (!spent) return;
    const active = running.isAway || gap > running.idleSeconds ? 0 : gap;
    spent.active += active;
    spent.idle += gap - active;
  }

  // Time runs for this question now; it goes on where it was.
  function start(item) {
    tick();
    running.item = item;
    if (!running.spent.has(item)) running.spent.set(item, { active: 0, idle: 0 });
  }

  // Time runs for no question until the next one is seen.
  function halt() {
    tick();
    running.item = null;
  }

  // What was spent on the question that time runs for; it is over.
  function stop() {
    tick();
    const { active, idle } = running.spent.get(running.item) ?? { active: 0, idle: 0 };
    running.spent.delete(running.item);
    running.item = null;
    return { seconds: Math.min(active, 86400), idle_seconds: Math.min(idle, 86400) };
  }

  // Milliseconds since the last sign of life.
  const quiet = () => performance.now() - running.last;

  function setAway(isAway) {
    tick();
    running.isAway = isAway;
  }

  function setIdle(seconds) {
    running.idleSeconds = seconds;
  }

  return { tick, start, halt, stop, quiet, setAway, setIdle };
})();
