// What the supervisor has a new Deno kernel run, silently, before any code of a user.
//
// Deno publishes output from another thread: it may come after the `idle`, and what it cannot send in time it keeps in
// memory without bound. So whatever is printed or displayed goes through a pipe to the supervisor instead, a line of
// JSON for each message (kernel_pipes.py), and the code waits while that is full. What is left at the end, under
// Symbol.for("cellblock"), is called by the supervisor (prepared_kernel.py) and the gateway (sessions/languages.py).
(() => {
  const internal = Deno[Deno.internal];
  const { jupyter } = Deno;
  const { parse, stringify } = JSON;
  const { defineProperty, entries, is } = Object;
  const { getBuiltinModule } = process;
  const VARIABLE = "CELLBLOCK_MESSAGES_FD";
  const LONGEST_TEXT = 32768;

  const pipe = Deno.openSync(`/proc/self/fd/${Deno.env.get(VARIABLE)}`, { write: true });
  Deno.env.delete(VARIABLE);
  const encoder = new TextEncoder();

  // What was noticed before the code of a run, and belongs to it.
  const notices = [];

  function publish(type, content, metadata = {}) {
    while (notices.length) publish("stream", { name: "stderr", text: `[cellblock] ${notices.shift()}\n` });
    const line = encoder.encode(stringify({ type, content, metadata }) + "\n");
    for (let at = 0; at < line.length;) at += pipe.writeSync(line.subarray(at));
  }

  // --- Output ---

  function print(name, text) {
    for (let at = 0; at < text.length; at += LONGEST_TEXT) {
      publish("stream", { name, text: text.slice(at, at + LONGEST_TEXT) });
    }
  }

  const decoders = { stdout: new TextDecoder(), stderr: new TextDecoder() };
  function printBytes(name, bytes) {
    print(name, decoders[name].decode(bytes, { stream: true }));
    return bytes.length;
  }

  // Levels from 2 on are warnings and errors.
  const console = new internal.Console((text, level) => print(level > 1 ? "stderr" : "stdout", text));
  for (const name of Reflect.ownKeys(console)) {
    const property = Object.getOwnPropertyDescriptor(console, name);
    if (typeof property.value === "function") Object.defineProperty(globalThis.console, name, property);
  }

  // The kernel reads what its own standard streams get, and shows it nowhere. Child processes and workers inherit them.
  function connectStandardStreams() {
    const fs = getBuiltinModule("node:fs");
    const libc = Deno.dlopen("libc.so.6", { dup2: { parameters: ["i32", "i32"], result: "i32" } });
    for (const stream of [1, 2]) {
      const inner = `pipe:[${fs.fstatSync(stream).ino}]`;
      for (const { name } of Deno.readDirSync("/proc/self/fd")) {
        try {
          const isWritten = /^flags:\s*\d*1$/m.test(Deno.readTextFileSync(`/proc/self/fdinfo/${name}`));
          if (isWritten && Deno.readLinkSync(`/proc/self/fd/${name}`) === inner) {
            libc.symbols.dup2(stream, Number(name));
          }
        } catch {
          // it has been closed meanwhile
        }
      }
    }
    libc.symbols.dup2(0, 2); // what Deno itself says is for nobody; standard input is /dev/null
  }
  connectStandardStreams();
  for (const name of ["stdout", "stderr"]) {
    Deno[name].writeSync = (bytes) => printBytes(name, bytes);
    Deno[name].write = async (bytes) => printBytes(name, bytes);
  }

  jupyter.broadcast = async (type, content, { metadata = {} } = {}) => publish(type, content, metadata);
  jupyter.display = async (object, { raw = false, update = false, display_id } = {}) => {
    const data = raw ? object : await jupyter.format(object);
    const transient = display_id ? { display_id } : {};
    publish(update ? "update_display_data" : "display_data", { data, metadata: {}, transient });
  };
  internal.jupyter.broadcastResult = async (execution_count, result) => {
    if (result === undefined) {
      if (notices.length) publish("stream", { name: "stderr", text: "" });
      return;
    }
    publish("execute_result", { execution_count, data: await jupyter.format(result), metadata: {} });
  };

  // --- Ends ---

  // As `sys.exit` does in Python: the run ends, and the session lives on.
  class SystemExit extends Error {
    constructor(code) {
      super(String(code));
      this.name = "SystemExit";
      this.stack = `SystemExit: ${code}`;
    }
  }
  const exit = (code) => {
    throw new SystemExit(code ?? Deno.exitCode ?? 0);
  };
  Deno.exit = exit;
  process.exit = exit;

  // An error that nobody catches ends a program, but not a session.
  function report(event, error) {
    event.preventDefault();
    if (error instanceof SystemExit) return;
    print("stderr", `Uncaught ${internal.inspectArgs(["%o", error], { colors: false })}\n`);
  }
  globalThis.addEventListener("error", (event) => report(event, event.error));
  globalThis.addEventListener("unhandledrejection", (event) => report(event, event.reason));
  Deno.addSignalListener("SIGINT", () => {}); // it is for child processes; the kernel gets a message as well

  // --- Names that scripts for Node.js expect ---

  globalThis.require ??= getBuiltinModule("node:module").createRequire(`${Deno.cwd()}/`);
  globalThis.__dirname ??= Deno.cwd();

  // --- Errors ---

  const { stripTypeScriptTypes } = getBuiltinModule("node:module");
  const DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  const PREFIX = "'use strict'; void 0;".length; // which Deno puts before the first line
  const IMPORT = /^import\b(?!\s*[(.])[^'"();]*(['"])[^'"\n]*\1[^\S\n]*(?:with\s*\{[^}]*\})?;?/gm;

  // The places of a transpiled text by `line:column`, as [line, column] of the source. Both count from 1. The format:
  // https://tc39.es/ecma426/
  function placesOf(mappings) {
    const places = new Map();
    let sourceLine = 1, sourceColumn = 1;
    mappings.split(";").forEach((segments, index) => {
      let column = 1;
      for (const segment of segments.split(",")) {
        const fields = [];
        let value = 0, shift = 0;
        for (const digit of segment) {
          const bits = DIGITS.indexOf(digit);
          value |= (bits & 31) << shift;
          shift += 5;
          if (bits & 32) continue;
          fields.push(value & 1 ? -(value >> 1) : value >> 1);
          value = shift = 0;
        }
        if (fields.length === 0) continue;
        column += fields[0];
        if (fields.length < 4) continue;
        sourceLine += fields[2];
        sourceColumn += fields[3];
        places.set(`${index + 1}:${index ? column : column + PREFIX}`, [sourceLine, sourceColumn]);
      }
    });
    return places;
  }

  // Deno runs what it has made of the code, where lines are other ones. The same is made here once more, with a map.
  function withTrueLines(stack, code, cell) {
    const standIn = (text) => "await 0;" + "\n".repeat(text.split("\n").length - 1);
    const options = { mode: "transform", sourceMap: true };
    const made = stripTypeScriptTypes(code.replace(IMPORT, standIn), options);
    const { mappings } = parse(atob(made.slice(made.lastIndexOf(",") + 1)));
    const places = placesOf(mappings);
    return stack.replace(/<anonymous>:(\d+:\d+)/g, (frame, at) => {
      const place = places.get(at);
      return place ? `Cell In[${cell}], line ${place[0]}, column ${place[1]}` : frame;
    });
  }

  function syntaxError(code, cell) {
    try {
      stripTypeScriptTypes(code, { mode: "transform" });
      return null;
    } catch (error) {
      const text = String(error.message).replace(/^SyntaxError: /, "");
      const stack = `SyntaxError: ${text}`.replace(/file:\S*:(\d+):(\d+)$/, `Cell In[${cell}], line $1, column $2`);
      return { ename: "SyntaxError", evalue: text.split("\n")[0], traceback: stack.split("\n") };
    }
  }

  const UNTOLD = "Deno could not run this, and does not say why. Imports from npm:, jsr: and https: need a network.";

  // The `error` of a run that has failed; `reply` is what Deno has said of it.
  function errorOf(code, reply, isInterrupted) {
    const { ename, traceback, execution_count: cell } = reply;
    const evalue = reply.evalue === "(none)" && !traceback[0]?.endsWith("(none)") ? "" : reply.evalue;
    if (evalue === "Execution failed" && traceback.length === 0) {
      const found = isInterrupted ? null : syntaxError(code, cell);
      if (found) return found;
      const [name, text] = isInterrupted ? ["Interrupted", "The code was interrupted."] : ["Error", UNTOLD];
      return { ename: name, evalue: text, traceback: [`${name}: ${text}`] };
    }
    const stack = traceback.join("\n");
    try {
      return { ename, evalue, traceback: withTrueLines(stack, code, cell).split("\n") };
    } catch {
      return { ename, evalue, traceback };
    }
  }

  // --- What is called from outside ---

  const indirectEval = globalThis.eval;
  const displaced = new Map();
  const functions = Object.freeze({
    // A name that the session has declared by `let` gets the value; any other becomes a property of the global object,
    // so that code may still declare it. `arguments` is the one name that no variable can have.
    setVariables(variables) {
      for (const [name, value] of entries(parse(variables))) {
        try {
          indirectEval(`(function () { ${name} = arguments[0]; })`)(value);
          if (!is(indirectEval(name), value)) { // a property with a getter alone, as `self`
            defineProperty(globalThis, name, { value, writable: true, enumerable: true, configurable: true });
          }
        } catch {
          notices.push(`The variable ${name} could not be set: the code has declared it as a constant.`);
        }
      }
    },
    setEnvironment(variables) {
      for (const [name, value] of entries(parse(variables))) {
        if (!displaced.has(name)) displaced.set(name, Deno.env.get(name));
        Deno.env.set(name, value);
      }
    },
    putEnvironmentBack() {
      for (const [name, value] of displaced) {
        if (value === undefined) Deno.env.delete(name);
        else Deno.env.set(name, value);
      }
      displaced.clear();
    },
    explain(failed) {
      const { code, reply, interrupted } = parse(failed);
      publish("error", errorOf(code, reply, interrupted));
    },
  });
  Object.defineProperty(globalThis, Symbol.for("cellblock"), { value: functions });
})();
