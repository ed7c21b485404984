// Seconds spent on each question. Time is idle after `idleSeconds` without activity, and while the page is away.
"use strict";

const clock = (() => {
  const running = { item: null, spent: new Map(), last: 0, idleSeconds: 30, isAway: document.hidden };

  // Record activity.
  function tick(now = performance.now()) {
    const gap = Math.max(0, now - running.last) / 1000;
    running.last = Math.max(now, running.last);
    const spent = running.spent.get(running.item);
    if (!spent) return;
    const active = running.isAway || gap > running.idleSeconds ? 0 : gap;
    spent.active += active;
    spent.idle += gap - active;
  }

  // Start or resume timing a question.
  function start(item) {
    tick();
    running.item = item;
    if (!running.spent.has(item)) running.spent.set(item, { active: 0, idle: 0 });
  }

  // Stop timing until the next question is shown.
  function halt() {
    tick();
    running.item = null;
  }

  // Finish the current question and return the time spent on it.
  function stop() {
    tick();
    const { active, idle } = running.spent.get(running.item) ?? { active: 0, idle: 0 };
    running.spent.delete(running.item);
    running.item = null;
    return { seconds: Math.min(active, 86400), idle_seconds: Math.min(idle, 86400) };
  }

  // Milliseconds since the last activity.
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
