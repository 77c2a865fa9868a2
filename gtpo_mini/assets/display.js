const [step, only, sort, count, list] = ["step", "only", "sort", "count", "rollouts"].map((id) => document.getElementById(id));
const cards = [...list.children];
const number = (card, key) => Number(card.dataset[key]);
const sampled = (a, b) => number(a, "step") - number(b, "step") || number(a, "number") - number(b, "number");
const orders = {
  number: sampled,
  high: (a, b) => number(b, "reward") - number(a, "reward") || sampled(a, b),
  low: (a, b) => number(a, "reward") - number(b, "reward") || sampled(a, b),
  spread: (a, b) => number(b, "spread") - number(a, "spread") || sampled(a, b),
};
function update() {
  const shown = cards.filter((card) => (step.value === "all" || card.dataset.step === step.value)
    && (only.value === "all" || card.dataset.right === only.value));
  list.replaceChildren(...shown.sort(orders[sort.value]));
  count.textContent = `${shown.length} of ${cards.length} rollouts`;
}
for (const control of [step, only, sort]) control.addEventListener("change", update);
update();
