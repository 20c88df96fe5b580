// Keeps the choice in the URL's fragment, as #shared-postgresql-asyncpg, with -install or -path at
// its end if one of these is chosen, and the driver among those of the template. What is shown is
// the work of chooser.css.
"use strict";

const form = document.getElementById("chooser");
const chosen = (name) => form.querySelector(`[name=${name}]:checked`);

function possible(driver) {
  return driver.closest("span").classList.contains(`if-${chosen("template").value}`);
}

function chooseDriver() {
  const driver = chosen("driver");
  if (!possible(driver)) {
    // Each database has a driver for each template.
    const others = driver.closest("div").querySelectorAll("input");
    [...others].find(possible).checked = true;
  }
}

function readFragment() {
  const values = new Set(["init", ...location.hash.slice(1).split("-")]);
  for (const input of form.querySelectorAll("input")) {
    if (values.has(input.value)) {
      input.checked = true;
    }
  }
  chooseDriver();
}

function writeFragment() {
  chooseDriver();
  const driver = chosen("driver");
  const database = driver.closest("div").dataset.database;
  const parts = [chosen("template").value, database, driver.value];
  if (chosen("how").value !== "init") {
    parts.push(chosen("how").value);
  }
  history.replaceState(null, "", `#${parts.join("-")}`);
}

form.addEventListener("change", writeFragment);
addEventListener("hashchange", readFragment);
readFragment();
writeFragment();
