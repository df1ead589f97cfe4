/** Decoded pictures: pixels to compute with and a canvas to draw from. */

/** `data` is RGBA, 8 bits, opaque; `canvas` shows it. */
export class Picture {
  constructor(canvas) {
    this.canvas = canvas;
    this.width = canvas.width;
    this.height = canvas.height;
    this.data = canvas.getContext("2d", { willReadFrequently: true }).getImageData(0, 0, this.width, this.height).data;
  }

  /** The picture in a file as the service sees it: turned as EXIF says, over white, without colour profile. */
  static async of(blob) {
    const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" });
    return new Picture(drawn(bitmap, bitmap.width, bitmap.height));
  }

  /** The picture of RGBA pixels. */
  static ofPixels(data, width, height) {
    const canvas = Object.assign(document.createElement("canvas"), { width, height });
    canvas.getContext("2d", { willReadFrequently: true }).putImageData(new ImageData(data, width, height), 0, 0);
    return new Picture(canvas);
  }

  /** It in other numbers of pixels. */
  scaled(width, height) {
    return drawn(this.canvas, width, height);
  }

  /** Its file of this type; `quality` from 0 to 1 is for JPEG. */
  file(type, quality) {
    return fileOf(this.canvas, type, quality);
  }
}

/** A canvas as a file. */
export function fileOf(canvas, type, quality) {
  return new Promise((resolve, reject) => {
    const done = (blob) => (blob?.type === type ? resolve(blob) : reject(new Error(`this browser writes no ${type}`)));
    canvas.toBlob(done, type, quality);
  });
}

function drawn(source, width, height) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.fillStyle = "#fff";
  pen.fillRect(0, 0, width, height);
  pen.imageSmoothingQuality = "high";
  pen.drawImage(source, 0, 0, width, height);
  return canvas;
}
