// What a key means, on whatever keyboard it was pressed.
"use strict";

const keyboard = (() => {
  const COMMANDS = {
    0: "unknown", ".": "void", " ": "skip", "?": "help", "+": "closer", "-": "farther",
    Backspace: "undo", ArrowLeft: "back", ArrowRight: "forward", ArrowUp: "closer", ArrowDown: "farther",
    Enter: "confirm", Tab: "points", Escape: "pause", F1: "help", F2: "theme",
  };
  const UNNAMED = new Set(["Dead", "Process", "Unidentified"]);
  const isPlain = (key) => /^[ -~]$/.test(key);

  // The key at this place of a keyboard with Latin letters, for one whose letters are others.
  function byPlace({ key, code, shiftKey }) {
    const letter = /^Key([A-Z])$/.exec(code)?.[1];
    const digit = /^(?:Digit|Numpad)(\d)$/.exec(code)?.[1];
    return letter ?? digit ?? (code === "Period" && !shiftKey ? "." : key);
  }

  // The key of a class or of a command that is meant; `known` has the keys of the classes.
  function meant(event, known) {
    const { key, code, shiftKey } = event;
    if (key.length > 1 && !UNNAMED.has(key)) return key;
    if (code === "NumpadDecimal") return ".";
    const hasName = isPlain(key) || (!UNNAMED.has(key) && /\p{Script=Latin}/u.test(key));
    const found = hasName ? key : byPlace(event);
    if (!/^[A-Za-z]$/.test(found)) return found;
    const capital = found.toUpperCase();
    return shiftKey && known.has(capital) ? capital : found.toLowerCase();
  }

  return { COMMANDS, meant };
})();
