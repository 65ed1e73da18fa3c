// The bytes of a file → its slices. Pictures are decoded by the browser, DICOM files by dicom.js. Nothing is sent anywhere.

import { ELSEWHERE, Refused, checkSize } from "./checks.js";
import { isDicom, readDicom } from "./dicom.js";
import { grayPicture, pictures } from "./pixels.js";

/**
 * The slices of a file.
 * @param {Blob} file JPEG, PNG, BMP, GIF, WebP or DICOM
 * @param {object} contract the content of preprocess.json
 * @returns {Promise<{frame: ?number, unlike: boolean, picture: () => {gray: Picture, rgb: ?Picture}}[]>} for each slice its
 *   number, null if the file has only one; whether the file says that it is unlike the training; its pixels
 */
export async function decode(file, contract) {
  const head = new Uint8Array(await file.slice(0, 132).arrayBuffer());
  if (!head.length) throw new Refused("is empty (0 bytes)");
  if (!isDicom(head)) {
    const decoded = pictures(await decodePicture(file, head));
    return [{ frame: null, unlike: false, picture: () => decoded }];
  }
  const slices = readDicom(new Uint8Array(await file.arrayBuffer()), contract.window);
  return slices.map(({ frame, unlike, width, height, gray }) => ({
    frame, unlike, picture: () => grayPicture(width, height, gray()),
  }));
}

/** Opaque RGBA values of a picture on black, upright as its EXIF data say. */
async function decodePicture(file, head) {
  if (String.fromCharCode(...head).startsWith("\x89PNG") && head[24] === 16) {
    throw new Refused(`is a 16-bit PNG, which browsers cut to 8 bits; ${ELSEWHERE}`);
  }
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { colorSpaceConversion: "none", imageOrientation: "from-image" });
  } catch {
    throw new Refused("is not an image that this browser can decode; JPEG, PNG, WebP, BMP, GIF and DICOM are read");
  }
  const { width, height } = bitmap;
  checkSize(width, height);
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.fillStyle = "black";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return { rgba: context.getImageData(0, 0, width, height).data, width, height };
}
