// Drawing on the canvases. Screen lengths are in CSS pixels, image lengths in native pixels.
"use strict";

const draw = (() => {
  // Clear a canvas at the screen's resolution, for drawing in CSS pixels.
  function fresh(canvas) {
    const [width, height, density] = [canvas.clientWidth, canvas.clientHeight, window.devicePixelRatio || 1];
    canvas.width = Math.max(1, Math.round(width * density));
    canvas.height = Math.max(1, Math.round(height * density));
    const context = canvas.getContext("2d");
    context.setTransform(density, 0, 0, density, 0, 0);
    return { context, width, height };
  }

  // The box of native pixels that a prepared pixel covers.
  function covered(item, image) {
    const [across, down] = [image.width / item.width, image.height / item.height];
    return { x: item.x * across, y: item.y * down, width: across, height: down };
  }

  const middle = (box) => ({ x: box.x + box.width / 2, y: box.y + box.height / 2 });

  // A white line with a black border, visible on any colour.
  function line(context, width, trace) {
    context.lineCap = "butt";
    for (const [colour, extra] of [["#000", 2.5], ["#fff", 0]]) {
      context.beginPath();
      trace();
      context.strokeStyle = colour;
      context.lineWidth = width + extra;
      context.stroke();
    }
  }

  function ring(context, at, radius, width) {
    line(context, width, () => context.arc(at.x, at.y, radius, 0, 2 * Math.PI));
  }

  // Four lines that point to a place without covering it.
  function leaders(context, at, from, to, width) {
    line(context, width, () => {
      for (const [x, y] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
        context.moveTo(at.x + x * from, at.y + y * from);
        context.lineTo(at.x + x * to, at.y + y * to);
      }
    });
  }

  // Position of an image on the screen: its scale, and its upper left corner.
  function centred(size, box, radius) {
    const scale = Math.min(size.width, size.height) / (2 * radius);
    const at = middle(box);
    return { scale, x: size.width / 2 - at.x * scale, y: size.height / 2 - at.y * scale };
  }

  function fitted(size, image, margin) {
    const scale = Math.min((size.width - 2 * margin) / image.width, (size.height - 2 * margin) / image.height);
    return { scale, x: (size.width - image.width * scale) / 2, y: (size.height - image.height * scale) / 2 };
  }

  const onScreen = (place, box) => ({
    x: place.x + box.x * place.scale,
    y: place.y + box.y * place.scale,
    width: box.width * place.scale,
    height: box.height * place.scale,
  });

  function picture(context, image, place) {
    context.imageSmoothingEnabled = place.scale * (window.devicePixelRatio || 1) < 1;
    context.imageSmoothingQuality = "high";
    context.drawImage(image, place.x, place.y, image.width * place.scale, image.height * place.scale);
  }

  // A frame around the pixel, which stays fully visible.
  function frame(context, box, width) {
    const gap = width / 2 + 1.25;
    line(context, width, () =>
      context.rect(box.x - gap, box.y - gap, box.width + 2 * gap, box.height + 2 * gap),
    );
  }

  // The magnified surroundings of the pixel, `radius` native pixels to the nearer edges.
  function close(canvas, image, item, radius) {
    const size = fresh(canvas);
    const place = centred(size, covered(item, image), radius);
    picture(size.context, image, place);
    const box = onScreen(place, covered(item, image));
    const around = Math.max(24, Math.hypot(box.width, box.height) / 2 + 14);
    frame(size.context, box, 1.5);
    ring(size.context, middle(box), around, 2);
    leaders(size.context, middle(box), around + 5, around + 30, 2);
  }

  // The whole image, with the pixel and the outline of the close view.
  function wide(canvas, image, item, radius, shape) {
    const size = fresh(canvas);
    const place = fitted(size, image, 6);
    picture(size.context, image, place);
    const at = middle(covered(item, image));
    const short = Math.min(shape.width, shape.height) || 1;
    const [across, down] = [(radius * shape.width) / short, (radius * shape.height) / short];
    const [left, top] = [Math.max(0, at.x - across), Math.max(0, at.y - down)];
    const [right, bottom] = [Math.min(image.width, at.x + across), Math.min(image.height, at.y + down)];
    const field = onScreen(place, { x: left, y: top, width: right - left, height: bottom - top });
    line(size.context, 1, () => size.context.rect(field.x, field.y, field.width, field.height));
    const here = middle(onScreen(place, covered(item, image)));
    ring(size.context, here, 8, 1.75);
    leaders(size.context, here, 11, 20, 1.75);
  }

  // Black or white, whichever contrasts better with a colour "#rrggbb".
  function against(colour) {
    const parts = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16) / 255);
    const [red, green, blue] = parts.map((one) => (one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 ? "#000" : "#fff";
  }

  // All questions in the image, answered ones with the colour and key of the answer.
  function points(canvas, image, item, found, told) {
    const size = fresh(canvas);
    const place = fitted(size, image, 10);
    const { context } = size;
    picture(context, image, place);
    for (const point of found) {
      const at = middle(onScreen(place, covered({ ...item, ...point }, image)));
      const { key, colour } = told(point);
      if (!key) {
        ring(context, at, 6, 1.75);
        continue;
      }
      context.beginPath();
      context.arc(at.x, at.y, 9, 0, 2 * Math.PI);
      context.fillStyle = colour;
      context.fill();
      ring(context, at, 9.5, 1.5);
      context.fillStyle = against(colour);
      context.font = "700 12px system-ui, sans-serif";
      context.textAlign = "center";
      context.textBaseline = "middle";
      context.fillText(key, at.x, at.y + 0.5);
    }
    const here = middle(onScreen(place, covered(item, image)));
    ring(context, here, 14, 2);
    leaders(context, here, 18, 34, 2);
  }

  return { close, wide, points };
})();
