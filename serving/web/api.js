/* The server's HTTP API as this page uses it: GET /tasks and POST /segment, and their errors. */

const RETRY_HINT_STATUSES = new Set([429, 503]);

/** A refused or failed request. `problem` has title, detail and remedy (RFC 9457 members), ready to be shown. */
export class ProblemError extends Error {
  constructor(problem) {
    super(problem.title);
    this.problem = problem;
  }
}

/** Addresses are relative to the page, so that it also works below a path prefix. */
const addressOf = (path) => new URL(path, document.baseURI);

/** Keeps the three members the page shows; whatever else came, or didn't, is made sense of here. */
export function readableProblem(body, fallbackTitle) {
  const text = (value) => (typeof value === "string" ? value : "");
  return { title: text(body?.title) || fallbackTitle, detail: text(body?.detail), remedy: text(body?.remedy) };
}

async function problemOf(response) {
  const body = await response.json().catch(() => null);
  const problem = readableProblem(body, `The server answered with status ${response.status}`);
  const retryAfterS = Number(response.headers.get("Retry-After"));
  if (!problem.remedy && RETRY_HINT_STATUSES.has(response.status) && retryAfterS > 0) {
    problem.remedy = `Try again in ${retryAfterS} ${retryAfterS === 1 ? "second" : "seconds"}.`;
  }
  return problem;
}

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
  try {
    return await response.json();
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
export const fetchTasks = () => ask(addressOf("tasks"));

const segmentUrl = (taskNames) =>
  addressOf(`segment?tasks=${taskNames.map(encodeURIComponent).join(",")}&format=json`);

/** Media type of the upload; a file without a known ending has none. */
const contentType = (file) => file.type || "application/octet-stream";

/** Sends one picture, as it is, to the named tasks. */
export function segment(file, taskNames, signal) {
  return ask(segmentUrl(taskNames), {
    method: "POST",
    headers: { "Content-Type": contentType(file) },
    body: file,
    signal,
  });
}

const shellQuote = (text) => `'${text.replaceAll("'", String.raw`'\''`)}'`;

/** The very request of `segment`, as a command line. */
export function curlCommand(file, taskNames) {
  return [
    `curl -X POST ${shellQuote(segmentUrl(taskNames).href)}`,
    `  -H ${shellQuote(`Content-Type: ${contentType(file)}`)}`,
    `  --data-binary ${shellQuote(`@${file.name}`)}`,
  ].join(" \\\n");
}
