// Requests to the server, retried until there is a response.
"use strict";

const wire = (() => {
  const PATIENCE = 15000; // ms per attempt
  const GONE = new Set([403, 404, 421]);
  const MOVED = "The server no longer knows this page; open the new address that it printed. ";
  const LOST = "No connection to the server. ";
  const KEPT = "Your answers are kept and will be sent again.";
  const BITMAPS = 12, PIXELS = 50e6; // limits on decoded images kept in memory

  class Refused extends Error {}

  const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

  function banner(text) {
    const shown = document.getElementById("banner");
    if (shown.textContent !== text) shown.textContent = text;
    shown.hidden = text === "";
  }

  async function tried(path, body) {
    const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
    const response = await fetch(path, { ...options, signal: AbortSignal.timeout(PATIENCE) });
    return { status: response.status, found: await response.json() };
  }

  // The server's response; throws Refused if the server rejects the request.
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

  // Images: decoded ahead, with the latest kept.

  const images = new Map(); // promises of bitmaps by number, least recently used first
  const bitmaps = new Map();

  async function load(number) {
    for (;;) {
      try {
        const response = await fetch(`image/${number}`, { signal: AbortSignal.timeout(PATIENCE) });
        if (response.ok) {
          const bitmap = await createImageBitmap(await response.blob());
          bitmaps.set(number, bitmap);
          banner("");
          return bitmap;
        }
        banner((await response.json()).error);
      } catch {
        banner(LOST);
      }
      await sleep(1000);
    }
  }

  function forgetOld(number) {
    let [count, pixels] = [0, 0];
    for (const old of [...images.keys()].reverse()) {
      const bitmap = bitmaps.get(old);
      count += 1;
      pixels += bitmap ? bitmap.width * bitmap.height : 0;
      if (old === number || !bitmap || (count <= BITMAPS && pixels <= PIXELS)) continue;
      bitmaps.delete(old);
      images.delete(old);
    }
  }

  // Promise of an image.
  function image(number) {
    const found = images.get(number) ?? load(number);
    images.delete(number);
    images.set(number, found);
    forgetOld(number);
    return found;
  }

  // The image if it is already loaded.
  function ready(number) {
    if (bitmaps.has(number)) image(number);
    return bitmaps.get(number);
  }

  async function points(number) {
    const response = await fetch(`points/${number}`, { signal: AbortSignal.timeout(PATIENCE) }).catch(() => null);
    return response?.ok ? (await response.json()).points : [];
  }

  return { Refused, deliver, image, ready, points };
})();
