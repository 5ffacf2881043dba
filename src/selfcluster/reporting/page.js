"use strict";
document.documentElement.classList.add("js");

const all = (selector) => [...document.querySelectorAll(selector)];
const press = (buttons, chosen) => buttons.forEach((b) => b.setAttribute("aria-pressed", String(b === chosen)));

// ---- sorting: cards and rows carry their numbers as data attributes
const sorters = all("[data-sort]"), agreement = document.getElementById("agreement");
function sortClusters(by, order, button) {
  const value = (element) => {
    const number = Number(element.dataset[by]);
    return Number.isNaN(number) ? Infinity : order * number;
  };
  for (const box of all(".cards, .rows")) {
    box.append(...[...box.children].sort((a, b) => value(a) - value(b)));
  }
  press(sorters, button);
}
for (const button of sorters) {
  button.addEventListener("click", () => {
    sortClusters(button.dataset.sort, Number(button.dataset.order), button);
    if (agreement) agreement.value = "";
  });
}
if (agreement) agreement.addEventListener("change", () => agreement.value && sortClusters(agreement.value, -1, null));

// ---- what scrolls sideways is reached by the keyboard
const scrollers = all("pre, .scroll, code");
new ResizeObserver(() => scrollers.forEach((box) => {
  if (box.scrollWidth > box.clientWidth && box.clientWidth) box.tabIndex = 0;
  else box.removeAttribute("tabindex");
})).observe(document.documentElement);
