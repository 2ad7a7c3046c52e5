"use strict";
/* A live curve tells how high it is: see the end of report.js. */
window.addEventListener("message", (event) => {
  for (const frame of document.querySelectorAll("iframe.live")) {
    const height = Number(event.data && event.data.height);
    if (event.source === frame.contentWindow && height > 0) frame.style.height = `${height}px`;
  }
});

/* What scrolls can take the focus, and each block's buttons are a landmark with a name of its own. */
let blocks = 0;
function nameBlocks() {
  for (const box of document.querySelectorAll("pre > code, .md-typeset__scrollwrap")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
  }
  for (const buttons of document.querySelectorAll("nav.md-code__nav:not([aria-label])")) {
    blocks += 1;
    buttons.setAttribute("aria-label", `Buttons of code block ${blocks}`);
  }
}
document.addEventListener("DOMContentLoaded", () => {
  nameBlocks();
  new MutationObserver(nameBlocks).observe(document.body, { childList: true, subtree: true });
});
window.addEventListener("resize", nameBlocks);
