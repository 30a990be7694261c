// One photo, as large as the window.

const dialog = document.querySelector("#viewer");
const picture = dialog.querySelector("img");

/** Show a card's photo until it is closed. */
export function enlarge({ file, path }) {
  picture.src = URL.createObjectURL(file);
  picture.alt = path;
  dialog.querySelector("h2").textContent = path;
  dialog.showModal();
}

dialog.addEventListener("click", () => dialog.close());
dialog.addEventListener("close", () => {
  URL.revokeObjectURL(picture.src);
  picture.removeAttribute("src");
});
