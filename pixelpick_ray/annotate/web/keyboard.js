// Meaning of keys, on any keyboard layout.
"use strict";

const keyboard = (() => {
  const COMMANDS = {
    0: "unknown", ".": "void", " ": "skip", "?": "help", "+": "closer", "-": "farther",
    Backspace: "undo", ArrowLeft: "back", ArrowRight: "forward", ArrowUp: "closer", ArrowDown: "farther",
    Enter: "confirm", Tab: "points", Escape: "pause", F1: "help", F2: "theme",
  };
  const UNNAMED = new Set(["Dead", "Process", "Unidentified"]);
  const isPlain = (key) => /^[ -~]$/.test(key);

  // The Latin key at this position, for keyboards with another script.
  function byPlace({ key, code, shiftKey }) {
    const letter = /^Key([A-Z])$/.exec(code)?.[1];
    const digit = /^(?:Digit|Numpad)(\d)$/.exec(code)?.[1];
    return letter ?? digit ?? (code === "Period" && !shiftKey ? "." : key);
  }

  // The intended key of a class or command; `known` has the keys of the classes.
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
