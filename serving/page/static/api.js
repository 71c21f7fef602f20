// Calls of the service's own public API, with the key that the page was given.

export class Refused extends Error {
  constructor(status, body) {
    super(body?.error?.message ?? `the service answered with status ${status}`);
    this.status = status;
  }
}

export class Api {
  key = "";

  async models() {
    return (await this.#call("GET", "/v1/models")).data;
  }

  async samples() {
    return this.#call("GET", "/samples");
  }

  // Which tokens are kept, with the frames that were sampled.
  async compress(request) {
    return this.#call("POST", "/v1/compress", { ...request, include: ["frames"] });
  }

  async answer(request) {
    const completion = await this.#call("POST", "/v1/chat/completions", { ...request, max_tokens: 64 });
    return { text: completion.choices[0].message.content.trim(), usage: completion.usage };
  }

  async #call(method, path, body) {
    const headers = this.key ? { Authorization: `Bearer ${this.key}` } : {};
    if (body) headers["Content-Type"] = "application/json";
    const response = await fetch(path, { method, headers, body: body && JSON.stringify(body) });
    const content = await response.json().catch(() => null);
    if (!response.ok) throw new Refused(response.status, content);
    return content;
  }
}

export function messages(videoUrl, question) {
  const video = { type: "video_url", video_url: { url: videoUrl } };
  return [{ role: "user", content: [video, { type: "text", text: question }] }];
}
