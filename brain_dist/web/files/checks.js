// What makes a file unusable, said in words for the user.

const MAX_PIXELS = 8192 * 8192;
const MIN_SIDE = 16;
export const MAX_FRAMES = 512;
export const ELSEWHERE = "use `brain-dist predict` or `brain-dist serve`";

/** A file that cannot be used; the message says why, as the end of a sentence that begins with "the file". */
export class Refused extends Error {}

/** Refuse a picture that is too large or too small for a slice. */
export function checkSize(width, height) {
  if (width * height > MAX_PIXELS) throw new Refused(`is ${width} × ${height} pixels, more than a slice can have`);
  if (Math.min(width, height) < MIN_SIDE) {
    throw new Refused(`is ${width} × ${height} pixels; a slice has at least ${MIN_SIDE} on each side`);
  }
}
