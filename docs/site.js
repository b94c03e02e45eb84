// What the theme leaves out for people who use a keyboard or a screen reader.
document$.subscribe(() => {
  for (const box of document.querySelectorAll(".md-typeset__scrollwrap, pre > code, .highlight-ipynb, .jp-OutputArea-output"))
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
  document.querySelectorAll(".md-code__nav").forEach((bar, i) => bar.setAttribute("aria-label", `Code block ${i + 1}`));
  document.querySelectorAll("nav.md-nav[data-md-level='1']").forEach((bar) => {
    const title = bar.querySelector(".md-nav__title");
    if (title) bar.setAttribute("aria-label", title.textContent.trim());
  });
  document.querySelector('.md-search[role="dialog"]')?.setAttribute("aria-label", "Search");
});
