// Browser storage, if available: settings, and answers until they are acknowledged.
"use strict";

const memory = (() => {
  const OURS = "pixelpick-ray-";
  const UNSENT = `${OURS}unsent-`;
  const held = new Map(); // answers of this page, even without browser storage

  function recall(name) {
    try {
      return localStorage.getItem(OURS + name);
    } catch {
      return null;
    }
  }

  function remember(name, value) {
    try {
      localStorage.setItem(OURS + name, value);
    } catch {
      return; // private windows and full disks do without
    }
  }

  // Keep an answer {reply, replaces} under its reply's id, so that tabs do not interfere.
  function keep(unsent) {
    held.set(unsent.reply.id, unsent);
    remember(UNSENT.slice(OURS.length) + unsent.reply.id, JSON.stringify(unsent));
  }

  function letGo({ reply }) {
    held.delete(reply.id);
    try {
      localStorage.removeItem(UNSENT + reply.id);
    } catch {
      return;
    }
  }

  function parsed(text) {
    try {
      const found = JSON.parse(text);
      return found?.reply?.id ? found : null;
    } catch {
      return null;
    }
  }

  // Answers that no server has acknowledged, including those of earlier pages.
  function unsent() {
    const found = new Map(held);
    try {
      for (const key of Object.keys(localStorage).filter((one) => one.startsWith(UNSENT))) {
        const one = parsed(localStorage.getItem(key));
        if (one) found.set(one.reply.id, one);
      }
    } catch {
      return [...held.values()];
    }
    return [...found.values()];
  }

  return { recall, remember, keep, letGo, unsent };
})();
