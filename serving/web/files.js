// Photos out of what a browser hands over: a chooser, a drop with folders in it, the clipboard.

// What a folder has beside photos is passed over; files that were chosen by themselves are not.
const PICTURE = /\.(jpe?g?|jfif|png|webp|gif|bmp|avif|hei[cf]|hif)$/i;
const order = new Intl.Collator("en", { numeric: true });

/** The photos among files, each a `file` and its `path`. */
export function photos(files) {
  return inOrder([...files].map((file) => ({ file, path: file.webkitRelativePath || file.name })));
}

/** The photos in a drop, those in its folders too. */
export async function dropped({ items, files }) {
  // The browser forgets the entries after the first wait.
  const entries = [...items].map((item) => item.webkitGetAsEntry()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) return photos(files);
  return inOrder((await Promise.all(entries.map(inside))).flat());
}

function inOrder(found) {
  if (found.every(({ file, path }) => path === file.name)) return found;
  return found
    .filter(({ file, path }) => path === file.name || PICTURE.test(path))
    .sort((one, other) => order.compare(one.path, other.path));
}

async function inside(entry) {
  if (entry.isFile) {
    const file = await new Promise((resolve) => entry.file(resolve, () => resolve(null)));
    return file ? [{ file, path: entry.fullPath.slice(1) }] : [];
  }
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    const some = await new Promise((resolve) => reader.readEntries(resolve, () => resolve([])));
    if (!some.length) return found;
    for (const one of some) found.push(...(await inside(one)));
  }
}
