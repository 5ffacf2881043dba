"use strict";
document.documentElement.classList.add("js");

const all = (selector) => [...document.querySelectorAll(selector)];
const press = (buttons, chosen) => buttons.forEach((b) => b.setAttribute("aria-pressed", String(b === chosen)));

// ---- sorting: cards and rows carry their numbers as data attributes
const sorters = all("[data-sort]");
for (const button of sorters) {
  button.addEventListener("click", () => {
    const { sort, order } = button.dataset;
    const value = (element) => {
      const number = Number(element.dataset[sort]);
      return Number.isNaN(number) ? Infinity : Number(order) * number;
    };
    for (const box of all(".cards, .rows")) {
      box.append(...[...box.children].sort((a, b) => value(a) - value(b)));
    }
    press(sorters, button);
  });
}
