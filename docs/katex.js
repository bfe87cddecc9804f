// Formulas of a page: arithmatex marks them, KaTeX draws them. Without a network they
// stay readable as TeX.
document$.subscribe(({ body }) => {
  if (typeof renderMathInElement === "undefined") return;
  for (const element of body.querySelectorAll(".arithmatex")) {
    renderMathInElement(element, {
      delimiters: [
        { left: "$$", right: "$$", display: true },
        { left: "\\(", right: "\\)", display: false },
        { left: "\\[", right: "\\]", display: true },
      ],
    });
  }
});
