"use strict";
// The theme, the galleries (filter, search, pages), and, where the page is served, its refresh.
(() => {
  const root = document.documentElement, button = document.getElementById("theme");
  const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const show = () => { button.textContent = dark() ? "light" : "dark"; };
  button.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; show(); });
  show();

  for (const gallery of document.querySelectorAll("[data-gallery]")) {
    const cards = [...gallery.querySelectorAll(".card")], size = 12;
    const search = gallery.querySelector("input"), filters = [...gallery.querySelectorAll("[data-filter]")];
    const [back, next] = gallery.querySelectorAll("[data-page]"), place = gallery.querySelector("output");
    let page = 0, kind = "";
    const draw = () => {
      const words = search.value.toLowerCase();
      const found = cards.filter(c => (!kind || c.dataset.kind === kind) && c.textContent.toLowerCase().includes(words));
      const pages = Math.max(1, Math.ceil(found.length / size));
      page = Math.min(page, pages - 1);
      const shown = new Set(found.slice(page * size, (page + 1) * size));
      for (const card of cards) card.hidden = !shown.has(card);
      place.textContent = `${found.length} of ${cards.length}, page ${page + 1} of ${pages}`;
      back.disabled = page === 0; next.disabled = page >= pages - 1;
    };
    for (const filter of filters) filter.addEventListener("click", () => {
      kind = filter.dataset.filter; page = 0;
      for (const other of filters) other.setAttribute("aria-pressed", other === filter);
      draw();
    });
    search.addEventListener("input", () => { page = 0; draw(); });
    back.addEventListener("click", () => { page--; draw(); });
    next.addEventListener("click", () => { page++; draw(); });
    draw();
  }
})();
