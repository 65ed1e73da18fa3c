// The bytes of a picture → its pixels, by the browser's decoder. Nothing is sent anywhere.

const MAX_PIXELS = 8192 * 8192;
const MIN_SIDE = 16;

/** A file that cannot be used; the message says why, for the user. */
export class Refused extends Error {}

/**
 * Opaque RGBA values of a picture on black, upright as its EXIF data say.
 * @param {Blob} file JPEG, PNG, BMP, GIF or WebP
 * @returns {Promise<{rgba: Uint8ClampedArray, width: number, height: number}>}
 */
export async function decode(file) {
  const head = new Uint8Array(await file.slice(0, 132).arrayBuffer());
  const text = String.fromCharCode(...head);
  if (!head.length) throw new Refused("is empty (0 bytes)");
  if (text.slice(128, 132) === "DICM") {
    throw new Refused("is a DICOM file, which this edition does not read; use `brain-dist predict` or `brain-dist serve`");
  }
  if (text.startsWith("\x89PNG") && head[24] === 16) {
    throw new Refused("is a 16-bit PNG, which browsers cut to 8 bits; use `brain-dist predict` or `brain-dist serve`");
  }
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { colorSpaceConversion: "none", imageOrientation: "from-image" });
  } catch {
    throw new Refused("is not an image that this browser can decode; JPEG, PNG, WebP, BMP and GIF are read");
  }
  const { width, height } = bitmap;
  if (width * height > MAX_PIXELS) throw new Refused(`is ${width} × ${height} pixels, more than a slice can have`);
  if (Math.min(width, height) < MIN_SIDE) {
    throw new Refused(`is ${width} × ${height} pixels; a slice has at least ${MIN_SIDE} on each side`);
  }
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.fillStyle = "black";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return { rgba: context.getImageData(0, 0, width, height).data, width, height };
}
