"use strict";
// Chooses, orders and pages the replies side by side. Without it the page shows the first ones and keeps the others in
// a fold; nothing is fetched and nothing is written.
for (const box of document.querySelectorAll(".replies")) {
  const list = box.querySelector(".list"), fold = box.querySelector(".fold"), more = box.querySelector(".more");
  const found = box.querySelector(".found"), search = box.querySelector("[type=search]"), sort = box.querySelector(".sort");
  const choices = [...box.querySelectorAll("select[data-by]")], step = list.children.length;
  if (fold) {
    list.append(...fold.querySelectorAll(".exchange"));
    fold.remove();
  }
  const all = [...list.children], text = new Map(all.map((one) => [one, one.textContent.toLowerCase()]));
  const number = (one, name) => Number(one.dataset[name]) || 0;
  const orders = {
    given: () => 0,
    best: (a, b) => number(b, "gain") - number(a, "gain"),
    worst: (a, b) => number(a, "gain") - number(b, "gain"),
    longest: (a, b) => text.get(b).length - text.get(a).length,
  };
  let room = step;
  const show = () => {
    const words = search.value.trim().toLowerCase();
    const wanted = (one) =>
      choices.every((by) => !by.value || one.dataset[by.dataset.by] === by.value) && text.get(one).includes(words);
    const chosen = all.filter(wanted).sort(orders[sort.value]);
    for (const one of all) one.hidden = true;
    chosen.forEach((one, at) => {
      one.hidden = at >= room;
      list.append(one);
    });
    found.textContent = `${chosen.length} of ${all.length}`;
    more.hidden = chosen.length <= room;
    more.textContent = `Show ${Math.min(step, chosen.length - room)} more`;
  };
  const anew = () => {
    room = step;
    show();
  };
  for (const one of [...choices, sort]) one.addEventListener("change", anew);
  search.addEventListener("input", anew);
  more.addEventListener("click", () => {
    room += step;
    show();
  });
  box.querySelector(".controls").hidden = false;
  show();
}
