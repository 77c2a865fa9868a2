const [search, step, beside, only, sort, count, list] = ["search", "step", "beside", "only", "sort", "count", "rollouts"]
  .map((id) => document.getElementById(id));
const bodies = JSON.parse(document.getElementById("bodies").textContent);
const cards = [...list.children];
const words = new Map(cards.map((card, index) => [card, bodies[index][1]]));
const number = (card, key) => Number(card.dataset[key]);
const sampled = (a, b) => ["run", "step", "number"].map((key) => number(a, key) - number(b, key)).find(Boolean) || 0;
const orders = {
  number: sampled,
  high: (a, b) => number(b, "reward") - number(a, "reward") || sampled(a, b),
  low: (a, b) => number(a, "reward") - number(b, "reward") || sampled(a, b),
  spread: (a, b) => number(b, "spread") - number(a, "spread") || sampled(a, b),
};
const at = (card, place) => place === "all" || `${card.dataset.run}-${card.dataset.step}` === place;

cards.forEach((card, index) => card.addEventListener("toggle", () => {  // its text is built when it is first opened
  if (card.open && card.children.length === 1) card.insertAdjacentHTML("beforeend", bodies[index][0]);
}));

function fits(card) {
  return (only.value === "all" || card.dataset.kinds.split(" ").includes(only.value))
    && search.value.toLowerCase().split(/\s+/).every((word) => words.get(card).includes(word));
}

function pairs(left, right) {  // a line for each problem that both steps have
  const cell = (found) => {
    const column = document.createElement("div");
    column.append(...found);
    return column;
  };
  const of = (side, problem) => side.filter((card) => card.dataset.problem === problem);
  const both = [...new Set(left.map((card) => card.dataset.problem))].filter((problem) => of(right, problem).length);
  return both.flatMap((problem) => [cell(of(left, problem)), cell(of(right, problem))]);
}

function update() {
  const order = orders[sort.value];
  const found = (place) => cards.filter((card) => at(card, place) && fits(card)).sort(order);
  const shown = found(step.value);
  list.classList.toggle("beside", beside.value !== "none");
  if (beside.value === "none") {
    list.replaceChildren(...shown);
    count.textContent = `${shown.length} of ${cards.length} rollouts`;
  } else {
    const lines = step.value === beside.value ? [] : pairs(shown, found(beside.value));
    list.replaceChildren(...lines);
    const why = step.value === beside.value || step.value === "all" ? ": choose two steps" : "";
    const common = lines.length / 2;
    count.textContent = `${common} problem${common === 1 ? "" : "s"} that both have${why}`;
  }
}

function follow() {  // a link to a rollout
  const card = document.getElementById(location.hash.slice(1)) || cards.find((one) => `#${one.id}` === location.hash);
  if (!card) return;
  if (!card.isConnected) {
    for (const [control, value] of [[search, ""], [step, "all"], [beside, "none"], [only, "all"]]) control.value = value;
    update();
  }
  card.open = true;
  card.scrollIntoView();
}

for (const control of [step, beside, only, sort]) control.addEventListener("change", update);
search.addEventListener("input", update);
addEventListener("hashchange", follow);
update();
follow();
