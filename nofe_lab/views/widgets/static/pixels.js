// A picture as the network takes it: the pixels that Python prepares (nofe_lab/data/pictures.py),
// whatever browser it is.  Browsers' own resizing differs.

const MOST_PIXELS = 178956970, MOST_BYTES = 2 ** 28; // what Pillow considers safe; of a file
const STRIP = 2 ** 20; // pixels that are read at once: the page stays usable meanwhile

/** The picture of a file, upright and without conversion of colours; else an Error, a sentence.
 * bitDepth: of the 16-bit images that the network was trained on. */
async function decoded(file, name, bitDepth) {
  const head = await file.slice(0, 26).arrayBuffer().then((bytes) => new DataView(bytes), () => {
    throw new Error(`${name} is no file that can be read; accepted: PNG, JPEG, WebP, GIF and BMP files.`);
  });
  const isPng = head.byteLength === 26 && head.getUint32(0) === 0x89504e47;
  if (bitDepth < 16 && isPng && head.getUint8(24) === 16 && head.getUint8(25) === 0) {
    throw new Error(`${name} has 16 bits a pixel, of which a browser keeps the upper 8; the network was trained on ${bitDepth} of them: ask it in Python.`);
  }
  if (file.size > MOST_BYTES) throw new Error(`${name} is too large: ${Math.round(file.size / 1e6)} MB; accepted: up to ${Math.round(MOST_BYTES / 1e6)} MB.`);
  let picture;
  try {
    picture = await createImageBitmap(file, { colorSpaceConversion: "none", imageOrientation: "from-image" });
  } catch {
    throw new Error(`${name} is no picture that this browser can read; accepted: PNG, JPEG, WebP, GIF and BMP files.`);
  }
  if (picture.width * picture.height > MOST_PIXELS) {
    picture.close();
    throw new Error(`${name} has more than the ${MOST_PIXELS.toLocaleString("en")} pixels that are accepted.`);
  }
  return picture;
}

/** Scale a picture until it covers width x height, and crop its centre: Uint8Array [channels, height,
 * width], channels 1 or 3; transparent parts become white.  This is Pillow's ImageOps.fit with
 * BILINEAR: a triangle as wide as the reduction, first along rows, then along columns.  Pillow 13 turns
 * that round where it is faster, and some values then differ by 1. */
async function toSize(picture, [channels, height, width]) {
  const { width: W, height: H } = picture, ratio = width / height;
  const w = W / H > ratio ? ratio * H : W, h = W / H < ratio ? W / ratio : H;
  const across = triangles((W - w) / 2, (W - w) / 2 + w, W, width);
  const down = triangles((H - h) / 2, (H - h) / 2 + h, H, height);
  const left = across[0].start, used = across.at(-1).start + across.at(-1).weights.length - left;
  const top = down[0].start, bottom = down.at(-1).start + down.at(-1).weights.length;
  const strip = document.createElement("canvas");
  strip.width = used;
  strip.height = Math.min(Math.max(Math.floor(STRIP / used), 1), bottom - top);
  const context = strip.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingEnabled = false;
  context.fillStyle = "#ffffff";
  const narrow = new Uint8Array((bottom - top) * width * 3); // as wide as wanted, still as high
  for (let y = top; y < bottom; y += strip.height) {
    if (y > top) await new Promise((resume) => setTimeout(resume));
    const rows = Math.min(strip.height, bottom - y);
    context.fillRect(0, 0, used, rows);
    context.drawImage(picture, left, y, used, rows, 0, 0, used, rows);
    const { data } = context.getImageData(0, 0, used, rows);
    for (let row = 0, to = (y - top) * width * 3; row < rows; row++) {
      for (const { start, weights } of across) {
        for (let c = 0; c < 3; c++) narrow[to++] = weighted(data, (row * used + start - left) * 4 + c, 4, weights);
      }
    }
  }
  const pixels = new Uint8Array(channels * height * width), area = height * width;
  down.forEach(({ start, weights }, y) => {
    for (let x = 0; x < width; x++) {
      const [r, g, b] = [0, 1, 2].map((c) => weighted(narrow, ((start - top) * width + x) * 3 + c, width * 3, weights));
      (channels === 1 ? [Math.round((r + g + b) / 3)] : [r, g, b]).forEach((value, c) => { pixels[c * area + y * width + x] = value; });
    }
  });
  return pixels;
}

const BITS = 22; // of the fraction of a weight, as in Pillow

/** Which of `size` values make each of n values between two ends, and with which weights. */
function triangles(low, high, size, n) {
  const [from, to] = [Math.fround(low), Math.fround(high)];
  const scale = Math.fround(to - from) / n, wide = Math.max(scale, 1);
  return Array.from({ length: n }, (_, i) => {
    const centre = from + (i + 0.5) * scale;
    const start = Math.max(Math.trunc(centre - wide + 0.5), 0), end = Math.min(Math.trunc(centre + wide + 0.5), size);
    const parts = Array.from({ length: end - start }, (_, x) => Math.max(1 - Math.abs((x + start - centre + 0.5) / wide), 0));
    const sum = parts.reduce((a, b) => a + b, 0);
    return { start, weights: Int32Array.from(parts, (part) => Math.floor(0.5 + part / sum * 2 ** BITS)) };
  });
}

function weighted(values, at, step, weights) {
  let sum = 1 << (BITS - 1);
  for (let i = 0; i < weights.length; i++, at += step) sum += values[at] * weights[i];
  return Math.min(sum >> BITS, 255);
}
