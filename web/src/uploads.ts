// Uploaded images of this tab: a small preview, and the vector by which a run asks for the image again after a reload.

import { Refused } from "./api";

const SIDE = 160; // pixels of a preview
const KEPT = 20; // uploads

export interface Upload {
  name: string;
  preview: string; // a data URL; empty where the browser cannot show the format
  vectors: Record<string, number[]>; // by run and version
}

const files = new Map<string, Blob>();
const PREFIX = "upload-";

/** Keep an image; gives the key that the URL names it by. */
export async function keep(image: Blob, name: string): Promise<string> {
  const key = crypto.randomUUID ? crypto.randomUUID().slice(0, 8) : String(Date.now());
  files.set(key, image);
  write(key, { name, preview: await previewOf(image), vectors: {} });
  return key;
}

export function read(key: string): Upload | null {
  try {
    return JSON.parse(sessionStorage.getItem(PREFIX + key) ?? "null") as Upload | null;
  } catch {
    return null;
  }
}

/** The image itself; raises where the tab was reloaded since. */
export function fileOf(key: string): Blob {
  const file = files.get(key);
  if (!file) throw new Refused("This image was dropped in another tab, or for another run: drop it again.");
  return file;
}

export function remember(key: string, where: string, vector: number[]): void {
  const upload = read(key);
  if (upload) write(key, { ...upload, vectors: { ...upload.vectors, [where]: vector } });
}

function write(key: string, upload: Upload): void {
  try {
    sessionStorage.setItem(PREFIX + key, JSON.stringify(upload));
    for (const old of Object.keys(sessionStorage).filter((one) => one.startsWith(PREFIX) && one !== PREFIX + key).slice(KEPT))
      sessionStorage.removeItem(old);
  } catch {
    // no room, or none allowed: the image is kept until the page is left
  }
}

async function previewOf(image: Blob): Promise<string> {
  try {
    const bitmap = await createImageBitmap(image);
    const times = Math.min(1, SIDE / Math.min(bitmap.width, bitmap.height));
    const canvas = document.createElement("canvas");
    canvas.width = Math.max(1, Math.min(2 * SIDE, Math.round(bitmap.width * times)));
    canvas.height = Math.max(1, Math.min(2 * SIDE, Math.round(bitmap.height * times)));
    canvas.getContext("2d")?.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    return canvas.toDataURL(times < 1 ? "image/jpeg" : "image/png", 0.85);
  } catch {
    return "";
  }
}
