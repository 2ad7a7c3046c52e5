"use strict";
/* A live curve tells how high it is: see the end of report.js. */
window.addEventListener("message", (event) => {
  for (const frame of document.querySelectorAll("iframe.live")) {
    const height = Number(event.data && event.data.height);
    if (event.source === frame.contentWindow && height > 0) frame.style.height = `${height}px`;
  }
});
