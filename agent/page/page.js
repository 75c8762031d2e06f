"use strict";
// Filter and sort of the table. Without this the page says the same.
const table = document.getElementById("experiments");
const body = table.tBodies[0];
const rows = [...body.rows];
const find = document.getElementById("find");
const outcome = document.getElementById("outcome");

function filter() {
  const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    const right = !outcome.value || row.dataset.outcome === outcome.value;
    row.hidden = !(right && words.every((word) => text.includes(word)));
  }
  const shown = rows.filter((row) => !row.hidden).length;
  document.getElementById("shown").value = `${shown} of ${rows.length}`;
}

// Rows without a value stay last, in both directions.
function compare(a, b, numbers) {
  if (a === "" || b === "") return (a === "") - (b === "");
  return numbers ? a - b : a.localeCompare(b);
}

function sort(header) {
  const column = header.cellIndex;
  const numbers = header.dataset.kind === "number";
  const falling = header.getAttribute("aria-sort") === "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", falling ? "descending" : "ascending");
  const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
  const sorted = [...rows].sort((one, other) => {
    const [a, b] = [value(one), value(other)];
    return compare(a, b, numbers) * (falling && a !== "" && b !== "" ? -1 : 1);
  });
  body.append(...sorted);
}

for (const header of table.tHead.rows[0].cells) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...header.childNodes);
  button.addEventListener("click", () => sort(header));
  header.append(button);
}
find.addEventListener("input", filter);
outcome.addEventListener("input", filter);
find.form.addEventListener("submit", (event) => event.preventDefault());
find.form.hidden = false;
filter();
