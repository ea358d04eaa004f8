/* The server's HTTP API as this page uses it: GET /tasks and POST /segment, and their errors. */

/** A refused or failed request. `problem` has title, detail and remedy (RFC 9457), and retryAfterS where it is known. */
export class ProblemError extends Error {
  constructor(problem) {
    super(problem.title);
    this.problem = problem;
  }
}

/** Addresses are relative to the page, so that it also works below a path prefix. */
const addressOf = (path) => new URL(path, document.baseURI);

/** Keeps the members that the page shows; whatever else came, or didn't, is made sense of here. */
export function readableProblem(body, fallbackTitle) {
  const text = (value) => (typeof value === "string" ? value : "");
  return { title: text(body?.title) || fallbackTitle, detail: text(body?.detail), remedy: text(body?.remedy) };
}

async function problemOf(response) {
  const body = await response.json().catch(() => null);
  const problem = readableProblem(body, `The server answered with status ${response.status}`);
  const retryAfterS = Number(response.headers.get("Retry-After"));
  if (retryAfterS > 0) {
    problem.retryAfterS = retryAfterS;
    problem.remedy = `The server expects to have room in ${retryAfterS} ${retryAfterS === 1 ? "second" : "seconds"}.`;
  }
  return problem;
}

/** The response to a request that was accepted. Throws a ProblemError for every other one. */
async function ask(url, options) {
  let response;
  try {
    response = await fetch(url, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ProblemError({
      title: "The server can’t be reached",
      detail: `Nothing answered at ${url.origin}.`,
      remedy: "Check that it is running (polyhead serve), then try again.",
    });
  }
  if (!response.ok) throw new ProblemError(await problemOf(response));
  return response;
}

/** What `read()` reads from a response. */
async function whole(read) {
  try {
    return await read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ProblemError({
      title: "The answer could not be read",
      detail: "The server’s answer broke off or was not JSON.",
      remedy: "Try again; if it stays, look into the server’s log.",
    });
  }
}

/** What the server has loaded: bundle, encoder, default_tasks, tasks. */
export async function fetchTasks() {
  const response = await ask(addressOf("tasks"));
  return whole(() => response.json());
}

/** Where a request goes: { tasks, format, options }, options by their names in the API, only those that are set. */
function segmentUrl({ tasks, format = "json", options }) {
  const set = Object.entries(options).map(([name, value]) => `&${name}=${value}`);
  return addressOf(`segment?tasks=${tasks.map(encodeURIComponent).join(",")}&format=${format}${set.join("")}`);
}

/** Media type of the upload; a file without a known ending has none. */
const contentType = (file) => file.type || "application/octet-stream";

const post = (file, asked, signal) =>
  ask(segmentUrl(asked), { method: "POST", headers: { "Content-Type": contentType(file) }, body: file, signal });

/** Sends one picture, as it is, to the tasks of `asked`: { tasks, options }. */
export async function segment(file, asked, signal) {
  const response = await post(file, asked, signal);
  return whole(() => response.json());
}

/** The same in another format, `asked.format`, as a Blob. */
export async function segmentAs(file, asked) {
  const response = await post(file, asked);
  return whole(() => response.blob());
}

const shellQuote = (text) => `'${text.replaceAll("'", String.raw`'\''`)}'`;

/** The very request of `segment` or `segmentAs`, as a command line that writes `out`. */
export function curlCommand(file, asked, out) {
  return [
    `curl -X POST ${shellQuote(segmentUrl(asked).href)}`,
    `  -H ${shellQuote(`Content-Type: ${contentType(file)}`)}`,
    `  --data-binary ${shellQuote(`@${file.name}`)}`,
    `  -o ${shellQuote(out)}`,
  ].join(" \\\n");
}

/** The command line that runs the tasks on a whole clip. */
export function clipCommand(file, tasks) {
  return [
    `polyhead video ${shellQuote(file.name)}`,
    `  --tasks ${tasks.join(",")}`,
    `  --url ${shellQuote(addressOf(".").href.replace(/\/$/, ""))}`,
    "  --out annotated.mp4",
  ].join(" \\\n");
}
