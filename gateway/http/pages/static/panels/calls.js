// The same run as a call of curl, or of the Python client. Pure.

/** @typedef {{url: string, code: string, language: string, sessionId: string, needsToken: boolean}} Call */

/** For a POSIX shell. The token comes from the environment, and is in no history. @param {Call} call */
export function curlCall({ url, code, language, sessionId, needsToken }) {
  const body = {
    code,
    ...(language === "python" ? {} : { language }),
    ...(sessionId ? { session_id: sessionId } : {}),
  };
  const words = [`curl ${quoted(`${url}/runcode`)}`, "-H 'Content-Type: application/json'"];
  if (needsToken) words.push('-H "Authorization: Bearer $CELLBLOCK_TOKEN"');
  words.push(`-d ${quoted(JSON.stringify(body))}`);
  return `${words.join(" \\\n  ")}\n`;
}

/** For a machine with the client, whose token comes from CELLBLOCK_TOKEN. @param {Call} call */
export function pythonCall({ url, code, language, sessionId }) {
  const given = [
    pythonText(code),
    ...(language === "python" ? [] : [`language=${JSON.stringify(language)}`]),
    ...(sessionId ? [`session_id=${JSON.stringify(sessionId)}`] : []),
  ];
  return `from gateway.client import Client

client = Client(${JSON.stringify(url)})
result = client.run(
${given.map((text) => `    ${text},\n`).join("")})
print(result.output, result.text or "")
if result.error:
    print(result.error)
for name, image in result.images.items():
    print(name, image.url)
`;
}

/** @param {string} text */
function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

/** A literal with a line of source for each line of code. JSON's strings are Python's too. @param {string} code */
function pythonText(code) {
  const parts = code.split(/(?<=\n)/).map((line) => JSON.stringify(line));
  return parts.length < 2 ? JSON.stringify(code) : parts.join("\n    ");
}
