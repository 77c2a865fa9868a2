// Looks numbers up and shows them: what they are was computed by Credit, in Python.
const data = JSON.parse(document.getElementById("data").textContent);
const names = Object.keys(data.axes);
const control = Object.fromEntries(names.map((name) => [name, document.getElementById(name)]));
const tabs = [...document.querySelectorAll("input[name=group]")];
const buttons = [...document.querySelectorAll("[data-arm]")];
const sections = [...document.querySelectorAll("section")];
const summary = document.getElementById("summary");
// The place of a setting among all settings of the first axes.
const at = (places, axes) => places.slice(0, axes).reduce((sum, place, i) => sum * data.axes[names[i]].length + place, 0);
const text = (number) => (number < 0 ? "\u2212" : number > 0 ? "+" : "") + Math.abs(number).toFixed(2);
const mean = (numbers) => numbers.reduce((sum, number) => sum + number, 0) / numbers.length;

function sentence(turns) {
  if (turns.every((turn) => turn.advantage === 0)) return "Every advantage is 0: this group teaches nothing.";
  const right = turns.filter((turn) => turn.right);
  const broken = ["broken calls", turns.filter((turn) => turn.failed)];
  const parts = right.length
    ? [["right rollouts' first turns", right.filter((turn) => turn.first)], ["their last turns", right.filter((turn) => turn.last)],
      broken, ["last turn of the nearest miss", turns.filter((turn) => turn.last && !turn.right).slice(0, 1)]]
    : [broken, ["all other turns", turns.filter((turn) => !turn.failed)]];
  const found = parts.filter(([, some]) => some.length).map(([name, some]) => `${name} ${text(mean(some.map((turn) => turn.advantage)))}`);
  return (right.length ? "On average: " : "No rollout is right. On average: ") + found.join("; ") + ".";
}

function update() {
  const places = names.map((name) => Number(control[name].value));
  const chosen = tabs.findIndex((tab) => tab.checked);
  const group = data.groups[chosen];
  const row = (kind, axes) => group.rows[group[kind][at(places, axes)]];
  const rows = { reward: row("rewards", 3), return: row("returns", 4), advantage: row("advantages", 6) };
  sections.forEach((section, i) => { section.hidden = i !== chosen; });
  const turns = [...sections[chosen].querySelectorAll(".turn")].map((cell, i) => {
    const number = (kind) => rows[kind][group.turns[i]] / 1000;
    const advantage = number("advantage");
    cell.querySelector(".reward").textContent = text(number("reward"));
    cell.querySelector(".return").textContent = data.axes.returns[places[4]] ? text(number("return")) : "not used";
    cell.querySelector(".advantage").textContent = text(advantage);
    const strength = Math.min(Math.abs(advantage) / 2, 1);
    cell.classList.toggle("up", advantage > 0);
    cell.classList.toggle("down", advantage < 0);
    cell.style.setProperty("--a", `${45 * strength}%`);
    const bar = cell.querySelector(".bar i");
    bar.style.left = `${advantage < 0 ? 50 - 50 * strength : 50}%`;
    bar.style.width = `${50 * strength}%`;
    const facts = { first: cell.previousElementSibling.matches("header"), last: !cell.nextElementSibling };
    return { ...facts, advantage, failed: cell.dataset.failed === "1", right: cell.parentElement.dataset.right === "1" };
  });
  summary.textContent = sentence(turns);
  names.forEach((name, axis) => {
    const value = data.axes[name][places[axis]];
    const shown = control[name].closest(".control");
    const other = (place) => group.advantages[at(places.map((mine, i) => (i === axis ? place : mine)), 6)];
    shown.classList.toggle("idle", data.axes[name].every((_, place) => other(place) === other(places[axis])));
    if (control[name].type === "range") {
      shown.querySelector("output").textContent = value;
      control[name].setAttribute("aria-valuetext", value);
    }
  });
  for (const button of buttons) button.setAttribute("aria-pressed", String(data.arms[button.dataset.arm].join() === places.join()));
}

for (const one of [...Object.values(control), ...tabs]) one.addEventListener("input", update);
for (const button of buttons) {
  button.addEventListener("click", () => {
    data.arms[button.dataset.arm].forEach((place, axis) => control[names[axis]].value = place);
    update();
  });
}
update();
