/* The site's search runs in a worker, which browsers refuse to a page that was opened as a file. There, a frame runs the
   worker's script: it has the two functions that the script uses, addEventListener and postMessage. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    #ready

    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.append(frame)
      const inside = frame.contentWindow
      inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      const script = inside.document.createElement("script")
      script.src = new URL(url, document.baseURI)
      this.#ready = new Promise(resolve => script.addEventListener("load", () => resolve(inside)))
      inside.document.body.append(script)
    }

    postMessage(data) {
      this.#ready.then(inside => inside.dispatchEvent(new MessageEvent("message", { data })))
    }
  }
}
