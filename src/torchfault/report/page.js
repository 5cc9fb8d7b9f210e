"use strict";
(() => {
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const shown = () => root.dataset.theme || (dark.matches ? "dark" : "light");
  const label = () => { button.textContent = shown() === "dark" ? "Light theme" : "Dark theme"; };
  button.addEventListener("click", () => { root.dataset.theme = shown() === "dark" ? "light" : "dark"; label(); });
  dark.addEventListener("change", label);
  button.hidden = false;
  label();
})();
