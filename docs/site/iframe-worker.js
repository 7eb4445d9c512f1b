/* Browsers start no worker from a file, so a site that is opened as a folder would have no search.
   There a hidden frame stands for the worker; on a server this does nothing. The name is what keeps
   the theme from fetching a script for the same purpose from elsewhere. */
if (location.protocol === "file:") {
  window.Worker = class {
    constructor(url) {
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.ready = new Promise((resolve) => {
        this.frame.addEventListener("load", () => resolve(this.start(url)), { once: true });
      });
      document.body.append(this.frame);
    }

    async start(url) {
      const inside = this.frame.contentWindow;
      inside.postMessage = (data) => setTimeout(() => this.onmessage?.({ data }));
      const script = inside.document.createElement("script");
      script.src = url;
      await new Promise((resolve, reject) => {
        script.addEventListener("load", resolve);
        script.addEventListener("error", reject);
        inside.document.body.append(script);
      }).catch((error) => this.onerror?.(error));
      return inside;
    }

    postMessage(data) {
      this.ready.then((inside) => inside.onmessage({ data: structuredClone(data) }));
    }

    terminate() {
      this.frame.remove();
    }
  };
}
