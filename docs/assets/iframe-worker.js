"use strict";
/* Opened from disk, a browser starts no workers: a hidden frame runs the search instead. */
if (location.protocol === "file:") {
  window.Worker = class {
    onmessage = null;
    onmessageerror = null;
    onerror = null;

    constructor(url) {
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.append(this.frame);
      const inner = this.frame.contentWindow;
      inner.postMessage = (sent) => {
        const data = structuredClone(sent);
        setTimeout(() => this.onmessage && this.onmessage({ data }));
      };
      const script = inner.document.createElement("script");
      this.ready = new Promise((resolve, reject) => {
        script.onload = resolve;
        script.onerror = reject;
      });
      this.ready.catch((error) => this.onerror && this.onerror(error));
      script.src = String(url);
      inner.document.head.append(script);
    }

    postMessage(sent) {
      const data = structuredClone(sent);
      this.ready.then(() => this.frame.contentWindow.onmessage({ data }), () => {});
    }

    terminate() { this.frame.remove(); }
  };
}
