"""Drawing: tables, plots and pages as values, on a page and a terminal; the canvas of figures; Markdown."""
