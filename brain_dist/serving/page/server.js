// Asks the service that this page came from. Another source of answers, such as a network in the browser, offers the
// same three functions: describe(), predict(file, progress) and explain(file, frame), and throws the same errors.

/** A refusal: `kind` is offline, busy, unauthorized or refused; `seconds` says when to try again. */
export class Refusal extends Error {
  constructor(kind, detail, { title = "", seconds = 0, status = 0 } = {}) {
    super(detail);
    Object.assign(this, { kind, title, seconds, status });
  }
}

export class Server {
  remote = true; // the images leave this browser
  formats = "JPEG, PNG, TIFF, DICOM or NIfTI.";
  #token = "";

  /** The access token for all further requests; it is kept in this page's memory only. */
  set token(text) {
    this.#token = text.trim();
  }

  /** What is served: classes, limits, calibration. */
  async describe() {
    return this.#ask("v1/model", {});
  }

  /** The predictions of a file, whose slices the service predicts together: it does not report progress. */
  async predict(file) {
    return (await this.#send("v1/predict", file)).predictions;
  }

  /** What the network saw of a slice, and a map for each class; PNG files as data URLs. */
  async explain(file, frame) {
    const answer = await this.#send(`v1/explain${Number.isInteger(frame) ? `?frame=${frame}` : ""}`, file);
    const url = (png) => `data:image/png;base64,${png}`;
    const maps = Object.fromEntries(Object.entries(answer.maps).map(([name, png]) => [name, url(png)]));
    return { frame: answer.frame, image: url(answer.image), maps };
  }

  async #send(path, file) {
    // the name stays here: the service decides by the content
    return this.#ask(path, { method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" } });
  }

  async #ask(path, { headers = {}, ...options }) {
    if (/[^!-~]/.test(this.#token)) throw new Refusal("unauthorized", "This is not an access token."); // no header can have it
    if (this.#token) headers.Authorization = `Bearer ${this.#token}`;
    let response;
    try {
      response = await fetch(path, { ...options, headers, cache: "no-store" });
    } catch {
      throw new Refusal("offline", "The service cannot be reached.");
    }
    if (response.ok) {
      return response.json().catch(() => {
        throw new Refusal("offline", "The answer is not one of the service; reload the page in case a proxy asks you to sign in.");
      });
    }
    const problem = await response.json().catch(() => ({}));
    const kinds = { 401: "unauthorized", 503: "busy" };
    throw new Refusal(kinds[response.status] ?? "refused", problem.detail ?? `The service answered ${response.status}.`, {
      title: problem.title,
      status: response.status,
      seconds: Number(response.headers.get("Retry-After")) || 1,
    });
  }
}
