// Names of files as they are shown. Pure.

/**
 * A name in which everything can be seen: quotes around outer blanks, and no characters that turn others round.
 * @param {string} path
 */
export function shownName(path) {
  const visible = path.replace(/[\p{Cc}\p{Cf}\u2028\u2029]/gu, "\ufffd");
  return /^\s|\s$/.test(visible) ? `"${visible}"` : visible;
}
